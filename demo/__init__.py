"""`make demo`: a thousand jobs on a fresh SQLite file, through a real runtime."""
