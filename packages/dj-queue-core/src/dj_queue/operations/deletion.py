"""Deleting jobs that rows of the application may refer to.

Whatever such a foreign key does when its job goes, it keeps that job at most: the others go, and the one that
stays is named once. A key that cascades or is set to NULL is followed, as everywhere in Django.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from django.db import DatabaseError, IntegrityError, connections, models
from django.db.models import Exists, OuterRef, QuerySet
from django.db.models.deletion import Collector

from dj_queue.config import BackendConfig
from dj_queue.models import Job
from dj_queue.operations import batches, transactions

logger = logging.getLogger("dj_queue")

type Kept = Mapping[UUID, str]  # why each job stays

_SHOWN = 20  # jobs that one look names
_MOST_REFUSED = 1000
_MOST_TOLD = 10_000

_ADVICE = (
    "Where rows of the application refer to them, delete those rows first, or relate them with db_constraint=False"
    " and on_delete=DO_NOTHING (docs/work.md, 'Relating a model to a job')."
)

# What the databases themselves do, since Django 6.1; and what is none of theirs.
_BY_DATABASE = tuple(getattr(models, name, None) for name in ("DB_CASCADE", "DB_SET_NULL", "DB_SET_DEFAULT"))

_present: set[tuple[str, str]] = set()  # (database's name, table)
_refused: dict[str, set[UUID]] = {}  # by database alias: what this process need not try again
_told: set[UUID] = set()


class Reference(NamedTuple):
    """A foreign key of the application's that leads to a job."""

    model: type[models.Model]
    field: str
    label: str
    protects: bool  # else its rows change with the job


def references(database: str) -> list[Reference]:
    """Those that matter to a deletion on this database. Projects have none, as a rule."""
    found = []
    for relation in _foreign_relations():
        action, field, model = relation.on_delete, relation.field, relation.related_model
        bare = action is models.DO_NOTHING
        if action in _BY_DATABASE or (bare and not field.db_constraint) or not _is_there(database, model):
            continue
        protects = bare or action in (models.PROTECT, models.RESTRICT)
        name = getattr(action, "__name__", "on_delete")
        found.append(Reference(model, field.name, f"{model._meta.label}.{field.name} ({name})", protects))
    return found


def deletes_when_finished(config: BackendConfig) -> bool:
    """Whether a finish may delete its job in the statement that records it: nothing else depends on that."""
    return not config.preserve_finished_jobs and not references(config.database_alias)


def unprotected[M: models.Model](rows: QuerySet[M], database: str, job: str = "pk") -> QuerySet[M]:
    """Those of the rows whose job nothing is known to hold."""
    refused = _refused.get(database)
    if refused:
        rows = rows.exclude(**{f"{job}__in": list(refused)})
    for reference in references(database):
        if reference.protects:
            rows = rows.filter(~_referring(reference, job))
    return rows


def protected(rows: QuerySet[Any], database: str, job: str = "pk") -> dict[UUID, str]:
    """Some of the rows' jobs that are held, and by what."""
    held: dict[UUID, str] = {}
    for reference in references(database):
        if reference.protects and len(held) < _SHOWN:
            ids = rows.filter(_referring(reference, job)).values_list(job, flat=True)[:_SHOWN]
            held.update(dict.fromkeys(ids, reference.label))
    return held


def among(database: str, job_ids: Sequence[UUID]) -> dict[UUID, str]:
    """Which of these jobs are held, and by what."""
    held: dict[UUID, str] = {}
    for reference in references(database):
        if reference.protects:
            rows = reference.model._base_manager.using(database).filter(**{f"{reference.field}__in": job_ids})
            held.update(dict.fromkeys(rows.values_list(reference.field, flat=True), reference.label))
    return held


def erase(database: str, job_ids: Iterable[UUID]) -> None:
    """Delete jobs and what cascades, in the transaction of the caller. Raises `IntegrityError` for what holds one."""
    rows = Job.objects.using(database).filter(pk__in=list(job_ids)).only("pk")
    if not _foreign_relations():
        rows.delete()
        return
    collector = _Collector(using=database, origin=rows)
    collector.collect(list(rows))
    collector.delete()


