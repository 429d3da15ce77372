"""What is kept of a sequence between two steps. All of it is immutable and comparable by value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from services.runtime.core.ids import ModelId


class Durability(IntEnum):
    """What has become of a step when its reply leaves; numbers as in `sequence.proto`."""

    STEP = 1
    NONE = 2
    CHECKPOINT = 3


class Position(NamedTuple):
    """Where a sequence stands: commits compare and set it. `step` is the number it takes next.

    `epoch` grows with every start, whenever the sequence is resumed, and when it is rewound or ended from outside: who
    still works in an older one can commit nothing more.
    """

    epoch: int
    step: int


class Carry(NamedTuple):
    """Everything that a sequence needs to go on.

    `tensors` are the model's state tensors in the manifest's order, each without the batch axis
    (state dims (L, N, H) are kept as (L, H)); `task` is the task's own part, in its own encoding.
    """

    tensors: tuple[npt.NDArray[np.generic], ...]
    task: bytes


class StoredReply(NamedTuple):
    """The reply to an applied step, kept for retries. `digest` is that of the request's content.

    `reply` is empty where only the digest is kept.
    """

    step: int
    digest: bytes
    reply: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """One sequence as a store keeps it.

    `carry` is None once the sequence has ended. `replies` are the most recent ones, oldest first. `history` stands for
    the model and the content of all steps so far, 16 bytes; empty where it is not known. `previous` is the carry before
    the latest step where the reply to that step is too large to keep: it can be computed again.
    """

    position: Position
    model: ModelId
    durability: Durability
    carry: Carry | None
    replies: tuple[StoredReply, ...]
    history: bytes = b""
    previous: Carry | None = None

    @property
    def ended(self) -> bool:
        """True after the last step."""
        return self.carry is None


@dataclass(frozen=True, slots=True)
class Terms:
    """How long a store keeps a sequence, in milliseconds.

    A live one is dropped after `idle_ms` without a step, or `lifetime_ms` after its start; what is left of an ended
    or expired one is kept for `retention_ms` more, so that retries are answered and the cause can be told.
    """

    idle_ms: int
    lifetime_ms: int
    retention_ms: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as found in a store. An `expired` one may be told of, not continued.

    `checkpoints` are the steps at which earlier records of the sequence are kept, ascending.
    """

    record: Record
    expires_at: float
    """Seconds since 1970, by the store's clock."""
    size_bytes: int
    expired: bool
    checkpoints: tuple[int, ...] = ()


class Absence(IntEnum):
    """Why a store has no record of a name."""

    UNKNOWN = 0
    EVICTED = 1
