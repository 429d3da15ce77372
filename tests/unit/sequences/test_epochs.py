"""Epochs: who takes a sequence up gets one that nobody else has had."""

from __future__ import annotations

from typing import Any, cast

from services.runtime.sequences.commits import Commits
from services.runtime.sequences.contract import SequencePolicy
from services.runtime.state.cache import RecordCache
from services.runtime.state.types import Position
from tests.kit.clock import ManualClock
from tests.kit.records import a_record
from tests.kit.toy import NoEvents


def commits(clock: ManualClock) -> Commits:
    nowhere = cast("Any", None)
    return Commits(nowhere, nowhere, nowhere, RecordCache(0, 0), SequencePolicy(), clock, NoEvents())


def test_an_epoch_is_the_time() -> None:
    """In microseconds, so that it is higher than any that the store has forgotten."""
    fenced = commits(ManualClock(wall_s=2.0)).fenced(a_record(3, epoch=1))
    assert fenced.position == Position(2_000_000, 3)


def test_where_the_clock_is_behind_no_epoch_is_given_twice() -> None:
    """A fail-over may lose a fence and bring back the record before it: the next one has another number."""
    behind = commits(ManualClock(wall_s=1.0))
    epochs = {behind.fenced(a_record(3, epoch=5_000_000)).position.epoch for _ in range(8)}
    assert len(epochs) > 1
    assert min(epochs) > 5_000_000
