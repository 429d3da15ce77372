"""What the fake sentiment service keeps of sequences, and the failures that it is told to have."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

if TYPE_CHECKING:
    import grpc
    from grpc import aio
    from statestream.sentiment.v1 import sentiment_pb2


@dataclass(frozen=True)
class Fail:
    """Ends the call with a status.

    Attributes:
        applied: after the step was taken, so that only its reply is lost.
        replied: after its reply, so that the stream ends while nothing is under way.
        dies: with the replica; what it had not committed is gone.
    """

    code: grpc.StatusCode
    reason: str = ""
    bad_field: str = ""
    retry_delay_s: float | None = None
    metadata: dict[str, str] = field(default_factory=dict[str, str])
    applied: bool = False
    replied: bool = False
    dies: bool = False


@dataclass(frozen=True)
class Close:
    """Ends the call as if all were well, without the reply."""


@dataclass(frozen=True)
class Silence:
    """Takes the step and never replies."""


Fault = Fail | Close | Silence


class Taken(NamedTuple):
    """A step that was applied."""

    content: bytes
    end: bool
    reply: sentiment_pb2.StreamingClassifyResponse


@dataclass
class StoredSequence:
    """What replicas know of a sequence: all that was applied, of which the first `committed` steps are in the store.

    `head_of` is the replica that has the rest in its memory.
    """

    epoch: int
    start_key: str
    ended: bool = False
    durability: int = 1
    replies: list[Taken] = field(default_factory=list[Taken])
    committed: int = 0
    head_of: object = None
    checkpoints: list[int] = field(default_factory=list[int])

    @property
    def text(self) -> bytes:
        """All that was read."""
        return b"".join(taken.content for taken in self.replies)

    def digest(self, steps: int) -> bytes:
        """Stands for the history before step `steps`."""
        digest = b""
        for taken in self.replies[:steps]:
            digest = hashlib.blake2b(digest + taken.content + self.start_key.encode(), digest_size=16).digest()
        return digest

    def roll_back(self, steps: int) -> None:
        """The store comes back as it was after so many steps, and nobody has the others in memory."""
        del self.replies[steps:]
        self.committed = min(self.committed, steps)
        self.ended = bool(self.replies) and self.replies[-1].end

    def commit(self) -> None:
        """The store holds all that was applied."""
        self.committed = len(self.replies)


async def abort(context: aio.ServicerContext[Any, Any], fault: Fail) -> NoReturn:
    """Ends a call as the server does, with `google.rpc` details."""
    details: list[BadRequest | ErrorInfo | RetryInfo] = []
    if fault.reason:
        details.append(ErrorInfo(reason=fault.reason, domain="statestream", metadata=fault.metadata))
    if fault.bad_field:
        details.append(BadRequest(field_violations=[BadRequest.FieldViolation(field=fault.bad_field)]))
    if fault.retry_delay_s is not None:
        delay = Duration()
        delay.FromNanoseconds(round(fault.retry_delay_s * 1e9))
        details.append(RetryInfo(retry_delay=delay))
    status = Status(code=fault.code.value[0], message="as scripted", details=[_packed(detail) for detail in details])
    trailing = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(fault.code, status.message, trailing)


def _packed(message: BadRequest | ErrorInfo | RetryInfo) -> AnyMessage:
    packed = AnyMessage()
    packed.Pack(message)
    return packed
