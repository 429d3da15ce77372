"""What stands for a sequence's model and all that it was fed: a digest that each step extends (pure)."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.runtime.core.ids import ModelId
    from services.runtime.state.types import Record

HISTORY_BYTES = 16


def extended(base: Record | None, digest: bytes, model: ModelId) -> bytes:
    """History after one more step, whose content has `digest`; empty where that before it is not known.

    It begins with the model: the same content fed to another version is another history.
    """
    if base is not None and not base.history:
        return b""
    return _link(base.history if base is not None else _link(b"", "\n".join(model).encode()), digest)


def rewound(history: bytes, epoch: int) -> bytes:
    """History of a sequence that was put back to where it had `history`, under a new epoch.

    It differs from the one before, so that a client which had gone on from there does not take the rewind for a loss.
    """
    return _link(history, b"rewound %d" % epoch) if history else b""


def descends(record: Record, step: int, history: bytes) -> bool | None:
    """Whether `record` came of where a sequence took `step` next and had `history`; None: it does not tell.

    A record keeps the digests of its latest steps only, so it tells of the recent past.
    """
    if not (history and record.history) or step > record.position.step:
        return None
    digests = {reply.step: reply.digest for reply in record.replies}
    for number in range(step, record.position.step):
        if number not in digests:
            return None
        history = _link(history, digests[number])
    return history == record.history


def _link(history: bytes, digest: bytes) -> bytes:
    return blake2b(history + digest, digest_size=HISTORY_BYTES, person=b"history").digest()
