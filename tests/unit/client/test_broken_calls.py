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
from statestream import ReplayBounds, RetryPolicy, Timing, errors
from statestream._channel import Connection
from statestream._stream import AsyncStepStream
from statestream._types import reply_header
from statestream._wire import StreamOptions
from statestream.common.v1.sequence_pb2 import ReplyHeader
from statestream.sentiment.v1.sentiment_pb2 import TextPiece

if TYPE_CHECKING:
    from google.protobuf.message import Message
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
        self.sent: list[Any] = []
        self.cancelled = False

    async def write(self, message: object, /) -> None:
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

    def __init__(self, header: ReplyHeader) -> None:
        self.header = reply_header(header)


class PlayedWire:
    """Opens the played calls, one after the other; a reply is a header, or the number of the step it answers."""

    def __init__(self, *calls: PlayedCall) -> None:
        self._calls = deque(calls)

    def open(self) -> PlayedCall:
        """The next call."""
        return self._calls.popleft()

    def config(self, config: SequenceConfig) -> Message:
        """As it is."""
        return config

    def piece(self, piece: str | None, control: StepControl) -> Message:
        """As the sentiment task does."""
        return TextPiece(control=control, text=piece or "")

    def header(self, response: object) -> ReplyHeader:
        """Of a reply to that step."""
        if isinstance(response, ReplyHeader):
            return response
        step = cast("int", response)
        return ReplyHeader(sequence_id="s", step=step, committed_step=step, epoch=1)

    def update(self, response: object) -> Reply:
        """A reply to that step."""
        return Reply(self.header(response))


def said(call: PlayedCall) -> list[object]:
    """What was sent, in short: "start" or "resume", then numbers of steps."""
    return [
        message.control.step if isinstance(message, TextPiece) else "start" if message.start else "resume"
        for message in call.sent
    ]


def stream_of(time: FakeTime, *calls: PlayedCall, **options: Any) -> AsyncStepStream[str, Reply]:
    """A stream over played calls."""
    connection = Connection("nowhere", timeout_s=10.0, credentials=None, policy=RetryPolicy(), timing=time.timing)
    return AsyncStepStream(connection, PlayedWire(*calls), StreamOptions(sequence_id="s", **options))


async def send_one(time: FakeTime, *calls: PlayedCall) -> Reply:
    """One step over played calls."""
    async with stream_of(time, *calls) as stream:
        return await stream.send("x")


async def test_a_message_that_cannot_be_sent_is_a_lost_connection(time: FakeTime) -> None:
    """grpc.aio calls it INTERNAL, without details, when a write finds the stream gone: it is tried again."""
    first = PlayedCall([None, broken(StatusCode.INTERNAL)], [])
    second = PlayedCall([], [0])
    assert (await send_one(time, first, second)).header.step == 0
    assert first.cancelled
    assert said(second) == ["start", 0]


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


class CancelledByPeer(PlayedCall):
    """As grpc.aio tells of a status CANCELLED."""

    async def read(self) -> object:
        """Raises what a cancelled task would raise."""
        raise asyncio.CancelledError


async def test_a_call_that_the_peer_cancels_is_a_break(time: FakeTime) -> None:
    """grpc.aio raises CancelledError for a status CANCELLED; nobody has cancelled this task, and it is tried again."""
    assert (await send_one(time, CancelledByPeer([], []), PlayedCall([], [0]))).header.step == 0
    with pytest.raises(errors.CallCancelled):
        await send_one(time, *(CancelledByPeer([], []) for _ in range(8)))


async def test_a_reply_to_another_step_is_refused(time: FakeTime) -> None:
    """A server that answers what was not asked is not believed."""
    call = PlayedCall([], [7])
    with pytest.raises(errors.StatestreamError, match="answered step 7, asked was 0"):
        await send_one(time, call)
    assert call.cancelled


def opening(next_step: int, epoch: int = 2) -> ReplyHeader:
    """The first response of a call that resumes."""
    return ReplyHeader(sequence_id="s", committed_step=next_step - 1, epoch=epoch, next_step=next_step)


def reply(step: int, *, epoch: int = 2, committed: int = 0, **fields: Any) -> ReplyHeader:
    """A header of a reply."""
    return ReplyHeader(sequence_id="s", step=step, committed_step=committed, epoch=epoch, **fields)


class Recorded(PlayedCall):
    """Writes down how far writing is ahead of reading."""

    def __init__(self, reads: list[Exception | int | object]) -> None:
        super().__init__([], reads)
        self.ahead: list[int] = []
        self._read = 0

    async def read(self) -> object:
        """Gives a reply."""
        self.ahead.append(len(self.sent) - 1 - max(0, self._read - 1))
        self._read += 1
        return await super().read()


