"""The faults and the texts of a campaign come from its seed alone."""

from __future__ import annotations

import pytest

from tests.chaos.plan import SHAPES, Kind, draw
from tests.chaos.texts import Text


@pytest.mark.parametrize("kills", [6, 40, 300])
def test_a_plan_has_every_kind_and_as_many_kills_as_asked(kills: int) -> None:
    """All kinds of faults come, in the order of their times, within the time; so many servers are killed, or more."""
    plan = draw(1, seconds=100.0, kills=kills, servers=3)
    assert {fault.kind for fault in plan} == set(Kind) == set(SHAPES)
    killed = sum({Kind.KILL: 1, Kind.KILL_ALL: 3}.get(fault.kind, 0) for fault in plan)
    assert kills <= killed <= kills + 3
    times = [fault.at_s for fault in plan]
    assert times == sorted(times)
    assert 0 <= times[0] <= times[-1] <= 100
    for fault in plan:
        shortest, longest = SHAPES[fault.kind].seconds
        assert shortest <= fault.seconds <= longest


def test_a_seed_is_a_plan() -> None:
    """The same seed gives the same faults, another one others; what is left out does not come."""
    assert draw(1, seconds=9.0, kills=9, servers=3) == draw(1, seconds=9.0, kills=9, servers=3)
    assert draw(1, seconds=9.0, kills=9, servers=3) != draw(2, seconds=9.0, kills=9, servers=3)
    assert Kind.FAIL_OVER not in {
        fault.kind for fault in draw(1, seconds=9.0, kills=9, servers=3, without=frozenset({Kind.FAIL_OVER}))
    }


@pytest.mark.parametrize("stream", range(20))
def test_a_text_is_the_same_wherever_it_ends(stream: int) -> None:
    """No piece but the last may be empty; cut short after any step, what was said is whole characters."""
    text = Text(1, stream, 0)
    pieces = [text.piece(step) for step in range(text.steps - 1)]
    assert all(pieces)
    for steps in range(len(pieces) + 1):
        again = Text(1, stream, 0)
        said = b"".join(again.piece(step) for step in range(steps))
        assert said == b"".join(pieces[:steps])
        (said + again.last(steps)).decode()


def test_texts_are_cut_inside_words_and_characters() -> None:
    """The load has what is hard to read: some pieces are no text by themselves."""

    def is_text(piece: bytes) -> bool:
        try:
            piece.decode()
        except UnicodeDecodeError:
            return False
        return True

    pieces = [Text(1, stream, 0).piece(0) for stream in range(200)]
    assert {is_text(piece) for piece in pieces} == {True, False}
    assert any(not piece.endswith(b" ") for piece in pieces)
