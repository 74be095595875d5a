"""The statements of MySQL and MariaDB, and what is put into them.

Both plan by statistics that a queue's tables outrun, and both read a whole table where it is small,
locking what they read: every statement says which index it goes by, and in which order it joins.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from dj_queue.dialects.base import FIRST_WORKERS, MOST_WORKERS

# Rows given by their ids are visited one by one, in the order given. An IN may be answered by reading a table whole,
# and with locks, by waiting for rows that others hold.
_IDS = "JSON_TABLE(%s, '$[*]' COLUMNS (id BIGINT PATH '$')) done"

# ---- enqueue ----------------------------------------------------------------------------------------

INSERT_JOBS = """INSERT INTO dj_queue_jobs
(id, task_path, queue_name, priority, payload, backend_alias, scheduled_at, created_at, updated_at)
VALUES {rows}"""

INSERT_LIMITED_JOBS = """INSERT INTO dj_queue_jobs
(id, task_path, queue_name, priority, payload, backend_alias, scheduled_at, created_at, updated_at, finished_at,
concurrency_key, concurrency_limit, concurrency_duration, on_conflict)
VALUES {rows}"""

INSERT_BLOCKED = """INSERT INTO dj_queue_blocked_executions
(job_id, backend_alias, queue_name, priority, concurrency_key, created_at, expires_at) VALUES {rows}"""

INSERT_READY = """INSERT INTO dj_queue_ready_executions
(job_id, backend_alias, queue_name, priority, concurrency_key, created_at) VALUES {rows}"""

INSERT_SCHEDULED = """INSERT INTO dj_queue_scheduled_executions
(job_id, backend_alias, queue_name, priority, scheduled_at, created_at) VALUES {rows}"""

ANY_READY = "SELECT 1 FROM dj_queue_ready_executions WHERE backend_alias = %s LIMIT 1"

# The least of an index is looked up; whether there is any below a bound may be scanned for.
ANY_DUE = "SELECT MIN(scheduled_at) <= {now} FROM dj_queue_scheduled_executions WHERE backend_alias = %s"

# ---- claim ------------------------------------------------------------------------------------------

ANY_PAUSED = "SELECT 1 FROM dj_queue_pauses FORCE INDEX (dj_queue_pauses_queue) WHERE backend_alias = %s LIMIT 1"

PAUSED = "(SELECT queue_name FROM dj_queue_pauses WHERE backend_alias = %s AND queue_name = %s)"

# The next name after each of these: one look into the index, however many jobs a queue holds.
NEXT_NAME = "(SELECT MIN(queue_name) FROM dj_queue_ready_executions WHERE backend_alias = %s AND queue_name > %s)"

PICK = """(SELECT id, job_id, priority FROM dj_queue_ready_executions FORCE INDEX ({index})
WHERE {where} ORDER BY {order} LIMIT %s {lock})"""

NOTHING_PAUSED = "backend_alias = %s AND NOT EXISTS (SELECT 1 FROM dj_queue_pauses WHERE backend_alias = %s)"

NEXT_PRIORITY = "SELECT MAX(priority) FROM {table} WHERE {where} {below}"

HOLD = "INSERT INTO dj_queue_claimed_executions (job_id, process_id, position, created_at) VALUES {rows}"

HELD = """SELECT claim.id, job.id, job.task_path, job.queue_name, job.priority, job.payload, job.scheduled_at,
job.created_at, job.started_at, job.concurrency_key, claim.created_at
FROM dj_queue_claimed_executions claim FORCE INDEX (job_id)
STRAIGHT_JOIN dj_queue_jobs job FORCE INDEX (PRIMARY) ON job.id = claim.job_id
WHERE claim.job_id IN ({ids}) {lock}"""

DROP_ORPHANS = """DELETE gone FROM dj_queue_claimed_executions gone FORCE INDEX (job_id)
WHERE gone.job_id IN ({ids})"""

# ---- finish -----------------------------------------------------------------------------------------

LOCK_CLAIMS = f"""SELECT claim.id, {{now}} FROM {_IDS}
STRAIGHT_JOIN dj_queue_claimed_executions claim FORCE INDEX (PRIMARY) ON claim.id = done.id {{lock}}"""

_OF_CLAIM = """STRAIGHT_JOIN dj_queue_claimed_executions claim FORCE INDEX (PRIMARY) ON claim.id = done.claim_id
STRAIGHT_JOIN dj_queue_jobs job FORCE INDEX (PRIMARY) ON job.id = claim.job_id"""

# The names of earlier attempts with room for one more, whatever is stored there: one entry says how many are left out.
_ENTRY = f"JSON_UNQUOTE(JSON_EXTRACT(job.worker_ids, '$[{FIRST_WORKERS}]'))"
_LEFT_OUT = f"""IF({_ENTRY} LIKE '[... %% left out ...]',
CAST(SUBSTRING_INDEX(SUBSTRING({_ENTRY}, 6, 15), ' ', 1) AS UNSIGNED), 1)"""
_WORKERS = f"""CASE WHEN job.worker_ids IS NULL OR NOT JSON_VALID(job.worker_ids) THEN JSON_ARRAY()
WHEN JSON_TYPE(job.worker_ids) <> 'ARRAY' THEN JSON_ARRAY()
WHEN JSON_LENGTH(job.worker_ids) < {MOST_WORKERS} THEN job.worker_ids
ELSE JSON_REMOVE(JSON_SET(job.worker_ids, '$[{FIRST_WORKERS}]', CONCAT('[... ', 1 + {_LEFT_OUT}, ' left out ...]')),
'$[{FIRST_WORKERS + 1}]') END"""

FINISH = f"""UPDATE JSON_TABLE(%s, '$[*]' COLUMNS (claim_id BIGINT PATH '$[0]', started_at DATETIME(6) PATH '$[1]',
failed TINYINT PATH '$[2]', return_value LONGTEXT PATH '$[3]')) done
{_OF_CLAIM}
SET job.finished_at = IF(done.failed, NULL, %s), job.return_value = done.return_value,
job.started_at = COALESCE(job.started_at, done.started_at), job.last_attempted_at = done.started_at,
job.worker_ids = JSON_ARRAY_APPEND({_WORKERS}, '$', %s),
job.updated_at = %s"""

FINISH_FAILED = f"""INSERT INTO dj_queue_failed_executions
(job_id, backend_alias, queue_name, exception_class, message, traceback, created_at)
SELECT job.id, job.backend_alias, job.queue_name, done.exception_class, done.message, done.trace, %s
FROM JSON_TABLE(%s, '$[*]' COLUMNS (claim_id BIGINT PATH '$[0]', exception_class LONGTEXT PATH '$[1]',
message LONGTEXT PATH '$[2]', trace LONGTEXT PATH '$[3]')) done
{_OF_CLAIM}"""

FORGET_TICKS = f"""UPDATE {_IDS}
STRAIGHT_JOIN dj_queue_claimed_executions claim FORCE INDEX (PRIMARY) ON claim.id = done.id
STRAIGHT_JOIN dj_queue_recurring_executions tick FORCE INDEX (job_id) ON tick.job_id = claim.job_id
SET tick.job_id = NULL"""

DELETE_SUCCEEDED = f"""DELETE job FROM {_IDS}
STRAIGHT_JOIN dj_queue_claimed_executions claim FORCE INDEX (PRIMARY) ON claim.id = done.id
STRAIGHT_JOIN dj_queue_jobs job FORCE INDEX (PRIMARY) ON job.id = claim.job_id"""

DELETE = f"DELETE gone FROM {_IDS} STRAIGHT_JOIN {{table}} gone FORCE INDEX (PRIMARY) ON gone.id = done.id"

# ---- release, promote -------------------------------------------------------------------------------

GIVE_BACK = f"""INSERT INTO dj_queue_ready_executions
(id, job_id, backend_alias, queue_name, priority, concurrency_key, created_at)
SELECT claim.position, job.id, job.backend_alias, job.queue_name, job.priority, job.concurrency_key, claim.created_at
FROM {_IDS} STRAIGHT_JOIN dj_queue_claimed_executions claim FORCE INDEX (PRIMARY) ON claim.id = done.id
STRAIGHT_JOIN dj_queue_jobs job FORCE INDEX (PRIMARY) ON job.id = claim.job_id"""

# How many of the first are due; only that number is then locked. A condition on the time might be checked row by row,
# down the whole schedule, and each row locked.
COUNT_DUE = """SELECT SUM(scheduled_at <= {now}) FROM (SELECT scheduled_at FROM dj_queue_scheduled_executions
FORCE INDEX (dj_queue_scheduled_due) WHERE backend_alias = %s ORDER BY scheduled_at LIMIT %s) first"""

DUE = """SELECT id, job_id, queue_name, priority, scheduled_at, scheduled_at <= {now}, {now}
FROM dj_queue_scheduled_executions FORCE INDEX (dj_queue_scheduled_due)
WHERE backend_alias = %s ORDER BY {order} LIMIT %s {lock}"""

# Without the jobs of some keys: looked for first, and then locked by their ids.
DUE_BUT = """SELECT id FROM dj_queue_scheduled_executions scheduled FORCE INDEX (dj_queue_scheduled_due)
WHERE backend_alias = %s AND scheduled_at <= {now} AND COALESCE((SELECT concurrency_key FROM dj_queue_jobs job
FORCE INDEX (PRIMARY) WHERE job.id = scheduled.job_id), '') NOT IN ({but}) ORDER BY {order} LIMIT %s"""

DUE_OF = f"""SELECT scheduled.id, job_id, queue_name, priority, scheduled_at, scheduled_at <= {{now}}, {{now}}
FROM {_IDS} STRAIGHT_JOIN dj_queue_scheduled_executions scheduled FORCE INDEX (PRIMARY) ON scheduled.id = done.id
WHERE backend_alias = %s {{lock}}"""

JOBS = "SELECT id, {column} FROM dj_queue_jobs FORCE INDEX (PRIMARY) WHERE id IN ({ids})"

# ---- unblock ----------------------------------------------------------------------------------------

# Both have the same columns: the semaphores' locks and the next blocked jobs are one round trip.
LOCK_SEMAPHORE = """(SELECT 0, id, `key`, value, `limit`, {now}, NULL, NULL, NULL, NULL
FROM dj_queue_semaphores WHERE `key` = %s FOR UPDATE {skip})"""

NEXT_BLOCKED = """(SELECT 1, id, concurrency_key, priority, NULL, NULL, job_id, backend_alias, queue_name,
(SELECT concurrency_duration FROM dj_queue_jobs job FORCE INDEX (PRIMARY) WHERE job.id = blocked.job_id)
FROM dj_queue_blocked_executions blocked FORCE INDEX ({index})
WHERE {where} ORDER BY {order} LIMIT %s {lock})"""

# The claims that have ended, and the blocked rows of those that start in their place.
DELETE_ENDED = """DELETE gone, started FROM JSON_TABLE(%s, '$[*]' COLUMNS (claim_id BIGINT PATH '$[0]',
blocked_id BIGINT PATH '$[1]')) done
LEFT JOIN dj_queue_claimed_executions gone FORCE INDEX (PRIMARY) ON gone.id = done.claim_id
LEFT JOIN dj_queue_blocked_executions started FORCE INDEX (PRIMARY) ON started.id = done.blocked_id"""

CHANGE_SEMAPHORES = """UPDATE JSON_TABLE(%s, '$[*]' COLUMNS (id BIGINT PATH '$[0]', value BIGINT PATH '$[1]',
slots BIGINT PATH '$[2]', expires_at DATETIME(6) PATH '$[3]')) changed
STRAIGHT_JOIN dj_queue_semaphores semaphore FORCE INDEX (PRIMARY) ON semaphore.id = changed.id
SET semaphore.value = changed.value, semaphore.`limit` = changed.slots,
semaphore.expires_at = COALESCE(changed.expires_at, semaphore.expires_at), semaphore.updated_at = %s"""

# Not IGNORE: a transaction that meets a row is to wait for it alone, and not share a lock on it.
MAKE_SEMAPHORES = """INSERT INTO dj_queue_semaphores (`key`, value, `limit`, expires_at, created_at, updated_at)
VALUES {rows} ON DUPLICATE KEY UPDATE `key` = `key`"""

# ---- storage ----------------------------------------------------------------------------------------

TABLES = {
    "dj_queue_jobs": ("created_at", "updated_at"),
    "dj_queue_ready_executions": ("created_at",),
    "dj_queue_scheduled_executions": ("created_at",),
    "dj_queue_claimed_executions": ("created_at",),
    "dj_queue_blocked_executions": ("created_at",),
    "dj_queue_failed_executions": ("created_at",),
    "dj_queue_processes": ("created_at", "last_heartbeat_at"),
    "dj_queue_pauses": ("created_at",),
    "dj_queue_semaphores": ("created_at", "updated_at"),
    "dj_queue_recurring_tasks": ("created_at", "updated_at"),
    "dj_queue_recurring_executions": ("created_at",),
}

DESCENDING = """SELECT COUNT(*) FROM information_schema.statistics WHERE table_schema = DATABASE()
AND index_name IN ('dj_queue_ready_all', 'dj_queue_ready_queue', 'dj_queue_scheduled_due', 'dj_queue_blocked_next')
AND column_name = 'priority' AND collation = 'D'"""

# The session's value is the account's own limit, where it has one; 0 is no limit.
CONNECTION_LIMIT = "SELECT LEAST(@@max_connections, COALESCE(NULLIF(@@max_user_connections, 0), @@max_connections))"


def storage(table: str, *, collation: str, utc: bool) -> str:
    """Names that differ in case, in accents or in spaces at the end are different names.

    And where Django stores UTC, times that the database fills in are UTC, whatever its own zone.
    """
    changes = [f"CONVERT TO CHARACTER SET utf8mb4 COLLATE {collation}"]
    if utc:
        changes += [f"ALTER COLUMN {column} SET DEFAULT (UTC_TIMESTAMP(6))" for column in TABLES[table]]
    return f"ALTER TABLE {table} {', '.join(changes)}"


def marks(values: Sequence[Any]) -> str:
    """A placeholder for each value."""
    return ", ".join(["%s"] * len(values))


def rows(count: int, row: str) -> str:
    return ", ".join([row] * count)


def dump(table: Sequence[Any]) -> str:
    """Rows, or ids, as the JSON that JSON_TABLE takes apart."""
    return json.dumps(table, ensure_ascii=False, separators=(",", ":"))


def batches[T](items: Sequence[T], sizes: Sequence[int], *, most: int, at_most_rows: int = 1000) -> Iterator[list[T]]:
    """Cut into pieces that a statement holds: one piece, unless there is a lot."""
    batch: list[T] = []
    total = 0
    for item, size in zip(items, sizes, strict=True):
        if batch and (total + size > most or len(batch) >= at_most_rows):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch
