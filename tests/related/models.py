"""Rows of an application that refer to jobs, in every way that Django has. Installed by the tests that need it."""

from django.db import models


class Protecting(models.Model):
    job = models.ForeignKey("dj_queue.Job", on_delete=models.PROTECT, related_name="+")


class Restricting(models.Model):
    job = models.OneToOneField("dj_queue.Job", on_delete=models.RESTRICT)


class Bare(models.Model):
    job = models.ForeignKey("dj_queue.Job", on_delete=models.DO_NOTHING, related_name="+")


class Cascading(models.Model):
    job = models.ForeignKey("dj_queue.Job", on_delete=models.CASCADE, related_name="+")


class Nested(models.Model):
    """Holds a job two steps away: the job's row cascades to one that is protected."""

    cascading = models.ForeignKey(Cascading, on_delete=models.PROTECT)


class Emptied(models.Model):
    job = models.ForeignKey("dj_queue.Job", null=True, on_delete=models.SET_NULL, related_name="+")


class Many(models.Model):
    jobs = models.ManyToManyField("dj_queue.Job")


class Loose(models.Model):
    """As the documents recommend it."""

    job = models.ForeignKey("dj_queue.Job", db_constraint=False, on_delete=models.DO_NOTHING, related_name="+")
