"""How a task plugs into a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import grpc
    from google.protobuf.descriptor_pool import DescriptorPool

    from services.runtime.core.clock import Clock
    from services.runtime.engine.served import Catalogue
    from services.runtime.repository.repository import Repository
    from services.runtime.sequences.sequences import Sequences
    from services.runtime.transport.drain import Drain


class StreamEvents(Protocol):
    """What happens on streams, for metrics."""

    def message_received(self, model: str) -> None:
        """A step was asked for."""
        ...


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a server offers its tasks. `ready` tells whether it takes calls and has what it was to serve."""

    catalogue: Catalogue
    sequences: Sequences
    clock: Clock
    drain: Drain
    events: StreamEvents
    repository: Repository
    ready: Callable[[], bool] = lambda: True


@dataclass(frozen=True, slots=True)
class Task:
    """One task: its name is that of its folder, its model, its proto package and its container.

    Attributes:
        service: full name of the gRPC service, for health and reflection.
        more_services: names of others that it has beside that one.
        open_calls: full paths of methods that answer while the server is not ready, or full.
        pool: descriptors of the service, for reflection; None: protobuf's default pool has them.
        register: adds the servicer to a server.
        load_features: makes of an artefact's folder what the codec needs (a vocabulary), once per version of each model
            whose manifest names this task; None: nothing.
        serves_all: it has no model of its own name, but serves every model of the repository.
    """

    name: str
    service: str
    register: Callable[[grpc.aio.Server, Runtime], None]
    load_features: Callable[[Path], object] | None = None
    serves_all: bool = False
    more_services: tuple[str, ...] = ()
    open_calls: tuple[str, ...] = ()
    pool: DescriptorPool | None = None
