"""Statements that look at a whole backend, in SQL that every database understands.

No count reads more rows than its cap: first the row behind the cap is looked for, and only if there is
none are the rows counted. Both are correlated scalar subqueries, because MariaDB lets a derived table
refer to nothing outside of it.
"""

# Which queues have jobs, and which priorities a queue's ready jobs have. Where the planner skips from
# one value of an index to the next by itself, as MySQL and MariaDB do, this costs one probe a value.
DISTINCT_QUEUES = """
used AS (SELECT DISTINCT queue_name FROM dj_queue_jobs WHERE backend_alias = %(alias)s LIMIT {most})"""

DISTINCT_HEADS = """
heads AS (
  SELECT queue_name, priority FROM dj_queue_ready_executions WHERE backend_alias = %(alias)s
  GROUP BY queue_name, priority
)"""

# The same, skipping by recursion.
SKIPPED_QUEUES = """
every AS (
  SELECT min(queue_name) AS queue_name FROM dj_queue_jobs WHERE backend_alias = %(alias)s
  UNION ALL
  SELECT (SELECT min(job.queue_name) FROM dj_queue_jobs job
    WHERE job.backend_alias = %(alias)s AND job.queue_name > every.queue_name)
  FROM every WHERE every.queue_name IS NOT NULL
),
used AS (SELECT queue_name FROM every WHERE queue_name IS NOT NULL LIMIT {most})"""

SKIPPED_HEADS = """
every AS (
  SELECT min(queue_name) AS queue_name FROM dj_queue_ready_executions WHERE backend_alias = %(alias)s
  UNION ALL
  SELECT (SELECT min(ready.queue_name) FROM dj_queue_ready_executions ready
    WHERE ready.backend_alias = %(alias)s AND ready.queue_name > every.queue_name)
  FROM every WHERE every.queue_name IS NOT NULL
),
heads AS (
  SELECT every.queue_name, (SELECT max(ready.priority) FROM dj_queue_ready_executions ready
    WHERE ready.backend_alias = %(alias)s AND ready.queue_name = every.queue_name) AS priority
  FROM every WHERE every.queue_name IS NOT NULL
  UNION ALL
  SELECT heads.queue_name, (SELECT max(ready.priority) FROM dj_queue_ready_executions ready
    WHERE ready.backend_alias = %(alias)s AND ready.queue_name = heads.queue_name
      AND ready.priority < heads.priority)
  FROM heads WHERE heads.priority IS NOT NULL
)"""


def capped(table: str, where: str, cap: int) -> str:
    """How many rows there are; one more than the cap if there are more."""
    rows = f"FROM {table} WHERE {where}"
    return f"CASE WHEN (SELECT 1 {rows} LIMIT 1 OFFSET {cap}) = 1 THEN {cap + 1} ELSE (SELECT count(*) {rows}) END"


def queues(used: str, *, cap: int, most: int) -> str:
    """One row for each queue that has jobs, a pause or a recurring task."""
    of_queue = "backend_alias = %(alias)s AND queue_name = names.queue_name"
    counts = {
        state: capped(f"dj_queue_{state}_executions", of_queue, cap)
        for state in ("ready", "scheduled", "blocked", "failed")
    }
    return f"""
WITH RECURSIVE {used.format(most=most)},
names AS (
  SELECT queue_name FROM used
  UNION SELECT queue_name FROM dj_queue_pauses WHERE backend_alias = %(alias)s
  UNION SELECT queue_name FROM dj_queue_recurring_tasks WHERE backend_alias = %(alias)s
),
running AS (
  SELECT queue_name, count(*) AS jobs FROM (
    SELECT (SELECT job.queue_name FROM dj_queue_jobs job
      WHERE job.id = claim.job_id AND job.backend_alias = %(alias)s) AS queue_name
    FROM (SELECT job_id FROM dj_queue_claimed_executions ORDER BY id LIMIT {cap}) claim
  ) claimed WHERE queue_name IS NOT NULL GROUP BY queue_name
)
SELECT names.queue_name,
  {counts["ready"]},
  {counts["scheduled"]},
  (SELECT running.jobs FROM running WHERE running.queue_name = names.queue_name),
  (SELECT 1 FROM dj_queue_claimed_executions LIMIT 1 OFFSET {cap}),
  {counts["blocked"]},
  {counts["failed"]},
  {capped("dj_queue_jobs", of_queue, 2 * cap)},
  CASE WHEN EXISTS (SELECT 1 FROM dj_queue_pauses WHERE {of_queue}) THEN 1 ELSE 0 END,
  (SELECT scheduled_at FROM dj_queue_scheduled_executions WHERE {of_queue} ORDER BY scheduled_at LIMIT 1),
  (SELECT created_at FROM dj_queue_blocked_executions WHERE {of_queue} ORDER BY id LIMIT 1)
FROM names ORDER BY names.queue_name LIMIT {most}"""


def waiting_since(heads: str, *, look: int) -> str:
    """Since when the longest waiting ready job of each queue has been ready.

    Within a priority, jobs lie in the order in which they became ready, but for those that a worker gave
    back to their old places: so the first `look` of each priority are looked at, and no more.
    """
    of_head = "backend_alias = %(alias)s AND queue_name = heads.queue_name AND priority = heads.priority"
    return f"""
WITH RECURSIVE {heads}
SELECT queue_name, min(since) FROM (
  SELECT heads.queue_name AS queue_name, CASE
    WHEN (SELECT 1 FROM dj_queue_ready_executions WHERE {of_head} LIMIT 1 OFFSET {look}) = 1
    THEN (SELECT min(coalesce(latency_started_at, created_at)) FROM dj_queue_ready_executions WHERE {of_head}
      AND id <= (SELECT id FROM dj_queue_ready_executions WHERE {of_head} ORDER BY id LIMIT 1 OFFSET {look}))
    ELSE (SELECT min(coalesce(latency_started_at, created_at)) FROM dj_queue_ready_executions WHERE {of_head})
    END AS since
  FROM heads WHERE heads.priority IS NOT NULL
) waiting GROUP BY queue_name"""


def finished(count: int, *, look: int) -> str:
    """How many of the oldest jobs of so many queues are finished: read from the jobs themselves."""
    branch = """
SELECT %(queue{n})s, (SELECT count(finished_at) FROM dj_queue_jobs
  WHERE backend_alias = %(alias)s AND queue_name = %(queue{n})s AND id <= (SELECT id FROM dj_queue_jobs
    WHERE backend_alias = %(alias)s AND queue_name = %(queue{n})s ORDER BY id LIMIT 1 OFFSET {look}))"""
    return " UNION ALL ".join(branch.format(n=n, look=look - 1) for n in range(count))


def semaphores(key: str, limit: str, *, cap: int, most: int) -> str:
    """The first semaphores by key, with how many jobs each holds back. `key` and `limit` are quoted names."""
    waiters = capped("dj_queue_blocked_executions", "concurrency_key = semaphore.name", cap)
    return f"""
SELECT semaphore.name, semaphore.value, semaphore.slots, semaphore.expires_at, {waiters}
FROM (SELECT {key} AS name, value, {limit} AS slots, expires_at FROM dj_queue_semaphores ORDER BY {key} LIMIT {most})
  semaphore ORDER BY semaphore.name"""
