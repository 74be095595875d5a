"""Keep work out of the queue until a time in the future."""

from project import runtime, wait_until_finished

from datetime import timedelta

from django.utils import timezone

from tasks import send_digest

due = timezone.now() + timedelta(seconds=1)
result = send_digest.using(run_after=due).enqueue("daily")
print(f"before it is due: {result.status}")

with runtime(dispatchers={"polling_interval": 0.1}):
    wait_until_finished(result)

print(f"{result.return_value}; it began after it was due: {result.started_at >= due}")
