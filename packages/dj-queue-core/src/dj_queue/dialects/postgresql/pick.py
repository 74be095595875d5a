"""Which ready rows PostgreSQL claims: in the order of the selectors, and of each selector's index.

Whether a queue is paused is asked before its rows are looked for, and so inside of what looks for them: a
join's order is the planner's choice, and rows of a paused queue must not be locked at every poll.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from dj_queue.dialects.base import Selector, needed

# Everything, nothing paused: straight down one index. The subquery is evaluated once, before the scan.
_PICK_ALL = """
  SELECT id, job_id FROM (
    SELECT id, job_id FROM dj_queue_ready_executions
    WHERE backend_alias = %(alias)s
      AND NOT EXISTS (SELECT FROM dj_queue_pauses WHERE backend_alias = %(alias)s)
    ORDER BY priority DESC, id LIMIT %(limit)s {lock}) unpaused
  UNION ALL
  (SELECT id, job_id FROM (
     SELECT row.id, row.job_id, row.priority FROM names, LATERAL (
       SELECT id, job_id, priority FROM dj_queue_ready_executions
       WHERE backend_alias = %(alias)s AND queue_name = names.queue_name
         AND NOT EXISTS (SELECT FROM dj_queue_pauses pause
           WHERE pause.backend_alias = %(alias)s AND pause.queue_name = names.queue_name)
       ORDER BY priority DESC, id LIMIT %(limit)s {lock}) row
     WHERE EXISTS (SELECT FROM dj_queue_pauses WHERE backend_alias = %(alias)s)
       AND names.queue_name IS NOT NULL
   ) merged ORDER BY priority DESC, id LIMIT %(limit)s)"""

_PICK_NAMED = """
  (SELECT row.id, row.job_id FROM unnest(%({names})s::text[]) WITH ORDINALITY AS wanted(queue_name, rank),
     LATERAL (
       SELECT id, job_id FROM dj_queue_ready_executions
       WHERE backend_alias = %(alias)s AND queue_name = wanted.queue_name
         AND NOT EXISTS (SELECT FROM dj_queue_pauses pause
           WHERE pause.backend_alias = %(alias)s AND pause.queue_name = wanted.queue_name)
       ORDER BY priority DESC, id LIMIT %(limit)s {lock}) row
   LIMIT %(limit)s)"""

_PICK_PREFIX = """
  (SELECT id, job_id FROM (
     SELECT row.id, row.job_id, row.priority FROM names, LATERAL (
       SELECT id, job_id, priority FROM dj_queue_ready_executions
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
