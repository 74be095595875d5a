"""Work that is pointless twice: while one job of a key waits or runs, the others are dropped."""

from project import runtime, wait_until_finished

from tasks import import_report

# The key comes from a function of the arguments: here it is the report's day (see tasks.py).
monday = [import_report.enqueue({"day": "Monday", "rows": rows}) for rows in (10, 20, 30)]
tuesday = import_report.enqueue({"day": "Tuesday", "rows": 40})
print("at once:", *(result.status for result in [*monday, tuesday]))

with runtime():
    wait_until_finished(monday[0], tuesday)
    # The key is free again.
    again = import_report.enqueue({"day": "Monday", "rows": 50})
    wait_until_finished(again)

for result in [*monday, tuesday, again]:
    result.refresh()
    # What was dropped counts as finished, and was never attempted.
    print(f"{result.attempts} attempts: {result.return_value}")
