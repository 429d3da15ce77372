"""One replica of the server as a process of the simulation: all of its parts are the real ones."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, cast

from statestream.common.v1 import lifecycle_service_pb2_grpc

from services.runtime.engine.scheduler import BatchLimits
from services.runtime.engine.served import Catalogue
from services.runtime.sequences.lifecycle import Lifecycle
from services.runtime.sequences.sequences import Sequences
from services.runtime.sequences.snapshot import SnapshotFormat
from services.runtime.state.cache import RecordCache
from services.runtime.state.memory import MemoryStore
from services.runtime.state.store import Stores
from services.runtime.transport import lifecycle
from services.runtime.transport.drain import Drain
from services.runtime.transport.gate import Gate
from services.runtime.transport.stream import serve_stream
from services.runtime.transport.task import Runtime
from tests.kit.simulated_link import StoreLink
from tests.kit.simulated_server import Server
from tests.kit.simulated_task import METHOD, Request, toy_task
from tests.kit.toy import NoEvents, ToyModel, toy_served
from tests.kit.virtual_time import Node
from tests.simulation.clients import IDLE_S
from tests.simulation.ledger import Violation

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Mapping, Sequence

    from services.runtime.engine.collate import Array
    from tests.simulation.world import World

DRAIN_S = 2.0
QUEUE_MAX = 3
SNAPSHOTS = SnapshotFormat(b"a key")


class SlowExecutor(Executor):
    """Runs take `seconds()`, and stand still with their process."""

    def __init__(self, node: Node, seconds: Callable[[], float]) -> None:
        self._node = node
        self._seconds = seconds

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """See `Executor`."""
        future: Future[Any] = Future()
        self._node.call_later(self._seconds(), lambda: future.set_result(fn(*args, **kwargs)))
        return future


class FailingModel(ToyModel):
    """The toy, of whose runs some fail."""

    def __init__(self, version: str, rng: random.Random) -> None:
        super().__init__(version, IDLE_S)
        self.failing = 0.0
        self._rng = rng

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array], *, lone: bool = False) -> list[Array]:
        """See `Model`."""
        if self.failing and self._rng.random() < self.failing:
            raise RuntimeError("a run that fails")
        return super().run(outputs, feeds)


class Replica:
    """A process that serves `versions` of the toy, the newest last, and writes records of the format `writes`."""

    def __init__(self, world: World, name: str, versions: tuple[str, ...], writes: int) -> None:
        self.name = name
        self.writes = writes
        self.versions = versions
        self.node = node = Node(world.loop, name)
        self.run_s_max = 0.002
        self.link = StoreLink(world.store, node, world.loop, world.rng, world.trace, writes=writes)
        self.models = [FailingModel(version, world.rng) for version in versions]
        self.draining = False
        catalogue = Catalogue()
        executor = SlowExecutor(node, lambda: world.rng.random() * self.run_s_max)
        for model in self.models:
            catalogue.add(toy_served(node, executor=executor, limits=BatchLimits(queue_max=QUEUE_MAX), model=model))
        plan = world.plan
        self._policy, self._cache_max, self._catalogue = plan.policy, plan.cache_sequences, catalogue
        local = MemoryStore(node, bytes_max=10**6, sequences_max=100)
        cache = RecordCache(plan.cache_sequences, bytes_max=10**6)
        self.sequences = Sequences(catalogue, self.link, local, cache, plan.policy, node, NoEvents())
        self.drain = Drain()
        self.gate = Gate(64, 64, NoEvents())
        self.server = Server(node, world.loop, self.gate, world.broke)
        runtime = Runtime(catalogue, self.sequences, node, self.drain, NoEvents(), cast("Any", None))
        task = toy_task(world.ledger.derived, lambda model: model.model_id.version)
        self.server.add_stream(
            METHOD, lambda requests, context: serve_stream(task, runtime, requests, context), Request.FromString
        )
        stores = Stores(self.link, local)
        self.lifecycle = Lifecycle(self.sequences, stores, catalogue, SNAPSHOTS, node, NoEvents())
        servicer = lifecycle.LifecycleServicer(self.lifecycle)
        lifecycle_service_pb2_grpc.add_LifecycleServiceServicer_to_server(servicer, cast("Any", self.server))
        self.gate.open()

    async def stop(self) -> None:
        """Stops as `app.Server.stop` does; the process ends after it."""
        self.gate.drain()
        self.drain.begin()
        await self.server.stop(DRAIN_S)
        await self.sequences.close()
        self.node.crash()

    def check_bounds(self) -> None:
        """Nothing in it has grown beyond its bound.

        Raises:
            Violation: something has.
        """
        engine: Any = self.sequences
        waiting = [len(waiters) for waiters in engine._lanes._waiting.values()]
        bounds = (
            ("heads", len(engine._heads), self._policy.heads_max),
            ("requests that wait for one sequence", max(waiting, default=0), self._policy.waiters_max),
            ("cached records", len(engine._commits.cache), self._cache_max),
            ("steps in the queue", self._queued(), QUEUE_MAX),
        )
        for what, number, bound in bounds:
            if number > bound:
                raise Violation(f"{self.name}: {number} {what}, the bound is {bound}")

    def _queued(self) -> int:
        return max(len(served.batcher._scheduler) for served in self._catalogue)
