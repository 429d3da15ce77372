"""One run: everything in one process on virtual time, drawn from a seed, watched by the oracle."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import random
import secrets
import sys
import uuid
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

import structlog

from tests.kit.simulated_calls import Network
from tests.kit.simulated_link import StoreServer
from tests.kit.virtual_time import VirtualTimeLoop
from tests.simulation.clients import Actor
from tests.simulation.faults import Faults
from tests.simulation.ledger import Ledger, Violation, is_told
from tests.simulation.plain import Careless, Plain
from tests.simulation.plan import draw
from tests.simulation.replicas import Replica
from tests.simulation.rivals import Fighter, Meddled

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from tests.simulation.plan import Plan

PATIENCE_S = 60.0
"""Virtual seconds that clients may take to finish once the faults are over."""

SETTLE_S = 3.0
"""Virtual seconds for what is under way when the last client has finished."""


@dataclass(slots=True)
class Outcome:
    """What became of a run: `failure` None if nothing was wrong."""

    seed: int
    failure: str | None
    events: list[tuple[Any, ...]] = field(repr=False)
    turns: int = 0
    replies: int = 0

    @property
    def trace(self) -> Iterator[str]:
        """Everything that happened, a line each."""
        return (f"{event[0]:9.6f} {' '.join(str(part) for part in event[1:])}" for event in self.events)

    @property
    def digest(self) -> str:
        """The same for two runs in which the same things happened at the same times."""
        digest = hashlib.blake2b(digest_size=8)
        for line in self.trace:
            digest.update(line.encode())
        digest.update(f"{self.turns} {self.failure}".encode())
        return digest.hexdigest()


class World:
    """The store, the replicas, the clients, and what lies between them."""

    def __init__(self, plan: Plan, loop: VirtualTimeLoop) -> None:
        self.plan = plan
        self.loop = loop
        self.rng = random.Random(f"world {plan.seed}")
        self.events: list[tuple[Any, ...]] = []
        self.failure: str | None = None
        self.calm = False
        self.done: list[tuple[str, int, bool]] = []
        self.over: asyncio.Future[None] = loop.create_future()
        self.store = StoreServer(loop)
        self.ledger = Ledger(self.store, plan.policy.uncommitted_max, histories=1 not in plan.formats)
        self.store.watch = lambda *commit: self.check(self.ledger.committed, *commit)
        self.network = Network(loop, self.rng, self.trace)
        self.network.breaking = plan.breaking
        self.network.delay_s_max = plan.delay_s_max
        self.replicas = [
            self._started(f"replica-{number}", ("1",), writes) for number, writes in enumerate(plan.formats)
        ]
        self.actors = [self._actor(number, kind) for number, kind in enumerate(plan.clients)]

    def trace(self, *event: Any) -> None:
        """Notes that something happened."""
        self.events.append((self.loop.time(), *event))

    def fail(self, what: str) -> None:
        """Ends the run: something happened that must not."""
        if self.failure is None:
            self.failure = what
            self.trace("VIOLATION", what)
            if not self.over.done():
                self.over.set_result(None)

    def check(self, judge: Callable[..., None], *args: Any) -> None:
        """Lets the ledger judge."""
        try:
            judge(*args)
        except Violation as violation:
            self.fail(str(violation))

    def check_bounds(self) -> None:
        """Looks into the replicas."""
        for replica in self.replicas:
            self.check(replica.check_bounds)

    def is_done(self, sequence_id: str, steps: int, *, ended: bool) -> None:
        """A client has left its stream in good order: now and later the store holds all its steps."""
        self.trace(sequence_id, "is done")
        self.done.append((sequence_id, steps, ended))
        self._check_done(sequence_id, steps, ended)

    def _check_done(self, sequence_id: str, steps: int, ended: bool) -> None:  # noqa: FBT001 - a row of `done`
        self.check(lambda: self.ledger.finished(sequence_id, steps, ended=ended))

    def broke(self, error: BaseException) -> None:
        """A servicer raised something."""
        if not is_told(error):
            self.fail(f"a servicer raised {error!r}")

    async def run(self) -> None:
        """All of it; `failure` tells how it went."""
        faults = Faults(self)
        self.loop.at(self.plan.calm_at_s, self._calm_down, faults)
        self.loop.at(self.plan.calm_at_s + PATIENCE_S, self.fail, "not all clients have finished")
        work = asyncio.gather(*(self._begin(actor) for actor in self.actors))
        await asyncio.wait({work, self.over}, return_when=asyncio.FIRST_COMPLETED)
        if work.done() and self.failure is None:
            error = work.exception()
            if error is not None:
                self.fail(f"a client raised {error!r}")
            await asyncio.sleep(max(0.0, self.plan.calm_at_s - self.loop.time()) + SETTLE_S)
            for each in self.done:
                self._check_done(*each)
            self._check_rest()

    def start_again(self, index: int, before: Replica, versions: tuple[str, ...] | None = None) -> None:
        """A new process in place of one that has crashed, or that is stopped now."""
        if self.replicas[index] is not before:
            return
        self.unlist(before)
        before.node.crash()
        self.replicas[index] = after = self._started(before.name, versions or before.versions, before.writes)
        after.node.skew_s = before.node.skew_s
        self.trace(after.name, "starts", *after.versions)

    def stop(self, replica: Replica, *, unlist: bool) -> None:
        """A replica is told to stop, as by SIGTERM."""
        if unlist:
            self.unlist(replica)
        if replica.node.alive:
            replica.node.spawn(replica.stop())

    def unlist(self, replica: Replica) -> None:
        """The balancer sends nothing more there."""
        if replica.server in self.network.servers and len(self.network.servers) > 1:
            self.network.servers.remove(replica.server)

    async def _begin(self, actor: Actor) -> None:
        await asyncio.sleep(self.plan.begins_s[actor.number])
        await actor.run()

    def _actor(self, number: int, kind: str) -> Actor:
        kinds = {"fighting": Fighter, "meddled": Meddled, "plain": Plain, "careless": Careless}
        return kinds[kind](self, number) if kind in kinds else Actor(self, number, kind)

    def _started(self, name: str, versions: tuple[str, ...], writes: int) -> Replica:
        replica = Replica(self, name, versions, writes)
        self.network.servers.append(replica.server)
        if not self.calm:
            weather = replica.link.weather
            weather.lost_request = weather.lost_answer = self.plan.lost
            weather.stuck, weather.doubled = self.plan.stuck, self.plan.doubled
        return replica

    def _calm_down(self, faults: Faults) -> None:
        """From now on nothing goes wrong any more."""
        self.calm = True
        self.trace("world", "is calm")
        faults.end()
        self.network.breaking = 0.0
        for replica in self.replicas:
            weather = replica.link.weather
            weather.lost_request = weather.lost_answer = weather.stuck = weather.doubled = 0.0
        for index, replica in enumerate(tuple(self.replicas)):
            replica.node.turns_left = None
            if not replica.node.alive:
                self.start_again(index, replica)
            elif replica.server not in self.network.servers:
                self.network.servers.append(replica.server)

    def _check_rest(self) -> None:
        for replica in self.replicas:
            left = replica.sequences.uncommitted
            if left:
                self.fail(f"{replica.name} has left {left} steps uncommitted")
        if self.loop.broken:
            self.fail(f"nobody handled {self.loop.broken[0]!r}")


@contextmanager
def _quiet(rng: random.Random) -> Generator[None]:
    """Random names come from the seed; nobody logs; what is left of crashed processes goes without a word."""

    def new_uuid() -> uuid.UUID:
        return uuid.UUID(int=rng.getrandbits(128), version=4)

    def new_token(count: int) -> str:
        return rng.randbytes(count).hex()

    silent = structlog.make_filtering_bound_logger(logging.CRITICAL)
    before = structlog.get_config()
    structlog.configure(wrapper_class=silent, cache_logger_on_first_use=False)
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    gc.disable()
    try:
        with (
            warnings.catch_warnings(),
            mock.patch.object(uuid, "uuid4", new_uuid),
            mock.patch.object(secrets, "token_hex", new_token),
            mock.patch.object(secrets, "randbelow", rng.randrange),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        gc.enable()
        sys.unraisablehook = hook
        structlog.configure(**before)


def run_seed(seed: int, without: frozenset[str] = frozenset()) -> Outcome:
    """Runs one seed to its end."""
    with _quiet(random.Random(f"names {seed}")):
        outcome = _run(draw(seed, without))
        # Here, where no loop runs and nobody hears it, goes what the crashed processes have left.
        gc.collect()
    return outcome


def _run(plan: Plan) -> Outcome:
    loop = VirtualTimeLoop()
    asyncio.set_event_loop(loop)
    try:
        world = World(plan, loop)
        loop.run_until_complete(world.run())
    finally:
        loop.close()
        asyncio.set_event_loop(None)
    return Outcome(plan.seed, world.failure, world.events, loop.turns, world.ledger.replies)
