"""A site whose server runs the queue too."""
