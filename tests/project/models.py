"""What tasks leave behind, so that a test can count how often each ran."""

from django.db import models


class Run(models.Model):
    """One execution of a task."""

    label = models.CharField(max_length=100)
    worker = models.CharField(max_length=100, default="")

    def __str__(self) -> str:
        return self.label
