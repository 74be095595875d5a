from django.db import migrations, models


class Migration(migrations.Migration):
    # Expands only: a worker of the version before goes on beside it.
    dependencies = [("dj_queue", "0001_initial")]

    operations = [
        migrations.AddField(
            model_name="recurringtask",
            name="catch_up",
            field=models.CharField(blank=True, max_length=8, null=True),
        ),
    ]
