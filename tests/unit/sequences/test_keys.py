"""Steps without a number: a key of the client's tells a repeated one; and whose sequence it is (pure)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.runtime.core.errors import SequenceEnded, SequenceKindMismatch, StepConflict, StepOutOfOrder
from services.runtime.sequences.decide import (
    Recompute,
    Replay,
    Run,
    StepRequest,
    decide,
    keep_replies,
    tensor_digest,
    tensor_hash,
)
from services.runtime.state.types import Carry, Durability, Position, Record, Stored, StoredReply
from tests.kit.toy import TOY_ID

EPOCH = 1_000


def digest_of(key: str, content: bytes = b"same", *, start: bool = False, end: bool = False) -> bytes:
    return tensor_digest(tensor_hash(b"head", start=start, end=end, key=key.encode()), (content,))


def request(key: str, content: bytes = b"same", *, epoch: int | None = None, at_least: int = 0) -> StepRequest:
    return StepRequest(
        start=False,
        start_key="",
        step=None,
        end=False,
        digest=digest_of(key, content),
        durability=Durability.STEP,
        model=TOY_ID,
        epoch=epoch,
        at_least=at_least,
        keyed=bool(key),
    )


def stored(*keys: str, kept: int = 4, task: bytes = b"", ended: bool = False) -> Stored:
    """A sequence that has taken a step with the same content for each of the keys, the first of which started it."""
    record = Record(Position(EPOCH, 0), TOY_ID, Durability.STEP, Carry((), task), ())
    for step, key in enumerate(keys):
        reply = StoredReply(step, digest_of(key, start=step == 0), f"reply {step}".encode())
        replies = keep_replies(record, reply, kept)
        record = replace(record, position=Position(EPOCH, step + 1), replies=replies)
    if ended:
        record = replace(record, carry=None)
    return Stored(record, expires_at=0.0, size_bytes=0, expired=False)


class TestKeys:
    """A request whose digest has a key in it."""

    @pytest.mark.parametrize(("key", "step"), [("b", 1), ("c", 2), ("d", 3)])
    def test_the_same_key_and_content_is_a_repetition(self, key: str, step: int) -> None:
        """Answered with the stored reply, whatever has followed while it is kept."""
        decision = decide(stored("a", "b", "c", "d"), request(key), 0)
        assert isinstance(decision, Replay)
        assert decision.stored.reply == f"reply {step}".encode()

    @pytest.mark.parametrize("again", [request("e"), request("d", b"other"), request("")])
    def test_another_key_content_or_none_is_the_next_step(self, again: StepRequest) -> None:
        """It runs: equal chunks of silence are different steps, unless their sender says otherwise."""
        assert isinstance(decide(stored("a", "b", "c", "d"), again, 0), Run)

    def test_without_a_key_nothing_is_a_repetition(self) -> None:
        """Even where an equal request was the step before."""
        assert isinstance(decide(stored("", "", ""), request(""), 0), Run)

    def test_a_forgotten_key_is_new(self) -> None:
        """Only the latest replies are kept; the digest of the first step, which stays, is that of a start."""
        assert isinstance(decide(stored("a", "a", "b", "c", "d", "e", kept=2), request("a"), 0), Run)

    def test_of_equal_ones_the_latest_is_repeated(self) -> None:
        """A client that uses one key again gets the reply to its last use."""
        decision = decide(stored("a", "k", "b", "k"), request("k"), 0)
        assert isinstance(decision, Replay)
        assert decision.stored.step == 3

    def test_on_one_stream_nothing_is_repeated(self) -> None:
        """What comes after a reply on the same stream, which takes messages once, is a new step whatever its key."""
        found = stored("a", "b", "c")
        assert isinstance(decide(found, request("c", epoch=EPOCH, at_least=3), 0), Run)
        assert isinstance(decide(found, request("c", epoch=EPOCH, at_least=2), 0), Replay)

    def test_a_stream_that_was_fenced_off_is_told_so(self) -> None:
        """As with numbers: it is not answered from what may be another history."""
        found = stored("a", "b")
        ahead = replace(found, record=replace(found.record, durability=Durability.CHECKPOINT))
        with pytest.raises(StepConflict):
            decide(ahead, request("b", epoch=EPOCH - 1), 0)

    def test_the_last_step_is_repeated_after_the_end(self) -> None:
        """Its reply stays; a new one is refused."""
        found = stored("a", "b", ended=True)
        assert isinstance(decide(found, request("b"), 0), Replay)
        with pytest.raises(SequenceEnded):
            decide(found, request("c"), 0)

    def test_a_reply_too_large_to_keep_is_computed_again(self) -> None:
        """The latest one, from the carry before it; an older one can only be refused."""
        found = stored("a", "b", "c")
        bare = tuple(reply._replace(reply=b"") for reply in found.record.replies)
        large = replace(found, record=replace(found.record, replies=bare, previous=Carry((), b"")))
        assert isinstance(decide(large, request("c"), 0), Recompute)
        with pytest.raises(StepOutOfOrder):
            decide(large, request("b"), 0)


class TestKinds:
    """A sequence that another service on the same model began."""

    @pytest.mark.parametrize("step", [None, 0, 1, 7])
    def test_a_foreign_sequence_is_refused(self, step: int | None) -> None:
        """Before anything else is looked at, numbered or not."""
        asked = request("z")._replace(step=step, owns=b"mine".__eq__)
        with pytest.raises(SequenceKindMismatch):
            decide(stored("a", task=b"theirs"), asked, 0)

    def test_an_own_one_is_not(self) -> None:
        """It goes on; and so does any sequence where the caller does not care."""
        assert isinstance(decide(stored("a", task=b"mine"), request("z")._replace(owns=b"mine".__eq__), 0), Run)
        assert isinstance(decide(stored("a", task=b"theirs"), request("z"), 0), Run)

    def test_a_start_takes_its_place(self) -> None:
        """As it does with any live sequence of the name."""
        asked = request("z")._replace(start=True, owns=b"mine".__eq__)
        decision = decide(stored("a", task=b"theirs"), asked, 0)
        assert isinstance(decision, Run)
        assert decision.replaces_live


def test_the_digest_tells_content_flags_and_keys_apart() -> None:
    """Each makes another request; with a key a start differs from a step, without one it does not."""
    digests = [
        digest_of("a"),
        digest_of("b"),
        digest_of(""),
        digest_of("a", b"other"),
        digest_of("a", end=True),
        digest_of("a", start=True),
        tensor_digest(tensor_hash(b"head", start=True, end=False, start_key="a"), (b"same",)),
        tensor_digest(tensor_hash(b"other", start=False, end=False, key=b"a"), (b"same",)),
    ]
    assert len(set(digests)) == len(digests)
    assert digest_of("", start=True) == digest_of("")
    begun = tensor_hash(b"h", start=False, end=False)
    assert tensor_digest(begun, (b"a", b"b")) == tensor_digest(begun, (b"ab",)) != tensor_digest(begun, (b"b",))
