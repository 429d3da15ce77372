"""What a stream needs of gRPC and of its task: calls, and how steps are put into messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from statestream._types import Durability

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from statestream._replay import ReplayBounds
    from statestream._types import ReplyHeader
    from statestream.common.v1 import sequence_pb2


class Update(Protocol):
    """A reply to one step."""

    @property
    def header(self) -> ReplyHeader:
        """Where the sequence stands after the step."""
        ...


PieceT = TypeVar("PieceT")
PieceT_contra = TypeVar("PieceT_contra", contravariant=True)
UpdateT = TypeVar("UpdateT", bound=Update)
UpdateT_co = TypeVar("UpdateT_co", bound=Update, covariant=True)


class Call(Protocol):
    """The part of `grpc.aio.StreamStreamCall` that a stream uses; errors and EOF are those of grpc.aio."""

    async def write(self, request: Any, /) -> None:  # noqa: ANN401 - the messages of a call are its task's own
        """Sends a message."""
        ...

    async def read(self) -> Any:  # noqa: ANN401
        """The next message; EOF after the last, if the call ended well."""
        ...

    async def done_writing(self) -> None:
        """Half-closes."""
        ...

    def done(self) -> bool:
        """True once the call is over; reading then tells its status."""
        ...

    def cancel(self) -> bool:
        """Gives the call up."""
        ...


class Wire(Protocol[PieceT_contra, UpdateT_co]):
    """How one task puts its steps into messages."""

    def open(self) -> Call:
        """A new streaming call."""
        ...

    def config(self, config: sequence_pb2.SequenceConfig) -> Message:
        """The first message of a call."""
        ...

    def piece(self, piece: PieceT_contra | None, control: sequence_pb2.StepControl) -> Message:
        """A step; `piece` None is the empty one, which may only end the sequence.

        Raises:
            InvalidInput: the piece cannot be put into a message.
        """
        ...

    def header(self, response: Any) -> sequence_pb2.ReplyHeader:  # noqa: ANN401
        """The header of a reply, or of the first response to a resumed call."""
        ...

    def update(self, response: Any) -> UpdateT_co:  # noqa: ANN401
        """A reply as a plain value."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """How a stream takes up its sequence; see `AsyncSentimentPart.stream` for the meaning of each."""

    sequence_id: str | None = None
    resume: bool = False
    durability: Durability = Durability.DEFAULT
    model_version: str = ""
    replay: ReplayBounds | None = None
    timeout_s: float | None = None

    def __post_init__(self) -> None:
        if self.resume and not self.sequence_id:
            raise ValueError("resume: needs the sequence_id to resume")
