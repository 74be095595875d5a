"""The statements of PostgreSQL about concurrency limits: enqueueing under one, and giving a slot to who waits."""

from collections.abc import Mapping, Sequence
from typing import Any

from dj_queue.dialects.base import LimitedJob
from dj_queue.dialects.postgresql.sql import CHANNEL, READABLE_TIME

# ---- enqueue ----------------------------------------------------------------------------------------

# The lock gives the newest version of a semaphore, whatever this statement's snapshot shows of it. Where one
# is missing nothing is written: the caller makes it, and tries again. Nor where a limit is raised: those that
# were blocked by the lower one come first.
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
  ORDER BY key COLLATE "C" FOR UPDATE
),
free AS MATERIALIZED (
  SELECT semaphore.id, key, wanted.slots, wanted.duration,
    wanted.slots > semaphore."limit" AND NOT %(raised)s AS raised,
    semaphore.value + (wanted.slots - semaphore."limit") AS value
  FROM semaphore JOIN wanted USING (key)
),
placed AS MATERIALIZED (
  SELECT new.*, CASE
      WHEN NOT due THEN 'scheduled'
      WHEN row_number() OVER (PARTITION BY key, due ORDER BY place) <= free.value THEN 'ready'
      WHEN discards THEN 'finished'
      ELSE 'blocked' END AS state
  FROM new LEFT JOIN free USING (key)
  WHERE (SELECT count(*) FROM free WHERE NOT raised) = (SELECT count(*) FROM wanted)
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
SELECT statement_timestamp(), array_agg(id) FILTER (WHERE state = 'finished'), count(*),
  EXISTS (SELECT FROM free WHERE raised){notify}
FROM placed"""

NOTIFY_IF_READY = f", CASE WHEN bool_or(state = 'ready') THEN pg_notify('{CHANNEL}', %(alias)s) END"

# Under the semaphores' locks.
RAISE = """
UPDATE dj_queue_semaphores semaphore SET
  value = value + (raised.slots - semaphore."limit"), "limit" = raised.slots, updated_at = statement_timestamp()
FROM unnest(%(keys)s::text[], %(limits)s::int[]) AS raised(key, slots)
WHERE semaphore.key = raised.key AND semaphore."limit" < raised.slots"""

MAKE_SEMAPHORES = """
INSERT INTO dj_queue_semaphores (key, value, "limit", expires_at, created_at, updated_at)
SELECT key, slots, slots, statement_timestamp(), statement_timestamp(), statement_timestamp()
FROM unnest(%(keys)s::text[], %(limits)s::int[]) AS n(key, slots) ORDER BY key COLLATE "C"
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


# ---- unblock ----------------------------------------------------------------------------------------

LOCK = f"""
SELECT id, key, value, "limit", {READABLE_TIME.format("expires_at")}
FROM dj_queue_semaphores WHERE key = ANY (%(keys)s)
ORDER BY key COLLATE "C" FOR UPDATE {{skip}}"""

# Younger than the locks it relies on: what blocked on a semaphore before them is seen.
UNBLOCK = """
WITH slots AS MATERIALIZED (
  SELECT semaphore.id, semaphore.key, least(semaphore."limit", semaphore.value + freed.count::bigint)::int AS free
  FROM unnest(%(keys)s::text[], %(counts)s::int[]) AS freed(key, count)
  JOIN dj_queue_semaphores semaphore ON semaphore.key = freed.key
  ORDER BY semaphore.key COLLATE "C" FOR UPDATE OF semaphore
),
next AS MATERIALIZED (
  SELECT slots.id AS semaphore_id, blocked.* FROM slots, LATERAL (
    SELECT id, job_id, backend_alias, queue_name, priority, concurrency_key
    FROM dj_queue_blocked_executions
    WHERE concurrency_key = slots.key
    ORDER BY priority DESC, id LIMIT greatest(slots.free, 0) FOR UPDATE {skip}) blocked
),
gone AS (
  DELETE FROM dj_queue_blocked_executions WHERE id = ANY (ARRAY(SELECT id FROM next))
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
      -- Not least() and greatest(): they pass over NULL, which is where there is no next job.
      (SELECT statement_timestamp() + make_interval(secs => CASE
          WHEN max(job.concurrency_duration) < 0 THEN 0
          WHEN max(job.concurrency_duration) > 3153600000 THEN 3153600000
          ELSE max(job.concurrency_duration) END)
       FROM next JOIN dj_queue_jobs job ON job.id = next.job_id WHERE next.semaphore_id = slots.id),
      semaphore.expires_at),
    updated_at = statement_timestamp()
  FROM slots WHERE semaphore.id = slots.id
)
SELECT job_id, concurrency_key{notify} FROM next"""

NOTIFY_EACH = f", pg_notify('{CHANNEL}', backend_alias)"


def unblock(freed: Mapping[str, int], *, notify: bool, skip_locked: bool = False) -> tuple[str, dict[str, Any]]:
    keys = sorted(freed)
    statement = UNBLOCK.format(notify=NOTIFY_EACH if notify else "", skip="SKIP LOCKED" if skip_locked else "")
    return statement, {"keys": keys, "counts": [freed[key] for key in keys]}
