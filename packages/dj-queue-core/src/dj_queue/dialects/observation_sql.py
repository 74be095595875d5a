"""Statements that look at a whole backend, in SQL that every database understands.

No count reads more rows than its cap. Where a derived table may refer to the outside, its limit sees to
that. MariaDB lets it refer to nothing: there, the row behind the cap is looked for first, and only if
there is none are the rows counted.
"""

# The names of the queues in a table, each found by a probe of the index (backend_alias, queue_name, ...).
# Where the planner skips from one value to the next by itself, as those of MySQL and MariaDB do:
DISTINCT_NAMES = """
every AS (SELECT DISTINCT queue_name FROM {table} WHERE backend_alias = %(alias)s)"""

# Elsewhere, by recursion; the last row is NULL.
SKIPPED_NAMES = """
every AS (
  SELECT (SELECT first.queue_name FROM {table} first
    WHERE first.backend_alias = %(alias)s ORDER BY first.queue_name LIMIT 1) AS queue_name
  UNION ALL
  SELECT (SELECT later.queue_name FROM {table} later
    WHERE later.backend_alias = %(alias)s AND later.queue_name > every.queue_name ORDER BY later.queue_name LIMIT 1)
  FROM every WHERE every.queue_name IS NOT NULL
)"""


LIMITED = "(SELECT count(*) FROM (SELECT 1 FROM {table} WHERE {where} LIMIT {more}) limited)"
PROBED = (
    "CASE WHEN (SELECT 1 FROM {table} WHERE {where} LIMIT 1 OFFSET {cap}) = 1 THEN {more}"
    " ELSE (SELECT count(*) FROM {table} WHERE {where}) END"
)


def capped(count: str, table: str, where: str, cap: int) -> str:
    """How many rows there are; one more than the cap if there are more. `count` is one of the two above."""
    return count.format(table=table, where=where, cap=cap, more=cap + 1)


def queues(names: str, count: str, time: str, *, cap: int, most: int) -> str:
    """One row for each queue that has jobs, a pause or a recurring task."""
    of_queue = "backend_alias = %(alias)s AND queue_name = names.queue_name"
    counts = {
        state: capped(count, f"dj_queue_{state}_executions", of_queue, cap)
        for state in ("ready", "scheduled", "blocked", "failed")
    }
    exceeded = " OR ".join(f"counted.{state} > {cap}" for state in counts)
    of_counted = of_queue.replace("names.", "counted.")
    return f"""
WITH RECURSIVE {names.format(table="dj_queue_jobs")},
used AS (SELECT queue_name FROM every WHERE queue_name IS NOT NULL LIMIT {most}),
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
),
counted AS (
  -- The limit keeps planners from evaluating these again wherever they are named below.
  SELECT names.queue_name AS queue_name,
    {counts["ready"]} AS ready,
    {counts["scheduled"]} AS scheduled,
    {counts["blocked"]} AS blocked,
    {counts["failed"]} AS failed
  FROM names ORDER BY names.queue_name LIMIT {most}
)
SELECT counted.queue_name, counted.ready, counted.scheduled,
  (SELECT running.jobs FROM running WHERE running.queue_name = counted.queue_name),
  (SELECT 1 FROM dj_queue_claimed_executions LIMIT 1 OFFSET {cap}),
  counted.blocked, counted.failed,
  CASE WHEN {exceeded} THEN NULL ELSE {capped(count, "dj_queue_jobs", of_counted, cap)} END,
  CASE WHEN EXISTS (SELECT 1 FROM dj_queue_pauses WHERE {of_counted}) THEN 1 ELSE 0 END,
  (SELECT {time.format("scheduled_at")} FROM dj_queue_scheduled_executions WHERE {of_counted}
    ORDER BY scheduled_at LIMIT 1),
  (SELECT {time.format("created_at")} FROM dj_queue_blocked_executions WHERE {of_counted} ORDER BY id LIMIT 1)
FROM counted ORDER BY counted.queue_name LIMIT {most}"""


def waiting_since(names: str, time: str, *, look: int) -> str:
    """Since when the longest waiting ready job of each queue has been ready.

    Within a priority, jobs lie in the order in which they became ready, but for those that a worker gave
    back to their old places: so the first `look` of each priority are looked at, and no more.
    """
    head = "backend_alias = %(alias)s AND queue_name = heads.queue_name AND priority = heads.priority"
    since = time.format("coalesce(latency_started_at, created_at)")
    return f"""
WITH RECURSIVE {names.format(table="dj_queue_ready_executions")},
heads AS (
  SELECT every.queue_name, (SELECT ready.priority FROM dj_queue_ready_executions ready
    WHERE ready.backend_alias = %(alias)s AND ready.queue_name = every.queue_name
    ORDER BY ready.priority DESC LIMIT 1) AS priority
  FROM every WHERE every.queue_name IS NOT NULL
  UNION ALL
  SELECT heads.queue_name, (SELECT ready.priority FROM dj_queue_ready_executions ready
    WHERE ready.backend_alias = %(alias)s AND ready.queue_name = heads.queue_name
      AND ready.priority < heads.priority ORDER BY ready.priority DESC LIMIT 1)
  FROM heads WHERE heads.priority IS NOT NULL
),
bounded AS (
  -- The limit keeps planners from evaluating the subquery again for every row that it bounds.
  SELECT queue_name, priority,
    (SELECT id FROM dj_queue_ready_executions WHERE {head} ORDER BY id LIMIT 1 OFFSET {look}) AS last_id
  FROM heads WHERE priority IS NOT NULL LIMIT 1000000
)
SELECT queue_name, min(since) FROM (
  SELECT queue_name, (SELECT min({since}) FROM dj_queue_ready_executions ready
    WHERE ready.backend_alias = %(alias)s AND ready.queue_name = bounded.queue_name
      AND ready.priority = bounded.priority AND ready.id <= coalesce(bounded.last_id, 9223372036854775807)) AS since
  FROM bounded
) waiting GROUP BY queue_name"""


def finished(count: int, *, look: int) -> str:
    """How many of the oldest jobs of these queues are finished: read from the jobs themselves."""
    branch = """
SELECT %(queue{n})s, (SELECT count(finished_at) FROM (
  SELECT finished_at FROM dj_queue_jobs WHERE backend_alias = %(alias)s AND queue_name = %(queue{n})s
  ORDER BY backend_alias, queue_name, id LIMIT {look}) oldest{n})"""
    return " UNION ALL ".join(branch.format(n=n, look=look) for n in range(count))


def semaphores(key: str, limit: str, count: str, time: str, *, cap: int, most: int) -> str:
    """The first semaphores by key, with how many jobs each holds back. `key` and `limit` are quoted names."""
    waiters = capped(count, "dj_queue_blocked_executions", "concurrency_key = semaphore.name", cap)
    return f"""
SELECT semaphore.name, semaphore.value, semaphore.slots, {time.format("semaphore.expires_at")}, {waiters}
FROM (SELECT {key} AS name, value, {limit} AS slots, expires_at FROM dj_queue_semaphores ORDER BY {key} LIMIT {most})
  semaphore ORDER BY semaphore.name"""
