"""Stores against a plain dict: any order of commits, loads and passing time gives the same answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from services.runtime.core.ids import SequenceName, new_sequence_id
from services.runtime.state.memory import MemoryStore
from services.runtime.state.redis.store import RedisStore
from services.runtime.state.types import Absence, Position, Record, Stored, Terms
from tests.kit.clock import ManualClock
from tests.kit.records import a_record, is_same
from tests.kit.redis_time import RedisLapse

if TYPE_CHECKING:
    from services.runtime.state.store import StateStore
    from tests.contract.store_fixtures import Lapse

# Time passes in multiples of 10 s and no sum of these is one: the real clock of a server has seconds to go astray.
TERMS = [Terms(105_000, 255_000, 53_000), Terms(45_000, 3_600_000, 403_000)]

FIRST = Position(2**60, 10**16 - 4)
"""Beyond what a float can tell apart, and a few steps before there is a digit more."""


class _Change(NamedTuple):
    """One commit, made up from where a sequence stands."""

    record: Record
    terms: Terms
    continues: bool
    keep: int


@dataclass
class _Kept:
    record: Record
    began_at: int
    expires_at: int
    forget_at: int
    checkpoints: dict[int, Record] = field(default_factory=dict[int, Record])


class _Oracle:
    """What a store has to answer, said as simply as possible; milliseconds from the start."""

    def __init__(self) -> None:
        self.now = 0
        self.kept: dict[SequenceName, _Kept] = {}

    def load(self, name: SequenceName) -> _Kept | None:
        kept = self.kept.get(name)
        return None if kept is None or self.now >= kept.forget_at else kept

    def commit(self, name: SequenceName, expected: Position | None, change: _Change) -> bool:
        record, terms, continues, keep = change
        found = self.load(name)
        if (found and found.record.position) != expected:
            return False
        goes_on = found is not None and (continues or found.record.position.epoch == record.position.epoch)
        if found and self.now >= found.expires_at and goes_on:
            return False
        began_at, checkpoints = self.now, dict[int, Record]()
        if found and goes_on:
            began_at, checkpoints = found.began_at, dict(found.checkpoints)
            if keep:
                checkpoints[found.record.position.step] = found.record
            steps = sorted(step for step in checkpoints if step < record.position.step)
            youngest = steps[-keep:] if keep else steps
            checkpoints = {} if record.ended else {step: checkpoints[step] for step in youngest}
        live_until = min(self.now + terms.idle_ms, began_at + terms.lifetime_ms)
        expires_at = self.now + terms.retention_ms if record.ended else live_until
        forget_at = expires_at if record.ended else live_until + terms.retention_ms
        self.kept[name] = _Kept(record, began_at, expires_at, forget_at, checkpoints)
        return True


class _StoreMachine(RuleBasedStateMachine):
    """Drives a store and the oracle side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.oracle = _Oracle()
        self.store, self.lapse = self.make()
        self.tenant = ""
        self.names: list[SequenceName] = []
        self.fill = 0

    def make(self) -> tuple[StateStore, Lapse]:
        """The store to be tried, and its time."""
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        """Names that no other run has used."""
        self.tenant = new_sequence_id()
        self.names = [SequenceName(self.tenant, "m", f"{number}:") for number in range(3)]

    def teardown(self) -> None:
        """Ends the store and its loop."""
        self.runner.run(self.store.close())
        self.runner.close()

    @rule(
        which=st.integers(0, 2),
        expected=st.sampled_from(["right", "right", "right", "right", "none", "wrong"]),
        way=st.sampled_from(["step", "step", "step", "step", "end", "start", "resume", "rewind", "back"]),
        terms=st.sampled_from(TERMS),
        keep=st.sampled_from([0, 0, 1, 3, 3]),
    )
    def commit(self, which: int, expected: str, way: str, terms: Terms, keep: int) -> None:
        """Commits against the right or a wrong position: a step, an end, a new start, a resume, a rewind."""
        name = self.names[which]
        found = self.oracle.load(name)
        at = found.record.position if found else None
        against = {"right": at, "none": None, "wrong": Position(at.epoch, at.step + 1) if at else Position(0, 0)}[
            expected
        ]
        self.fill += 1
        change = _Change(self._record(found, way), terms, way in ("resume", "rewind"), keep)
        call = self.store.commit(name, against, change.record, terms, continues=change.continues, keep=keep)
        conflict = self.runner.run(call)
        assert (conflict is None) == self.oracle.commit(name, against, change)
        if conflict is not None:
            self._agree(conflict.found, found)

    def _record(self, found: _Kept | None, way: str) -> Record:
        """That of the next commit on `found`; "back" goes back within the epoch, which no engine does."""
        if found is None:
            return a_record(FIRST.step, FIRST.epoch, fill=self.fill, ended=way == "end")
        epoch, step = found.record.position
        if way == "rewind":
            step = min(found.checkpoints, default=step - 1)
        elif way != "resume":
            step += -2 if way == "back" else 1
        new_epoch = way in ("start", "resume", "rewind")
        return a_record(step, epoch + new_epoch, fill=self.fill, ended=way == "end")

    @rule(seconds=st.sampled_from([10, 40, 60, 120]))
    def time_passes(self, seconds: int) -> None:
        """For all sequences alike."""
        self.oracle.now += seconds * 1000
        self.runner.run(self._pass(seconds * 1000))

    async def _pass(self, milliseconds: int) -> None:
        await self.lapse(milliseconds, *self.names)

    @rule(count=st.sampled_from([1, 2, 100]))
    def all_names_are_listed(self, count: int) -> None:
        """A list has the names of which something is kept, each once while nothing changes."""
        expected = [name for name in self.names if self.oracle.load(name)]
        assert sorted(self.runner.run(self._listed(count))) == expected

    async def _listed(self, count: int) -> list[SequenceName]:
        page = await self.store.names(self.tenant, "m", count=count)
        names = list(page.names)
        while page.cursor is not None:
            page = await self.store.names(self.tenant, "m", cursor=page.cursor, count=count)
            names += page.names
        return names

    @invariant()
    def all_loads_agree(self) -> None:
        """Whatever happened, each name has the oracle's record and checkpoints, expired or not as the oracle says."""
        for name in self.names:
            expected = self.oracle.load(name)
            self._agree(self.runner.run(self._load(name)), expected)
            checkpoints = expected.checkpoints if expected else {}
            for step in {*checkpoints, FIRST.step, FIRST.step + 1}:
                found = self.runner.run(self._load_checkpoint(name, step))
                if step in checkpoints:
                    assert isinstance(found, Stored)
                    assert is_same(found.record, checkpoints[step])
                else:
                    assert found is Absence.UNKNOWN

    async def _load(self, name: SequenceName) -> Stored | Absence:
        return await self.store.load(name)

    async def _load_checkpoint(self, name: SequenceName, step: int) -> Stored | Absence:
        return await self.store.load_checkpoint(name, step)

    def _agree(self, found: Stored | Absence, expected: _Kept | None) -> None:
        if expected is None:
            assert found is Absence.UNKNOWN
        else:
            assert isinstance(found, Stored)
            assert is_same(found.record, expected.record)
            assert found.expired == (self.oracle.now >= expected.expires_at)
            assert found.checkpoints == tuple(sorted(expected.checkpoints))


def test_the_memory_store_is_a_dict_with_time() -> None:
    """The memory store answers as the oracle does, whatever the order of calls."""

    class Machine(_StoreMachine):
        def make(self) -> tuple[StateStore, Lapse]:
            clock = ManualClock()

            async def lapse(milliseconds: int, *names: SequenceName) -> None:
                clock.advance(milliseconds / 1000)

            return MemoryStore(clock, bytes_max=10**7, sequences_max=100), lapse

    run_state_machine_as_test(Machine, settings=settings(max_examples=80, deadline=None))


def test_the_redis_store_is_a_dict_with_time(redis_url: str) -> None:
    """The Redis store answers as the oracle does, whatever the order of calls."""

    class Machine(_StoreMachine):
        def make(self) -> tuple[StateStore, Lapse]:
            return RedisStore.from_url(redis_url), RedisLapse(redis_url)

    run_state_machine_as_test(Machine, settings=settings(max_examples=30, deadline=None, stateful_step_count=30))
