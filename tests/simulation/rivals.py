"""Clients that are not alone on their sequence: two that fight for it, and one whose sequence others meddle with."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from statestream import errors

from services.runtime.state.types import Durability as Kept
from tests.kit.simulated_task import MODEL, Piece
from tests.simulation.clients import AGAIN, Actor, Seat, values_of
from tests.simulation.ledger import Story

if TYPE_CHECKING:
    from tests.simulation.world import World

LOST_THE_STEP = (errors.StepConflict, errors.StepContentMismatch, errors.StepOutOfOrder)
"""What a client is told of a step that somebody else has taken, or of a sequence that has gone on without it."""


class Fighter(Actor):
    """One of two clients on one sequence. Whoever loses a step takes the sequence up where it stands, and goes on."""

    def __init__(self, world: World, number: int, *, twin: bool) -> None:
        super().__init__(world, number, "fighting")
        self.rival = Actor.__new__(Rival)
        self.story.own = None
        self.rival.__dict__.update(self.__dict__)
        self.rival.name = f"{self.name}-rival"
        if not twin:
            self.rival.writer = self.rival.name
        self.rival.sent = {}

    async def run(self) -> None:
        async def rival() -> None:
            await self.begun
            await self.rival.run()

        first, second = asyncio.ensure_future(self._fight(resume=False)), asyncio.ensure_future(rival())
        await first
        if self.begun.done():
            await second
        else:
            second.cancel()

    async def _fight(self, *, resume: bool) -> None:
        seat = Seat(self.world, f"{self.name}.0")
        fighting = seat.node.spawn(self._go_on(seat, resume=resume))
        await asyncio.wait({fighting})
        fighting.result()

    async def _go_on(self, seat: Seat, *, resume: bool) -> None:
        while True:
            stream = self._stream(seat, resume=resume)
            try:
                async with stream:
                    await self._steps(seat, stream)
            except (errors.SequenceEnded, *LOST_THE_STEP) as error:
                self.world.trace(self.name, "is beaten:", error.reason)
                if isinstance(error, errors.SequenceEnded):
                    if not self.ends:
                        self.world.ledger.failed(self.sequence_id, error)
                    return
                await asyncio.sleep(self.rng.random() * 0.05)
                resume = True
            except AGAIN as error:
                self.world.trace(self.name, "is told", error.reason)
                await asyncio.sleep(self.rng.random() * 0.05)
            except errors.StatestreamError as error:
                self.world.ledger.failed(self.sequence_id, error)
                return
            else:
                return


class Rival(Fighter):
    """The other one: it begins when the first has had a reply."""

    async def run(self) -> None:
        await self._fight(resume=True)


class Meddled(Actor):
    """A client whose sequence others look at, fork, rewind or end meanwhile."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, number, "meddled")
        self.act = self.rng.choice(("look", "fork", "fork", "rewind", "end"))
        if self.act == "rewind":
            # A client that has gone on from there is told that somebody has changed its sequence.
            self.story.excuses |= {"STEP_CONFLICT", "STEP_OUT_OF_ORDER", "SEQUENCE_LOST"}
            self.story.rewound = True
        elif self.act == "end":
            self.story.excuses |= {"SEQUENCE_ENDED", "SEQUENCE_NOT_FOUND"}

    async def run(self) -> None:
        meddling = asyncio.ensure_future(self._meddle())
        await super().run()
        await meddling

    async def _meddle(self) -> None:
        await self.begun
        await asyncio.sleep(self.rng.random() * 0.3)
        seat = Seat(self.world, f"{self.name}.meddler")
        acting = seat.node.spawn(self._act(seat))
        await asyncio.wait({acting})
        acting.result()

    async def _act(self, seat: Seat) -> None:
        trace, name = self.world.trace, self.sequence_id
        while True:
            try:
                found = await seat.sequences.get(MODEL, name)
                trace(self.name, "is looked at:", found.next_step, *found.checkpoint_steps)
                if self.act == "end":
                    await seat.sequences.end(MODEL, name)
                elif self.act == "rewind" and found.checkpoint_steps:
                    await seat.sequences.rewind(MODEL, name, self.rng.choice(found.checkpoint_steps))
                elif self.act == "fork":
                    await self._fork(seat, self.rng.choice((None, *found.checkpoint_steps)))
            except (*AGAIN, errors.StepConflict) as error:
                trace(self.name, "is meddled with in vain:", error.reason)
                await asyncio.sleep(self.rng.random() * 0.1)
            except (errors.SequenceError, errors.UnknownModel) as error:
                # It has ended or gone meanwhile, or its checkpoint has.
                trace(self.name, "is meddled with in vain:", error.reason)
                return
            else:
                trace(self.name, "has been meddled with:", self.act)
                return

    async def _fork(self, seat: Seat, at: int | None) -> None:
        new_id, world = f"{self.sequence_id}-fork", self.world
        own = {step: Piece(values_of(self.writer, step), end=False) for step in range(self.steps + 3)}
        story = Story(Kept(self.durability), own=own, forked_from={self.sequence_id})
        story.excuses |= self.story.excuses
        if self.story.lost_from is not None:
            story.lost_from, story.lost_to = 0, self.steps + 3
        world.ledger.stories.setdefault(new_id, story)
        [made] = await seat.sequences.fork(MODEL, self.sequence_id, new_id, next_step=at)
        branch = Branch(self, new_id, own)
        await branch.follow(seat, made.next_step)


class Branch(Actor):
    """Who goes on with a fork, for three steps."""

    def __init__(self, trunk: Meddled, sequence_id: str, own: dict[int, Piece]) -> None:
        self.__dict__.update(trunk.__dict__)
        self.name = f"{trunk.name}-fork"
        self.writer = self.name
        self.sequence_id = sequence_id
        self.sent = own
        self.ends = False

    async def follow(self, seat: Seat, first: int) -> None:
        async with self._stream(seat, resume=True) as stream:
            while stream.next_step < first + 3:
                await self._take(stream, stream.next_step)
        self.world.is_done(self.sequence_id, first + 3, ended=False)
