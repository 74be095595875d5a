"""What can be done with the queue. Transactions begin here, and nowhere else."""
