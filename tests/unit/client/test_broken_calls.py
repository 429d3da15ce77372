"""Breaks that a real server makes only now and then: the calls of gRPC are played here."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode, aio
from statestream import AsyncClient, errors
from statestream._stream import AsyncStepStream, StreamOptions
from statestream._types import ModelVersion, ReplyHeader

if TYPE_CHECKING:
    from statestream.common.v1.sequence_pb2 import SequenceConfig, StepControl

    from tests.kit.client_time import FakeTime


def broken(code: StatusCode, reason: str = "") -> aio.AioRpcError:
    """The error of a call; with a reason it comes from a server of ours."""
    detail = AnyMessage()
    detail.Pack(ErrorInfo(reason=reason))
    status = Status(code=code.value[0], details=[detail]).SerializeToString()
    trailing = aio.Metadata(("grpc-status-details-bin", status)) if reason else aio.Metadata()
    return aio.AioRpcError(code, aio.Metadata(), trailing, "played")


class PlayedCall:
    """A call whose writes and reads do as they are told: None is well, an error is raised, a number is a reply."""

    def __init__(self, writes: list[Exception | None], reads: list[Exception | int | object]) -> None:
        self._writes, self._reads = deque(writes), deque(reads)
        self.sent: list[object] = []
        self.cancelled = False

    async def write(self, message: object) -> None:
        """Takes a message."""
        error = self._writes.popleft() if self._writes else None
        if error is not None:
            raise error
        self.sent.append(message)

    async def read(self) -> object:
        """Gives a reply."""
        found = self._reads.popleft() if self._reads else aio.EOF
        if isinstance(found, Exception):
            raise found
        return found

    async def done_writing(self) -> None:
        """Half-closes."""

    def done(self) -> bool:
        """It is not, as far as the client can tell."""
        return False

    def cancel(self) -> bool:
        """Gives up."""
        self.cancelled = True
        return True


class Reply:
    """An update with nothing but its header."""

    def __init__(self, step: int) -> None:
        self.header = ReplyHeader("s", step, step, 1, ModelVersion("m", "1", ""), ended=False, warnings=(), history_digest=b"")


class PlayedWire:
    """Opens the played calls, one after the other; a step is its own message."""

    model = "m"

    def __init__(self, *calls: PlayedCall) -> None:
        self._calls = deque(calls)

    def open(self) -> Any:
        """The next call."""
        return self._calls.popleft()

    def config(self, config: SequenceConfig) -> object:
        """As it is."""
        return ("config", config.start)

    def piece(self, piece: str | None, control: StepControl) -> object:
        """Its number."""
        return ("piece", control.step, piece)

    def update(self, response: object) -> Reply:
        """A reply to that step."""
        return Reply(cast("int", response))


async def send_one(time: FakeTime, *calls: PlayedCall) -> Reply:
    """One step over played calls."""
    client = AsyncClient("127.0.0.1:1", timing=time.timing)
    connection, sequences = client._connection, client.sequences  # pyright: ignore[reportPrivateUsage]
    stream = AsyncStepStream(connection, sequences, PlayedWire(*calls), StreamOptions(sequence_id="s"))
    async with stream:
        return await stream.send("x")


async def test_a_message_that_cannot_be_sent_is_a_lost_connection(time: FakeTime) -> None:
    """grpc.aio calls it INTERNAL, without details, when a write finds the stream gone: it is tried again."""
    first = PlayedCall([None, broken(StatusCode.INTERNAL)], [])
    second = PlayedCall([], [0])
    assert (await send_one(time, first, second)).header.step == 0
    assert first.cancelled
    assert second.sent == [("config", True), ("piece", 0, "x")]


async def test_a_write_to_a_call_that_is_over_lets_reading_tell(time: FakeTime) -> None:
    """The refusal of the write says nothing, the status of the call does."""
    over = PlayedCall([asyncio.InvalidStateError("over")], [broken(StatusCode.UNAVAILABLE, "DRAINING")])
    assert (await send_one(time, over, PlayedCall([], [0]))).header.step == 0
    over = PlayedCall([asyncio.InvalidStateError("over")], [broken(StatusCode.INVALID_ARGUMENT, "INVALID_INPUT")])
    with pytest.raises(errors.InvalidInput):
        await send_one(time, over)


async def test_a_failure_of_the_server_is_not_taken_for_a_lost_connection(time: FakeTime) -> None:
    """INTERNAL with a reason is the server's own word: raised, not tried again."""
    with pytest.raises(errors.ModelFailure):
        await send_one(time, PlayedCall([None, broken(StatusCode.INTERNAL, "MODEL_FAILURE")], []))
    assert time.slept == []


async def test_a_call_that_the_peer_cancels_is_not_a_cancelled_task(time: FakeTime) -> None:
    """grpc.aio raises CancelledError for a status CANCELLED; nobody has cancelled this task."""

    class Cancelled(PlayedCall):
        async def read(self) -> object:
            """As grpc.aio does."""
            raise asyncio.CancelledError

    with pytest.raises(errors.CallCancelled):
        await send_one(time, Cancelled([], []))


async def test_a_reply_to_another_step_is_refused(time: FakeTime) -> None:
    """A server that answers what was not asked is not believed."""
    call = PlayedCall([], [7])
    with pytest.raises(errors.StatestreamError, match="answered step 7, asked was 0"):
        await send_one(time, call)
    assert call.cancelled
