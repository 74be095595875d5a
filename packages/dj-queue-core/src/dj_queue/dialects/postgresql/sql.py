"""The statements of PostgreSQL, and what is put into them.

Each step of the hot path is one statement of several CTEs. Rows are found by index and locked, deleted by
their ids, and moved within the same statement. Not by their physical place: a lock that meets a row which was
updated since the snapshot yields the place of the new version, and a delete by place finds only what the
snapshot shows; a delete by id finds the old version, and follows it to the new one. The pick of a claim and
what concurrency limits need stand in modules of their own.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dj_queue.dialects.base import FIRST_WORKERS, MOST_WORKERS, NewJob, Outcome

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


# ---- claim ------------------------------------------------------------------------------------------

CLAIM = """
WITH RECURSIVE {picked},
gone AS (
  DELETE FROM dj_queue_ready_executions WHERE id = ANY (ARRAY(SELECT id FROM picked))
),
held AS (
  INSERT INTO dj_queue_claimed_executions (job_id, process_id, position, created_at)
  SELECT job_id, %(process)s::bigint, id, statement_timestamp() FROM picked
  RETURNING id, job_id
)
SELECT held.id, job.id, job.task_path, job.queue_name, job.priority, job.payload,
  CASE WHEN job.scheduled_at BETWEEN {first} AND {last} THEN job.scheduled_at END,
  CASE WHEN job.created_at BETWEEN {first} AND {last} THEN job.created_at ELSE statement_timestamp() END,
  CASE WHEN job.started_at BETWEEN {first} AND {last} THEN job.started_at END,
  job.concurrency_key, statement_timestamp(),
  CASE WHEN job.created_at NOT BETWEEN {first} AND {last} THEN 'created_at is ' || job.created_at
    WHEN job.scheduled_at NOT BETWEEN {first} AND {last} THEN 'scheduled_at is ' || job.scheduled_at
    WHEN job.started_at NOT BETWEEN {first} AND {last} THEN 'started_at is ' || job.started_at END
FROM held LEFT JOIN dj_queue_jobs job ON job.id = held.job_id"""

# What Python can hold, in whatever time zone: a time beyond it would keep a whole batch from being read.
CALENDAR = {"first": "'0001-01-03 00:00+00'::timestamptz", "last": "'9999-12-29 00:00+00'::timestamptz"}

READABLE_TIME = "CASE WHEN {{0}} BETWEEN {first} AND {last} THEN {{0}} END".format(**CALENDAR)

# ---- finish -----------------------------------------------------------------------------------------

FINISH = """
WITH done AS MATERIALIZED (
  SELECT * FROM unnest(%(claims)s::bigint[], %(values)s::text[],
    %(classes)s::text[], %(messages)s::text[], %(traces)s::text[]{keys})
    AS d(claim_id, return_value, exception_class, message, trace{key})
),
gone AS (
  DELETE FROM dj_queue_claimed_executions claim USING done WHERE claim.id = done.claim_id
  RETURNING claim.id, claim.job_id, claim.created_at, done.return_value, done.exception_class,
    done.message, done.trace{done_key}
),{succeeded}{freed}
changed AS (
  UPDATE dj_queue_jobs job SET
    finished_at = CASE WHEN gone.exception_class IS NULL THEN statement_timestamp() END,
    return_value = gone.return_value::jsonb,
    started_at = coalesce(job.started_at, gone.created_at),
    last_attempted_at = gone.created_at,
    worker_ids = {workers} || to_jsonb(%(worker)s::text),
    updated_at = statement_timestamp()
  FROM gone WHERE job.id = gone.job_id {only}{returning}
){failed}
SELECT statement_timestamp(), array_agg(id) FROM gone"""

# Of what the update has returned: a job that was changed since the snapshot fails where it is now.
RETURNING_FAILED = """
  RETURNING job.id, job.backend_alias, job.queue_name, gone.exception_class, gone.message, gone.trace"""
FINISH_FAILED = """,
failed AS (
  INSERT INTO dj_queue_failed_executions
    (job_id, backend_alias, queue_name, exception_class, message, traceback, created_at)
  SELECT id, backend_alias, queue_name, exception_class, message, trace, statement_timestamp()
  FROM changed WHERE exception_class IS NOT NULL
)"""

# Slots are given back under their semaphores' locks, taken in the order of the keys.
FINISH_FREED = """
freed AS MATERIALIZED (
  SELECT key, count(*) AS count FROM gone WHERE key IS NOT NULL GROUP BY key
),
semaphore AS MATERIALIZED (
  SELECT id, key FROM dj_queue_semaphores WHERE key = ANY (ARRAY(SELECT key FROM freed))
  ORDER BY key COLLATE "C" FOR UPDATE
),
released AS (
  UPDATE dj_queue_semaphores SET
    value = least(dj_queue_semaphores."limit", value + freed.count::bigint), updated_at = statement_timestamp()
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


# The names of earlier attempts with room for one more, whatever is stored there: one entry says how many are left out.
_WORKERS = f"""CASE WHEN job.worker_ids IS NULL OR jsonb_typeof(job.worker_ids) <> 'array' THEN '[]'::jsonb
      WHEN jsonb_array_length(job.worker_ids) < {MOST_WORKERS} THEN job.worker_ids
      ELSE jsonb_set(job.worker_ids - {FIRST_WORKERS + 1}, '{{{FIRST_WORKERS}}}', to_jsonb('[... ' || 1 + coalesce(
        substring(job.worker_ids ->> {FIRST_WORKERS} FROM '^\\[\\.\\.\\. ([0-9]{{1,15}}) left out')::bigint, 1)
        || ' left out ...]')) END"""


def finish(
    outcomes: Sequence[Outcome], *, worker: str, preserve: bool, keys: Mapping[int, str] | None = None
) -> tuple[str, dict[str, Any]]:
    """The statement that records outcomes, and frees slots where claims have `keys`; and its parameters."""
    some_failed = any(outcome.error for outcome in outcomes)
    statement = FINISH.format(
        workers=_WORKERS,
        failed=FINISH_FAILED if some_failed else "",
        returning=RETURNING_FAILED if some_failed else "",
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
        "values": _texts(outcome.return_value for outcome in outcomes),
        "classes": _texts(outcome.error and outcome.error.exception_class for outcome in outcomes),
        "messages": _texts(outcome.error and outcome.error.message for outcome in outcomes),
        "traces": _texts(outcome.error and outcome.error.traceback for outcome in outcomes),
        **({"claim_keys": [keys.get(outcome.claim_id) for outcome in outcomes]} if keys else {}),
    }


def _texts(values: Iterable[str | None]) -> list[str | None]:
    """An array beside others; empty where it has nothing to say, as `unnest` fills up what is shorter."""
    texts = list(values)
    return texts if any(text is not None for text in texts) else []


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
  SELECT id, job_id, queue_name, priority FROM dj_queue_scheduled_executions
  WHERE backend_alias = %(alias)s AND scheduled_at <= statement_timestamp() {but}
  ORDER BY scheduled_at, priority DESC, id LIMIT %(limit)s FOR UPDATE {skip}
),
gone AS (
  DELETE FROM dj_queue_scheduled_executions WHERE id = ANY (ARRAY(SELECT id FROM due))
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

BUT_KEYS = """
    AND coalesce((SELECT concurrency_key FROM dj_queue_jobs job WHERE job.id = job_id), '') <> ALL (%(except_keys)s)"""

NOTIFY_IF_ANY = f", CASE WHEN count(*) > 0 THEN pg_notify('{CHANNEL}', %(alias)s) END"


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
