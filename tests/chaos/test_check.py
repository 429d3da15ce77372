"""The campaign would see it if something were lost, came twice, or were not the same."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from models.sentiment.evaluate import ARTEFACT, Model
from models.sentiment.features import words_of
from tests.chaos.check import check
from tests.chaos.faults import Event
from tests.chaos.log import Answer, Begun, Broken, Haunted, Reply, ToldLost, Totals, read, write
from tests.chaos.oracle import Oracle
from tests.chaos.plan import Kind
from tests.chaos.report import page, spread, stalls, summary
from tests.chaos.texts import Text

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.chaos.check import Verdict
    from tests.chaos.log import Line

STEPS = 5


def answers(stream: int, number: int, steps: int, *, ended: bool) -> list[Answer]:
    """A toy oracle."""
    return [Answer("positive", (0.25 + step).hex(), step) for step in range(steps)]


def a_reply(step: int, *, session: int = 0, last: bool | None = None, answer: Answer | None = None) -> Reply:
    """As it should be."""
    return Reply(
        stream=3,
        number=7,
        session=session,
        step=step,
        sent_at=10.0 + step,
        replied_at=10.5 + step,
        committed_step=None,
        epoch=1,
        last=step == STEPS - 1 if last is None else last,
        answer=answer or answers(3, 7, step + 1, ended=False)[step],
        reconnects=0,
    )


def a_log() -> list[Line]:
    """Of one sequence as it should be."""
    return [Begun(3, 7, 0, 0, 9.0), *(a_reply(step) for step in range(STEPS)), Totals(0, 0, 0, 0)]


def told(lines: list[Line]) -> Verdict:
    return check(lines, answers)


def test_a_good_log_is_good() -> None:
    """Nothing is found where nothing is wrong."""
    verdict = told(a_log())
    assert verdict.good
    assert (verdict.sequences, verdict.steps, verdict.problems) == (1, STEPS, [])


@pytest.mark.parametrize(
    "answer",
    [
        Answer("negative", (2.25).hex(), 2),
        Answer("positive", math.nextafter(2.25, 3).hex(), 2),
        Answer("positive", (2.25).hex(), 3),
    ],
)
def test_another_answer_is_found(answer: Answer) -> None:
    """A label, a word or the last bit of a probability that is not the oracle's is told with its sequence and step."""
    lines = a_log()
    lines[3] = a_reply(2, answer=answer)
    verdict = told(lines)
    assert (verdict.good, verdict.mismatches) == (False, 1)
    assert "stream 3 sequence 7 step 2 " in verdict.problems[0]


def test_a_step_that_is_missing_is_lost() -> None:
    """In the middle, at the end, and where the library gave up."""
    whole = a_log()
    assert told([*whole[:3], *whole[4:]]).losses == 1
    assert told(whole[:5]).losses == 1
    broken = told([*whole[:4], Broken(3, 7, 3, 13.0, "Unavailable UNAVAILABLE: gone")])
    assert broken.losses == 1
    assert "gone at step 3" in broken.problems[0]
    assert told([Begun(3, 7, 0, 0, 9.0)]).losses == 1


def test_a_step_that_comes_twice_is_found() -> None:
    """On one stream no step is answered twice."""
    lines = a_log()
    assert told([*lines[:4], lines[3], *lines[4:]]).duplicates == 1


def test_a_user_that_comes_back_may_take_steps_again() -> None:
    """Resumed where the sequence stood or before it, with the same answers; not resumed after it."""
    lines = a_log()
    again: list[Line] = [
        ToldLost(3, 7, 0, 3, 13.0),
        Begun(3, 7, 1, 1, 13.0),
        a_reply(1, session=1),
        a_reply(2, session=1),
    ]
    verdict = told([*lines[:4], *again, *lines[4:]])
    assert verdict.good
    assert verdict.retaken == 2
    assert told([*lines[:3], Begun(3, 7, 1, 3, 13.0), *lines[4:]]).losses == 1


def test_a_log_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Every kind of line, with every bit of its numbers."""
    lines = [*a_log(), Broken(1, 2, 3, 0.1, "why"), ToldLost(1, 2, 3, 4, 1 / 3), Haunted(1, 2, 3, 1 / 7)]
    file = tmp_path / "log"
    file.write_text(write(lines))
    assert list(read([file])) == lines


def test_the_oracle_is_the_model_on_the_whole_text() -> None:
    """Piece by piece it comes to what the network says of the text in one run; some steps close no word."""
    model = Model.load(ARTEFACT)
    for stream in range(3):
        text = Text(5, stream, 0)
        steps = min(text.steps, 12)
        given: Iterator[Answer] = Oracle(5).answers(stream, 0, steps, ended=True)
        *_, last = given
        data = b"".join(text.piece(step) for step in range(steps - 1)) + text.last(steps - 1)
        words = words_of(data.decode())
        logits = model.logits([model.vocabulary.indices(words)])[0]
        probability = 1 / (1 + math.exp(float(logits[0]) - float(logits[1])))
        assert last.word_count == len(words)
        assert math.isclose(float.fromhex(last.probability), probability, rel_tol=1e-6)


def test_a_stall_counts_from_the_kill_or_from_the_next_step() -> None:
    """Only streams whose call broke count, once each; what happened beside another fault is told apart."""
    events = [Event(Kind.KILL, [1], 12.0, 13.0), Event(Kind.KILL, [2], 50.0, 51.0)]
    under_way = a_reply(0)._replace(stream=1, sent_at=11.9, replied_at=12.3, reconnects=1)
    between = a_reply(0)._replace(stream=2, sent_at=12.5, replied_at=12.6, reconnects=1)
    before = [a_reply(0)._replace(stream=2, sent_at=11.0, replied_at=11.1)]
    untouched = a_reply(0)._replace(stream=3, sent_at=11.9, replied_at=12.9)
    found = stalls([*before, under_way, between, untouched], events)
    assert found.waited == (2, 100.0, 300.0, 300.0, 300.0)
    assert found.under_way == (1, 300.0, 300.0, 300.0, 300.0)
    assert found.crowded.count == 0
    massacre = Event(Kind.KILL_ALL, [0, 1], 12.0, 13.0)
    assert stalls([*before, under_way], [massacre]).nobody_left == (1, 300.0, 300.0, 300.0, 300.0)
    slow = Event(Kind.STORE_SLOW, [0], 11.0, 12.1)
    assert stalls([*before, under_way, between], [*events, slow]).crowded.count == 2


def test_quantiles_are_values_that_occurred() -> None:
    """Of 1 to 100 ms; and of nothing."""
    assert spread(i / 1000 for i in range(1, 101)) == (100, 50.0, 90.0, 99.0, 100.0)
    assert spread([]).count == 0


def test_the_page_tells_what_was_wrong() -> None:
    """Figures are summed up, and a problem is on the page."""
    lines = [*a_log()[:3], Totals(1, 2, 3, 4), Totals(10, 20, 30, 40)]
    facts = {"seed": 1, "seconds": 2.0, "streams": 1, "durability": "step", "servers": 2, "partitions_by": "links"} | {
        "machine": "one"
    }
    made = summary(told(lines), lines, [Event(Kind.KILL_ALL, [0, 1], 1.0, 2.0)], **facts)
    assert (made.good, made.kills, made.reconnects, made.replayed_steps) == (False, 2, 11, 22)
    assert (made.store_losses_detected, made.go_aways) == (33, 44)
    assert "lost: stream 3 sequence 7" in page(made)
