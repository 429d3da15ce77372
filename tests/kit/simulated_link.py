"""The shared store as replicas see it over a network that loses, delays, doubles and reorders, and that store's faults.

The store is a real `MemoryStore` in the part of the Redis server. Records cross the network in the real format.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from services.runtime.core.errors import CapacityExceeded, StateCorrupt, StatestreamError, StoreUnavailable
from services.runtime.state.format import RecordFormat
from services.runtime.state.memory import MemoryStore
from services.runtime.state.store import Conflict
from services.runtime.state.types import Absence, Stored

if TYPE_CHECKING:
    import asyncio
    import random
    from collections.abc import Callable, Coroutine

    from services.runtime.core.ids import SequenceName
    from services.runtime.state.store import Page
    from services.runtime.state.types import Position, Record, Terms
    from tests.kit.virtual_time import Node, VirtualTimeLoop


def at_once(call: Coroutine[Any, Any, Any]) -> Any:
    """The result of a call that never waits, as those of a `MemoryStore` do not."""
    try:
        call.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited")


class StoreServer:
    """The store's process: one for all replicas.

    Attributes:
        up: it answers.
        full: it takes no new sequence.
        watch: is told of each commit: the name, what stood there before, and what stands there now.
    """

    def __init__(self, loop: VirtualTimeLoop, sequences_max: int = 1000) -> None:
        self._loop = loop
        self._store = MemoryStore(loop, bytes_max=10**7, sequences_max=sequences_max)
        self._names: dict[SequenceName, None] = {}
        self._saved: dict[str, Any] | None = None
        self._damaged: dict[SequenceName, Position] = {}
        self._format = RecordFormat()
        self.up = True
        self.full = False
        self.watch: Callable[[SequenceName, Stored | Absence, Record], None] = lambda *_: None

    @property
    def names(self) -> tuple[SequenceName, ...]:
        """Names that were ever committed, in the order of their first commit."""
        return tuple(self._names)

    def peek(self, name: SequenceName) -> Stored | Absence:
        """What stands there now."""
        return at_once(self._store.load(name))

    def save(self) -> None:
        """What a fail-over goes back to: writes from now on do not reach the other server."""
        memo: dict[int, Any] = {id(self._loop): self._loop}
        self._saved = copy.deepcopy(self._store.__dict__, memo)

    def fail_over(self) -> None:
        """The other server takes over, without what was written since `save`."""
        if self._saved is not None:
            self._store.__dict__.update(self._saved)
            self._saved = None

    def forget(self, name: SequenceName) -> None:
        """Evicts a sequence, as a full store would."""
        if isinstance(self.peek(name), Stored):
            store: Any = self._store
            store._drop(name)
            store._evicted[name] = None

    def damage(self, name: SequenceName) -> None:
        """Flips a bit of a record; what is committed over it is whole again."""
        found = self.peek(name)
        if isinstance(found, Stored):
            self._damaged[name] = found.record.position

    def load(self, name: SequenceName) -> Stored | Absence:
        """See `StateStore`."""
        found = self.peek(name)
        if isinstance(found, Stored) and self._damaged.get(name) == found.record.position:
            position = found.record.position
            error = StateCorrupt("the stored record fails its checksum")
            error.metadata = {"epoch": str(position.epoch), "step": str(position.step)}
            raise error
        return self._sent(name, found)

    def commit(
        self, name: SequenceName, expected: Position | None, data: bytes, terms: Terms, *, continues: bool, keep: int
    ) -> Conflict | None:
        """See `StateStore`."""
        if self.full and expected is None and isinstance(self.peek(name), Absence):
            raise CapacityExceeded("the store is full")
        self._names[name] = None
        before, record = self.peek(name), self._format.decode(name, data)
        conflict: Conflict | None = at_once(
            self._store.commit(name, expected, record, terms, continues=continues, keep=keep)
        )
        if conflict is None:
            self.watch(name, before, record)
        return conflict and Conflict(self._sent(name, conflict.found))

    def load_checkpoint(self, name: SequenceName, step: int) -> Stored | Absence:
        """See `StateStore`."""
        return self._sent(name, at_once(self._store.load_checkpoint(name, step)))

    def list_names(self, tenant: str, model: str, *, cursor: str | None, count: int) -> Page:
        """See `StateStore.names`."""
        return at_once(self._store.names(tenant, model, cursor=cursor, count=count))

    def _sent(self, name: SequenceName, found: Stored | Absence) -> Stored | Absence:
        """What comes out at the other end: another object, read from the bytes of this one."""
        if isinstance(found, Absence):
            return found
        return replace(found, record=self._format.decode(name, self._format.encode(name, found.record)))


@dataclass(slots=True)
class LinkWeather:
    """How one replica's network to the store behaves: probabilities a message, delays in seconds.

    While `partitioned` nothing passes; what is sent then is lost, or arrives when the partition is over.
    """

    delay_s_max: float = 0.001
    lost_request: float = 0.0
    lost_answer: float = 0.0
    stuck: float = 0.0
    doubled: float = 0.0
    partitioned: bool = False
    timeout_s: float = 0.5


class StoreLink:
    """What one replica has of the store: a `StateStore`. `writes` is the version of the records that it writes."""

    def __init__(
        self,
        server: StoreServer,
        node: Node,
        loop: VirtualTimeLoop,
        rng: random.Random,
        trace: Callable[..., None],
        *,
        writes: int,
    ) -> None:
        self.weather = LinkWeather()
        self._server = server
        self._node = node
        self._loop = loop
        self._rng = rng
        self._trace = trace
        self._format = RecordFormat(write=writes)
        self._asking: dict[asyncio.Future[Any], None] = {}
        self._kept_back: list[Callable[[], None]] = []

    async def load(self, name: SequenceName) -> Stored | Absence:
        """See `StateStore`."""
        return await self._ask("load", name, lambda: self._server.load(name))

    async def commit(
        self,
        name: SequenceName,
        expected: Position | None,
        record: Record,
        terms: Terms,
        *,
        continues: bool = False,
        keep: int = 0,
    ) -> Conflict | None:
        """See `StateStore`."""
        data = self._format.encode(name, record)
        deliveries = 0

        def deliver() -> Conflict | None:
            nonlocal deliveries
            deliveries += 1
            conflict = self._server.commit(name, expected, data, terms, continues=continues, keep=keep)
            if conflict is not None and deliveries > 1 and isinstance(conflict.found, Stored):
                # As the link to Redis does: what a repeated commit conflicts with may be its first delivery.
                return None if self._format.encode(name, conflict.found.record) == data else conflict
            return conflict

        what = f"{expected and tuple(expected)} -> {tuple(record.position)}{' ended' if record.ended else ''}"
        return await self._ask(f"commit {what} of", name, deliver)

    async def load_checkpoint(self, name: SequenceName, step: int) -> Stored | Absence:
        """See `StateStore`."""
        return await self._ask(f"load {step} of", name, lambda: self._server.load_checkpoint(name, step))

    async def names(self, tenant: str, model: str, *, cursor: str | None = None, count: int = 100) -> Page:
        """See `StateStore`."""
        return await self._ask(
            "names", None, lambda: self._server.list_names(tenant, model, cursor=cursor, count=count)
        )

    async def ping(self) -> None:
        """See `StateStore`."""
        await self._ask("ping", None, lambda: None)

    async def close(self) -> None:
        """See `StateStore`."""

    def reset(self) -> None:
        """The connection breaks: whoever waits for an answer is told so, whatever became of the request."""
        for future in self._asking:
            if not future.done():
                future.set_exception(StoreUnavailable("the connection to the store broke"))

    def part(self) -> None:
        """Nothing passes from now on."""
        self.weather.partitioned = True

    def join(self) -> None:
        """The partition is over; what was kept back by it passes now."""
        self.weather.partitioned = False
        kept_back, self._kept_back = self._kept_back, []
        for pass_on in kept_back:
            pass_on()

    async def _ask(self, what: str, name: SequenceName | None, work: Callable[[], Any]) -> Any:
        future: asyncio.Future[Any] = self._loop.create_future()
        self._asking[future] = None
        weather, rng = self.weather, self._rng
        self._trace(self._node.name, "asks", what, name and name.sequence_id)
        timer = self._loop.call_later(weather.timeout_s, _expire, future)
        if rng.random() >= weather.lost_request:
            self._later(lambda: self._serve(work, future))
            if rng.random() < weather.doubled:
                self._later(lambda: self._serve(work, future))
        try:
            return await future
        finally:
            timer.cancel()
            self._asking.pop(future, None)

    def _later(self, pass_on: Callable[[], None]) -> None:
        weather, rng = self.weather, self._rng
        if weather.partitioned:
            if rng.random() < 0.5:
                self._kept_back.append(pass_on)
            return
        delay = rng.random() * weather.delay_s_max
        if rng.random() < weather.stuck:
            delay = rng.uniform(0.1, 4.0) * weather.timeout_s
        self._loop.at(self._loop.time() + delay, pass_on)

    def _serve(self, work: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        if not self._server.up:
            return
        try:
            result, error = work(), None
        except StatestreamError as raised:
            result, error = None, raised
        if self._rng.random() >= self.weather.lost_answer:
            self._later(lambda: _answer(future, result, error))


def _answer(future: asyncio.Future[Any], result: Any, error: StatestreamError | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)


def _expire(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(StoreUnavailable("no answer from the store in time"))
