"""Failing claims, or giving them back, whatever the database refuses of it: as many at once as it accepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from django.db import DatabaseError
from django.db.backends.utils import CursorWrapper
from django.db.models import Q

from dj_queue.config import BackendConfig
from dj_queue.dialects import Dialect, Outcome, dialect_for
from dj_queue.error_reporting import report
from dj_queue.models import ClaimedExecution, FailedExecution, Job, ReadyExecution
from dj_queue.operations import attempts, batches, concurrency, maintenance, readable, transactions
from dj_queue.serialization import ErrorRecord

_MOST_TOLD = 1000
_told: set[int] = set()


@dataclass(slots=True)
class Recovered:
    """What became of the claims."""

    failed: list[str] = field(default_factory=list)  # job ids
    released: int = 0
    unblocked: list[tuple[str, str]] = field(default_factory=list)  # (job id, concurrency key)


def of_some(config: BackendConfig, refusal: DatabaseError) -> bool:
    """Whether it may be only some of many claims that the database refuses to settle."""
    using = config.database_alias
    return batches.may_be_smaller(using, refusal) and not transactions.contended(using, refusal)


@dataclass(slots=True)
class Settlement:
    """Claims to be failed or given back; each is fenced by its row, like any other finish."""

    config: BackendConfig
    condition: Q
    started: Callable[[ClaimedExecution], bool]
    error: ErrorRecord
    give_back: bool = False

    def settle(self, dialect: Dialect, cursor: CursorWrapper) -> Recovered:
        """All of them, in the caller's transaction."""
        return self._settle(self.condition, dialect, cursor)

    def settle_apart(self, recovered: Recovered, *, fence: Callable[[], bool] = lambda: True) -> None:
        """Settle as many at once as the database accepts, and add to `recovered` what was.

        What it refuses of one claim for good stays as it is, and is told of. Raises what may pass, or others hold,
        once all else is settled. Where `fence`, asked in each transaction, says no, nothing more is to be done.
        """
        using = self.config.database_alias
        rows = ClaimedExecution.objects.using(using).filter(self.condition, job__backend_alias=self.config.alias)
        parts = [list(rows.order_by("pk").values_list("pk", flat=True))]
        later: DatabaseError | None = None
        while parts:
            some = parts.pop(0)
            try:
                done = transactions.run(using, partial(self._settle_some, some, fence, with_slots=True))
            except DatabaseError as refusal:
                if not batches.may_be_smaller(using, refusal):
                    raise
                if len(some) > 1:
                    parts[:0] = [some[: len(some) // 2], some[len(some) // 2 :]]
                    continue
                if transactions.contended(using, refusal) or dialect_for(using).may_pass(refusal):
                    later = refusal
                    continue
                done = self._settle_less(some, fence, refusal)
            recovered.failed += done.failed
            recovered.released += done.released
            recovered.unblocked += done.unblocked
        if later is not None:
            raise later

    def _settle_less(self, one: Sequence[int], fence: Callable[[], bool], refusal: DatabaseError) -> Recovered:
        """Without giving its slot to the next, which may be what is refused; or give it back without a trace."""
        using = self.config.database_alias
        keys = ClaimedExecution.objects.using(using).filter(pk__in=one).values_list("job__concurrency_key", flat=True)
        key = keys.first()
        try:
            done = transactions.run(using, partial(self._settle_some, one, fence, with_slots=False))
            if key is not None and done.failed:
                maintenance.repair(self.config, key)
            return done
        except DatabaseError as another:
            if dialect_for(using).is_away(another):
                raise
        _tell_refused(self.config, one[0], refusal)
        return Recovered()

    def _settle_some(
        self,
        some: Sequence[int],
        fence: Callable[[], bool],
        dialect: Dialect,
        cursor: CursorWrapper,
        *,
        with_slots: bool,
    ) -> Recovered:
        if not fence():
            return Recovered()
        return self._settle(self.condition & Q(pk__in=some), dialect, cursor, with_slots=with_slots)

    def _settle(self, condition: Q, dialect: Dialect, cursor: CursorWrapper, *, with_slots: bool = True) -> Recovered:
        config, started = self.config, self.started
        claims = (
            ClaimedExecution.objects.using(config.database_alias)
            .filter(condition, job__backend_alias=config.alias)
            .select_related("job", "process")
            .only("created_at", "position", "process__name", *(f"job__{name}" for name in concurrency.DECIDING))
            .order_by("pk")
        )
        recovered = Recovered()
        found, lost_rows = readable.read(claims)
        if lost_rows:
            # Only the time of the claim is no part of what is settled by it.
            now = dialect.now(cursor)
            timeless = claims.filter(pk__in=lost_rows)
            timeless = timeless.only("position", "process__name", *(f"job__{name}" for name in concurrency.DECIDING))
            for claim in readable.read(timeless).rows:
                claim.created_at = now
                found.append(claim)
            found.sort(key=lambda claim: claim.pk)
        back = [claim.pk for claim in found if not started(claim) or (self.give_back and not with_slots)]
        if back:
            recovered.released = dialect.release(cursor, back, alias=config.alias, notify=config.listen_notify)
        lost = [claim for claim in found if claim.pk not in back]
        keys: list[str | None] = []
        for worker in sorted({_worker(claim) for claim in lost}):
            mine = {claim.pk: claim for claim in lost if _worker(claim) == worker}
            outcomes = [Outcome(pk, claim.job.id, claim.created_at, None, self.error) for pk, claim in mine.items()]
            _, kept = dialect.finish(cursor, outcomes, worker=worker, preserve=True)
            if self.give_back:
                recovered.released += _put_back(config, dialect, cursor, [mine[claim_id] for claim_id in sorted(kept)])
                continue
            keys += [mine[claim_id].job.concurrency_key for claim_id in kept]
            recovered.failed += [str(mine[claim_id].job.id) for claim_id in kept]
        # All at once: semaphores are locked in the order of their keys.
        recovered.unblocked = concurrency.release(config, dialect, cursor, keys if with_slots else ())
        return recovered


def _tell_refused(config: BackendConfig, claim_id: int, refusal: DatabaseError) -> None:
    """Once: it is tried at every beat."""
    if claim_id not in _told and len(_told) < _MOST_TOLD:
        _told.add(claim_id)
        refusal.add_note(f"The claim {claim_id}, whose process is gone, can neither be failed nor given back.")
        report(config, refusal, "supervisor.run")


def _put_back(config: BackendConfig, dialect: Dialect, cursor: CursorWrapper, cut: Sequence[ClaimedExecution]) -> int:
    """Make jobs ready that were just recorded as failed: each at its old place, with the slot that it has."""
    using = config.database_alias
    rows = FailedExecution.objects.using(using).filter(job_id__in=[claim.job.id for claim in cut])
    failed = {job_id: error for job_id, *error in rows.values_list("job_id", "exception_class", "traceback")}
    cut = [claim for claim in cut if claim.job.id in failed]  # a job may have been deleted meanwhile
    past = attempts.past(config, [claim.job.id for claim in cut])
    for claim in cut:
        earlier = past.get(claim.job.id) or attempts.Past([], [])
        claim.job.errors = attempts.with_error(earlier.errors, *failed[claim.job.id])
        claim.job.worker_ids = attempts.bounded_workers(earlier.worker_ids)
    rows.delete()
    Job.objects.using(using).bulk_update([claim.job for claim in cut], ["errors", "worker_ids"])
    ReadyExecution.objects.using(using).bulk_create(
        ReadyExecution(
            id=claim.position,
            job=claim.job,
            backend_alias=claim.job.backend_alias,
            queue_name=claim.job.queue_name,
            priority=claim.job.priority,
            concurrency_key=claim.job.concurrency_key,
            created_at=claim.created_at,
        )
        for claim in cut
    )
    if cut and config.listen_notify:
        dialect.notify(cursor, config.alias)
    return len(cut)


def _worker(claim: ClaimedExecution) -> str:
    return claim.process.name if claim.process else ""
