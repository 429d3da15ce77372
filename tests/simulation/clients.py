"""The clients of a simulation: each works with the real client library, in a process of its own."""

from __future__ import annotations

import asyncio
import random
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from statestream import Durability, RetryPolicy, errors
from statestream._channel import Connection
from statestream._replay import ReplayBounds
from statestream._retry import Timing
from statestream._sequences import AsyncSequences
from statestream._stream import AsyncStepStream
from statestream._wire import StreamOptions

from services.runtime.state.types import Durability as Kept
from tests.kit.simulated_calls import Channel
from tests.kit.simulated_task import Piece, ToyUpdate, ToyWire
from tests.kit.virtual_time import Node
from tests.simulation.ledger import Story

if TYPE_CHECKING:
    from tests.simulation.world import World

TIMEOUT_S = 5.0
IDLE_S = 20.0
"""After which a sequence expires."""

AGAIN = (
    errors.Unavailable,
    errors.DeadlineExceeded,
    errors.CallCancelled,
    errors.CapacityExceeded,
    errors.ModelFailure,
    errors.ReplayBufferFull,
)
"""After these a step is sent again: nothing was said about the sequence."""

POISON = np.array([666], np.float32).tobytes()

Stream = AsyncStepStream[bytes, ToyUpdate]


def values_of(writer: str, step: int) -> bytes:
    """What a writer's step reads: one to five small numbers, the same whenever it is asked."""
    digest = blake2b(f"{writer} {step}".encode(), digest_size=6).digest()
    return np.array([1 + byte % 9 for byte in digest[1 : 2 + digest[0] % 5]], np.float32).tobytes()


class Seat:
    """One process of a client: its connection, and the streams it opens."""

    def __init__(self, world: World, name: str) -> None:
        self.node = Node(world.loop, name)
        rng, plan = world.rng, world.plan
        timing = Timing(
            clock=world.loop.time,
            sleep=asyncio.sleep,
            random_unit=rng.random,
            unique=lambda: f"{name}-{rng.getrandbits(64):x}",
        )
        self.connection = Connection(
            "replicas",
            timeout_s=TIMEOUT_S,
            credentials=None,
            policy=RetryPolicy(),
            timing=timing,
            replay=ReplayBounds(steps_max=plan.replay_steps_max, slack_steps=plan.replay_slack),
        )
        self.channel = Channel(world.network, self.node)
        # The channel of the simulation in place of one of grpc.
        self.connection._channel = self.channel  # pyright: ignore[reportAttributeAccessIssue]
        self.sequences = AsyncSequences(self.connection)


