"""Puts a server together and runs it. Imports every room; nothing imports it but who starts a server."""

from __future__ import annotations

import asyncio
import gc
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import prometheus_client
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from statestream.common.v1 import lifecycle_service_pb2_grpc

from models.common.manifest import ArtefactError
from services.runtime.config import Settings, unknown_variables
from services.runtime.core.clock import Clock, SystemClock
from services.runtime.engine.served import Catalogue
from services.runtime.observability.logs import configure_logs
from services.runtime.observability.metrics import Metrics
from services.runtime.repository.loader import Loader, LoadingThread
from services.runtime.repository.repository import Repository
from services.runtime.rpc.limits import Limits
from services.runtime.rpc.server import RpcServer
from services.runtime.sequences.contract import SequencePolicy
from services.runtime.sequences.lifecycle import Lifecycle
from services.runtime.sequences.sequences import Sequences
from services.runtime.sequences.snapshot import SnapshotFormat
from services.runtime.state.cache import RecordCache
from services.runtime.state.format import RecordFormat
from services.runtime.state.memory import MemoryStore
from services.runtime.state.redis.connect import TlsFiles
from services.runtime.state.redis.store import RedisStore
from services.runtime.state.store import Stores
from services.runtime.transport import lifecycle
from services.runtime.transport.drain import Drain
from services.runtime.transport.gate import Gate
from services.runtime.transport.pools import Pools
from services.runtime.transport.task import Runtime, Task

if TYPE_CHECKING:
    from collections.abc import Sequence
    from threading import Thread
    from wsgiref.simple_server import WSGIServer

    from services.runtime.core.ids import ModelId
    from services.runtime.observability.shared import Copier
    from services.runtime.state.redis.breaker import StoreEvents
    from services.runtime.state.store import StateStore
    from services.runtime.workers.link import Link

_log = structlog.get_logger(__name__)


def make_store(settings: Settings, clock: Clock, events: StoreEvents) -> StateStore:
    """The state store that the settings name."""
    if settings.store == "memory":
        return MemoryStore(clock, bytes_max=settings.memory_bytes_max, sequences_max=settings.sequences_max)
    return RedisStore.from_url(
        settings.redis_url.get_secret_value(),
        timeout_s=settings.redis_timeout_s,
        connections=settings.redis_connections,
        replicas_acked=settings.redis_replicas_acked,
        tls=TlsFiles(settings.redis_tls_ca, settings.redis_tls_certificate, settings.redis_tls_key),
        events=events,
        records=make_records(settings),
    )


def make_records(settings: Settings) -> RecordFormat:
    """How the settings want records to be written and signed."""
    key, before = (
        secret.get_secret_value().encode() if secret else None
        for secret in (settings.record_key, settings.record_key_before)
    )
    return RecordFormat(key, key_before=before, write=settings.record_format)


