"""Takes steps of sequences: in order, each exactly once, over a store that any replica can use.

There are no leases and no locks between replicas. Each commit compares and sets `(epoch, step)`; of two replicas that
race one wins, and the other answers with the winner's reply. Within a process the requests for one sequence wait for
each other, so a repeated request finds the reply of the one before it.

With durability CHECKPOINT the replica that a stream is on runs ahead of the store, and the commits follow (`heads`).
Only the first and the last step wait for theirs. Whoever continues such a sequence commits it under a new epoch first,
which keeps all who were there before from committing anything more.
"""

from __future__ import annotations

from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Final, TypeGuard

from services.runtime.core.errors import (
    CapacityExceeded,
    SequenceError,
    SequenceNotFound,
    StateCorrupt,
    StepConflict,
    StepContentMismatch,
)
from services.runtime.sequences.admission import Admission
from services.runtime.sequences.commits import Commits
from services.runtime.sequences.compute import Compute
from services.runtime.sequences.contract import Standing, Taken
from services.runtime.sequences.decide import Recompute, Replay, Run, check_kind, decide, present, start_over
from services.runtime.sequences.heads import Heads
from services.runtime.sequences.history import descends
from services.runtime.sequences.lanes import Lanes
from services.runtime.state.store import Stores
from services.runtime.state.types import Absence, Durability, Record, Stored

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.runtime.core.clock import Clock
    from services.runtime.core.ids import SequenceName
    from services.runtime.engine.served import Catalogue
    from services.runtime.sequences.contract import Fold, SequenceEvents, SequencePolicy, Spot, Told
    from services.runtime.sequences.decide import Decision, StepRequest
    from services.runtime.sequences.heads import Head
    from services.runtime.state.cache import RecordCache
    from services.runtime.state.store import StateStore
    from services.runtime.state.types import Position

ATTEMPTS_MAX: Final = 4
"""Runs of one request: a stale cache and lost races cost one each."""


