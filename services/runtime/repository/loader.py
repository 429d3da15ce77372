"""Opens versions of models: files to a network behind its batcher, off the event loop and one at a time."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from models.common.manifest import ArtefactError, load_manifest, verify_files
from services.runtime.config import threads
from services.runtime.core.errors import ModelNotLoaded
from services.runtime.engine.batcher import Batcher
from services.runtime.engine.scheduler import BatchLimits
from services.runtime.engine.served import ModelLimits, ServedModel
from services.runtime.model.registry import Artefact, fingerprint, load, read_artefact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Executor
    from pathlib import Path

    from models.common.manifest import Manifest
    from services.runtime.config import Settings
    from services.runtime.core.clock import Clock
    from services.runtime.engine.batcher import BatchEvents, Model
    from services.runtime.model.limits import ServingFile
    from services.runtime.model.registry import VersionFiles

T = TypeVar("T")

_UNCHANGING = "its files are not those that were loaded and are still served: a version does not change, add a new one"


class Offload(Protocol):
    """Runs what takes long beside the event loop; calls wait for each other."""

    async def run(self, work: Callable[[], T]) -> T:
        """The result of `work`."""
        ...

    def close(self) -> None:
        """Begins nothing more."""
        ...


class LoadingThread:
    """One thread for all that reads and opens models, so that loading takes at most one core from the steps."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="models")

    async def run(self, work: Callable[[], T]) -> T:
        """See `Offload`."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def close(self) -> None:
        """See `Offload`."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class Opened(NamedTuple):
    """What was made of the files of a version."""

    artefact: Artefact
    model: Model
    features: object


class Loader:
    """Makes served models of files.

    `features` goes by task; `open_model` is given the largest batch, too, `make_executor` the number of threads.
    """

    def __init__(
        self,
        settings: Settings,
        features: Mapping[str, Callable[[Path], object]],
        clock: Clock,
        events: BatchEvents,
        *,
        open_model: Callable[[Artefact, Settings, int], Model] = load,
        make_executor: Callable[[int], Executor] = ThreadPoolExecutor,
    ) -> None:
        self._settings = settings
        self._features = features
        self._clock = clock
        self._events = events
        self._open_model = open_model
        self._make_executor = make_executor

    def open(self, files: VersionFiles, serving: ServingFile) -> Opened:
        """Reads, verifies, opens and warms a version; called in a thread.

        Raises:
            ModelNotLoaded: it cannot be served; the cause has what was found, the message no path of the machine.
        """
        try:
            return self._opened(files, serving)
        except Exception as error:
            # Neither ONNX Runtime nor what reads a vocabulary has one class for all that it raises.
            raise ModelNotLoaded(without_paths(error, files.folder)) from error

    def serve(self, opened: Opened, serving: ServingFile) -> ServedModel:
        """Puts a network behind a batcher; called in the event loop."""
        manifest = opened.artefact.manifest
        limits = self._limits(manifest, serving)
        executor = self._make_executor(limits.run_threads)
        return ServedModel(
            model_id=opened.artefact.model_id,
            manifest=manifest,
            batcher=Batcher(
                opened.model, limits.batch, self._clock, self._events, executor, threads=limits.run_threads
            ),
            initial_state=tuple(state.initial_array() for state in manifest.states),
            features=opened.features,
            limits=limits,
        )

    def check_unchanged(self, files: VersionFiles, served: ServedModel) -> None:
        """Checks that files which were touched are still those that were loaded; called in a thread.

        Raises:
            ModelNotLoaded: they are not; the message says so.
        """
        try:
            same = load_manifest(files.folder) == served.manifest
            verify_files(files.folder, served.manifest)
        except ArtefactError as error:
            raise ModelNotLoaded(f"{_UNCHANGING} ({without_paths(error, files.folder)})") from error
        if not same:
            raise ModelNotLoaded(_UNCHANGING)

    def _opened(self, files: VersionFiles, serving: ServingFile) -> Opened:
        artefact = read_artefact(files)
        model = self._open_model(artefact, self._settings, serving.batch_size_max or self._settings.batch_size_max)
        load_features = self._features.get(artefact.manifest.task)
        features = load_features(files.folder) if load_features else None
        if fingerprint(files.folder) != files.fingerprint:
            raise ArtefactError(str(files.folder), "its files have changed while they were read")
        return Opened(artefact, model, features)

    def _limits(self, manifest: Manifest, serving: ServingFile) -> ModelLimits:
        settings = self._settings
        delay_ms = settings.batch_delay_ms_max if serving.batch_delay_ms_max is None else serving.batch_delay_ms_max
        batch = BatchLimits(
            batch_size_max=serving.batch_size_max or settings.batch_size_max,
            cells_max=serving.batch_cells_max or settings.batch_cells_max,
            queue_max=serving.queue_max or settings.queue_max,
            delay_s_max=delay_ms / 1000,
            gather_s_max=settings.gather_us_max / 1e6,
            inline_s_max=settings.inline_run_us_max / 1e6,
        )
        given = serving.model_dump(include={"durability", "idle_timeout_s", "lifetime_s"}, exclude_none=True)
        return ModelLimits(
            batch=batch,
            run_threads=threads(serving.run_threads or settings.run_threads),
            sequences_max=serving.sequences_max,
            state_bytes_max=serving.state_bytes_max,
            sequence=manifest.sequence.model_copy(update=given),
        )


def without_paths(error: Exception, folder: Path) -> str:
    """The first line of what went wrong, with the names of files but not where they lie."""
    if isinstance(error, ModelNotLoaded):
        return error.message
    kind = "" if isinstance(error, ArtefactError) else f"{type(error).__name__}: "
    lines = str(error).splitlines() or ["no reason given"]
    for place in (folder, folder.parent, folder.parent.parent):
        lines[0] = lines[0].replace(f"{place}/", "").replace(str(place), place.name)
    return f"{kind}{lines[0]}"
