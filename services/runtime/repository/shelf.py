"""The versions that a server has: loaded from their files, retired, unloaded. Who decides which is `Repository`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import structlog

from models.common.manifest import ArtefactError
from services.runtime.core.errors import ModelNotLoaded
from services.runtime.model.registry import read_artefact, version_key
from services.runtime.repository.limits import Limits
from services.runtime.repository.version import Retirement, Version

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.runtime.core.clock import Clock
    from services.runtime.core.ids import ModelId
    from services.runtime.engine.batcher import Batcher
    from services.runtime.engine.served import Catalogue
    from services.runtime.model.registry import Scan, VersionFiles
    from services.runtime.repository.contract import RepositoryEvents
    from services.runtime.repository.demand import Demand
    from services.runtime.repository.loader import Loader, Offload, Opened

_log = structlog.get_logger(__name__)


class Shelf:
    """What the folders hold and what is loaded. Its methods are not to overlap; `index` and the like may come between.

    `kept` bounds the versions of a model on which sequences can be started, 0: all.
    """

    def __init__(
        self,
        kept: int,
        catalogue: Catalogue,
        loader: Loader,
        offload: Offload,
        clock: Clock,
        events: RepositoryEvents,
        demand: Demand,
    ) -> None:
        self.limits = Limits()
        self._kept = kept
        self._catalogue = catalogue
        self._loader = loader
        self._offload = offload
        self._clock = clock
        self._events = events
        self._demand = demand
        self._versions: dict[str, dict[str, Version]] = {}
        self._left: list[tuple[Batcher, int]] = []  # in whose place others run the same models within other limits

    @property
    def names(self) -> list[str]:
        """Models of which anything is known."""
        return sorted(self._versions)

    @property
    def busy(self) -> bool:
        """True while something waits to be unloaded."""
        retired = any(version.retirement for versions in self._versions.values() for version in versions.values())
        return retired or bool(self._left)

    def by_age(self, name: str) -> list[Version]:
        """What is known of a model, from the oldest version to the newest."""
        versions = self._versions.get(name, {})
        return [versions[version] for version in sorted(versions, key=version_key)]

    def note(self, seen: Scan) -> None:
        """Takes down what stands in the folders; loads and retires nothing."""
        for name, versions in seen.versions.items():
            for version, files in versions.items():
                known = self._versions.setdefault(name, {}).setdefault(version, Version(name, version))
                known.files = files
                if known.served is None and known.changed:
                    known.digest = ""
        for name in self.names:
            for known in self.by_age(name):
                if known.files is not None and seen.is_gone(known.files):
                    known.files = None
                if known.files is None and known.served is None:
                    self._versions[name].pop(known.version)
            if not self._versions[name]:
                del self._versions[name]

    async def bring_up(self, name: str, seen: Scan, *, again: bool = False) -> Exception | None:
        """Serves what there is of a model, as far as it is good; what is wrong with the newest version that is not.

        With `again` it tries what has failed before, too.
        """
        if await self.limits.read(name, seen.serving.get(name), self._offload):
            self._relimit(name)
        wrong: Exception | None = None
        good = 0
        for version in reversed(self.by_age(name)):
            if version.files is None or (self._kept and good >= self._kept):
                self.retire(version, "its files are gone" if version.files is None else "superseded")
                continue
            if version.served is not None:
                await self._compare(version, version.files)
            elif version.files.complete and (again or version.changed or not version.failed):
                failure = await self._open(version, version.files)
                wrong = wrong or failure
            good += self._serve(version)
        return wrong

    async def bring_back(self, model_id: ModelId) -> None:
        """Loads a version for those of its sequences that wait, and for nothing else."""
        known = self._versions.get(model_id.name, {}).get(model_id.version)
        if known is None or known.files is None or known.served is not None or not known.loadable:
            return
        files = known.files
        try:
            artefact = await self._offload.run(partial(read_artefact, files))
        except ArtefactError:
            return
        known.digest = artefact.manifest.weights_digest
        if artefact.model_id == model_id and await self._open(known, files) is None:
            self.retire(known, "loaded for the sequences that began on it")

    def retire(self, version: Version, why: str) -> None:
        """Starts no further sequence on a version; nothing happens where it is not served, or retired already."""
        if version.served is None or version.retirement is not None:
            return
        self._catalogue.retire(version.served.model_id)
        version.retirement = Retirement(version.served, self._clock.monotonic())
        version.reason = why
        self._tell_retired(version.name)
        _log.info("model retired", model=version.name, version=version.version, why=why)

    def sweep(self, live: Callable[[ModelId], int | None]) -> None:
        """Unloads what is retired and no longer needed."""
        now = self._clock.monotonic()
        for version in [each for name in self.names for each in self.by_age(name)]:
            served, retirement = version.served, version.retirement
            if served and retirement and retirement.is_over(now, live(served.model_id)):
                self._remove(version)
        left, self._left = self._left, []
        for batcher, runs in left:
            if batcher.busy or batcher.runs != runs:
                self._left.append((batcher, batcher.runs))
            else:
                batcher.close()

    def close(self) -> None:
        """Ends the worker threads that nobody else knows of."""
        for batcher, _ in self._left:
            batcher.close()

    async def _open(self, version: Version, files: VersionFiles) -> Exception | None:
        """Loads a version that is not loaded; what went wrong, if anything did."""
        serving, before = self.limits.of(version.name), self._clock.monotonic()
        version.loading, version.judged = True, files.fingerprint
        try:
            opened = await self._offload.run(partial(self._loader.open, files, serving))
        except ModelNotLoaded as error:
            version.failed, version.reason, version.digest = True, error.message, ""
            self._events.model_refused(version.name)
            _log.warning("model refused", model=version.name, version=version.version, error=str(error.__cause__))
            return error.__cause__ if isinstance(error.__cause__, ArtefactError) else error
        finally:
            version.loading = False
        self._put(version, opened, self._clock.monotonic() - before)
        return None

    def _put(self, version: Version, opened: Opened, load_s: float) -> None:
        model_id, manifest = opened.artefact.model_id, opened.artefact.manifest
        version.opened, version.served = opened, self._loader.serve(opened, self.limits.of(version.name))
        version.digest, version.failed, version.reason = manifest.weights_digest, False, ""
        # At first for the sequences that began on it; `bring_up` opens it to all.
        self._catalogue.add(version.served, retired=True)
        self._demand.loaded(model_id)
        self._events.model_served(model_id, manifest.state_bytes, load_s)
        _log.info("model loaded", model=version.name, version=version.version, seconds=round(load_s, 3))

    async def _compare(self, version: Version, files: VersionFiles) -> None:
        """Judges files of a loaded version that were touched."""
        if version.served is None or not version.changed:
            return
        version.judged = files.fingerprint
        try:
            await self._offload.run(partial(self._loader.check_unchanged, files, version.served))
        except ModelNotLoaded as error:
            version.failed, version.reason = True, error.message
            self._events.model_refused(version.name)
            _log.warning(
                "model refused", model=version.name, version=version.version, error=str(error.__cause__ or error)
            )
        else:
            version.failed, version.reason = False, ""

    def _serve(self, version: Version) -> bool:
        """Opens a loaded version to new sequences; True if it is."""
        served = version.served
        if served is None or (version.retirement and version.failed):
            return False
        if version.retirement is not None:
            version.retirement, version.reason = None, ""
            self._tell_retired(version.name)
        self._catalogue.add(served)
        return True

    def _relimit(self, name: str) -> None:
        """Has every loaded version of a model run within the limits that hold now."""
        for version in self.by_age(name):
            if version.served is None or version.opened is None:
                continue
            before, version.served = version.served, self._loader.serve(version.opened, self.limits.of(name))
            self._catalogue.add(version.served, retired=version.retirement is not None)
            if version.retirement is not None:
                version.retirement = version.retirement.on(version.served)
            self._left.append((before.batcher, before.batcher.runs))
        _log.info("limits of a model have changed", model=name)

    def _remove(self, version: Version) -> None:
        """Unloads a version; its memory is free once nobody computes on it."""
        served = version.served
        if served is None:
            return
        self._catalogue.remove(served.model_id)
        served.batcher.close()
        self._demand.gone(served.model_id)
        version.served = version.opened = version.retirement = None
        # Whatever is in its folder by now may be loaded again.
        version.judged, version.digest, version.failed, version.reason = (), "", False, "unloaded"
        if version.files is None:
            self._versions[version.name].pop(version.version)
        if not self._versions[version.name]:
            del self._versions[version.name]
        self._events.model_unloaded(served.model_id)
        self._tell_retired(version.name)
        _log.info("model unloaded", model=served.model_id.name, version=served.model_id.version)

    def _tell_retired(self, name: str) -> None:
        self._events.models_retired(name, sum(version.retirement is not None for version in self.by_age(name)))
