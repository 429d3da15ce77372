"""Stores against a plain dict: any order of commits, loads and passing time gives the same answers."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from services.runtime.core.ids import new_sequence_id
from services.runtime.state.memory import MemoryStore
from services.runtime.state.redis import RedisStore
from services.runtime.state.types import Absence, Position, Record, Stored, Terms
from tests.kit.clock import ManualClock
from tests.kit.records import a_name, a_record, is_same
from tests.kit.redis_time import RedisLapse

if TYPE_CHECKING:
    from services.runtime.core.ids import SequenceName
    from services.runtime.state.store import StateStore
    from tests.contract.store_fixtures import Lapse

# Time passes in multiples of 10 s and no sum of these is one: the real clock of a server has seconds to go astray.
TERMS = [Terms(105_000, 255_000, 53_000), Terms(45_000, 3_600_000, 403_000)]


@dataclass
class _Kept:
    record: Record
    began_at: int
    expires_at: int
    forget_at: int


class _Oracle:
    """What a store has to answer, said as simply as possible; milliseconds from the start."""

    def __init__(self) -> None:
        self.now = 0
        self.kept: dict[SequenceName, _Kept] = {}

    def load(self, name: SequenceName) -> tuple[Record, bool] | None:
        kept = self.kept.get(name)
        if kept is None or self.now >= kept.forget_at:
            return None
        return kept.record, self.now >= kept.expires_at

    def commit(self, name: SequenceName, expected: Position | None, record: Record, terms: Terms) -> bool:
        found = self.load(name)
        if (found and found[0].position) != expected:
            return False
        same_epoch = found is not None and found[0].position.epoch == record.position.epoch
        if found and found[1] and same_epoch:
            return False
        began_at = self.kept[name].began_at if same_epoch else self.now
        live_until = min(self.now + terms.idle_ms, began_at + terms.lifetime_ms)
        expires_at = self.now + terms.retention_ms if record.ended else live_until
        forget_at = expires_at if record.ended else live_until + terms.retention_ms
        self.kept[name] = _Kept(record, began_at, expires_at, forget_at)
        return True


class _StoreMachine(RuleBasedStateMachine):
    """Drives a store and the oracle side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.oracle = _Oracle()
        self.store, self.lapse = self.make()
        self.names: list[SequenceName] = []
        self.fill = 0

    def make(self) -> tuple[StateStore, Lapse]:
        """The store to be tried, and its time."""
        raise NotImplementedError

    @initialize()
    def begin(self) -> None:
        """Names that no other run has used."""
        self.names = [a_name(f"{number}:{new_sequence_id()}") for number in range(3)]

    def teardown(self) -> None:
        """Ends the store and its loop."""
        self.runner.run(self.store.close())
        self.runner.close()

    @rule(
        which=st.integers(0, 2),
        expected=st.sampled_from(["right", "right", "right", "none", "wrong"]),
        epoch=st.sampled_from(["same", "same", "new"]),
        ended=st.sampled_from([False, False, False, True]),
        terms=st.sampled_from(TERMS),
    )
    def commit(self, which: int, expected: str, epoch: str, ended: bool, terms: Terms) -> None:  # noqa: FBT001
        """Commits against the right or a wrong position, going on, starting over or ending."""
        name = self.names[which]
        found = self.oracle.load(name)
        at = found[0].position if found else None
        against = {"right": at, "none": None, "wrong": Position(at.epoch, at.step + 1) if at else Position(0, 0)}[
            expected
        ]
        after = Position(at.epoch + (epoch == "new"), at.step + 1) if at else Position(2**60, 2**53)
        self.fill += 1
        record = a_record(fill=self.fill, ended=ended, step=after.step, epoch=after.epoch)
        conflict = self.runner.run(self.store.commit(name, against, record, terms))
        assert (conflict is None) == self.oracle.commit(name, against, record, terms)
        if conflict is not None:
            self._agree(conflict.found, found)

    @rule(seconds=st.sampled_from([10, 40, 60, 120]))
    def time_passes(self, seconds: int) -> None:
        """For all sequences alike."""
        self.oracle.now += seconds * 1000
        self.runner.run(self._pass(seconds * 1000))

    async def _pass(self, milliseconds: int) -> None:
        await self.lapse(milliseconds, *self.names)

    @invariant()
    def all_loads_agree(self) -> None:
        """Whatever happened, each name has the oracle's record, and expired or not as the oracle says."""
        for name in self.names:
            self._agree(self.runner.run(self._load(name)), self.oracle.load(name))

    async def _load(self, name: SequenceName) -> Stored | Absence:
        return await self.store.load(name)

    @staticmethod
    def _agree(found: Stored | Absence, expected: tuple[Record, bool] | None) -> None:
        if expected is None:
            assert found is Absence.UNKNOWN
        else:
            assert isinstance(found, Stored)
            assert is_same(found.record, expected[0])
            assert found.expired == expected[1]


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
