"""What it means where a server says that a sequence stands (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from statestream.errors import SequenceEnded, SequenceLost, StatestreamError, StepConflict

if TYPE_CHECKING:
    from statestream._replay import ReplayBuffer
    from statestream.common.v1.sequence_pb2 import ReplyHeader


def first_to_send(opening: ReplyHeader, buffer: ReplayBuffer, *, ends: bool) -> int:
    """The step to go on from: one that is held, and then all after it, or the one to come.

    Args:
        opening: header of the first response to a call that resumes.
        buffer: what is held; its `next_step` is the step to come, which may have been sent without a reply.
        ends: that step is to be the last one.

    Raises:
        SequenceEnded: it takes no further step, and the one to come is not that which ended it.
        StepConflict: somebody else has moved it.
        SequenceLost: the server needs steps that are not held any more.
    """
    if not opening.HasField("next_step"):
        raise StatestreamError("the server did not say where the sequence stands")
    found, pending = opening.next_step, buffer.next_step
    if opening.ended and not (ends and found == pending + 1):
        raise SequenceEnded("the sequence was ended by another client")
    if found > pending + 1:
        raise StepConflict(f"another client has taken the sequence to step {found}, this one is at {pending}")
    if found > pending:
        # It was applied, its reply was lost, and is stored. The server was told what came before, and found the same.
        return pending
    if differ(opening.history_digest, buffer.digest_before(found)):
        raise StepConflict(f"the sequence has another history before step {found}: another client has changed it")
    if found < buffer.oldest_step:
        raise sequence_lost(found, buffer)
    return found


def sequence_lost(found: int, buffer: ReplayBuffer) -> SequenceLost:
    """The error for a sequence of which the server needs steps from `found` on."""
    return SequenceLost(
        f"the server has lost the sequence from step {found} on, held are those from {buffer.oldest_step} on",
        metadata={"next_step": str(found), "oldest_step": str(buffer.oldest_step)},
    )


def differ(one: bytes, other: bytes) -> bool:
    """True if both histories are known and they are not the same."""
    return bool(one and other) and one != other