@pytest.mark.parametrize(("size", "ahead_max"), [(1, 32), (4_000, 8), (50_000, 1)])
async def test_a_replay_does_not_wait_for_each_reply(time: FakeTime, size: int, ahead_max: int) -> None:
    """Steps are sent ahead of their replies, but never more than both sides can take without reading."""
    count = 200
    first = PlayedCall([], [*(reply(step, epoch=1) for step in range(count)), broken(StatusCode.UNAVAILABLE)])
    second = Recorded([opening(1), *(reply(step) for step in range(1, count + 1))])
    async with stream_of(time, first, second, replay=ReplayBounds(bytes_max=2**30)) as stream:
        for _ in range(count + 1):
            await stream.send("x" * size)
    assert said(second) == ["resume", *range(1, count + 1)]
    assert max(second.ahead[1:-1]) == ahead_max
    assert stream.stats.replayed_steps == count - 1


async def test_a_stored_reply_of_an_earlier_epoch_is_taken(time: FakeTime) -> None:
    """The reply to a step that had been applied is what it was, and what it says of commits is out of date."""
    first = PlayedCall([], [reply(0, epoch=1), reply(1, epoch=1), broken(StatusCode.UNAVAILABLE)])
    second = PlayedCall([], [opening(3), reply(2, epoch=1), reply(3, committed=2), broken(StatusCode.UNAVAILABLE)])
    third = PlayedCall([], [opening(5, epoch=3), reply(4, epoch=2, committed=2)])
    async with stream_of(time, first, second, third) as stream:
        for _ in range(5):
            await stream.send("x")
        assert stream.stats.replayed_steps == 0
        assert [(call.sent[0].epoch, call.sent[0].committed_step) for call in (second, third)] == [(1, 0), (2, 2)]
        stream._link.drop()


async def test_a_reply_of_a_later_epoch_is_refused(time: FakeTime) -> None:
    """A call belongs to one epoch: what comes from a later one is not of this sequence."""
    call = PlayedCall([], [reply(0, epoch=1), reply(1, epoch=2)])
    with pytest.raises(errors.StepConflict, match="anew"):
        async with stream_of(time, call) as stream:
            await stream.send("x")
            await stream.send("x")
    assert time.slept == []


async def test_a_server_that_does_not_say_where_it_stands_is_not_believed(time: FakeTime) -> None:
    """The first response to a call that resumes must tell the next step, on entering and later."""
    dumb = ReplyHeader(sequence_id="s", epoch=2)
    with pytest.raises(errors.StatestreamError, match="did not say"):
        await stream_of(time, PlayedCall([], [dumb]), resume=True).__aenter__()
    calls = PlayedCall([], [reply(0, epoch=1), broken(StatusCode.UNAVAILABLE)]), PlayedCall([], [dumb])
    with pytest.raises(errors.StatestreamError, match="did not say"):
        async with stream_of(time, *calls) as stream:
            await stream.send("x")
            await stream.send("x")


async def test_a_sequence_that_vanishes_again_at_once_is_a_break(time: FakeTime) -> None:
    """What was begun anew and is gone before it was resumed is begun anew once more, after a wait."""
    gone = broken(StatusCode.NOT_FOUND, "SEQUENCE_NOT_FOUND")
    calls = [
        PlayedCall([], [reply(0, epoch=1), broken(StatusCode.UNAVAILABLE)]),
        PlayedCall([], [gone]),
        PlayedCall([], [reply(0, epoch=2)]),
        PlayedCall([], [gone]),
        PlayedCall([], [reply(0, epoch=3)]),
        PlayedCall([], [opening(1, epoch=4), reply(1, epoch=4, committed=1)]),
    ]
    async with stream_of(time, *calls) as stream:
        await stream.send("x")
        assert (await stream.send("x")).header.step == 1
        stream._link.drop()
    assert [said(call) for call in calls[1:]] == [["resume"], ["start", 0], ["resume"], ["start", 0], ["resume", 1]]


async def test_names_and_keys_come_from_the_timing(time: FakeTime) -> None:
    """Whoever hands in the outer world decides them, too: a simulation repeats itself exactly."""
    names = iter(("name", "key"))
    connection = Connection(
        "nowhere",
        timeout_s=10.0,
        credentials=None,
        policy=RetryPolicy(),
        timing=Timing(clock=lambda: 0.0, unique=lambda: next(names)),
    )
    call = PlayedCall([], [0, 1])
    async with AsyncStepStream(connection, PlayedWire(call), StreamOptions()) as stream:
        await stream.send("x")
    assert (call.sent[0].sequence_id, call.sent[0].start_key) == ("name", "key")
