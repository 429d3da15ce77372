"""The shape of every streaming call: the configuration first, then steps of one sequence, a reply to each.

A stream that resumes is first told where the sequence stands. One that is open when the replica stops is ended once all
that it was answered is committed, and told the step to go on with elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from statestream.common.v1 import sequence_pb2

from services.runtime.core.errors import Draining, InvalidInput, StatestreamError
from services.runtime.core.ids import DEFAULT_TENANT, SequenceName, checked_name, new_sequence_id
from services.runtime.sequences.contract import Spot, Told
from services.runtime.sequences.decide import StepRequest, content_digest
from services.runtime.state.types import Durability, Position
from services.runtime.transport.deadline import deadline_of
from services.runtime.transport.gate import well_formed
from services.runtime.transport.header import opening_header

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import grpc

    from services.runtime.core.ids import ModelId
    from services.runtime.sequences.contract import Fold
    from services.runtime.transport.task import Runtime

RequestT = TypeVar("RequestT")
PieceT = TypeVar("PieceT")


@dataclass(frozen=True, slots=True)
class SequenceTask(Generic[RequestT, PieceT]):
    """What a task says of its streaming call.

    Attributes:
        model: name of the model, or how the first message tells it.
        config_of, control_of: the parts of a request that all tasks share; None where the message is not of that kind.
        parse: checks a request and gives (piece, content); two requests are the same if their contents are.
        closing: the piece, and content, that ends a sequence whose client half-closes an unnamed stream.
        opening: the serialised response that has a header and nothing else.
        fold: the step for a piece; `deadline` is a monotonic time or None.
        owns: whether the task part of a carry is this task's; another service on the same model may have begun it.
    """

    model: str | Callable[[RequestT], str]
    config_of: Callable[[RequestT], sequence_pb2.SequenceConfig | None]
    control_of: Callable[[RequestT], sequence_pb2.StepControl | None]
    parse: Callable[[RequestT], tuple[PieceT, bytes]]
    closing: tuple[PieceT, bytes]
    opening: Callable[[sequence_pb2.ReplyHeader], bytes]
    fold: Callable[[PieceT, float | None], Fold]
    owns: Callable[[bytes], bool] | None = None


@dataclass(slots=True)
class _Opened:
    """A stream on a sequence, and what the next step on it starts with.

    `epoch` and `next_step` are known once the sequence was resumed or a step was taken here. `ahead`: the store may not
    hold the latest step yet.
    """

    name: SequenceName
    start: bool
    start_key: str
    durability: Durability
    version: str
    model: ModelId
    ends_on_half_close: bool
    owns: Callable[[bytes], bool] | None
    epoch: int | None = None
    next_step: int | None = None
    ahead: bool = False

    @property
    def at(self) -> Position | None:
        """Where the stream stands, if it has run ahead of the store."""
        if not self.ahead or self.epoch is None or self.next_step is None:
            return None
        return Position(self.epoch, self.next_step)

    def request(self, control: sequence_pb2.StepControl, content: bytes) -> StepRequest:
        """The step that a message asks for."""
        step = control.step if control.HasField("step") else None
        if self.start and step:
            raise InvalidInput("control.step", f"the first step of a sequence is 0, not {step}")
        key = self.start_key if self.start else ""
        digest = content_digest(content, end=control.end, start_key=key)
        return StepRequest(
            start=self.start,
            start_key=key,
            step=step,
            end=control.end,
            digest=digest,
            durability=self.durability,
            model=self.model,
            epoch=self.epoch,
            at_least=self.next_step or 0,
            owns=self.owns,
        )


async def serve_stream(
    task: SequenceTask[RequestT, PieceT],
    runtime: Runtime,
    requests: AsyncIterator[RequestT],
    context: grpc.aio.ServicerContext[Any, Any],
) -> AsyncIterator[bytes]:
    """Answers each message of a stream in order; an error ends the stream and leaves the sequence where it stood.

    Replies come as they are stored, serialised, and the gate sends them as they are.

    Raises:
        StatestreamError: told to the client by the gate.
    """
    first = await _receive(runtime, requests)
    config = task.config_of(first) if first is not None else None
    if first is None or config is None:
        raise InvalidInput("config", "must be the first message of the stream")
    opened = _open(task, runtime, config, task.model if isinstance(task.model, str) else task.model(first))
    deadline = deadline_of(context, runtime.clock)
    if config.resume:
        yield task.opening(await _resume(runtime, opened, config))
    while (message := await _next(runtime, opened, requests)) is not None:
        control = task.control_of(message)
        if control is None:
            raise InvalidInput("message", "must be a step; the configuration comes once, first")
        piece, content = task.parse(message)
        yield await _step(runtime, opened, control, task.fold(piece, deadline), content)
    if opened.ends_on_half_close:
        piece, content = task.closing
        control = sequence_pb2.StepControl(end=True)
        yield await _step(runtime, opened, control, task.fold(piece, deadline), content)
    else:
        await runtime.sequences.settle(opened.name, opened.at)


async def _next(runtime: Runtime, opened: _Opened, requests: AsyncIterator[RequestT]) -> RequestT | None:
    """The next message. Where the replica stops instead, the stream is told where to go on."""
    try:
        return await _receive(runtime, requests)
    except Draining as draining:
        raise await _go_away(runtime, opened, draining) from None


async def _go_away(runtime: Runtime, opened: _Opened, draining: Draining) -> Draining:
    if opened.next_step is not None:
        draining.metadata["next_step"] = str(opened.next_step)
        try:
            committed_step = await runtime.sequences.settle(opened.name, opened.at)
        except StatestreamError:
            return draining  # the client still has what could not be committed, and sends it again
        if opened.durability is not Durability.NONE:
            draining.metadata["committed_step"] = str(
                opened.next_step - 1 if committed_step is None else committed_step
            )
    return draining


async def _resume(runtime: Runtime, opened: _Opened, config: sequence_pb2.SequenceConfig) -> sequence_pb2.ReplyHeader:
    told = Told(config.epoch, config.committed_step) if config.HasField("committed_step") else None
    been = Spot(config.next_step, config.history_digest) if config.history_digest else None
    standing = await runtime.sequences.take_up(opened.name, told, been, owns=opened.owns)
    opened.epoch, opened.next_step = standing.record.position
    opened.durability = standing.record.durability
    return opening_header(opened.name.sequence_id, standing)


async def _receive(runtime: Runtime, requests: AsyncIterator[RequestT]) -> RequestT | None:
    return well_formed(await runtime.drain.receive(requests))


def _open(
    task: SequenceTask[RequestT, PieceT], runtime: Runtime, config: sequence_pb2.SequenceConfig, model: str
) -> _Opened:
    unnamed = not config.sequence_id
    if config.resume and (unnamed or config.start):
        raise InvalidInput("config.resume", "needs a sequence_id, and cannot be with start")
    sequence_id = new_sequence_id() if unnamed else checked_name(config.sequence_id, "config.sequence_id")
    if config.start_key:
        checked_name(config.start_key, "config.start_key")
    start = config.start or unnamed
    # A sequence goes on with the version that it began on, which may be retired by now.
    served = runtime.catalogue.find(model, config.model_version, start=start)
    return _Opened(
        name=SequenceName(DEFAULT_TENANT, model, sequence_id),
        start=start,
        start_key=config.start_key,
        durability=_durability(config.durability, served.sequence.durability),
        version=config.model_version,
        model=served.model_id,
        ends_on_half_close=unnamed,
        owns=task.owns,
    )


def _durability(wanted: int, default: str) -> Durability:
    if wanted == sequence_pb2.DURABILITY_UNSPECIFIED:
        return Durability[default.upper()]
    if wanted not in list(Durability):
        raise InvalidInput("config.durability", "is not one that this server knows")
    return Durability(wanted)


async def _step(
    runtime: Runtime, opened: _Opened, control: sequence_pb2.StepControl, fold: Fold, content: bytes
) -> bytes:
    runtime.events.message_received(opened.name.model)
    if opened.start:  # the newest version may be another than it was when the stream was opened
        opened.model = runtime.catalogue.find(opened.name.model, opened.version).model_id
    taken = await runtime.sequences.step(opened.name, opened.request(control, content), fold)
    opened.start = False
    opened.epoch, opened.next_step, opened.ahead = taken.epoch, taken.next_step, taken.ahead
    opened.ends_on_half_close = opened.ends_on_half_close and not control.end
    return taken.reply
