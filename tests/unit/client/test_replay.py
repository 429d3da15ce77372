from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from statestream import ReplayBounds
from statestream._replay import ReplayBuffer, Spot
from statestream.common.v1.sequence_pb2 import StepControl


def message(step: int) -> StepControl:
    """Stands for the message of a step."""
    return StepControl(step=step)


def digest(step: int) -> bytes:
    """Stands for the history up to a step."""
    return b"after %d" % step


def filled(count: int, bounds: ReplayBounds | None = None, *, committed: int | None = 0, size: int = 1) -> ReplayBuffer:
    """A buffer after so many steps, of which those up to `committed` are in the store."""
    buffer = ReplayBuffer(bounds or ReplayBounds())
    for step in range(count):
        buffer.add(message(step), size, digest(step))
        buffer.committed(committed)
    return buffer


def steps(buffer: ReplayBuffer) -> list[int]:
    """What is held."""
    return [held.step for held in buffer.since(buffer.oldest_step)]


def test_what_is_not_committed_is_held() -> None:
    """All of it, in order, with its messages, and from any step on."""
    buffer = filled(200, ReplayBounds(slack_steps=0))
    assert steps(buffer) == list(range(1, 200))
    assert [held.request for held in buffer.since(198)] == [message(198), message(199)]
    assert buffer.since(200) == []
    assert (buffer.next_step, buffer.uncommitted, buffer.bytes_held) == (200, 199, 199)


def test_committed_steps_are_let_go_but_for_the_slack() -> None:
    """The latest committed ones stay: the store may come back older than it was."""
    buffer = filled(200, ReplayBounds(slack_steps=10))
    buffer.committed(150)
    assert steps(buffer) == list(range(141, 200))
    with pytest.raises(IndexError):
        buffer.since(140)


def test_a_loss_makes_steps_uncommitted_again() -> None:
    """The store is older than it was: what the slack still holds counts as not committed, and is kept."""
    buffer = filled(100, ReplayBounds(slack_steps=30))
    buffer.committed(99)
    assert buffer.uncommitted == 0
    buffer.committed(79)
    assert (buffer.uncommitted, buffer.oldest_step) == (20, 70)
    buffer.committed(10)
    assert (buffer.uncommitted, buffer.oldest_step) == (30, 70)


def test_the_slack_gives_way_to_the_bounds() -> None:
    """Committed steps never keep another one from being taken."""
    buffer = filled(20, ReplayBounds(steps_max=8, slack_steps=100), committed=19)
    assert steps(buffer) == list(range(12, 20))
    assert buffer.admits(1)
    buffer = filled(20, ReplayBounds(bytes_max=50, slack_steps=100), committed=19, size=20)
    assert len(buffer) == 2
    assert buffer.admits(30)


@pytest.mark.parametrize("bounds", [ReplayBounds(steps_max=5), ReplayBounds(bytes_max=50)])
def test_a_full_buffer_admits_nothing_until_something_is_committed(bounds: ReplayBounds) -> None:
    """Both bounds count what is not committed, and the step to come."""
    buffer = filled(6, bounds, size=10)
    assert buffer.uncommitted == 5
    assert not buffer.admits(10)
    buffer.committed(1)
    assert buffer.admits(10)
    assert steps(buffer) == [1, 2, 3, 4, 5]


def test_one_large_step_is_always_admitted() -> None:
    """A step beyond the bound of bytes can be taken where nothing else is uncommitted."""
    buffer = filled(3, ReplayBounds(bytes_max=10), committed=2)
    assert buffer.admits(1_000)
    buffer.add(message(3), 1_000, digest(3))
    assert steps(buffer) == [3]
    assert not buffer.admits(1)


def test_where_nothing_is_ever_committed_the_oldest_steps_go() -> None:
    """Durability NONE: the bounds hold, and nothing is refused."""
    buffer = filled(100, ReplayBounds(steps_max=7), committed=None)
    assert steps(buffer) == list(range(93, 100))
    assert buffer.admits(10**9)
    buffer.add(message(100), 10**9, digest(100))
    assert steps(buffer) == [100]
    assert buffer.uncommitted == 0


def test_digests_are_known_as_far_as_steps_are_held() -> None:
    """And one further back: that before the oldest."""
    buffer = filled(10, ReplayBounds(slack_steps=2), committed=5)
    assert buffer.oldest_step == 4
    assert [buffer.digest_before(step) for step in (3, 4, 5, 10, 11)] == [b"", digest(3), digest(4), digest(9), b""]
    buffer.forget_digests()
    assert [buffer.digest_before(step) for step in (4, 5, 10)] == [b"", b"", b""]
    assert steps(buffer) == list(range(4, 10))