class Server:
    """One process that serves some tasks. A `store` that is handed in stays its owner's to close.

    `start` returns when the models are warm and health says SERVING; `stop` lets calls in progress finish. With a
    `shared_port` others listen beside it: it opens the port only once it serves, since what comes would not go to them.
    """

    def __init__(
        self,
        settings: Settings,
        tasks: Sequence[Task],
        *,
        clock: Clock | None = None,
        store: StateStore | None = None,
        registry: prometheus_client.CollectorRegistry | None = None,
        shared_port: bool = False,
    ) -> None:
        self._settings = settings
        self._shared_port = shared_port
        self._tasks = tasks
        self._clock = clock or SystemClock()
        self.metrics = Metrics(registry or prometheus_client.CollectorRegistry())
        self._owns_store = store is None
        self._store = store or make_store(settings, self._clock, self.metrics)
        self._catalogue = Catalogue()
        self._drain = Drain()
        open_calls = [path for task in tasks for path in task.open_calls]
        self._gate = Gate(settings.calls_max, settings.streams_max, self.metrics, open_calls)
        # The published stubs do not know the asyncio servicer.
        self._health: Any = health.aio.HealthServicer()  # pyright: ignore[reportAttributeAccessIssue]
        # Sequences without durability, apart from the store that replicas share.
        local = MemoryStore(self._clock, bytes_max=settings.memory_bytes_max, sequences_max=settings.sequences_max)
        self._repository = self._make_repository(local)
        self._sequences = self._make_sequences(local)
        self._lifecycle = self._make_lifecycle(local)
        self._server = self._make_server()
        self._metrics_server: tuple[WSGIServer, Thread] | None = None
        self.port = 0

    def _make_repository(self, local: MemoryStore) -> Repository:
        def live(model_id: ModelId) -> int | None:
            # Of a store that replicas share no replica knows how many sequences are live in it.
            store = self._store
            return store.live(model_id) + local.live(model_id) if isinstance(store, MemoryStore) else None

        serves_all = any(task.serves_all for task in self._tasks)
        names = None if serves_all else frozenset([task.name for task in self._tasks])
        features = {task.name: task.load_features for task in self._tasks if task.load_features}
        loader = Loader(self._settings, features, self._clock, self.metrics)
        thread = LoadingThread()
        return Repository(self._settings, names, self._catalogue, loader, thread, self._clock, self.metrics, live)

    def _make_sequences(self, local: StateStore) -> Sequences:
        settings = self._settings
        policy = SequencePolicy(
            replies_kept=settings.replies_kept,
            reply_bytes_max=settings.reply_bytes_max,
            waiters_max=settings.step_waiters_max,
            retention_ms=int(settings.retention_s * 1000),
            commit_steps=settings.commit_steps,
            commit_interval_ms=settings.commit_interval_ms,
            uncommitted_max=settings.uncommitted_steps_max,
            heads_max=settings.heads_max,
            head_bytes_max=settings.memory_bytes_max,
            checkpoints_kept=settings.checkpoints_kept,
            checkpoint_steps=settings.checkpoint_steps,
        )
        # A store in memory is as near as a cache would be.
        at_hand = 0 if settings.store == "memory" else settings.cache_sequences
        cache = RecordCache(sequences_max=at_hand, bytes_max=settings.memory_bytes_max)
        sequences = Sequences(self._catalogue, self._store, local, cache, policy, self._clock, self.metrics)
        self.metrics.watch_uncommitted(lambda: sequences.uncommitted)
        return sequences

    def _make_lifecycle(self, local: StateStore) -> Lifecycle:
        key = self._settings.snapshot_key
        snapshots = SnapshotFormat(key.get_secret_value().encode()) if key else None
        stores = Stores(self._store, local)
        return Lifecycle(self._sequences, stores, self._catalogue, snapshots, self._clock, self.metrics)

    def _make_server(self) -> RpcServer:
        server = RpcServer(Limits(message_bytes_max=self._settings.message_bytes_max), wrap=self._gate.wrap)
        stock: Any = server  # generated code is typed for the servers of grpc alone
        runtime = Runtime(
            self._catalogue,
            self._sequences,
            self._clock,
            self._drain,
            self.metrics,
            self._repository,
            lambda: self._gate.is_open and self._repository.ready,
        )
        for task in self._tasks:
            task.register(stock, runtime)
        lifecycle_service_pb2_grpc.add_LifecycleServiceServicer_to_server(
            lifecycle.LifecycleServicer(self._lifecycle), stock
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, stock)
        names = (*self._services(), health.SERVICE_NAME, reflection.SERVICE_NAME)
        # As for health: it would take any server but its own for one with threads.
        pool = Pools([task.pool for task in self._tasks if task.pool])
        reflector: Any = reflection.aio.ReflectionServicer(names, pool)  # pyright: ignore[reportAttributeAccessIssue]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflector, stock)
        return server

    def _services(self) -> tuple[str, ...]:
        return (*(name for task in self._tasks for name in (task.service, *task.more_services)), lifecycle.SERVICE)

    async def start(self) -> None:
        """Opens the port, loads and warms the models, then says SERVING.

        Raises:
            ArtefactError: there is no model that can be trusted for one of the tasks.
            OSError: an address cannot be had.
        """
        # The stock health servicer starts out SERVING.
        for service in ("", *self._services()):
            await self._health.set(service, health_pb2.HealthCheckResponse.NOT_SERVING)
        if self._settings.metrics_listen:
            host, _, port = self._settings.metrics_listen.rpartition(":")
            self._metrics_server = prometheus_client.start_http_server(int(port), host, registry=self.metrics.registry)
        if not self._shared_port:
            await self._listen()
        await self._repository.start([task.name for task in self._tasks if not task.serves_all])
        self._gate.open()
        await self._tell_health()
        self._repository.on_change = self._tell_health
        if self._shared_port:
            await self._listen()

    async def _listen(self) -> None:
        try:
            self.port = self._server.listen(self._settings.listen, reuse_port=self._shared_port)
        except OSError as error:
            raise OSError(f"listen: cannot bind {self._settings.listen}") from error
        await self._server.start()

    @property
    def metrics_port(self) -> int:
        """Port of the metrics endpoint; 0 where there is none."""
        return self._metrics_server[0].server_port if self._metrics_server else 0

    async def stop(self) -> None:
        """Says NOT_SERVING, sends live streams on, lets steps in progress finish, closes everything."""
        await self._health.enter_graceful_shutdown()
        self._gate.drain()
        self._drain.begin()
        await self._server.stop(self._settings.drain_s)
        await self._sequences.close()
        await self._repository.close()
        self._catalogue.close()
        if self._owns_store:
            await self._store.close()
        if self._metrics_server:
            self._metrics_server[0].shutdown()
            self._metrics_server[0].server_close()
        _log.info("stopped", port=self.port)

    async def _tell_health(self) -> None:
        """Says of the server, and of each service, whether what it was to serve is there."""
        healthy = {"": self._repository.ready, lifecycle.SERVICE: True}
        for task in self._tasks:
            served = task.serves_all or bool(self._catalogue.versions(task.name))
            healthy.update(dict.fromkeys((task.service, *task.more_services), served))
        statuses = health_pb2.HealthCheckResponse
        for service, is_healthy in healthy.items():
            await self._health.set(service, statuses.SERVING if is_healthy else statuses.NOT_SERVING)


