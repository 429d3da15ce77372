"""What the room of sequences takes and gives: contexts and folds, answers, bounds, events."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from services.runtime.engine.served import ServedModel
    from services.runtime.state.types import Carry, Durability, Position, Record


class StepContext(NamedTuple):
    """What a task's fold is told of the step it computes.

    `committed_step` is the last step that the store holds when the reply leaves; None: nothing is committed. `history`
    is that of the sequence after this step.
    """

    sequence_id: str
    position: Position
    model: ServedModel
    durability: Durability
    end: bool
    replaces_live: bool
    committed_step: int | None
    history: bytes


class Fold(Protocol):
    """A task's step: carry in, serialised reply and new carry out. It must be a pure function of what it is given."""

    async def __call__(self, context: StepContext, carry: Carry) -> tuple[bytes, Carry]:
        """Computes one step."""
        ...


class Taken(NamedTuple):
    """A step that has been taken, now or before: its reply, and the step after it.

    `epoch` is the one that the stream works in from now on; None where it has none yet, because the step was answered
    from what is kept. `ahead`: the store may not hold the step yet.
    """

    reply: bytes
    epoch: int | None
    next_step: int
    ahead: bool = False


class Told(NamedTuple):
    """The latest committed step that a client was told of, and the epoch that came with it."""

    epoch: int
    committed_step: int


class Spot(NamedTuple):
    """A place that a client knows a sequence to have been at: the step that was next there, and the history before."""

    next_step: int
    history: bytes


class Standing(NamedTuple):
    """A sequence that was taken up: its record under the new epoch, and the epoch that it was found in.

    `lost`: the store has less of it than its client was told: it came back older than it was, or somebody has rewound
    the sequence or started it anew, which its history tells.
    """

    record: Record
    found_epoch: int
    lost: bool


@dataclass(frozen=True, slots=True)
class SequencePolicy:
    """Bounds of one server.

    Attributes:
        replies_kept: replies kept for retries, per sequence.
        reply_bytes_max: a larger reply is not kept but computed again.
        waiters_max: requests that may wait for one sequence.
        retention_ms: how long an ended sequence is kept.
        commit_steps: a sequence of durability CHECKPOINT is committed after so many steps,
        commit_interval_ms: or so many milliseconds, whichever comes first.
        uncommitted_max: steps of one sequence that may wait for their commit.
        heads_max: sequences of durability CHECKPOINT at hand at once; `head_bytes_max`: about their memory.
        checkpoints_kept: earlier records kept per sequence, to go back to.
        checkpoint_steps: about so many steps lie between two of them.
    """

    replies_kept: int = 4
    reply_bytes_max: int = 65_536
    waiters_max: int = 16
    retention_ms: int = 300_000
    commit_steps: int = 32
    commit_interval_ms: float = 100.0
    uncommitted_max: int = 128
    heads_max: int = 10_000
    head_bytes_max: int = 256 * 2**20
    checkpoints_kept: int = 2
    checkpoint_steps: int = 64

    def keep(self, before: Position | None, after: Position) -> int:
        """How many checkpoints to keep when a commit goes from `before` to `after`; 0: it makes none."""
        if not self.checkpoints_kept or before is None or after.step <= before.step:
            return 0
        crossed = (before.step - 1) // self.checkpoint_steps != (after.step - 1) // self.checkpoint_steps
        return self.checkpoints_kept if crossed else 0


class SequenceEvents(Protocol):
    """What happens to sequences, for metrics."""

    def sequence_started(self, model: str) -> None:
        """A sequence began."""
        ...

    def sequence_ended(self, model: str) -> None:
        """A sequence took its last step."""
        ...

    def sequence_resumed(self, model: str) -> None:
        """A stream took up a sequence that existed."""
        ...

    def step_replayed(self, model: str) -> None:
        """A retry was answered with the stored reply, or with the same reply computed again."""
        ...

    def step_conflicted(self, model: str) -> None:
        """A commit found that somebody else had moved the sequence."""
        ...

    def step_refused(self, model: str, reason: str) -> None:
        """A step could not be taken."""
        ...

    def step_timed(self, model: str, phase: str, seconds: float) -> None:
        """A phase of a step, "load" or "commit", took so long."""
        ...

    def loss_detected(self, model: str, *, healed: bool) -> None:
        """The store came back older than it was; `healed`: from this replica's memory, else the client is told."""
        ...

    def store_failed(self, operation: str) -> None:
        """The store did not do `operation`, "load" or "commit"."""
        ...

    def cache_looked_up(self, model: str, *, hit: bool) -> None:
        """A step could, or could not, go on from a record in this replica's memory."""
        ...