class Sequences:
    """All sequences of a server. `store` is shared by all replicas, `local` this process's own; see `Commits`."""

    def __init__(
        self,
        catalogue: Catalogue,
        store: StateStore,
        local: StateStore,
        cache: RecordCache,
        policy: SequencePolicy,
        clock: Clock,
        events: SequenceEvents,
    ) -> None:
        self._catalogue = catalogue
        self._policy = policy
        self._events = events
        self._commits = Commits(catalogue, store, local, cache, policy, clock, events)
        self._admission = Admission(catalogue, Stores(store, local), clock)
        self._heads = Heads(self._commits, policy, clock, events)
        self._lanes = Lanes(policy.waiters_max)
        self._compute = Compute(catalogue, policy)

    @property
    def uncommitted(self) -> int:
        """Steps that have been answered and not been committed yet."""
        return self._heads.uncommitted

    async def step(self, name: SequenceName, request: StepRequest, fold: Fold) -> Taken:
        """Takes one step; one that was taken before is answered with the same bytes.

        A cancelled or failing request changes nothing, unless its commit was on its way already.

        Raises:
            StatestreamError: the sequence stands where it stood.
        """
        await self._lanes.enter(name)
        try:
            return await self._attempt(name, request, fold)
        except SequenceError as error:
            self._events.step_refused(name.model, error.reason)
            raise
        finally:
            self._lanes.leave(name)

    async def take_up(
        self,
        name: SequenceName,
        told: Told | None,
        been: Spot | None = None,
        *,
        owns: Callable[[bytes], bool] | None = None,
    ) -> Standing:
        """Where a stream that resumes goes on. Nobody who worked on the sequence before can commit anything more.

        `been` is where its client was; if the sequence has gone another way since, nothing is changed. If what is found
        is older than the client was told, and goes another way, it is not its sequence but one before it of the same
        name: then there is none. An ended sequence is told of as it is: the reply to its last step can still be asked
        for.

        Raises:
            SequenceError: it cannot go on.
            StoreUnavailable: the same call again is safe.
        """
        try:
            async with self._lanes.alone(name):
                record, at = await self._take_up(name, told, been, owns)
        except SequenceError as error:
            self._events.step_refused(name.model, error.reason)
            if isinstance(error, SequenceNotFound) and told is not None and self._is_recent(told.epoch):
                self._events.loss_detected(name.model, healed=False)
            raise
        self._events.sequence_resumed(name.model)
        if told is not None and (at.epoch, at.step - 1) < told:
            self._events.loss_detected(name.model, healed=False)
        # A higher epoch proves no loss: a rewind has one too, and so has an earlier attempt to resume after a loss.
        return Standing(record, at.epoch, lost=told is not None and at.step <= told.committed_step)

    async def settle(self, name: SequenceName, at: Position | None = None) -> int | None:
        """Returns when the store holds all that was answered here; the last committed step, if it had to be looked at.

        `at` is where a stream stands that has run ahead: it settles if the store holds what led there.

        Raises:
            SequenceError: the sequence has gone on elsewhere, without what was not committed here.
            StoreUnavailable, CapacityExceeded: not now.
        """
        head = self._heads.get(name)
        if head is not None and (at is None or head.record.position.epoch == at.epoch):
            await self._heads.settle(name)
            return head.committed_step
        if at is None:
            return None
        # The head was pushed out, which it is only when it is committed, or fenced off.
        record = present(await self._commits.load(name)).record
        if record.position.epoch != at.epoch or record.position.step < at.step:
            raise StepConflict("the sequence has gone on elsewhere, without the last steps of this stream; resume it")
        return record.position.step - 1

    async def describe(self, name: SequenceName) -> Stored | Absence:
        """Where a sequence stands in the store."""
        return await self._commits.load(name)

    async def replace(
        self, name: SequenceName, expected: Position | None, record: Record, *, continues: bool
    ) -> Stored | Absence | None:
        """Commits `record`, which no step of this sequence made; None if it was put, else what was found."""
        adds = not (continues or record.ended)
        async with self._lanes.alone(name):
            with self._admission.one_more(name, record.model) if adds else nullcontext():
                found = await self._commits.commit(name, expected, record, continues=continues)
            if found is None:
                self._heads.drop(name)
                self._commits.cache.drop(name)
                if adds:
                    self._admission.began(name, record)
            return found

    async def end(self, name: SequenceName) -> Stored | Absence:
        """Ends a live sequence without a last step; returns what is there afterwards."""
        for _ in range(ATTEMPTS_MAX):
            with suppress(SequenceError):
                await self.settle(name)
            found = await self.describe(name)
            if not isinstance(found, Stored) or found.record.ended or found.expired:
                return found
            record = found.record
            # A new epoch, so that no replica that still has the live record at hand can commit over the end.
            after = self._commits.fenced(record).position
            ended = Record(after, record.model, record.durability, None, record.replies, record.history)
            if await self.replace(name, record.position, ended, continues=True) is None:
                self._events.sequence_ended(name.model)
                self._admission.ended(name)
                return await self.describe(name)
        raise StepConflict("the sequence moves on too fast to be ended; try again")

    def new_epoch(self) -> int:
        """For a record that begins a sequence anew."""
        return self._commits.new_epoch()

    async def close(self) -> None:
        """Commits what was answered and not committed yet, and stops committing."""
        await self._admission.close()
        await self._heads.close()

    def _is_recent(self, epoch: int) -> bool:
        """True if a sequence that began `epoch` and has ended since would still be remembered."""
        return self._commits.new_epoch() - epoch < self._policy.retention_ms * 1000

    async def _attempt(self, name: SequenceName, request: StepRequest, fold: Fold) -> Taken:
        head = self._heads.get(name)
        if head is not None and _goes_on(head.record.position, request):
            self._events.cache_looked_up(name.model, hit=True)
            return await self._run_ahead(name, request, head, fold)
        decision, fresh = await self._first_decision(name, request)
        for _ in range(ATTEMPTS_MAX):
            if isinstance(decision, Replay | Recompute):
                return await self._answer_again(name, request, decision, fold)
            if decision.base is not None and decision.base.durability is Durability.CHECKPOINT:
                if not request.end:
                    head = self._heads.get(name) or self._heads.open(name, decision.base)
                    return await self._run_ahead(name, request, head, fold)
                await self._heads.settle(name)
            adds = decision.base is None and not decision.replaces_live
            with self._admission.one_more(name, request.model) if adds else nullcontext():
                taken, found = await self._run(name, request, decision, fold)
            if found is None:
                return taken
            try:
                decision = decide(found, request, self._commits.new_epoch())
            except StepContentMismatch as error:
                if fresh:  # it was free when we looked: somebody took it while we ran
                    raise StepConflict("another request took this step with other content") from error
                raise
            fresh = True
        raise StepConflict("the sequence was moved by others while this step ran; look where it stands")

    async def _first_decision(self, name: SequenceName, request: StepRequest) -> tuple[Decision, bool]:
        """What to do, and whether that was learnt from the store just now."""
        new_epoch = self._commits.new_epoch()
        if request.start:
            return await self._decide_start(name, request, new_epoch), True
        record = self._at_hand(name, request)
        if record is not None:
            return decide(_as_found(record), request, new_epoch), False
        if self._heads.get(name) is None:
            decision = decide(await self._commits.load(name), request, new_epoch)
            base = decision.base if isinstance(decision, Run) else None
            if base is None or base.durability is not Durability.CHECKPOINT or request.epoch is not None:
                return decision, True
        # A stream that is new to the sequence has to be the only one on it before it runs ahead of the store.
        record, _ = await self._take_up(name, owns=request.owns)
        return decide(_as_found(record), request, new_epoch), True

    async def _decide_start(self, name: SequenceName, request: StepRequest, new_epoch: int) -> Decision:
        try:
            found = await self._commits.load(name, request.durability)
        except StateCorrupt as error:
            return start_over(error, new_epoch)
        decision = decide(found, request, new_epoch)
        if (
            isinstance(decision, Run)
            or decision.record.ended
            or decision.record.durability is not Durability.CHECKPOINT
        ):
            return decision
        # A repeated start: the replica that it first came to may still run ahead.
        record, _ = await self._take_up(name)
        return decide(_as_found(record), request, new_epoch)

    def _at_hand(self, name: SequenceName, request: StepRequest) -> Record | None:
        """A record in this replica's memory to go on from; only the commit proves that it is not out of date."""
        head = self._heads.get(name)
        if head is not None and (request.epoch or 0) > head.record.position.epoch:
            self._heads.drop(name)  # the stream knows of a later one, which was fenced off from here
            head = None
        if head is not None:
            record = head.record if request.epoch is not None else None
        else:
            record = self._commits.cache.get(name)
            if record is not None and (
                request.step not in (None, record.position.step) or request.epoch not in (None, record.position.epoch)
            ):
                record = None
        self._events.cache_looked_up(name.model, hit=record is not None)
        return record

    async def _take_up(
        self,
        name: SequenceName,
        told: Told | None = None,
        been: Spot | None = None,
        owns: Callable[[bytes], bool] | None = None,
    ) -> tuple[Record, Position]:
        """The sequence under a new epoch, committed, and where it was found. One that has ended is left as it is."""
        for _ in range(ATTEMPTS_MAX):
            with suppress(SequenceError):  # then the head has gone, and the store knows better
                await self._heads.settle(name)
            record = present(await self._commits.load(name)).record
            if been is not None and descends(record, *been) is False:
                if told is not None and record.position.epoch < told.epoch:
                    raise SequenceNotFound("the store has lost the sequence, and has an earlier one of that name")
                raise StepConflict("another client has changed the sequence since")
            check_kind(record, owns)
            if record.ended:
                self._heads.drop(name)
                return record, record.position
            self._catalogue.pinned(record.model)  # who cannot serve it does not take it from those who can
            fenced = self._commits.fenced(record)
            if await self._commits.commit(name, record.position, fenced) is None:
                self._open_head(name, fenced)
                return fenced, record.position
        raise StepConflict("the sequence moves on too fast to be taken up; try again")

    async def _run_ahead(self, name: SequenceName, request: StepRequest, head: Head, fold: Fold) -> Taken:
        """Computes the next step of `head` and answers; the commit follows."""
        if head.uncommitted >= self._policy.uncommitted_max:
            await self._heads.settle(name)
        base = head.record
        run = Run(base.position, base.position, base)
        head.steps += 1
        try:
            record, reply = await self._compute.step(name, request, run, fold, head.committed_step)
        finally:
            head.steps -= 1
        if head.failure is not None:
            raise head.failure
        self._heads.advance(head, record)
        return Taken(reply, record.position.epoch, record.position.step, ahead=True)

    async def _run(
        self, name: SequenceName, request: StepRequest, run: Run, fold: Fold
    ) -> tuple[Taken, Stored | Absence | None]:
        """Computes and commits; the second part is what the commit found if it was not made."""
        durability = run.base.durability if run.base else request.durability
        committed = None if durability is Durability.NONE else run.position.step
        record, reply = await self._compute.step(name, request, run, fold, committed)
        found = await self._commits.commit(name, run.expected, record, continues=run.base is not None)
        if run.base is not None and _is_older(found, run.base):
            self._events.loss_detected(name.model, healed=True)
            found = await self._commits.commit(name, found.record.position, record)
        if found is None:
            self._committed(name, run, record)
        return Taken(reply, record.position.epoch, record.position.step), found

    def _committed(self, name: SequenceName, run: Run, record: Record) -> None:
        if run.base is None or record.ended:
            self._open_head(name, record)
        if run.base is None:
            self._events.sequence_started(name.model)
            self._admission.began(name, record)
        if record.ended:
            self._events.sequence_ended(name.model)
            self._admission.ended(name)

    def _open_head(self, name: SequenceName, record: Record) -> None:
        """A head for `record`, which was committed here, in place of the one before; none if it does not need one."""
        self._heads.drop(name)
        if record.durability is Durability.CHECKPOINT and not record.ended:
            with suppress(CapacityExceeded):  # the step that wants to run ahead is told
                self._heads.open(name, record)

    async def _answer_again(
        self, name: SequenceName, request: StepRequest, decision: Replay | Recompute, fold: Fold
    ) -> Taken:
        """The reply to a step that was taken before, as it was."""
        self._events.step_replayed(name.model)
        record = decision.record
        ahead = self._heads.get(name) is not None
        epoch = request.epoch  # a stream that was fenced off stays so, though it may still hear what was answered
        if epoch is None and (request.start or record.durability is not Durability.CHECKPOINT):
            # Only who has started or resumed a sequence may run ahead in its epoch.
            epoch = record.position.epoch
        if isinstance(decision, Replay):
            return Taken(decision.stored.reply, epoch, decision.stored.step + 1, ahead)
        again = await self._compute.again(name, request, record, fold, self._committed_step(name, record))
        return Taken(again, epoch, record.position.step, ahead)

    def _committed_step(self, name: SequenceName, record: Record) -> int | None:
        """The last step that the store holds of a sequence whose latest one is computed again."""
        head = self._heads.get(name)
        if head is not None:  # the step may not be committed yet
            return head.committed_step
        return None if record.durability is Durability.NONE else record.position.step - 1


def _goes_on(at: Position, request: StepRequest) -> bool:
    """True for the next step of a stream that works in the epoch of a head: `decide` could only say to run it."""
    if request.epoch != at.epoch or request.start or request.end:
        return False
    return request.step == at.step or (request.step is None and not request.keyed and request.at_least <= at.step)


def _as_found(record: Record) -> Stored:
    """A record of which this process knows that it is live, as if it had been loaded."""
    return Stored(record, float("inf"), 0, expired=False)


def _is_older(found: Stored | Absence | None, base: Record) -> TypeGuard[Stored]:
    """True if the store came back older than `base`, which it once held: what it has now led to `base`."""
    return (
        isinstance(found, Stored)
        and not (found.expired or found.record.ended)
        and found.record.position < base.position
        and found.record.position.epoch <= base.position.epoch
        and descends(base, found.record.position.step, found.record.history) is True
    )
