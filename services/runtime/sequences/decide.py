"""What a request means for a sequence as it was found: run it, answer it again, or refuse it (pure).

This is the whole of the exactly-once rule. Everything else only loads, runs and commits.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from services.runtime.core.errors import (
    SequenceEnded,
    SequenceEvicted,
    SequenceExpired,
    SequenceKindMismatch,
    SequenceNotFound,
    StateCorrupt,
    StepConflict,
    StepContentMismatch,
    StepOutOfOrder,
)
from services.runtime.state.types import Absence, Durability, Position, Record, Stored, StoredReply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from services.runtime.core.ids import ModelId

DIGEST_BYTES = 16


class StepRequest(NamedTuple):
    """One step as a client asks for it.

    Attributes:
        start: begins the sequence anew.
        start_key: tells a repeated start from a new one; empty: not told.
        step: number of the step; None takes the next one.
        end: the sequence ends with this step.
        digest: of the content, `content_digest`.
        durability, model: count only where the sequence starts.
        epoch: of the step before on the same stream; None: this is the first one there.
        at_least: the step after that one, below which a step without a number cannot be.
        keyed: `digest` has a key of the client's in it, which tells a repetition of a step without a number.
        owns: whether a sequence with this task part of its carry is the caller's kind; None: whatever it is.
    """

    start: bool
    start_key: str
    step: int | None
    end: bool
    digest: bytes
    durability: Durability
    model: ModelId
    epoch: int | None = None
    at_least: int = 0
    keyed: bool = False
    owns: Callable[[bytes], bool] | None = None


class Run(NamedTuple):
    """Compute the step and commit it.

    `expected` is what the commit finds in the store; `base` None: initial state; `replaces_live`: a start over a
    sequence that could have gone on.
    """

    expected: Position | None
    position: Position
    base: Record | None
    replaces_live: bool = False


class Recompute(NamedTuple):
    """Compute the latest step of `record` again, from the carry before it, and commit nothing."""

    record: Record


class Replay(NamedTuple):
    """Answer with a reply that `record` keeps."""

    record: Record
    stored: StoredReply


Decision = Run | Replay | Recompute


def content_digest(content: bytes, *, end: bool, start_key: str = "") -> bytes:
    """What makes two requests for a step the same. `start_key` belongs to the first step alone."""
    key = start_key.encode()
    digest = hashlib.blake2b(
        len(key).to_bytes(4, "little") + key, digest_size=DIGEST_BYTES, person=b"end" if end else b"more"
    )
    digest.update(content)
    return digest.digest()


def tensor_hash(head: bytes, *, start: bool, end: bool, start_key: str = "", key: bytes = b"") -> hashlib.blake2b:
    """As `content_digest`, for content in several parts, whose lengths `head` tells, and for a key of the request.

    `tensor_digest` adds the parts.

    With a `key`, which belongs to a step without a number, only a request with the same key is the same; and one that
    starts is then never the same as one that does not, as the digest of the first step is kept for ever.
    """
    names = b"\0".join((start_key.encode(), key, b"start" if key and start else b""))
    digest = hashlib.blake2b(
        len(names).to_bytes(4, "little") + names, digest_size=DIGEST_BYTES, person=b"tensors end" if end else b"tensors"
    )
    digest.update(head)
    return digest


def tensor_digest(begun: hashlib.blake2b, blobs: Iterable[bytes]) -> bytes:
    """What makes two requests for a step the same: what `tensor_hash` began, which is left as it is, and the parts."""
    digest = begun.copy()
    for blob in blobs:
        digest.update(blob)
    return digest.digest()


def decide(found: Stored | Absence, request: StepRequest, new_epoch: int) -> Decision:
    """Judges a request. `new_epoch` is the epoch to take for a start where no higher one is known.

    Raises:
        SequenceError: the sequence cannot take this step; the class says why.
    """
    if request.start:
        return _start(found, request, new_epoch)
    if not isinstance(found, Stored):
        raise absent(found)
    record = found.record
    check_kind(record, request.owns)
    expected = record.position.step
    fenced = request.epoch not in (None, record.position.epoch)
    number = _repeated(record, request) if request.keyed and request.step is None else request.step
    if number is not None and number < expected:
        again = _applied(record, number, request.digest)
        if fenced and record.durability is Durability.CHECKPOINT:
            # Steps that this stream was answered may be gone, and the one it asks for be somebody else's with the same
            # content. To resume tells.
            raise StepConflict("another stream has taken up the sequence since; resume it")
        return again
    if found.expired:
        raise SequenceExpired("idle or alive for too long")
    if record.ended:
        raise SequenceEnded(f"the last step was {expected - 1}")
    if fenced:
        raise StepConflict("another stream has taken up the sequence since; resume it")
    step = request.at_least if request.step is None else request.step
    if step > expected:
        raise StepOutOfOrder(f"step {step} skips ahead, expected is {expected}", expected=expected)
    return Run(record.position, record.position, record)


def check_kind(record: Record, owns: Callable[[bytes], bool] | None) -> None:
    """Refuses a sequence that another service began.

    Raises:
        SequenceKindMismatch: its task part is not of the caller's kind. Of an ended one nothing is left to tell by.
    """
    if owns is not None and record.carry is not None and not owns(record.carry.task):
        raise SequenceKindMismatch("another service on the same model has a sequence of this name")


def present(found: Stored | Absence) -> Stored:
    """A sequence that can be told of: live, or ended and not forgotten.

    Raises:
        SequenceError: there is none, or it has expired.
    """
    if not isinstance(found, Stored):
        raise absent(found)
    if found.expired and not found.record.ended:
        raise SequenceExpired("idle or alive for too long")
    return found


def absent(why: Absence) -> SequenceEvicted | SequenceNotFound:
    """The error for a sequence that a store does not have."""
    if why is Absence.EVICTED:
        return SequenceEvicted("dropped to make room in the memory store")
    return SequenceNotFound("no such sequence; start it first")


def _applied(record: Record, step: int, digest: bytes) -> Replay | Recompute:
    expected = record.position.step
    for reply in record.replies:
        if reply.step == step:
            if reply.digest != digest:
                raise StepContentMismatch(f"step {step} was applied with other content")
            if reply.reply:
                return Replay(record, reply)
            if record.previous is not None and step == expected - 1:
                return Recompute(record)
    raise StepOutOfOrder(
        f"step {step} was applied and its reply is no longer kept, expected is {expected}", expected=expected
    )


def _repeated(record: Record, request: StepRequest) -> int | None:
    """The step that a keyed request repeats, among those whose replies are kept.

    A stream takes its messages once and in order, so what comes after a reply on the same stream repeats nothing.
    """
    for reply in reversed(record.replies):
        if reply.digest == request.digest:
            return reply.step if reply.step >= request.at_least else None
    return None


def start_over(damaged: StateCorrupt, new_epoch: int) -> Run:
    """A start in place of a record that cannot be read.

    Raises:
        StateCorrupt: not even the position could be read, which the commit would have to expect.
    """
    epoch, step = damaged.metadata.get("epoch", ""), damaged.metadata.get("step", "")
    if not (epoch.isdigit() and step.isdigit()):
        raise damaged
    return Run(Position(int(epoch), int(step)), Position(max(new_epoch, int(epoch) + 1), 0), None)


def _start(found: Stored | Absence, request: StepRequest, new_epoch: int) -> Decision:
    if not isinstance(found, Stored):
        return Run(None, Position(new_epoch, 0), None)
    record = found.record
    first = next((reply for reply in record.replies if reply.step == 0), None)
    repeated = first is not None and first.digest == request.digest and not found.expired
    if repeated and (request.start_key or record.position.step == 1):
        # Without a key, starting again with the same first step while nothing follows it changes nothing but the epoch.
        return _applied(record, 0, request.digest)
    replaces_live = not (record.ended or found.expired)
    return Run(record.position, Position(max(new_epoch, record.position.epoch + 1), 0), None, replaces_live)


def keep_replies(base: Record | None, new: StoredReply, count: int) -> tuple[StoredReply, ...]:
    """The replies to keep after a step: the `count` latest, and of the first step at least its digest.

    That digest is what tells a late repetition of a start from a new one.
    """
    kept = (*(base.replies if base else ()), new)
    recent = kept[-count:]
    first = kept[0]
    if recent[0] is first:
        return recent
    return (first._replace(reply=b"") if first.reply else first, *recent)
