"""The statements of PostgreSQL, and what is put into them.

Each step of the hot path is one statement of several CTEs. Rows are found by index, deleted by their
physical place, which their lock keeps, and moved within the same statement.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from dj_queue.dialects.base import LimitedJob, NewJob, Outcome, Selector, needed

# One channel for the whole database: a session that listens hears of every alias, and wakes for its own.
CHANNEL = "dj_queue"

# ---- enqueue ----------------------------------------------------------------------------------------

INSERT = """
WITH new AS MATERIALIZED ({source}),
stored AS (
  INSERT INTO dj_queue_jobs
    (id, task_path, queue_name, priority, payload, backend_alias, scheduled_at, created_at, updated_at)
  SELECT id, task_path, queue_name, priority, payload, %(alias)s, run_after, statement_timestamp(),
    statement_timestamp()
  FROM new
),{scheduled}
ready AS (
  INSERT INTO dj_queue_ready_executions (job_id, backend_alias, queue_name, priority, created_at)
  SELECT id, %(alias)s, queue_name, priority, statement_timestamp() FROM new {due}
)
SELECT statement_timestamp(){notify}"""

INSERT_SCHEDULED = """
waiting AS (
  INSERT INTO dj_queue_scheduled_executions
    (job_id, backend_alias, queue_name, priority, scheduled_at, created_at)
  SELECT id, %(alias)s, queue_name, priority, run_after, statement_timestamp()
  FROM new WHERE run_after > statement_timestamp()
),"""

NOTIFY = f", pg_notify('{CHANNEL}', %(alias)s)"


def new_rows(jobs: Sequence[NewJob]) -> tuple[str, dict[str, Any]]:
    if len(jobs) == 1:
        job = jobs[0]
        return (
            "SELECT %(id)s::uuid AS id, %(path)s::text AS task_path, %(queue)s::text AS queue_name,"
            " %(priority)s::smallint AS priority, %(payload)s::jsonb AS payload,"
            " %(run_after)s::timestamptz AS run_after",
            {
                "id": job.id,
                "path": job.task_path,
                "queue": job.queue_name,
                "priority": job.priority,
                "payload": job.payload,
                "run_after": job.run_after,
            },
        )
    columns = list(zip(*jobs, strict=True))
    names = ("ids", "paths", "queues", "priorities", "payloads", "run_afters")
    return (
        "SELECT id, task_path, queue_name, priority, payload::jsonb AS payload, run_after FROM unnest("
        "%(ids)s::uuid[], %(paths)s::text[], %(queues)s::text[], %(priorities)s::smallint[],"
        " %(payloads)s::text[], %(run_afters)s::timestamptz[])"
        " AS n(id, task_path, queue_name, priority, payload, run_after)",
        {name: list(column) for name, column in zip(names, columns, strict=True)},
    )


# ---- enqueue under a limit --------------------------------------------------------------------------

# The lock gives the newest version of a semaphore, whatever this statement's snapshot shows of it. Where one
# is missing nothing is written: the caller makes it, and tries again.
INSERT_LIMITED = """
WITH new AS MATERIALIZED (
  SELECT *, run_after IS NULL OR run_after <= statement_timestamp() AS due FROM unnest(
    %(ids)s::uuid[], %(paths)s::text[], %(queues)s::text[], %(priorities)s::smallint[], %(payloads)s::text[],
    %(run_afters)s::timestamptz[], %(keys)s::text[], %(limits)s::int[], %(durations)s::float8[],
    %(discards)s::bool[])
    WITH ORDINALITY AS n(id, task_path, queue_name, priority, payload, run_after, key, slots, duration, discards,
      place)
),
wanted AS MATERIALIZED (
  -- Of several limits of one key, the last counts.
  SELECT DISTINCT ON (key) key, slots, duration FROM new WHERE due ORDER BY key, place DESC
),
semaphore AS MATERIALIZED (
  SELECT id, key, value, "limit" FROM dj_queue_semaphores WHERE key = ANY (ARRAY(SELECT key FROM wanted))
  ORDER BY key FOR UPDATE
),
free AS MATERIALIZED (
  SELECT semaphore.id, key, wanted.slots, wanted.duration, semaphore.value + wanted.slots - semaphore."limit" AS value
  FROM semaphore JOIN wanted USING (key)
),
placed AS MATERIALIZED (
  SELECT new.*, CASE
      WHEN NOT due THEN 'scheduled'
      WHEN row_number() OVER (PARTITION BY key, due ORDER BY place) <= free.value THEN 'ready'
      WHEN discards THEN 'finished'
      ELSE 'blocked' END AS state
  FROM new LEFT JOIN free USING (key)
  WHERE (SELECT count(*) FROM free) = (SELECT count(*) FROM wanted)
),
stored AS (
  INSERT INTO dj_queue_jobs
    (id, task_path, queue_name, priority, payload, backend_alias, scheduled_at, finished_at, concurrency_key,
     concurrency_limit, concurrency_duration, on_conflict, created_at, updated_at)
  SELECT id, task_path, queue_name, priority, payload::jsonb, %(alias)s, run_after,
    CASE WHEN state = 'finished' THEN statement_timestamp() END, key, slots, duration,
    CASE WHEN discards THEN 'discard' ELSE 'block' END, statement_timestamp(), statement_timestamp()
  FROM placed
),
waiting AS (
  INSERT INTO dj_queue_scheduled_executions
    (job_id, backend_alias, queue_name, priority, scheduled_at, created_at)
  SELECT id, %(alias)s, queue_name, priority, run_after, statement_timestamp()
  FROM placed WHERE state = 'scheduled' ORDER BY place
),
ready AS (
  INSERT INTO dj_queue_ready_executions
    (job_id, backend_alias, queue_name, priority, concurrency_key, created_at)
  SELECT id, %(alias)s, queue_name, priority, key, statement_timestamp()
  FROM placed WHERE state = 'ready' ORDER BY place
),
blocked AS (
  INSERT INTO dj_queue_blocked_executions
    (job_id, backend_alias, queue_name, priority, concurrency_key, expires_at, created_at)
  SELECT id, %(alias)s, queue_name, priority, key, statement_timestamp() + make_interval(secs => duration),
    statement_timestamp()
  FROM placed WHERE state = 'blocked' ORDER BY place
),
changed AS (
  UPDATE dj_queue_semaphores semaphore SET
    value = free.value - taken.count,
    "limit" = free.slots,
    expires_at = CASE WHEN taken.count > 0 THEN statement_timestamp() + make_interval(secs => free.duration)
      ELSE semaphore.expires_at END,
    updated_at = statement_timestamp()
  FROM free, LATERAL (SELECT count(*) FROM placed WHERE placed.key = free.key AND placed.state = 'ready') taken
  WHERE semaphore.id = free.id AND EXISTS (SELECT FROM placed)
)
SELECT statement_timestamp(), array_agg(id) FILTER (WHERE state = 'finished'), count(*){notify} FROM placed"""

NOTIFY_IF_READY = f", CASE WHEN bool_or(state = 'ready') THEN pg_notify('{CHANNEL}', %(alias)s) END"

MAKE_SEMAPHORES = """
INSERT INTO dj_queue_semaphores (key, value, "limit", expires_at, created_at, updated_at)
SELECT key, slots, slots, statement_timestamp(), statement_timestamp(), statement_timestamp()
FROM unnest(%(keys)s::text[], %(limits)s::int[]) AS n(key, slots) ORDER BY key
ON CONFLICT (key) DO NOTHING"""


def limited_rows(jobs: Sequence[LimitedJob]) -> dict[str, Any]:
    new = list(zip(*(each.job for each in jobs), strict=True))
    names = ("ids", "paths", "queues", "priorities", "payloads", "run_afters")
    return {
        **{name: list(column) for name, column in zip(names, new, strict=True)},
        "keys": [each.key for each in jobs],
        "limits": [each.limit for each in jobs],
        "durations": [each.duration for each in jobs],
        "discards": [each.discards for each in jobs],
    }


# ---- claim ------------------------------------------------------------------------------------------

CLAIM = """
WITH RECURSIVE {picked},
gone AS (
  DELETE FROM dj_queue_ready_executions WHERE ctid = ANY (ARRAY(SELECT tid FROM picked))
),
held AS (
  INSERT INTO dj_queue_claimed_executions (job_id, process_id, position, created_at)
  SELECT job_id, %(process)s::bigint, id, statement_timestamp() FROM picked
  RETURNING id, job_id
)
SELECT held.id, job.id, job.task_path, job.queue_name, job.priority, job.payload, job.scheduled_at,
  job.created_at, job.started_at, job.worker_ids, job.errors, job.concurrency_key, statement_timestamp()
