"""Lanes: one at a time, in order, and nobody is stranded by who leaves early."""

from __future__ import annotations

import asyncio

import pytest

from services.runtime.core.errors import CapacityExceeded
from services.runtime.core.ids import SequenceName
from services.runtime.sequences.lanes import Lanes

ONE, OTHER = SequenceName("t", "m", "one"), SequenceName("t", "m", "other")


async def turns(count: int = 3) -> None:
    """Lets everything that is ready happen."""
    for _ in range(count):
        await asyncio.sleep(0)


class Road:
    """Lanes, and who is or was in them."""

    def __init__(self, waiters_max: int = 8) -> None:
        self.lanes = Lanes(waiters_max)
        self.inside: list[int] = []
        self.seen: list[int] = []
        self._leave: dict[int, asyncio.Event] = {}

    def enter(self, number: int, name: SequenceName = ONE) -> asyncio.Task[None]:
        """Somebody who stays until `leave`."""
        self._leave[number] = asyncio.Event()

        async def stay() -> None:
            async with self.lanes.alone(name):
                self.inside.append(number)
                self.seen.append(number)
                await self._leave[number].wait()
                self.inside.remove(number)

        return asyncio.create_task(stay())

    async def leave(self, number: int) -> None:
        self._leave[number].set()
        await turns()


async def test_one_at_a_time_in_order_of_arrival() -> None:
    """Who comes first goes first; other names do not wait; at the end nothing is kept."""
    road = Road()
    tasks = [road.enter(1), road.enter(2), road.enter(3), road.enter(4, OTHER)]
    await turns()
    assert road.inside == [1, 4]
    for number in (1, 2, 4, 3):
        await road.leave(number)
    assert road.seen == [1, 4, 2, 3]
    await asyncio.gather(*tasks)
    assert len(road.lanes) == 0


async def test_no_more_wait_than_may() -> None:
    """One is in, as many wait as may, and one more is refused; then there is room again."""
    road = Road(waiters_max=2)
    tasks = [road.enter(number) for number in (1, 2, 3)]
    await turns()
    with pytest.raises(CapacityExceeded):
        await road.enter(4)
    await road.leave(1)
    tasks.append(road.enter(5))
    await turns()
    for number in (2, 3, 5):
        await road.leave(number)
    await asyncio.gather(*tasks)
    assert road.seen == [1, 2, 3, 5]


async def test_who_gives_up_while_it_waits_is_passed_over() -> None:
    """A cancelled waiter neither blocks nor takes the turn of those behind it."""
    road = Road()
    first, gone, last = road.enter(1), road.enter(2), road.enter(3)
    await turns()
    gone.cancel()
    await turns()
    await road.leave(1)
    assert road.inside == [3]
    await road.leave(3)
    await asyncio.gather(first, last)
    assert gone.cancelled()
    assert len(road.lanes) == 0


@pytest.mark.parametrize("behind", [0, 1])
async def test_who_gives_up_in_the_turn_that_it_gets_in_hands_it_on(behind: int) -> None:
    """Between the turn being given and taken a waiter may be cancelled: the next one goes in, or nobody is left."""
    road = Road()
    first, gone = road.enter(1), road.enter(2)
    others = [road.enter(3 + n) for n in range(behind)]
    await turns()
    road._leave[1].set()
    await asyncio.sleep(0)  # the first one leaves and gives its turn to the second, which has not run yet
    gone.cancel()
    await turns()
    assert road.inside == [3] * behind
    for n in range(behind):
        await road.leave(3 + n)
    await asyncio.gather(first, *others)
    assert gone.cancelled()
    assert road.seen == [1] + [3] * behind
    assert len(road.lanes) == 0
