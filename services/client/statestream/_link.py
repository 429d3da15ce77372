"""The call under a stream, and where its sequence stands: opens, resumes and replays, once; retries are above it."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from grpc import StatusCode, aio

from statestream._channel import grpc_errors
from statestream._replay import ReplayBuffer, Spot
from statestream._resume import differ, first_to_send, sequence_lost
from statestream._retry import GiveUp
from statestream._types import StreamStats
from statestream.common.v1.sequence_pb2 import SequenceConfig
from statestream.errors import (
    Draining,
    ReplayBufferFull,
    SequenceEnded,
    SequenceNotFound,
    StatestreamError,
    StepConflict,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.message import Message

    from statestream._replay import HeldStep, ReplayBounds
    from statestream._wire import Call, StreamOptions, Wire
    from statestream.common.v1.sequence_pb2 import ReplyHeader

HALF_CLOSE_S = 1.0
"""How long a half-close waits for the server to close its side, in seconds."""

AHEAD_STEPS = 32
AHEAD_BYTES = 32 * 2**10
"""Bounds on replayed steps that wait for their replies. They fit the smallest flow-control window of HTTP/2, so that
writing never waits for a server which itself waits for its replies to be read."""


class Pending(NamedTuple):
    """A step that has no reply yet; `ends`: it is the last one."""

    step: int
    request: Message
    size: int
    ends: bool


class Link:
    """One sequence, over one call at a time.

    Where a method raises, the call is of no further use: `drop` it. The next one that needs a call opens it, and takes
    the sequence up where the server says it stands.

    Attributes:
        buffer: the steps that were answered last.
        stats: what was mended.
        refused: the sequence does not go on as it is held, and whoever called was told so.
    """

    def __init__(
        self,
        wire: Wire[Any, Any],
        options: StreamOptions,
        sequence_id: str,
        bounds: ReplayBounds,
        unique: Callable[[], str],
    ) -> None:
        self.buffer = ReplayBuffer(bounds)
        self.stats = StreamStats()
        self.refused = False
        self._wire = wire
        self._options = options
        self._sequence_id = sequence_id
        self._unique = unique
        self._start_key = unique()
        self._model_version = options.model_version
        self._epoch: int | None = None
        self._told: tuple[int, int] | None = None
        self._call: Call | None = None
        self._calls = 0
        self._answered = False

    @property
    def known(self) -> bool:
        """True once the server has told of the sequence; until then it is to be started."""
        return self._epoch is not None

    async def take_up(self) -> None:
        """Asks where a sequence stands that this client knows nothing of.

        Raises:
            SequenceEnded: it has taken its last step.
        """
        _, opening = await self._ask()
        if opening.ended:
            raise SequenceEnded("the sequence to resume has taken its last step")
        if not opening.HasField("next_step"):
            raise StatestreamError("the server did not say where the sequence stands")
        self.buffer.begin_at(Spot(opening.next_step, opening.history_digest))
        self._stands(opening)

    async def exchange(self, pending: Pending) -> Any:  # noqa: ANN401 - messages of the task
        """The reply to a step, after all that the server needs before it.

        Raises:
            GiveUp: with an error that no further attempt would mend.
            StatestreamError: the server's.
        """
        call = self._call
        if call is not None and call.done():
            # It broke while no step was under way: whatever its status, it says nothing about this step.
            with contextlib.suppress(StatestreamError):
                await self._read(call)
            call = self._call = None
        if call is not None and not self.buffer.admits(pending.size):
            # To close a stream makes the server commit, and so does to resume, which also tells how far.
            await self.half_close()
            self.drop()
            call = None
        if call is None:
            call = await self._connect(ends=pending.ends)
            if not self.buffer.admits(pending.size):
                raise GiveUp(buffer_full(self.buffer))
        await self._write(call, pending.request)
        response = await self._read(call)
        header = self._wire.header(response)
        self._check(header, pending.step)
        self._told_by(header)
        self.buffer.add(pending.request, pending.size, header.history_digest)
        self.refused = False
        if pending.step == 0 and self._calls > 1:
            # If the reply to a repeated start was the stored one, the server has not tied this call to its epoch:
            # whoever starts the sequence anew now would get our next step. To resume asks for that epoch.
            self.drop()
        return response

    async def settle(self) -> None:
        """Returns when the server has committed all steps that were answered.

        Raises:
            GiveUp, StatestreamError: as `exchange`.
        """
        if self._call is None:
            await self._connect(ends=False)
        if self.buffer.uncommitted and not await self.half_close():
            raise Unavailable("the server did not say that it has committed the last steps")

    async def half_close(self) -> bool:
        """Lets the server finish its side; True if it has, and all is well: then everything is committed."""
        call = self._call
        if call is None or call.done():
            return False
        with contextlib.suppress(TimeoutError, StatestreamError, asyncio.InvalidStateError):
            async with asyncio.timeout(HALF_CLOSE_S):
                with grpc_errors():
                    await call.done_writing()
                    while await call.read() is not aio.EOF:
                        pass
                    return True
        return False

    def drop(self) -> None:
        """Gives the call up: a reply that comes later is not taken for that of another step."""
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    async def _connect(self, *, ends: bool) -> Call:
        """A new call, on which the step to come can be sent."""
        call = await self._resume(ends=ends) if self.known else None
        if call is None:
            # Until the first reply is here the start is repeated, with its key.
            call = self._open()
            await self._write(call, self._wire.config(self._start_config()))
            if len(self.buffer):
                await self._replay(call, self.buffer.since(0)[:1])
                self.drop()
                call = await self._resume(ends=ends)
        if call is None:
            raise Unavailable("the server has forgotten the sequence at once")
        return call

    async def _resume(self, *, ends: bool) -> Call | None:
        """A new call that goes on where the sequence stands; None where it is to be started over."""
        try:
            call, opening = await self._ask()
        except SequenceNotFound as error:
            self._start_over(error)
            return None
        except StepConflict as error:
            # The server was told which history the sequence has here, and knows that it went another way.
            self.refused = True
            raise GiveUp(error) from error
        try:
            first = first_to_send(opening, self.buffer, ends=ends)
        except StepConflict as error:
            if self._told is not None and 0 < opening.found_epoch < self._told[0]:
                # Not what somebody has made of our sequence, but what was there before it: ours is lost.
                self._start_over(error)
                return None
            self.refused = True
            raise GiveUp(error) from error
        except StatestreamError as error:
            self.refused = True
            raise GiveUp(error) from error
        lost = opening.lost or (self._told is not None and opening.next_step <= self._told[1])
        self.stats = replace(self.stats, reconnects=self.stats.reconnects + 1, losses=self.stats.losses + lost)
        self._stands(opening)
        await self._replay(call, self.buffer.since(first))
        return call

    async def _ask(self) -> tuple[Call, ReplyHeader]:
        """A new call that resumes, and the header of its first response."""
        call = self._open()
        epoch, committed_step = self._told or (0, None)
        config = SequenceConfig(
            sequence_id=self._sequence_id,
            resume=True,
            committed_step=committed_step,
            epoch=epoch,
            next_step=self.buffer.next_step,
            history_digest=self.buffer.digest_before(self.buffer.next_step),
        )
        await self._write(call, self._wire.config(config))
        return call, self._wire.header(await self._read(call))

    async def _replay(self, call: Call, steps: list[HeldStep]) -> None:
        """Sends held steps again, some ahead of their replies, which the user has had."""
        sent, ahead_bytes = 0, 0
        for answered, held in enumerate(steps):
            while sent < len(steps) and (
                sent == answered or (sent - answered < AHEAD_STEPS and ahead_bytes + steps[sent].size <= AHEAD_BYTES)
            ):
                await self._write(call, steps[sent].request)
                ahead_bytes += steps[sent].size
                sent += 1
            header = self._wire.header(await self._read(call))
            self._check(header, held.step)
            if differ(header.history_digest, held.digest):
                self.refused = True
                raise GiveUp(StepConflict(f"another client has changed the sequence before step {held.step + 1}"))
            held.digest = header.history_digest or held.digest
            ahead_bytes -= held.size
            self.stats = replace(self.stats, replayed_steps=self.stats.replayed_steps + 1)
            self._told_by(header)

    def _open(self) -> Call:
        self._answered = False
        self._calls += 1
        with grpc_errors():
            self._call = self._wire.open()
        return self._call

    async def _read(self, call: Call) -> Any:  # noqa: ANN401
        try:
            with grpc_errors():
                reply = await call.read()
        except Draining:
            self._go_away()
            raise
        if reply is aio.EOF:
            raise Unavailable("the server closed the stream before it replied")
        self._answered = True
        return reply

    async def _write(self, call: Call, message: Message) -> None:
        try:
            await _write(call, message)
        except Draining:  # the call had ended before this was sent
            self._go_away()
            raise

    def _go_away(self) -> None:
        if self._answered:
            self.stats = replace(self.stats, go_aways=self.stats.go_aways + 1)

    def _start_config(self) -> SequenceConfig:
        return SequenceConfig(
            sequence_id=self._sequence_id,
            start=True,
            start_key=self._start_key,
            durability=self._options.durability.value,
            model_version=self._model_version,
        )

    def _start_over(self, error: StatestreamError) -> None:
        """The server knows nothing of a sequence that it had: it is fed anew, if all of it is held.

        Raises:
            GiveUp: with SequenceLost.
        """
        self.drop()
        if self.buffer.oldest_step > 0:
            self.refused = True
            raise GiveUp(sequence_lost(0, self.buffer)) from error
        # Another key makes it another sequence, should the old one come back, and gives it another history.
        self._start_key = self._unique()
        self._epoch = self._told = None
        self.buffer.forget_digests()
        self.buffer.committed(None)
        self.stats = replace(self.stats, losses=self.stats.losses + 1)

    def _check(self, header: ReplyHeader, step: int) -> None:
        if header.step != step:
            raise StatestreamError(f"the server answered step {header.step}, asked was {step}")
        if self._epoch is not None and header.epoch > self._epoch:
            self.refused = True
            raise GiveUp(StepConflict("the sequence was started anew by another client"))

    def _stands(self, opening: ReplyHeader) -> None:
        """Where the server says that the sequence stands now, which may be less than it said before."""
        self._epoch, self._told = opening.epoch, None
        self.buffer.committed(None if not opening.HasField("committed_step") else opening.committed_step)
        self._told_by(opening)

    def _told_by(self, header: ReplyHeader) -> None:
        """What a header says of commits. The stored reply to an earlier epoch says nothing new."""
        if self._epoch is None:
            self._epoch = header.epoch
        self._model_version = header.model.version or self._model_version
        if header.epoch == self._epoch and header.HasField("committed_step"):
            told = (header.epoch, header.committed_step)
            if self._told is None or told > self._told:
                self._told = told
                self.buffer.committed(header.committed_step)


async def _write(call: Call, message: Message) -> None:
    with grpc_errors():
        try:
            await call.write(message)
        except asyncio.InvalidStateError:
            pass  # the call is over, and a write does not say why; reading tells
        except aio.AioRpcError as error:
            if error.code() is not StatusCode.INTERNAL or error.trailing_metadata():
                raise
            # So grpc.aio tells that a message could not be sent, before it knows why: the connection is lost.
            raise Unavailable("the connection broke while the step was sent") from error


def buffer_full(buffer: ReplayBuffer) -> ReplayBufferFull:
    """The error for a step that would pass the bounds of what is kept."""
    return ReplayBufferFull(
        f"{buffer.uncommitted} steps ({buffer.bytes_held} bytes) are held that the server has not committed"
    )