async def serve(settings: Settings, tasks: Sequence[Task], link: Link | None = None) -> None:
    """Serves until SIGTERM or SIGINT, or until the supervisor at the other end of `link` is gone; then drains.

    Raises:
        ArtefactError, OSError: it cannot start.
    """
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = Server(settings, tasks, shared_port=link is not None)
    copier: Copier | None = None
    try:
        if link:
            link.when_alone(loop, stopped.set)
        await server.start()
        _spare_the_collector()
        if link:
            if link.brief.metrics_folder:
                copier = server.metrics.copied(Path(link.brief.metrics_folder), link.brief.name)
            link.ready()
        else:
            names = [task.name for task in tasks]
            _log.info("serving", port=server.port, tasks=names, store=settings.store)
        await stopped.wait()
    finally:
        await server.stop()
        if copier:
            copier.stop()


def _spare_the_collector() -> None:
    """Lets the garbage collector look at what calls leave behind, seldom, and never again at what stays for good.

    Steps make no cycles, yet at the interpreter's own thresholds it took 3 % of a step's time (docs/benchmarks.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def run(settings: Settings, tasks: Sequence[Task], *, link: Link | None = None) -> int:
    """`serve` in a new event loop; returns the exit status of the process, having said why it is not 0."""
    import uvloop  # noqa: PLC0415 - only a process that serves needs it

    configure_logs(settings.log_level, settings.log_format, **({"worker": link.brief.slot} if link else {}))
    for name in () if link else unknown_variables():
        _log.warning("no such setting", variable=name)
    try:
        uvloop.run(serve(settings, tasks, link))
    except (ArtefactError, OSError) as error:
        _log.error("cannot serve", error=str(error))
        return 1
    return 0