def delete_jobs(
    config: BackendConfig, job_ids: Sequence[UUID], first: Callable[[Sequence[UUID]], Sequence[UUID]]
) -> tuple[int, Kept]:
    """Delete jobs; return how many went, and which a row of the application keeps.

    `first` does what has to be done before, in the same transaction, and returns which of them may go. What others
    have locked is left for another time. Where a row is refused, the batch is split until that is alone; raises
    what speaks against that many rows at once.
    """
    if not job_ids:
        return 0, {}
    database = config.database_alias

    def delete(*_: object) -> int:
        ids = first(_unlocked(database, job_ids))
        erase(database, ids)
        return len(ids)

    try:
        return transactions.run(database, delete, waits_again=False), {}
    # A row's own refusal; Django's, for what is protected or restricted; and what a receiver of its signals raises.
    except Exception as error:
        if len(job_ids) == 1 and batches.is_of_the_row(database, error):
            # What only collides may go the next time.
            if not transactions.contended(database, error):
                refuse(database, job_ids[0])
            return 0, {job_ids[0]: why(error)}
        if len(job_ids) == 1 or (isinstance(error, DatabaseError) and not isinstance(error, IntegrityError)):
            raise
    half = len(job_ids) // 2
    before, kept = delete_jobs(config, job_ids[:half], first)
    after, also_kept = delete_jobs(config, job_ids[half:], first)
    return before + after, {**kept, **also_kept}


def _unlocked(database: str, job_ids: Sequence[UUID]) -> Sequence[UUID]:
    """Lock those of the jobs that nobody else has locked; of one writer for the whole database, all."""
    if not connections[database].features.has_select_for_update_skip_locked:
        return job_ids
    rows = Job.objects.using(database).filter(pk__in=job_ids).order_by("pk")
    return list(rows.select_for_update(skip_locked=True).values_list("pk", flat=True))


def refuse(database: str, job_id: UUID) -> None:
    """Remember that a job cannot be deleted. What is full is emptied: then each is tried once more."""
    refused = _refused.setdefault(database, set())
    if len(refused) >= _MOST_REFUSED:
        refused.clear()
    refused.add(job_id)


def log_kept(kept: Kept) -> None:
    """Name what stays, each job once a process."""
    new = {job_id: why for job_id, why in kept.items() if job_id not in _told}
    if new:
        if len(_told) > _MOST_TOLD:
            _told.clear()
        _told.update(new)
        logger.warning("dj_queue: %s", describe_kept(new))


def describe_kept(kept: Kept) -> str:
    named = ", ".join(f"{job_id} by {why}" for job_id, why in list(kept.items())[:_SHOWN])
    some = "1 job" if len(kept) == 1 else f"{len(kept)} jobs"
    return f"kept {some} that could not be deleted: {named}. {_ADVICE}"


def _foreign_relations() -> list[Any]:
    """Every foreign key to a job that is not dj-queue's own, hidden ones and those of many-to-many tables too."""
    return [
        relation
        for relation in Job._meta.get_fields(include_hidden=True)
        if isinstance(relation, models.ManyToOneRel) and relation.related_model._meta.app_label != Job._meta.app_label
    ]


def _referring(reference: Reference, job: str) -> Exists:
    return Exists(reference.model._base_manager.filter(**{reference.field: OuterRef(job)}))


def _is_there(database: str, model: type[models.Model]) -> bool:
    """Whether the model's table is on this database: a relation to another one holds nothing here."""
    connection = connections[database]
    key = (str(connection.settings_dict["NAME"]), model._meta.db_table)
    if key not in _present and key[1] in connection.introspection.table_names():
        _present.add(key)
    return key in _present


def why(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


class _Collector(Collector):
    """Django's, but for models of other databases: it would look for their tables on this one."""

    def related_objects(self, related_model: Any, related_fields: Any, objs: Any) -> Any:
        if not _is_there(self.using, related_model):
            return related_model._base_manager.none()
        return super().related_objects(related_model, related_fields, objs)