class Actor:
    """One client that takes the steps of one sequence; `kind` says how it behaves.

    What it sends as step n is always the same, so that another process can go on where this one has vanished.
    """

    def __init__(self, world: World, number: int, kind: str) -> None:
        plan = world.plan
        self.world = world
        self.number = number
        self.kind = kind
        self.name = f"client-{number}"
        self.rng = random.Random(f"client {plan.seed} {number}")
        self.steps = plan.steps[number]
        self.sequence_id = f"s{number}"
        self.writer = self.name
        self.sent: dict[int, Piece] = {}
        self.begun: asyncio.Future[None] = world.loop.create_future()
        self.lives = 0
        self.ends = self.rng.random() < 0.6
        durability = {"step": Durability.STEP, "none": Durability.NONE, "checkpoint": Durability.CHECKPOINT}.get(kind)
        self.durability = durability or self.rng.choice((Durability.CHECKPOINT, Durability.CHECKPOINT, Durability.STEP))
        self.story = Story(Kept(self.durability), own=self.sent)
        if kind != "unnamed":
            world.ledger.stories[self.sequence_id] = self.story
        else:
            self.ends = False
            self.sent[self.steps] = Piece(b"", end=True)
        self.sleeps_before = self.rng.randrange(1, self.steps)
        self.must_expire = False
        if kind == "none":
            # It is known to one replica only; at another there is nothing of it, or what is left of an earlier attempt.
            self.story.excuses |= {"SEQUENCE_NOT_FOUND", "SEQUENCE_LOST", "STEP_CONFLICT", "STEP_CONTENT_MISMATCH"}
            # The store in a replica's own memory goes by the replica's clock.
            self.story.excuses.add("SEQUENCE_EXPIRED")

    async def run(self) -> None:
        """All of its life, seen from outside: a process that vanishes is followed by another."""
        while True:
            if await self._live():
                return
            await asyncio.sleep(self.rng.random() * 0.5)

    async def _live(self) -> bool:
        """One process; False: it has vanished before it was done."""
        seat = Seat(self.world, f"{self.name}.{self.lives}")
        self.lives += 1
        over: asyncio.Future[bool] = self.world.loop.create_future()

        def vanished() -> None:
            if not over.done():
                over.set_result(False)

        seat.node.on_crash.append(vanished)

        async def main() -> None:
            try:
                await self._work(seat)
            except Exception as error:  # noqa: BLE001 - whatever it is, the run ends with it
                over.set_exception(error)
            else:
                over.set_result(True)

        seat.node.spawn(main())
        return await over

    async def _work(self, seat: Seat) -> None:
        resume = self.lives > 1
        while True:
            try:
                stream = self._stream(seat, resume=resume)
                async with stream:
                    await self._steps(seat, stream)
            except errors.SequenceEnded as error:
                if self.steps - 1 not in self.sent or not self.sent[self.steps - 1].end:
                    self.world.ledger.failed(self.sequence_id, error)
                break
            except AGAIN as error:
                # It could not be taken up, or its last steps not be committed.
                self.world.trace(self.name, "comes back:", error.reason)
                await asyncio.sleep(self.rng.random() * 0.05)
                resume = self.begun.done()
            except errors.StatestreamError as error:
                self.world.trace(self.name, "gives up", error.reason)
                self.must_expire = False
                self.world.ledger.failed(self.sequence_id, error)
                return
            else:
                break
        if self.must_expire and self.story.lost_from is None:
            self.world.fail(f"{self.sequence_id} went on although it had expired")
        if self.kind != "unnamed":
            self.world.is_done(self.sequence_id, self.steps, ended=self.ends)
        elif stream.ended:
            self.world.is_done(self.sequence_id, self.steps + 1, ended=True)

    async def _steps(self, seat: Seat, stream: Stream) -> None:
        before: bytes | None = b"" if stream.next_step == 0 else None
        while stream.next_step < self.steps:
            await self._pause()
            update = await self._take(stream, stream.next_step)
            if before is not None:
                self.world.check(self.world.ledger.followed, self.sequence_id, before, update.chain)
            before = update.chain
            held = len(stream._link.buffer)
            if held > self.world.plan.replay_steps_max:
                self.world.fail(f"{self.sequence_id}: {held} steps are held, {self.world.plan.replay_steps_max} may be")
            self._may_vanish(seat)
            if self.kind == "sleeping" and self.sleeps_before == stream.next_step:
                await self._sleep()

    def _stream(self, seat: Seat, *, resume: bool) -> Stream:
        name = None if self.kind == "unnamed" else self.sequence_id
        options = StreamOptions(sequence_id=name, resume=resume, durability=self.durability)
        stream = AsyncStepStream(seat.connection, ToyWire(seat.channel, self._hears, self._loses_call), options)
        if name is None:
            self.sequence_id = stream.sequence_id
            self.world.ledger.stories[self.sequence_id] = self.story
        return stream

    def _hears(self, config: Any, response: Any) -> None:
        header, world = response.header, self.world
        if header.HasField("next_step"):
            world.trace(self.name, "goes on at", header.next_step, "lost" if header.lost else "")
            world.check(world.ledger.taken_up, self.sequence_id, config, header)
        else:
            committed = header.committed_step if header.HasField("committed_step") else None
            world.trace(self.name, "hears", header.step, "committed", committed, "epoch", header.epoch)
            world.check(world.ledger.told, self.sequence_id, self.sent, response)
            world.check_bounds()
            if not self.begun.done():
                self.begun.set_result(None)

    def _loses_call(self, error: errors.StatestreamError) -> None:
        # In the order of their names: a map of protobuf has another one in every process.
        self.world.trace(
            self.name, "loses its call:", error.reason, *(value for _, value in sorted(error.metadata.items()))
        )
        if isinstance(error, errors.Draining):
            self.world.check(self.world.ledger.sent_away, self.sequence_id, error.metadata)

    def _values(self, step: int) -> bytes:
        return values_of(self.writer, step)

    async def _take(self, stream: Stream, step: int) -> ToyUpdate:
        end = self.ends and step == self.steps - 1
        piece = Piece(self._values(step), end)
        self.sent[step] = piece
        if self.rng.random() < 0.03:
            await self._fail_once(stream)
        while True:
            try:
                return await self._send(stream, piece)
            except AGAIN as error:
                self.world.trace(self.name, "is told", error.reason, "at", step)
                await asyncio.sleep(self.rng.random() * 0.05)

    async def _fail_once(self, stream: Stream) -> None:
        """Sends what the model refuses; it must not be taken, and not hurt who shares its run."""
        try:
            await stream.send(POISON)
        except AGAIN as error:
            self.world.trace(self.name, "sent poison, is told", error.reason)
        else:
            self.world.fail(f"{self.sequence_id}: a piece was taken that the model refuses")

    async def _send(self, stream: Stream, piece: Piece) -> ToyUpdate:
        self.world.trace(self.name, "sends", stream.next_step)
        if self.kind != "impatient" or self.world.calm or self.rng.random() < 0.5:
            return await stream.send(piece.values, end=piece.end)
        while True:
            sending = asyncio.create_task(stream.send(piece.values, end=piece.end))
            await asyncio.wait({sending}, timeout=self.rng.random() * 0.02)
            sending.cancel()
            await asyncio.wait({sending})
            if not sending.cancelled():
                return sending.result()
            self.world.trace(self.name, "is impatient at", stream.next_step)
            if self.world.calm:
                return await stream.send(piece.values, end=piece.end)

    async def _sleep(self) -> None:
        """Long enough for the sequence to expire, or nearly."""
        late = self.rng.random() < 0.6
        if late:
            self.story.excuses |= {"SEQUENCE_EXPIRED"}
            self.must_expire = self.sleeps_before < self.steps
        await asyncio.sleep(IDLE_S * 1.5 if late else IDLE_S * 0.6)

    async def _pause(self) -> None:
        if self.world.plan.pause_s_max:
            await asyncio.sleep(self.rng.random() * self.world.plan.pause_s_max)

    def _may_vanish(self, seat: Seat) -> None:
        if self.kind == "vanishing" and self.lives < 3 and self.rng.random() < 0.3:
            seat.node.turns_left = self.rng.randrange(60)
