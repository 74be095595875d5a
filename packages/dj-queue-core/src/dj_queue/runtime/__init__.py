"""The processes and threads that work the queue. Threads, signals and sleeping live only here."""
