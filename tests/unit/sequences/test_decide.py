"""The exactly-once rule, case by case: what a request means for a sequence as it was found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from services.runtime.core.errors import (
    SequenceEnded,
    SequenceEvicted,
    SequenceExpired,
    SequenceNotFound,
    StepConflict,
    StepContentMismatch,
    StepOutOfOrder,
)
from services.runtime.sequences.decide import Replay, Run, StepRequest, content_digest, decide, keep_replies
from services.runtime.state.types import Absence, Carry, Durability, Position, Record, Stored, StoredReply
from tests.kit.toy import TOY_ID

EPOCH = 1_000


def digest_of(step: int, *, key: str = "") -> bytes:
    return content_digest(str(step).encode(), end=False, start_key=key)


def request(step: int | None, *, start: bool = False, key: str = "", digest: bytes | None = None) -> StepRequest:
    content = digest if digest is not None else digest_of(step or 0, key=key)
    return StepRequest(start, key, step, end=False, digest=content, durability=Durability.STEP, model=TOY_ID)


def stored(steps: int, *, ended: bool = False, expired: bool = False, kept: int = 4, key: str = "") -> Stored:
    """A sequence that has taken `steps` steps; reply n is b"reply n"."""
    replies: tuple[StoredReply, ...] = ()
    record = Record(Position(EPOCH, 0), TOY_ID, Durability.STEP, Carry((), b""), ())
    for step in range(steps):
        reply = StoredReply(step, digest_of(step, key=key if step == 0 else ""), f"reply {step}".encode())
        replies = keep_replies(record, reply, kept)
        record = replace(record, position=Position(EPOCH, step + 1), replies=replies)
    if ended:
        record = replace(record, carry=None)
    return Stored(record, expires_at=0.0, size_bytes=0, expired=expired)


class TestContinue:
    """A request that continues a sequence."""

    @pytest.mark.parametrize("step", [3, None])
    def test_the_next_step_runs(self, step: int | None) -> None:
        """Numbered or not, the next step runs from the record found and expects it at the commit."""
        found = stored(3)
        assert decide(found, request(step), 0) == Run(Position(EPOCH, 3), Position(EPOCH, 3), found.record)

    @pytest.mark.parametrize("step", [1, 2, 3, 4])
    def test_an_applied_step_is_answered_again(self, step: int) -> None:
        """The stored reply, and no run."""
        decision = decide(stored(5), request(step), 0)
        assert isinstance(decision, Replay)
        assert decision.stored.reply == f"reply {step}".encode()

    def test_a_stream_of_an_older_epoch_takes_no_step(self) -> None:
        """Somebody has resumed, rewound or replaced the sequence since; what was applied is still answered."""
        found = stored(3)
        assert isinstance(decide(found, request(3)._replace(epoch=EPOCH), 0), Run)
        for step in (3, 7, None):
            with pytest.raises(StepConflict):
                decide(found, request(step)._replace(epoch=EPOCH - 1), 0)
        assert isinstance(decide(found, request(2)._replace(epoch=EPOCH - 1), 0), Replay)

    def test_a_stream_that_ran_ahead_in_an_older_epoch_is_told_nothing_of_the_later_one(self) -> None:
        """What it was answered may be gone: an applied step with its content need not be of its history."""
        found = stored(3)
        found = replace(found, record=replace(found.record, durability=Durability.CHECKPOINT))
        assert isinstance(decide(found, request(2)._replace(epoch=EPOCH), 0), Replay)
        with pytest.raises(StepConflict):
            decide(found, request(2)._replace(epoch=EPOCH - 1), 0)

    def test_a_step_without_a_number_is_not_below_the_one_before(self) -> None:
        """The store came back older than the stream was told: that is not passed over because nobody counted."""
        assert isinstance(decide(stored(3), request(None)._replace(at_least=3), 0), Run)
        with pytest.raises(StepOutOfOrder):
            decide(stored(3), request(None)._replace(at_least=4), 0)

    def test_an_applied_step_with_other_content_is_refused(self) -> None:
        """The same number cannot mean two things."""
        with pytest.raises(StepContentMismatch):
            decide(stored(5), request(4, digest=b"other"), 0)

    @pytest.mark.parametrize("step", [0, 6, 7])
    def test_a_gap_is_refused_and_told_the_number_expected(self, step: int) -> None:
        """Ahead of the sequence, or so far behind that the reply is gone."""
        with pytest.raises(StepOutOfOrder) as caught:
            decide(stored(5), request(step), 0)
        assert caught.value.metadata == {"expected_step": "5"}

    def test_unknown_and_evicted_are_told_apart(self) -> None:
        """Two errors for two causes."""
        with pytest.raises(SequenceNotFound):
            decide(Absence.UNKNOWN, request(0), 0)
        with pytest.raises(SequenceEvicted):
            decide(Absence.EVICTED, request(0), 0)

    def test_an_expired_sequence_still_answers_retries(self) -> None:
        """A retry of an applied step is safe; a new step is refused as expired."""
        found = stored(2, expired=True)
        assert isinstance(decide(found, request(1), 0), Replay)
        with pytest.raises(SequenceExpired):
            decide(found, request(2), 0)

    def test_an_ended_sequence_still_answers_retries(self) -> None:
        """The last reply again, but no further step."""
        found = stored(2, ended=True)
        assert isinstance(decide(found, request(1), 0), Replay)
        with pytest.raises(SequenceEnded):
            decide(found, request(2), 0)


class TestStart:
    """A request that begins a sequence."""

    def test_nothing_there(self) -> None:
        """Begins at step 0 in the epoch offered, and the commit demands that nothing came meanwhile."""
        assert decide(Absence.UNKNOWN, request(0, start=True), 77) == Run(None, Position(77, 0), None)

    def test_over_a_live_sequence_begins_a_new_epoch(self) -> None:
        """The epoch grows even where the clock of this replica lags behind."""
        found = stored(3)
        other = request(0, start=True, digest=b"another beginning")
        assert decide(found, other, 5) == Run(Position(EPOCH, 3), Position(EPOCH + 1, 0), None, replaces_live=True)

    @pytest.mark.parametrize("flags", [{"ended": True}, {"expired": True}])
    def test_over_what_is_left_of_one(self, flags: dict[str, Any]) -> None:
        """An ended or expired name can be used again."""
        decision = decide(stored(3, **flags), request(0, start=True, digest=b"again"), 2_000)
        assert decision == Run(Position(EPOCH, 3), Position(2_000, 0), None)

    def test_a_repeated_start_with_a_key_is_a_retry(self) -> None:
        """However far the sequence has come: answered while the reply is kept, never restarted."""
        again = request(0, start=True, key="k")
        assert isinstance(decide(stored(4, key="k"), again, 0), Replay)
        with pytest.raises(StepOutOfOrder):
            decide(stored(9, key="k"), again, 0)

    def test_a_start_with_another_key_begins_anew(self) -> None:
        """The same first chunk under a new key is a new sequence."""
        assert isinstance(decide(stored(1, key="k"), request(0, start=True, key="l"), 0), Run)

    def test_without_a_key_it_is_a_retry_while_nothing_follows(self) -> None:
        """Then starting again would give the same state; later it would lose steps, and is meant."""
        again = request(0, start=True)
        assert isinstance(decide(stored(1), again, 0), Replay)
        assert isinstance(decide(stored(2), again, 0), Run)


def test_only_recent_replies_are_kept_and_the_first_digest() -> None:
    """The ring is bounded; of the first step the digest stays, without its reply."""
    replies = stored(9, kept=2).record.replies
    assert [reply.step for reply in replies] == [0, 7, 8]
    assert replies[0].reply == b""


def test_the_digest_tells_content_end_and_key_apart() -> None:
    """Each makes another request."""
    digests = {
        content_digest(b"a", end=False),
        content_digest(b"a", end=True),
        content_digest(b"b", end=False),
        content_digest(b"a", end=False, start_key="k"),
        content_digest(b"ak", end=False),
    }
    assert len(digests) == 5
