"""`ModelStreamInfer`: steps of many sequences on one stream, in order within each and at the same time between them.

A stream that has carried one sequence only is served as it comes, without a task of its own for anything. From the
first request for something else, what was read is handed out: each sequence has its turn (`Lane`), and replies leave as
they are done. An error of one sequence is told in its place and disturbs no other, unless the client wants statuses.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

from services.inference import encode
from services.inference.codec import Reader
from services.inference.lane import Lane
from services.inference.limits import IN_PROGRESS_MAX, SEQUENCES_MAX
from services.inference.steps import earlier, run_whole
from services.inference.wire.infer_pb2 import ModelInferResponse, ModelStreamInferResponse
from services.runtime.core.errors import CapacityExceeded, Draining, StatestreamError
from services.runtime.transport.deadline import deadline_of
from services.runtime.transport.status import code_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    import grpc

    from services.inference.codec import Ask
    from services.runtime.transport.task import Runtime

_Key = tuple[str, str]


async def serve_infer_stream(
    runtime: Runtime, requests: AsyncIterator[bytes], context: grpc.aio.ServicerContext[Any, Any]
) -> AsyncIterator[bytes]:
    """Answers each request of a stream with one response; serialised on both sides.

    Raises:
        StatestreamError: what was answered could not be committed, the replica stops, or the client wants statuses.
    """
    stream = _Stream(runtime, requests, deadline_of(context, runtime.clock), strict=_wants_statuses(context))
    try:
        while (data := await runtime.drain.receive(requests)) is not None:
            ask = stream.read(data)
            if isinstance(ask, bytes):
                yield ask
            elif (lane := stream.only_lane(ask)) is not None:
                yield await stream.answer(lane, ask, stream.deadline(ask))
            else:
                stream.begin(ask)
                async for reply in stream.replies():
                    yield reply
                break
    except Draining as draining:
        raise await stream.go_away(draining) from None
    finally:
        stream.close()
    await stream.settle()


def _wants_statuses(context: grpc.aio.ServicerContext[Any, Any]) -> bool:
    metadata = context.invocation_metadata() or ()
    return any(key == "triton_grpc_error" and value == "true" for key, value in metadata)


class _Stream:
    """One stream. With `strict` errors are raised, otherwise told in the place of a reply."""

    def __init__(
        self, runtime: Runtime, requests: AsyncIterator[bytes], deadline: float | None, *, strict: bool
    ) -> None:
        self._runtime = runtime
        self._requests = requests
        self._deadline = deadline
        self._strict = strict
        self._reader = Reader()
        self._lanes: OrderedDict[_Key, Lane] = OrderedDict()  # bounded by SEQUENCES_MAX
        self._tasks: set[asyncio.Task[None]] = set()  # bounded by IN_PROGRESS_MAX
        self._done: deque[bytes] = deque()  # bounded by IN_PROGRESS_MAX
        self._in_progress = 0
        self._reading: asyncio.Task[None] | None = None
        self._wake: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None

    def read(self, data: bytes) -> Ask | bytes:
        """A request, or the reply to one that cannot be read."""
        try:
            return self._reader.read(data)
        except StatestreamError as error:
            return self._refusal(error, None)

    def deadline(self, ask: Ask) -> float | None:
        """When a request is not worth running any more."""
        return earlier(self._deadline, ask.parameters.timeout_us, self._runtime.clock)

    def only_lane(self, ask: Ask) -> Lane | None:
        """The lane of a request's sequence if the stream has no other; None: others have to be served beside it."""
        key = (ask.model_name, ask.parameters.sequence_id)
        lane = self._lanes.get(key)
        if lane is None and not self._lanes and key[1]:
            return self._new_lane(key, ask)
        return lane

    def _new_lane(self, key: _Key, ask: Ask) -> Lane | None:
        try:
            lane = self._lanes[key] = Lane(self._runtime, ask)
        except StatestreamError:
            return None  # told by `begin`, which meets it again
        return lane

    async def answer(self, lane: Lane, ask: Ask, deadline: float | None) -> bytes:
        """The reply to a request for a sequence.

        Raises:
            StatestreamError: with `strict`.
        """
        try:
            response = await lane.answer(ask, deadline)
        except StatestreamError as error:
            return self._refusal(error, ask)
        if lane.ended and not lane.waiting:
            self._lanes.pop((ask.model_name, ask.parameters.sequence_id), None)
        return encode.on_stream(response, ask.echo)

    def _refusal(self, error: StatestreamError, ask: Ask | None) -> bytes:
        if self._strict:
            raise error
        return error_reply(error, ask)

    def begin(self, first: Ask) -> None:
        """Goes on by handing out requests, this one first."""
        self._reading = asyncio.get_running_loop().create_task(self._read_all(first))

    async def replies(self) -> AsyncIterator[bytes]:
        """All replies, until the client half-closes or the stream fails.

        Raises:
            StatestreamError: see `serve_infer_stream`.
        """
        loop = asyncio.get_running_loop()
        while True:
            while self._done:
                self._give_room()
                yield self._done.popleft()
            if self._reading is None and not self._in_progress:
                break
            self._wake = loop.create_future()
            await self._wake
        if self._failure is not None:
            raise self._failure

    async def _read_all(self, first: Ask) -> None:
        try:
            await self._hand_out(first)
            while self._failure is None and (data := await self._runtime.drain.receive(self._requests)) is not None:
                ask = self.read(data)
                if isinstance(ask, bytes):
                    self._put(ask)
                else:
                    await self._hand_out(ask)
                while self._in_progress + len(self._done) >= IN_PROGRESS_MAX:
                    self._room = asyncio.get_running_loop().create_future()
                    await self._room
        except Exception as error:  # noqa: BLE001 - raised where the stream is served
            self._failure = self._failure or error
        finally:
            self._reading = None
            self._notify()

    async def _hand_out(self, ask: Ask) -> None:
        """Begins what a request asks for, or has it wait for the one before of its sequence."""
        deadline, key = self.deadline(ask), (ask.model_name, ask.parameters.sequence_id)
        if not key[1]:
            self._spawn(self._whole(ask, deadline))
            return
        lane = self._lanes.get(key)
        try:
            if lane is None:
                if len(self._lanes) >= SEQUENCES_MAX:
                    await self._make_room()
                lane = self._lanes[key] = Lane(self._runtime, ask)
        except StatestreamError as error:
            self._put(self._refusal(error, ask))
            return
        self._lanes.move_to_end(key)
        lane.waiting.append((ask, deadline))
        self._in_progress += 1
        if not lane.running:
            lane.running = True
            self._spawn(self._work(lane), counts=False)

    def _spawn(self, work: Coroutine[Any, Any, None], *, counts: bool = True) -> None:
        self._in_progress += counts
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _work(self, lane: Lane) -> None:
        """Does what waits for a sequence, one by one."""
        try:
            while lane.waiting:
                ask, deadline = lane.waiting.popleft()
                reply = await self.answer(lane, ask, deadline)
                self._in_progress -= 1
                self._put(reply)
        except Exception as error:  # noqa: BLE001 - raised where the stream is served
            self._in_progress -= 1 + len(lane.waiting)
            lane.waiting.clear()
            self._fail(error)
        finally:
            lane.running = False

    async def _whole(self, ask: Ask, deadline: float | None) -> None:
        try:
            reply = await self._whole_reply(ask, deadline)
            self._in_progress -= 1
            self._put(reply)
        except Exception as error:  # noqa: BLE001 - raised where the stream is served
            self._in_progress -= 1
            self._fail(error)

    async def _whole_reply(self, ask: Ask, deadline: float | None) -> bytes:
        try:
            model = self._runtime.catalogue.find(ask.model_name, ask.model_version)
            self._runtime.events.message_received(ask.model_name)
            plan, contents = await run_whole(model, ask.head, ask.blobs, ask.field, deadline)
        except StatestreamError as error:
            return self._refusal(error, ask)
        return encode.on_stream(plan.whole_reply(contents), ask.echo)

    def _put(self, reply: bytes) -> None:
        self._done.append(reply)
        self._notify()

    def _fail(self, error: BaseException) -> None:
        """Reads no further; what is in progress is still answered."""
        self._failure = self._failure or error
        if self._reading is not None:
            self._reading.cancel()
        self._notify()

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _give_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    async def _make_room(self) -> None:
        """Forgets the sequence that was idle longest, once the store has what was answered of it."""
        for key, lane in self._lanes.items():
            if not lane.running:
                await lane.settle()
                self._lanes.pop(key, None)
                return
        raise CapacityExceeded(f"{SEQUENCES_MAX} sequences are in use on this stream already")

    async def settle(self) -> None:
        """Returns when the store holds all that was answered.

        Raises:
            StatestreamError: it does not; the first of the errors.
        """
        lanes = [lane for lane in self._lanes.values() if lane.at is not None]
        told = await asyncio.gather(*(lane.settle() for lane in lanes), return_exceptions=True)
        for error in told:
            if isinstance(error, BaseException):
                raise error

    async def go_away(self, draining: Draining) -> Draining:
        """What to tell a client whose replica stops; commits what can be committed."""
        lanes = tuple(self._lanes.values())
        told = await asyncio.gather(*(lane.go_away() for lane in lanes))
        if len(told) == 1:
            draining.metadata.update(told[0])
        return draining

    def close(self) -> None:
        """Gives up what is in progress."""
        for task in (*self._tasks, *([self._reading] if self._reading else [])):
            task.cancel()


def error_reply(error: StatestreamError, ask: Ask | None) -> bytes:
    """An error in the place of a reply: the message, and as parameters what the details of a status would tell."""
    facts = {"error_code": code_name(error), "error_reason": error.reason, **error.metadata}
    if error.field is not None:
        facts["error_field"] = error.field
    response = ModelInferResponse(model_name=ask.model_name if ask else "")
    for key, value in facts.items():
        response.parameters[key].string_param = value
    if error.retry_delay_s is not None:
        response.parameters["retry_delay_ms"].int64_param = round(error.retry_delay_s * 1000)
    head = ModelStreamInferResponse(error_message=error.message or error.reason).SerializeToString()
    return head + encode.on_stream(response.SerializeToString(), ask.echo if ask else b"")
