"""Clients that are not alone on their sequence: two that fight for it, and one whose sequence others meddle with."""

from __future__ import annotations

import asyncio
import random
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

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, number, "fighting")
        self.story.own = None

    async def run(self) -> None:
        second = asyncio.ensure_future(self._rival())
        await self._fight(resume=False)
        if self.begun.done():
            await second
        else:
            second.cancel()

    async def _rival(self) -> None:
        await self.begun
        await Rival(self).run()

    async def _fight(self, *, resume: bool) -> None:
        seat = Seat(self.world, f"{self.name}.0")
        fighting = seat.node.spawn(self._go_on(seat, resume=resume))
        await asyncio.wait({fighting})
        fighting.result()

    async def _go_on(self, seat: Seat, *, resume: bool) -> None:
        while True:
            try:
                stream = self._stream(seat, resume=resume)
                async with stream:
                    await self._steps(seat, stream)
            except errors.SequenceEnded as error:
                if not self.ends:
                    self.world.ledger.failed(self.sequence_id, error)
                return
            except LOST_THE_STEP as error:
                self.world.trace(self.name, "is beaten:", error.reason)
                resume = True
            except AGAIN as error:
                self.world.trace(self.name, "comes back:", error.reason)
                resume = self.begun.done()
            except errors.StatestreamError as error:
                self.world.ledger.failed(self.sequence_id, error)
                return
            else:
                return
            await asyncio.sleep(self.rng.random() * 0.05)


class Rival(Fighter):
    """The other one, which begins when the first has had a reply; what it sends may be the same."""

    def __init__(self, first: Fighter) -> None:
        super().__init__(first.world, first.number)
        self.world.ledger.stories[self.sequence_id] = self.story = first.story
        self.begun = first.begun
        self.name = f"{first.name}-rival"
        self.rng = random.Random(f"rival {self.world.plan.seed} {self.number}")
        self.same = self.rng.choice((1, 2, 3, 100))

    def _values(self, step: int) -> bytes:
        # Now and then both say the same: then the contents of a step do not tell whose it is.
        return values_of(self.writer if step % self.same == 0 else self.name, step)

    async def run(self) -> None:
        await self._fight(resume=True)


class Meddled(Actor):
    """A client whose sequence others look at, fork, move, rewind or end meanwhile."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world, number, "meddled")
        self.act = self.rng.choice(("look", "fork", "fork", "move", "rewind", "end"))
        if self.act == "rewind":
            # A client that has gone on from there is told that somebody has changed its sequence.
            self.story.excuses |= {"STEP_CONFLICT", "STEP_OUT_OF_ORDER", "SEQUENCE_LOST"}
            self.story.rewound = True
        elif self.act == "end":
            self.story.excuses |= {"SEQUENCE_ENDED", "SEQUENCE_NOT_FOUND"}

    async def run(self) -> None:
        meddling = asyncio.ensure_future(self._meddle())
        await super().run()
        if self.begun.done():
            await meddling
        else:
            meddling.cancel()

    async def _meddle(self) -> None:
        await self.begun
        await asyncio.sleep(self.rng.random() * 0.3)
        seat = Seat(self.world, f"{self.name}.meddler")
        acting = seat.node.spawn(self._try(seat))
        await asyncio.wait({acting})
        acting.result()

    async def _try(self, seat: Seat) -> None:
        while True:
            try:
                await self._act(seat)
            except (*AGAIN, errors.StepConflict) as error:
                self.world.trace(self.name, "is meddled with in vain:", error.reason)
                await asyncio.sleep(self.rng.random() * 0.1)
            except (errors.SequenceError, errors.UnknownModel) as error:
                # It has ended or gone meanwhile, or its checkpoint has.
                self.world.trace(self.name, "is meddled with in vain:", error.reason)
                return
            else:
                self.world.trace(self.name, "has been meddled with:", self.act)
                return

    async def _act(self, seat: Seat) -> None:
        sequences, name, new_id = seat.sequences, self.sequence_id, f"{self.sequence_id}-{self.act}"
        found = await sequences.get(MODEL, name)
        self.world.trace(self.name, "is looked at:", found.next_step, *found.checkpoint_steps)
        at = self.rng.choice((None, *found.checkpoint_steps))
        if self.act == "look":
            listed = [each.sequence_id async for each in sequences.list(MODEL, page_size=2)]
            lost = self.story.lost_from is not None
            if name not in listed and not lost:
                self.world.fail(f"{name} is not among {listed}")
        elif self.act == "end":
            await sequences.end(MODEL, name)
        elif self.act == "rewind" and at is not None:
            await sequences.rewind(MODEL, name, at)
        elif self.act == "fork":
            story = self._new_story(new_id)
            [made] = await sequences.fork(MODEL, name, new_id, next_step=at)
            await Branch(self, new_id, story).follow(seat, made.next_step)
        elif self.act == "move":
            story = self._new_story(new_id)
            snapshot = await sequences.export(MODEL, name, next_step=at)
            made = await sequences.import_(snapshot, new_id)
            await Branch(self, new_id, story).follow(seat, made.next_step)

    def _new_story(self, new_id: str) -> Story:
        """That of a sequence which begins as this one and goes on by itself."""
        stories = self.world.ledger.stories
        story = stories.get(new_id)
        if story is None:
            own = {step: Piece(values_of(self.writer, step), end=False) for step in range(self.steps + 3)}
            story = stories[new_id] = Story(Kept(self.durability), own=own, forked_from={self.sequence_id})
        # What happens to the first one happens to its copy, if it happens before the copy is made.
        story.excuses |= self.story.excuses
        if self.story.lost_from is not None:
            story.lost_from, story.lost_to = 0, self.steps + 3
        return story


class Branch(Actor):
    """Who goes on with a copy, for three steps."""

    def __init__(self, trunk: Meddled, sequence_id: str, story: Story) -> None:
        mine = trunk.story
        super().__init__(trunk.world, trunk.number, trunk.act)
        self.world.ledger.stories[trunk.sequence_id] = mine
        self.name = self.writer = f"{trunk.name}-{trunk.act}"
        self.sequence_id, self.story, self.sent = sequence_id, story, story.own or {}
        self.ends = False

    async def follow(self, seat: Seat, first: int) -> None:
        """Takes the steps, from `first` on."""
        async with self._stream(seat, resume=True) as stream:
            while stream.next_step < first + 3:
                await self._take(stream, stream.next_step)
        self.world.is_done(self.sequence_id, first + 3, ended=False)