def test_a_sequence_that_is_taken_up_begins_anywhere() -> None:
    """Before its first step nothing is held, and the digest is that which the server told."""
    buffer = filled(5)
    buffer.begin_at(Spot(70, b"told"))
    assert (len(buffer), buffer.oldest_step, buffer.next_step, buffer.bytes_held) == (0, 70, 70, 0)
    assert buffer.digest_before(70) == b"told"
    buffer.add(message(70), 1, digest(70))
    assert steps(buffer) == [70]


@pytest.mark.parametrize("wrong", [{"steps_max": 0}, {"bytes_max": 0}, {"slack_steps": -1}])
def test_senseless_bounds_are_refused(wrong: dict[str, int]) -> None:
    """Bounds that nothing fits are refused where they are made."""
    with pytest.raises(ValueError, match="replay bounds"):
        ReplayBounds(**wrong)


@dataclass
class Model:
    """What a buffer must do, said plainly: all steps ever taken, and the last that is committed."""

    sizes: list[int] = field(default_factory=list[int])
    committed: int | None = None

    @property
    def uncommitted(self) -> list[int]:
        """Steps that must be held."""
        if self.committed is None:
            return []
        return list(range(self.committed + 1, len(self.sizes)))


class _ReplayMachine(RuleBasedStateMachine):
    """Steps come, commits go forward and back: what is not committed is always there, and the bounds hold."""

    @initialize(steps_max=st.integers(1, 6), bytes_max=st.integers(1, 40), slack=st.integers(0, 4), none=st.booleans())
    def begin(self, steps_max: int, bytes_max: int, slack: int, *, none: bool) -> None:
        """A new sequence, whose first step is committed before its reply unless nothing ever is."""
        self.bounds = ReplayBounds(steps_max=steps_max, bytes_max=bytes_max, slack_steps=slack)
        self.buffer = ReplayBuffer(self.bounds)
        self.model = Model()
        self.none = none
        self.oldest = 0

    @rule(size=st.integers(0, 50))
    def take(self, size: int) -> None:
        """A step, if it is admitted."""
        if not self.buffer.admits(size):
            waiting = sum(self.model.sizes[step] for step in self.model.uncommitted)
            assert self.model.uncommitted
            assert len(self.model.uncommitted) >= self.bounds.steps_max or waiting + size > self.bounds.bytes_max
            return
        step = len(self.model.sizes)
        self.buffer.add(message(step), size, digest(step))
        self.model.sizes.append(size)
        if step == 0 and not self.none:
            self.model.committed = 0
            self.buffer.committed(0)

    @precondition(lambda self: self.model.committed is not None)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        """The store moves on, or comes back older, but not so much older that the buffer cannot tell."""
        lowest = max(0, self.buffer.oldest_step - 1)
        self.model.committed = data.draw(st.integers(lowest, len(self.model.sizes) - 1))
        self.buffer.committed(self.model.committed)

    @invariant()
    def holds_what_it_must(self) -> None:
        """No gap, nothing uncommitted missing, every message its own, and no more than the bounds allow."""
        buffer, sizes = self.buffer, self.model.sizes
        held = buffer.since(buffer.oldest_step)
        assert [one.step for one in held] == list(range(buffer.oldest_step, len(sizes)))
        assert all(one.request == message(one.step) and one.digest == digest(one.step) for one in held)
        assert buffer.oldest_step >= self.oldest
        self.oldest = buffer.oldest_step
        assert set(self.model.uncommitted) <= {one.step for one in held}
        assert buffer.uncommitted == len(self.model.uncommitted)
        assert buffer.bytes_held == sum(sizes[buffer.oldest_step :])
        if len(held) > 1:
            assert len(held) <= self.bounds.steps_max
            assert buffer.bytes_held <= self.bounds.bytes_max
        if self.model.committed is not None:
            assert len(held) - len(self.model.uncommitted) <= max(1, self.bounds.slack_steps)


def test_nothing_is_dropped_that_may_be_needed() -> None:
    """Whatever the order of steps, commits and losses: what is not committed is held, and the bounds are kept."""
    run_state_machine_as_test(_ReplayMachine, settings=settings(max_examples=100, deadline=None))


@given(count=st.integers(0, 30), slack=st.integers(0, 30), committed=st.integers(0, 29))
def test_any_step_that_is_held_can_be_gone_back_to(count: int, slack: int, committed: int) -> None:
    """`since` gives exactly the steps from there on."""
    buffer = filled(count, ReplayBounds(slack_steps=slack), committed=min(committed, count - 1))
    for step in range(buffer.oldest_step, count + 1):
        assert [held.step for held in buffer.since(step)] == list(range(step, count))
