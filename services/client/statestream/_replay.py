"""What a stream keeps of the steps it has taken, to send them again after a break (pure)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from google.protobuf.message import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayBounds:
    """How much a stream keeps in order to send it again.

    Attributes:
        steps_max: steps kept, committed ones included.
        bytes_max: size of their messages together. One step alone may be larger.
        slack_steps: committed steps that are kept all the same, within the two bounds: a store that comes back older
            than it was is fed them again. The latest step is always kept.

    Steps that are not committed are never dropped: where they reach a bound, and the server cannot be made to commit
    them, sending raises `ReplayBufferFull`. A sequence of which nothing is ever committed (`Durability.NONE`) drops its
    oldest steps instead.
    """

    steps_max: int = 1024
    bytes_max: int = 8 * 2**20
    slack_steps: int = 64

    def __post_init__(self) -> None:
        if self.steps_max < 1 or self.bytes_max < 1 or self.slack_steps < 0:
            raise ValueError("replay bounds need steps_max >= 1, bytes_max >= 1 and slack_steps >= 0")


@dataclass(slots=True)
class HeldStep:
    """A step whose reply has come. `digest` stands for the history up to it; empty where it is not known."""

    step: int
    request: Message
    size: int
    digest: bytes


class Spot(NamedTuple):
    """A place in a history: the step that is next there, and the digest of all before it (empty: not known)."""

    next_step: int
    digest: bytes


class ReplayBuffer:
    """The latest steps of one sequence, without a gap, up to the one that was answered last."""

    def __init__(self, bounds: ReplayBounds) -> None:
        self._bounds = bounds
        self._held: deque[HeldStep] = deque()
        self._size = 0
        self._before = Spot(0, b"")
        self._committed: int | None = None

    @property
    def oldest_step(self) -> int:
        """Number of the oldest step that is held; where none is, of the step to come."""
        return self._before.next_step

    @property
    def next_step(self) -> int:
        """Number of the step to come."""
        return self._before.next_step + len(self._held)

    @property
    def uncommitted(self) -> int:
        """How many of the held steps the store is not known to hold; 0 where nothing is ever committed."""
        if self._committed is None:
            return 0
        return max(0, min(len(self._held), self.next_step - 1 - self._committed))

    @property
    def bytes_held(self) -> int:
        """Size of all messages that are held."""
        return self._size

    def __len__(self) -> int:
        return len(self._held)

    def begin_at(self, spot: Spot) -> None:
        """Holds nothing: the sequence stands at `spot`."""
        self._held.clear()
        self._size = 0
        self._before = spot

    def admits(self, size: int) -> bool:
        """True if a step of so many bytes can be added without dropping one that is not committed."""
        count = self.uncommitted
        if not count or (count < self._bounds.steps_max and self._size + size <= self._bounds.bytes_max):
            return True
        kept = sum(held.size for held in islice(self._held, len(self._held) - count, None))
        return count < self._bounds.steps_max and kept + size <= self._bounds.bytes_max

    def add(self, request: Message, size: int, digest: bytes) -> None:
        """Holds the step to come, which has been answered; what is committed, or the oldest, makes room."""
        self._held.append(HeldStep(self.next_step, request, size, digest))
        self._size += size
        self._trim()

    def committed(self, step: int | None) -> None:
        """The store holds all steps up to this one; None: it holds none. It may be lower than before: a loss."""
        self._committed = step
        self._trim()

    def digest_before(self, step: int) -> bytes:
        """Digest of the history before this step; empty where it is not known."""
        if step == self._before.next_step:
            return self._before.digest
        index = step - 1 - self.oldest_step
        return self._held[index].digest if 0 <= index < len(self._held) else b""

    def since(self, step: int) -> list[HeldStep]:
        """All held steps from this one on, in order.

        Raises:
            IndexError: the buffer does not reach back so far.
        """
        if step < self.oldest_step:
            raise IndexError(step)
        return list(islice(self._held, step - self.oldest_step, None))

    def forget_digests(self) -> None:
        """The same steps get another history: they are fed to a new sequence."""
        self._before = Spot(self._before.next_step, b"")
        for held in self._held:
            held.digest = b""

    def _trim(self) -> None:
        while self._held and not self._oldest_is_needed():
            dropped = self._held.popleft()
            self._size -= dropped.size
            self._before = Spot(dropped.step + 1, dropped.digest)

    def _oldest_is_needed(self) -> bool:
        if len(self._held) == 1:
            return True
        within = len(self._held) <= self._bounds.steps_max and self._size <= self._bounds.bytes_max
        if self._committed is None:
            return within
        committed = len(self._held) - self.uncommitted
        return committed == 0 or (within and committed <= self._bounds.slack_steps)
