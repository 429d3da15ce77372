"""Which versions of which models a server has, and how they come and go (docs/adr/0014).

In the mode `none` the folders are looked at once. With `poll` they are looked at again and again: new versions are
loaded, those that are gone are retired. With `explicit` only calls load and unload. In every mode a version that is not
loaded, and that a sequence began on, is loaded for its sequences alone, if its files are there.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from models.common.manifest import ArtefactError
from services.runtime.core.errors import ModelControlDisabled, ModelNotLoaded, UnknownModel
from services.runtime.model.registry import Scan, scan
from services.runtime.repository.contract import ModelState
from services.runtime.repository.demand import Demand
from services.runtime.repository.shelf import Shelf

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from services.runtime.config import Settings
    from services.runtime.core.clock import Clock
    from services.runtime.core.errors import StatestreamError
    from services.runtime.core.ids import ModelId
    from services.runtime.engine.served import Catalogue
    from services.runtime.repository.contract import IndexEntry, RepositoryEvents
    from services.runtime.repository.loader import Loader, Offload

SWEEP_S: Final = 1.0
"""Between two looks at what is retired, and at least between two looks at the folders that somebody waits for."""

_log = structlog.get_logger(__name__)


class Repository:
    """The models of a server, version by version. What it loads goes into `catalogue`.

    `names` are the models that it serves, None: whatever the folders hold. `live` tells how many sequences are live on
    a version, or None where this process does not know of all.
    """

    def __init__(
        self,
        settings: Settings,
        names: Collection[str] | None,
        catalogue: Catalogue,
        loader: Loader,
        offload: Offload,
        clock: Clock,
        events: RepositoryEvents,
        live: Callable[[ModelId], int | None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._mode = settings.model_control_mode
        self._names = names
        self._catalogue = catalogue
        self._offload = offload
        self._clock = clock
        self._live = live
        self._demand = Demand(settings.rollout_s, clock)
        self._shelf = Shelf(settings.versions_kept, catalogue, loader, offload, clock, events, self._demand)
        self._seen = Scan({}, {}, frozenset(), ())
        self._looked_at = clock.monotonic()
        self._wanted: set[str] = set()
        self._changing = asyncio.Lock()
        self._wake = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self.on_change: Callable[[], Awaitable[None]] | None = None
        """Called when what is served may have changed."""

    @property
    def ready(self) -> bool:
        """True if of each model that was asked for, at the start or by a call since, a version is served."""
        return all(self._catalogue.versions(name) for name in self._wanted)

    def index(self) -> list[IndexEntry]:
        """Every version that is loaded or was found, by name, and from the oldest version to the newest."""
        entries: list[IndexEntry] = []
        for name in self._shelf.names:
            entries += [version.entry() for version in self._shelf.by_age(name)]
            if wrong := self._shelf.limits.wrong(name):
                entries[-1] = entries[-1]._replace(reason="; ".join(filter(None, (entries[-1].reason, wrong))))
        return entries

    async def start(self, own: Collection[str]) -> None:
        """Loads what the control mode says; `own` are the models that the tasks of this server are made for.

        Raises:
            ArtefactError: the control mode is `none`, and one of `own` has no version that can be served.
        """
        self._catalogue.supplier = self
        async with self._changing:
            await self._look()
            for folder in self._seen.doubles:
                _log.warning("another folder has this version, too, and counts", folder=str(folder))
            names = set(own) | set(self._seen.versions)
            if self._mode == "explicit":
                listed = set(self._settings.load_models)
                names = set(self._seen.versions) if "*" in listed else listed
            self._wanted = names if self._mode == "explicit" else set(own)
            for name in sorted(names):
                wrong = await self._shelf.bring_up(name, self._seen)
                if self._mode == "none" and name in own and not self._catalogue.versions(name):
                    raise _unservable(wrong, [str(root / name) for root in self._settings.artefacts])
        await self._tell()
        self._watching = asyncio.create_task(self._watch())

    async def load(self, name: str) -> None:
        """Looks into the folders and loads what is there of a model; returns once its newest version is served.

        Raises:
            ModelControlDisabled: the control mode is not `explicit`.
            UnknownModel: the folders have no model of that name.
            ModelNotLoaded: the newest version cannot be served; what was served before goes on.
        """
        self._check_mode()
        async with self._changing:
            await self._look()
            if name not in self._seen.versions:
                raise UnknownModel(f"model {name}: the repository has none of that name")
            await self._shelf.bring_up(name, self._seen, again=True)
            there = [version for version in self._shelf.by_age(name) if version.files is not None]
        await self._tell()
        # One that is still being copied is not what the call can mean, unless there is no other.
        newest = ([version for version in there if version.files and version.files.complete] or there)[-1].entry()
        if newest.state is not ModelState.READY:
            raise ModelNotLoaded(f"model {name}, version {newest.version}: {newest.reason}")
        self._wanted.add(name)

    async def unload(self, name: str) -> None:
        """Starts no further sequence of a model; each version goes when its sequences have ended or their time is up.

        Returns without waiting for that; `index` says UNLOADING until then.

        Raises:
            ModelControlDisabled: the control mode is not `explicit`.
            UnknownModel: no version of it is loaded.
        """
        self._check_mode()
        async with self._changing:
            loaded = [version for version in self._shelf.by_age(name) if version.served is not None]
            if not loaded:
                raise UnknownModel(f"model {name}: no version of it is loaded")
            self._wanted.discard(name)
            for version in loaded:
                self._shelf.retire(version, "unloaded by a call")
        await self._tell()
        self._wake.set()

    async def look(self) -> None:
        """Looks at the folders, as happens by itself; does what the control mode says, and what sequences wait for."""
        async with self._changing:
            self._looked_at = self._clock.monotonic()
            if self._mode != "none":
                await self._look()
            if self._mode == "poll":
                for name in self._shelf.names:
                    await self._shelf.bring_up(name, self._seen)
                    if all(version.files is None for version in self._shelf.by_age(name)):
                        self._wanted.discard(name)  # it was taken away on purpose
            for model_id in self._demand.take():
                await self._shelf.bring_back(model_id)
        await self._tell()

    async def sweep(self) -> None:
        """Unloads retired versions whose time is up, as happens by itself."""
        async with self._changing:
            self._shelf.sweep(self._live)
        await self._tell()

    async def close(self) -> None:
        """Loads and unloads nothing more; who made the catalogue closes the models."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        self._offload.close()
        self._shelf.close()

    def unserved(self, name: str, version: str, *, start: bool) -> StatestreamError | None:
        """See `Supplier`."""
        return self._demand.of_any(self._shelf.by_age(name), version, start=start)

    def missing(self, model_id: ModelId) -> StatestreamError:
        """See `Supplier`."""
        error = self._demand.of_sequence(self._shelf.by_age(model_id.name), model_id)
        if self._demand.waiting:
            self._wake.set()
        return error

    def _check_mode(self) -> None:
        if self._mode != "explicit":
            raise ModelControlDisabled(f"the control mode is {self._mode}: models are not loaded and unloaded by calls")

    async def _look(self) -> None:
        before, self._seen = self._seen, await self._offload.run(partial(scan, self._settings.artefacts, self._names))
        for folder in sorted(self._seen.unread - before.unread):
            _log.warning("folder of models cannot be read; what was found in it stays", folder=str(folder))
        self._shelf.note(self._seen)

    async def _tell(self) -> None:
        if self.on_change is not None:
            await self.on_change()

    async def _watch(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._pause_s())
            self._wake.clear()
            try:
                if self._is_due():
                    await self.look()
                await self.sweep()
            except Exception as error:  # noqa: BLE001 - the next look may go better; without one nothing is ever loaded
                _log.error("models could not be looked after", error=type(error).__name__)

    def _pause_s(self) -> float | None:
        """Until there is something to do, unless somebody wakes the watch."""
        pauses = [SWEEP_S] if self._shelf.busy or self._demand.waiting else []
        if self._mode != "none":
            pauses.append(max(0.0, self._settings.repository_poll_s - (self._clock.monotonic() - self._looked_at)))
        return min(pauses, default=None)

    def _is_due(self) -> bool:
        since_s = self._clock.monotonic() - self._looked_at
        if self._demand.waiting and since_s >= SWEEP_S:
            return True
        return self._mode != "none" and since_s >= self._settings.repository_poll_s


def _unservable(wrong: Exception | None, places: list[str]) -> ArtefactError:
    """Why a server cannot start."""
    if isinstance(wrong, ArtefactError):
        return wrong
    where = " and ".join(places)
    return ArtefactError(where, str(wrong) if wrong else "holds no exported model (<version>/manifest.json)")
