"""An application with tasks of every kind, for tests and the processes that they start."""
