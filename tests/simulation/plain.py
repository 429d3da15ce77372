"""Clients without the library, as somebody writes them from the protos: no resume, and few precautions."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from grpc import aio
from statestream import errors
from statestream._status import to_error
from statestream.common.v1.sequence_pb2 import SequenceConfig, StepControl

from tests.kit.simulated_task import Piece, ToyWire
from tests.simulation.clients import AGAIN, Actor, Seat, values_of
from tests.simulation.plan import REPLY_BYTES

if TYPE_CHECKING:
    from tests.simulation.world import World


class Plain(Actor):
    """Numbers its steps, sends some ahead, and after a break sends again what has no reply."""

    def __init__(self, world: World, number: int, kind: str = "plain") -> None:
        super().__init__(world, number, kind)
        self.next = self.had = 0
        # So many steps may be sent before the reply to the first of them is there: more are not kept for it.
        policy = world.plan.policy
        self.ahead = policy.replies_kept if policy.reply_bytes_max > REPLY_BYTES else 1

    async def _work(self, seat: Seat) -> None:
        wire = ToyWire(seat.channel, self._hears, self._loses_call)
        while True:
            call, first = wire.open(), self.next
            try:
                await self._talk(wire, call)
            except (aio.AioRpcError, asyncio.InvalidStateError) as error:
                if await self._is_over(call, error):
                    return
                await asyncio.sleep(self.rng.random() * 0.1)
            else:
                # What was answered before a break and not committed is lost if nothing is sent after it.
                if first < self.steps:
                    self.world.is_done(self.sequence_id, self.steps, ended=self.ends)
                return

    async def _talk(self, wire: ToyWire, call: Any) -> None:
        start = not self.begun.done()
        config = SequenceConfig(sequence_id=self.sequence_id, start=start, durability=self.durability.value)
        if start:
            config.start_key = self.name
        await call.write(wire.config(config))
        written = self.next
        while self.next < self.steps:
            while written < min(self.steps, self.next + self.ahead):
                end = self.ends and written == self.steps - 1
                self.sent[written] = Piece(values_of(self.writer, written), end)
                await call.write(wire.piece(self.sent[written].values, StepControl(step=written, end=end)))
                written += 1
            reply = await call.read()
            if reply is aio.EOF:
                raise asyncio.InvalidStateError("the server has closed its side")
            self.next = reply.header.step + 1
            self.had = max(self.had, self.next)
            await self._pause()
        await call.done_writing()
        while await call.read() is not aio.EOF:
            pass

    async def _is_over(self, call: Any, error: Exception) -> bool:
        """True if it does not go on after this error."""
        told = to_error(error) if isinstance(error, aio.AioRpcError) else None
        if told is None:
            told = await _status_of(call)
        self.world.trace(self.name, "is told", told.reason, "at", self.next)
        if self.next == self.steps and isinstance(told, errors.SequenceEnded):
            return True
        if isinstance(told, AGAIN) or told.code.name in ("INTERNAL", "OK", "UNKNOWN"):
            return False
        if isinstance(told, errors.StepConflict):
            return False
        if isinstance(told, errors.StepOutOfOrder):
            expected = int(told.metadata["expected_step"])
            if expected <= self.had + self.ahead:
                # What was not committed has gone with the replica that had it, or has come back with it.
                self.next = min(expected, self.had)
                return False
        self.world.ledger.failed(self.sequence_id, told)
        return True


class Careless(Plain):
    """Gives no name, no number, and half-closes at the end; after a break it does not come back."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, number, "unnamed")
        self.sequence_id = ""
        self.sent[self.steps] = Piece(b"", end=True)

    def _loses_call(self, error: errors.StatestreamError) -> None:
        if self.sequence_id:
            super()._loses_call(error)

    async def _work(self, seat: Seat) -> None:
        wire = ToyWire(seat.channel, self._hears, self._loses_call)
        call = wire.open()
        try:
            await call.write(wire.config(SequenceConfig(durability=self.durability.value)))
            for step in range(self.steps):
                self.sent[step] = Piece(values_of(self.writer, step), end=False)
                await call.write(wire.piece(self.sent[step].values, StepControl()))
                await self._pause()
            await call.done_writing()
            for step in range(self.steps + 1):
                reply = await call.read()
                if reply is aio.EOF or reply.header.step != step:
                    self.world.fail(f"{self.sequence_id}: the reply to {step} is {reply}")
                    return
        except (aio.AioRpcError, asyncio.InvalidStateError) as error:
            self.world.trace(self.name, "is told", error)
        else:
            self.world.is_done(self.sequence_id, self.steps + 1, ended=True)

    def _hears(self, config: Any, response: Any) -> None:
        if not self.sequence_id:
            self.sequence_id = response.header.sequence_id
            self.world.ledger.adopt(self.sequence_id, self.story)
        super()._hears(config, response)


async def _status_of(call: Any) -> errors.StatestreamError:
    """Why a call is over that nothing can be written to."""
    try:
        while await call.read() is not aio.EOF:
            pass
    except aio.AioRpcError as error:
        return to_error(error)
    return errors.Unavailable("the server has closed its side")
