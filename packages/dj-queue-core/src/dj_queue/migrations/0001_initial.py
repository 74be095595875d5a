import dj_queue.dialects.job_id
import dj_queue.identifiers
import dj_queue.models
import django.core.validators
import django.db.models.deletion
import django.db.models.functions.datetime
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import StateApps

from dj_queue.dialects import dialect_for


def tune_tables(apps: StateApps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    dialect_for(schema_editor.connection.alias).tune_tables(schema_editor)


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Dashboard",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
            ],
            options={
                "verbose_name": "dashboard",
                "verbose_name_plural": "dashboard",
                "base_manager_name": "objects",
                "default_permissions": (),
                "managed": False,
            },
        ),
        migrations.CreateModel(
            name="Job",
            fields=[
                (
                    "id",
                    dj_queue.dialects.job_id.JobIdField(
                        default=dj_queue.identifiers.uuid7, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("task_path", models.TextField()),
                ("queue_name", models.CharField(default="default", max_length=64)),
                (
                    "priority",
                    models.SmallIntegerField(
                        default=0,
                        validators=[
                            django.core.validators.MinValueValidator(-100),
                            django.core.validators.MaxValueValidator(100),
                        ],
                    ),
                ),
                ("payload", models.JSONField(default=dj_queue.models.empty_payload)),
                ("backend_alias", models.CharField(default="default", max_length=64)),
                ("scheduled_at", models.DateTimeField(blank=True, null=True)),
                ("finished_at", models.DateTimeField(blank=True, null=True)),
                ("concurrency_key", models.CharField(blank=True, max_length=255, null=True)),
                ("concurrency_limit", models.PositiveIntegerField(blank=True, null=True)),
                ("concurrency_duration", models.FloatField(blank=True, null=True)),
                ("on_conflict", models.CharField(blank=True, max_length=7, null=True)),
                ("return_value", models.JSONField(blank=True, null=True)),
                ("started_at", models.DateTimeField(blank=True, null=True)),
                ("last_attempted_at", models.DateTimeField(blank=True, null=True)),
                ("worker_ids", models.JSONField(blank=True, null=True)),
                ("errors", models.JSONField(blank=True, null=True)),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
                ),
                (
                    "updated_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
                ),
            ],
            options={
                "db_table": "dj_queue_jobs",
                "permissions": [("operate_queue", "Can pause and resume queues, retry jobs and enqueue them again")],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("priority__gte", -100), ("priority__lte", 100)),
                        name="dj_queue_jobs_priority_range",
                    )
                ],
                "indexes": [models.Index(fields=["backend_alias", "queue_name", "id"], name="dj_queue_jobs_queue")],
            },
        ),
        migrations.CreateModel(
            name="Pause",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("backend_alias", models.CharField(default="default", max_length=64)),
                ("queue_name", models.CharField(max_length=64)),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
                ),
            ],
            options={
                "db_table": "dj_queue_pauses",
                "constraints": [
                    models.UniqueConstraint(fields=("backend_alias", "queue_name"), name="dj_queue_pauses_queue")
                ],
            },
        ),
        migrations.CreateModel(
            name="Process",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("backend_alias", models.CharField(default="default", max_length=64)),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("Supervisor", "Supervisor"),
                            ("Worker", "Worker"),
                            ("Dispatcher", "Dispatcher"),
                            ("Scheduler", "Scheduler"),
                        ],
                        max_length=16,
                    ),
                ),
                ("pid", models.PositiveIntegerField()),
                ("hostname", models.CharField(blank=True, default="", max_length=255)),
                ("name", models.CharField(max_length=255)),
                ("metadata", models.JSONField(blank=True, default=dict)),
                ("last_heartbeat_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
                ),
                (
                    "supervisor",
                    models.ForeignKey(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="children",
                        to="dj_queue.process",
                    ),
                ),
            ],
            options={
                "db_table": "dj_queue_processes",
            },
        ),
        migrations.CreateModel(
            name="ClaimedExecution",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("position", models.BigIntegerField(blank=True, null=True)),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
                ),
                (
                    "job",
                    models.OneToOneField(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="claimed_execution",
                        to="dj_queue.job",
                    ),
                ),
                (
                    "process",
                    models.ForeignKey(
                        blank=True,
                        db_constraint=False,
                        db_index=False,
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="claimed_executions",
                        to="dj_queue.process",
                    ),
                ),
            ],
            options={
                "db_table": "dj_queue_claimed_executions",
            },
        ),
        migrations.CreateModel(
            name="ReadyExecution",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("backend_alias", models.CharField(default="default", max_length=64)),
                ("queue_name", models.CharField(default="default", max_length=64)),
                ("priority", models.SmallIntegerField(default=0)),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
                ),
                ("concurrency_key", models.CharField(blank=True, max_length=255, null=True)),
                ("latency_started_at", models.DateTimeField(blank=True, null=True)),
                (
                    "job",
                    models.OneToOneField(
                        db_constraint=False,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="ready_execution",
                        to="dj_queue.job",
                    ),
                ),
            ],
            options={
                "db_table": "dj_queue_ready_executions",
            },
        ),
        migrations.CreateModel(
            name="RecurringExecution",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("backend_alias", models.CharField(default="default", max_length=64)),
                ("task_key", models.CharField(max_length=255)),
                ("run_at", models.DateTimeField()),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
                ),
                (
                    "job",
                    models.OneToOneField(
                        blank=True,
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="recurring_execution",
                        to="dj_queue.job",
                    ),
                ),
            ],
            options={
                "db_table": "dj_queue_recurring_executions",
                "indexes": [models.Index(fields=["backend_alias", "run_at", "id"], name="dj_queue_recurring_age")],
            },
        ),
        migrations.CreateModel(
            name="RecurringTask",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("backend_alias", models.CharField(default="default", max_length=64)),
                ("key", models.CharField(max_length=255)),
                ("task_path", models.CharField(max_length=255)),
                ("payload", models.JSONField(blank=True, null=True)),
                ("schedule", models.CharField(max_length=255)),
                ("timezone", models.CharField(blank=True, max_length=64, null=True)),
                ("queue_name", models.CharField(default="default", max_length=64)),
                ("priority", models.SmallIntegerField(default=0)),
                ("description", models.TextField(blank=True, default="")),
                ("static", models.BooleanField(default=False)),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
                ),
                (
                    "updated_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
                ),
            ],
            options={
                "db_table": "dj_queue_recurring_tasks",
                "constraints": [
                    models.UniqueConstraint(fields=("backend_alias", "key"), name="dj_queue_recurring_tasks_key")
                ],
            },
        ),
        migrations.CreateModel(
            name="ScheduledExecution",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("backend_alias", models.CharField(default="default", max_length=64)),
                ("queue_name", models.CharField(default="default", max_length=64)),
                ("priority", models.SmallIntegerField(default=0)),
                ("scheduled_at", models.DateTimeField()),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
                ),
                (
                    "job",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="scheduled_execution",
                        to="dj_queue.job",
                    ),
                ),
            ],
            options={
                "db_table": "dj_queue_scheduled_executions",
            },
        ),
        migrations.CreateModel(
            name="Semaphore",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("key", models.CharField(max_length=255)),
                ("value", models.IntegerField()),
                ("limit", models.IntegerField()),
                ("expires_at", models.DateTimeField()),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
                ),
                (
                    "updated_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
                ),
            ],
            options={
                "db_table": "dj_queue_semaphores",
                "constraints": [models.UniqueConstraint(fields=("key",), name="dj_queue_semaphores_key")],
            },
        ),
        migrations.CreateModel(
            name="FailedExecution",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("backend_alias", models.CharField(default="default", max_length=64)),
                ("queue_name", models.CharField(default="default", max_length=64)),
                ("exception_class", models.CharField(max_length=255)),
                ("message", models.TextField(blank=True, default="")),
                ("traceback", models.TextField(blank=True, default="")),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
                ),
                (
                    "job",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE, related_name="failed_execution", to="dj_queue.job"
                    ),
                ),
            ],
            options={
                "db_table": "dj_queue_failed_executions",
                "indexes": [
                    models.Index(fields=["backend_alias", "created_at", "id"], name="dj_queue_failed_time"),
                    models.Index(fields=["backend_alias", "queue_name", "id"], name="dj_queue_failed_queue"),
                ],
            },
        ),
        migrations.CreateModel(
            name="BlockedExecution",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("backend_alias", models.CharField(default="default", max_length=64)),
                ("queue_name", models.CharField(default="default", max_length=64)),
                ("priority", models.SmallIntegerField(default=0)),
                ("concurrency_key", models.CharField(max_length=255)),
                ("expires_at", models.DateTimeField()),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
                ),
                (
                    "job",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE, related_name="blocked_execution", to="dj_queue.job"
                    ),
                ),
            ],
            options={
                "db_table": "dj_queue_blocked_executions",
                "indexes": [
                    models.Index(fields=["concurrency_key", "-priority", "id"], name="dj_queue_blocked_next"),
                    models.Index(fields=["backend_alias", "queue_name", "id"], name="dj_queue_blocked_queue"),
                ],
            },
        ),
        migrations.AddConstraint(
            model_name="process",
            constraint=models.UniqueConstraint(fields=("name", "supervisor"), name="dj_queue_processes_name"),
        ),
        migrations.AddIndex(
            model_name="readyexecution",
            index=models.Index(fields=["backend_alias", "-priority", "id"], name="dj_queue_ready_all"),
        ),
        migrations.AddIndex(
            model_name="readyexecution",
            index=models.Index(fields=["backend_alias", "queue_name", "-priority", "id"], name="dj_queue_ready_queue"),
        ),
        migrations.AddIndex(
            model_name="readyexecution",
            index=models.Index(
                condition=models.Q(("concurrency_key__isnull", False)),
                fields=["concurrency_key"],
                name="dj_queue_ready_holders",
            ),
        ),
        migrations.AddConstraint(
            model_name="recurringexecution",
            constraint=models.UniqueConstraint(
                fields=("backend_alias", "task_key", "run_at"), name="dj_queue_recurring_tick"
            ),
        ),
        migrations.AddIndex(
            model_name="scheduledexecution",
            index=models.Index(
                fields=["backend_alias", "scheduled_at", "-priority", "id"], name="dj_queue_scheduled_due"
            ),
        ),
        migrations.AddIndex(
            model_name="scheduledexecution",
            index=models.Index(fields=["backend_alias", "queue_name", "scheduled_at"], name="dj_queue_scheduled_queue"),
        ),
        # What Django's schema does not say: storage parameters on PostgreSQL, collations on MySQL.
        # Not a transaction of its own: MySQL has none for this, and elsewhere it is the migration's.
        migrations.RunPython(tune_tables, migrations.RunPython.noop, atomic=False),
    ]