FROM held LEFT JOIN dj_queue_jobs job ON job.id = held.job_id"""

# Whether a queue is paused is asked before its rows are looked for, and so inside of what looks for them:
# a join's order is the planner's choice, and rows of a paused queue must not be locked at every poll.

# Everything, nothing paused: straight down one index. The subquery is evaluated once, before the scan.
_PICK_ALL = """
  SELECT tid, id, job_id FROM (
    SELECT ctid AS tid, id, job_id FROM dj_queue_ready_executions
    WHERE backend_alias = %(alias)s
      AND NOT EXISTS (SELECT FROM dj_queue_pauses WHERE backend_alias = %(alias)s)
    ORDER BY priority DESC, id LIMIT %(limit)s {lock}) unpaused
  UNION ALL
  (SELECT tid, id, job_id FROM (
     SELECT row.tid, row.id, row.job_id, row.priority FROM names, LATERAL (
       SELECT ctid AS tid, id, job_id, priority FROM dj_queue_ready_executions
       WHERE backend_alias = %(alias)s AND queue_name = names.queue_name
         AND NOT EXISTS (SELECT FROM dj_queue_pauses pause
           WHERE pause.backend_alias = %(alias)s AND pause.queue_name = names.queue_name)
       ORDER BY priority DESC, id LIMIT %(limit)s {lock}) row
     WHERE EXISTS (SELECT FROM dj_queue_pauses WHERE backend_alias = %(alias)s)
       AND names.queue_name IS NOT NULL
   ) merged ORDER BY priority DESC, id LIMIT %(limit)s)"""

_PICK_NAMED = """
  (SELECT row.tid, row.id, row.job_id FROM unnest(%({names})s::text[]) WITH ORDINALITY AS wanted(queue_name, rank),
     LATERAL (
       SELECT ctid AS tid, id, job_id FROM dj_queue_ready_executions
       WHERE backend_alias = %(alias)s AND queue_name = wanted.queue_name
         AND NOT EXISTS (SELECT FROM dj_queue_pauses pause
           WHERE pause.backend_alias = %(alias)s AND pause.queue_name = wanted.queue_name)
       ORDER BY priority DESC, id LIMIT %(limit)s {lock}) row
   LIMIT %(limit)s)"""

_PICK_PREFIX = """
  (SELECT tid, id, job_id FROM (
     SELECT row.tid, row.id, row.job_id, row.priority FROM names, LATERAL (
       SELECT ctid AS tid, id, job_id, priority FROM dj_queue_ready_executions
       WHERE backend_alias = %(alias)s AND queue_name = names.queue_name
         AND NOT EXISTS (SELECT FROM dj_queue_pauses pause
           WHERE pause.backend_alias = %(alias)s AND pause.queue_name = names.queue_name)
       ORDER BY priority DESC, id LIMIT %(limit)s {lock}) row
     WHERE starts_with(names.queue_name, %({prefix})s) {but}
   ) merged ORDER BY priority DESC, id LIMIT %(limit)s)"""

# The names of the queues that hold ready jobs: one index probe a queue, however many jobs they hold.
_NAMES = """names AS (
  (SELECT queue_name FROM dj_queue_ready_executions
   WHERE backend_alias = %(alias)s ORDER BY queue_name LIMIT 1)
  UNION ALL
  SELECT (SELECT queue_name FROM dj_queue_ready_executions ready
    WHERE ready.backend_alias = %(alias)s AND ready.queue_name > names.queue_name
    ORDER BY ready.queue_name LIMIT 1)
  FROM names WHERE names.queue_name IS NOT NULL
)"""


def picked(selectors: Sequence[Selector], lock: str) -> tuple[str, dict[str, Any]]:
    """The CTE of the rows to claim, its branches in the order of the selectors, and its parameters."""
    branches: list[str] = []
    params: dict[str, Any] = {}
    for prefix, group in groupby(needed(selectors), key=lambda selector: selector.prefix):
        if not prefix:
            key = f"names{len(branches)}"
            params[key] = [selector.name for selector in group]
            branches.append(_PICK_NAMED.format(lock=lock, names=key))
            continue
        for selector in group:
            if selector.everything and not branches:
                return (
                    f"{_NAMES},\npicked AS MATERIALIZED ({_PICK_ALL.format(lock=lock)} LIMIT %(limit)s)",
                    {},
                )
            key = f"prefix{len(branches)}"
            # A row that an earlier branch has locked is no obstacle to its own transaction.
            but = "".join(
                _BUT_NAMED.format(names=k) if k.startswith("names") else _BUT_PREFIX.format(prefix=k) for k in params
            )
            params[key] = selector.name
            branches.append(_PICK_PREFIX.format(lock=lock, prefix=key, but=but))
    names = f"{_NAMES},\n" if any(key.startswith("prefix") for key in params) else ""
    limit = " LIMIT %(limit)s" if len(branches) > 1 else ""
    return f"{names}picked AS MATERIALIZED ({'  UNION ALL'.join(branches)}{limit})", params


_BUT_NAMED = " AND names.queue_name <> ALL (%({names})s::text[])"
_BUT_PREFIX = " AND NOT starts_with(names.queue_name, %({prefix})s)"


# ---- finish -----------------------------------------------------------------------------------------

FINISH = """
WITH done AS MATERIALIZED (
  SELECT * FROM unnest(%(claims)s::bigint[], %(values)s::text[], %(starts)s::timestamptz[],
    %(classes)s::text[], %(messages)s::text[], %(traces)s::text[]{keys})
    AS d(claim_id, return_value, started_at, exception_class, message, trace{key})
),
gone AS (
  DELETE FROM dj_queue_claimed_executions claim USING done WHERE claim.id = done.claim_id
  RETURNING claim.id, claim.job_id, done.return_value, done.started_at, done.exception_class,
    done.message, done.trace{done_key}
),{failed}{succeeded}{freed}
changed AS (
  UPDATE dj_queue_jobs job SET
    finished_at = CASE WHEN gone.exception_class IS NULL THEN statement_timestamp() END,
    return_value = gone.return_value::jsonb,
    started_at = coalesce(job.started_at, gone.started_at),
    last_attempted_at = gone.started_at,
    worker_ids = coalesce(job.worker_ids, '[]'::jsonb) || to_jsonb(%(worker)s::text),
    updated_at = statement_timestamp()
  FROM gone WHERE job.id = gone.job_id {only}
)
SELECT statement_timestamp(), array_agg(id) FROM gone"""

FINISH_FAILED = """
failed AS (
  INSERT INTO dj_queue_failed_executions
    (job_id, backend_alias, queue_name, exception_class, message, traceback, created_at)
  SELECT job.id, job.backend_alias, job.queue_name, gone.exception_class, gone.message, gone.trace,
    statement_timestamp()
  FROM gone JOIN dj_queue_jobs job ON job.id = gone.job_id WHERE gone.exception_class IS NOT NULL
),"""

# Slots are given back under their semaphores' locks, taken in the order of the keys.
FINISH_FREED = """
freed AS MATERIALIZED (
  SELECT key, count(*) AS count FROM gone WHERE key IS NOT NULL GROUP BY key
),
semaphore AS MATERIALIZED (
  SELECT id, key FROM dj_queue_semaphores WHERE key = ANY (ARRAY(SELECT key FROM freed)) ORDER BY key FOR UPDATE
),
released AS (
  UPDATE dj_queue_semaphores SET
    value = least(dj_queue_semaphores."limit", value + freed.count), updated_at = statement_timestamp()
  FROM semaphore JOIN freed USING (key) WHERE dj_queue_semaphores.id = semaphore.id
),"""

DELETE_SUCCEEDED = """
ticks AS (
  UPDATE dj_queue_recurring_executions tick SET job_id = NULL
  FROM gone WHERE tick.job_id = gone.job_id AND gone.exception_class IS NULL
),
succeeded AS (
  DELETE FROM dj_queue_jobs job USING gone WHERE job.id = gone.job_id AND gone.exception_class IS NULL
),"""


def finish(
    outcomes: Sequence[Outcome], *, worker: str, preserve: bool, keys: Mapping[int, str] | None = None
) -> tuple[str, dict[str, Any]]:
    """The statement that records outcomes, and frees slots where claims have `keys`; and its parameters."""
    some_failed = any(outcome.error for outcome in outcomes)
    statement = FINISH.format(
        failed=FINISH_FAILED if some_failed else "",
        succeeded="" if preserve else DELETE_SUCCEEDED,
        only="" if preserve else "AND gone.exception_class IS NOT NULL",
        keys=", %(claim_keys)s::text[]" if keys else "",
        key=", key" if keys else "",
        done_key=", done.key" if keys else "",
        freed=FINISH_FREED if keys else "",
    )
    return statement, {
        "worker": worker,
        "claims": [outcome.claim_id for outcome in outcomes],
        "values": [outcome.return_value for outcome in outcomes],
        "starts": [outcome.started_at for outcome in outcomes],
        "classes": [outcome.error and outcome.error.exception_class for outcome in outcomes],
        "messages": [outcome.error and outcome.error.message for outcome in outcomes],
        "traces": [outcome.error and outcome.error.traceback for outcome in outcomes],
        **({"claim_keys": [keys.get(outcome.claim_id) for outcome in outcomes]} if keys else {}),
    }


# ---- release, promote -------------------------------------------------------------------------------

RELEASE = """
WITH gone AS (
  DELETE FROM dj_queue_claimed_executions WHERE id = ANY (%(claims)s)
  RETURNING job_id, position, created_at
),
back AS (
  INSERT INTO dj_queue_ready_executions
    (id, job_id, backend_alias, queue_name, priority, concurrency_key, created_at)
  SELECT coalesce(gone.position, nextval(pg_get_serial_sequence('dj_queue_ready_executions', 'id'))),
    job.id, job.backend_alias, job.queue_name, job.priority, job.concurrency_key, gone.created_at
  FROM gone JOIN dj_queue_jobs job ON job.id = gone.job_id
)
SELECT count(*){notify} FROM gone"""

PROMOTE = """
WITH due AS MATERIALIZED (
  SELECT ctid AS tid, job_id, queue_name, priority FROM dj_queue_scheduled_executions
  WHERE backend_alias = %(alias)s AND scheduled_at <= statement_timestamp()
  ORDER BY scheduled_at, priority DESC, id LIMIT %(limit)s FOR UPDATE {skip}
),
gone AS (
  DELETE FROM dj_queue_scheduled_executions WHERE ctid = ANY (ARRAY(SELECT tid FROM due))
),
job AS MATERIALIZED (
  -- Not a join: its output would promise no order.
  SELECT job_id, queue_name, priority,
    (SELECT concurrency_key FROM dj_queue_jobs job WHERE job.id = due.job_id) AS concurrency_key
  FROM due
),
ready AS (
  INSERT INTO dj_queue_ready_executions (job_id, backend_alias, queue_name, priority, created_at)
  SELECT job_id, %(alias)s, queue_name, priority, statement_timestamp() FROM job
  WHERE concurrency_key IS NULL
)
SELECT count(*), array_agg(job_id) FILTER (WHERE concurrency_key IS NOT NULL){notify} FROM job"""

NOTIFY_IF_ANY = f", CASE WHEN count(*) > 0 THEN pg_notify('{CHANNEL}', %(alias)s) END"


# ---- concurrency limits -----------------------------------------------------------------------------

LOCK = "SELECT FROM dj_queue_semaphores WHERE key = ANY (%(keys)s) ORDER BY key FOR UPDATE"

# Younger than the locks it relies on: what blocked on a semaphore before them is seen.
UNBLOCK = """
WITH slots AS MATERIALIZED (
  SELECT semaphore.id, semaphore.key, least(semaphore."limit", semaphore.value + freed.count) AS free
  FROM unnest(%(keys)s::text[], %(counts)s::int[]) AS freed(key, count)
  JOIN dj_queue_semaphores semaphore ON semaphore.key = freed.key
  ORDER BY semaphore.key FOR UPDATE OF semaphore
),
next AS MATERIALIZED (
  SELECT slots.id AS semaphore_id, blocked.* FROM slots, LATERAL (
    SELECT ctid AS tid, job_id, backend_alias, queue_name, priority, concurrency_key
    FROM dj_queue_blocked_executions
    WHERE concurrency_key = slots.key
    ORDER BY priority DESC, id LIMIT greatest(slots.free, 0) FOR UPDATE) blocked
),
gone AS (
  DELETE FROM dj_queue_blocked_executions WHERE ctid = ANY (ARRAY(SELECT tid FROM next))
),
ready AS (
  INSERT INTO dj_queue_ready_executions
    (job_id, backend_alias, queue_name, priority, concurrency_key, created_at)
  SELECT job_id, backend_alias, queue_name, priority, concurrency_key, statement_timestamp() FROM next
),
changed AS (
  UPDATE dj_queue_semaphores semaphore SET
    value = slots.free - (SELECT count(*) FROM next WHERE next.semaphore_id = slots.id),
    expires_at = coalesce(
      (SELECT statement_timestamp() + make_interval(secs => max(job.concurrency_duration))
       FROM next JOIN dj_queue_jobs job ON job.id = next.job_id WHERE next.semaphore_id = slots.id),
      semaphore.expires_at),
    updated_at = statement_timestamp()
  FROM slots WHERE semaphore.id = slots.id
)
SELECT job_id, concurrency_key{notify} FROM next"""

NOTIFY_EACH = f", pg_notify('{CHANNEL}', backend_alias)"


def unblock(freed: Mapping[str, int], *, notify: bool) -> tuple[str, dict[str, Any]]:
    keys = sorted(freed)
    return UNBLOCK.format(notify=NOTIFY_EACH if notify else ""), {"keys": keys, "counts": [freed[key] for key in keys]}


# ---- storage ----------------------------------------------------------------------------------------

# Room on each page for the second version of a job that its finish writes, so that no index is touched.
# Tables through which every job passes are vacuumed by what has changed, not by a share of their size.
STORAGE = (
    "ALTER TABLE dj_queue_jobs SET (fillfactor = 40)",
    *(
        f"ALTER TABLE dj_queue_{table}_executions SET (autovacuum_vacuum_scale_factor = 0.0,"
        " autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_scale_factor = 0.0,"
        " autovacuum_vacuum_insert_threshold = 50000)"
        for table in ("ready", "claimed", "scheduled", "blocked")
    ),
    "ALTER TABLE dj_queue_processes SET (fillfactor = 50)",
    "ALTER TABLE dj_queue_semaphores SET (fillfactor = 50)",
)

# -1 is no limit; what is reserved is not for everybody. `reserved_connections` came with PostgreSQL 16.
CONNECTION_LIMIT = """
SELECT least(
  current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
    - coalesce(current_setting('reserved_connections', true)::int, 0),
  (SELECT datconnlimit FROM pg_database WHERE datname = current_database() AND datconnlimit >= 0),
  (SELECT rolconnlimit FROM pg_roles WHERE rolname = current_user AND rolconnlimit >= 0))"""
