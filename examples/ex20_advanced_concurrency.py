"""At most a number of jobs of one key at once: the others wait, or are dropped."""

from project import runtime, wait_until_finished

from itertools import pairwise

from dj_queue.models import Job
from tasks import build_report, sync_account

blocked = [sync_account.enqueue(42, action) for action in ("first", "second", "third")]
other = sync_account.enqueue(43, "another account")
discarded = [build_report.enqueue("sales") for _ in range(3)]
print(f"ready: {Job.objects.ready().count()}, blocked: {Job.objects.blocked().count()}")

with runtime(workers={"threads": 4}):
    wait_until_finished(*blocked, other, *discarded)

print("in order:", ", ".join(result.return_value[0] for result in blocked))
spans = [result.return_value[1:] for result in blocked]
print("never two at once:", all(ended <= began for (_, ended), (began, _) in pairwise(spans)))
print("reports:", [result.return_value for result in discarded])
