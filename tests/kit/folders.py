"""Folders of exported models that a test fills, changes and empties, and a repository of toys over them."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

from models.common.manifest import SequenceDefaults, load_manifest, save_manifest, verify_files
from services.runtime.config import Settings
from services.runtime.core.ids import ModelId
from services.runtime.engine.served import Catalogue
from services.runtime.repository.loader import Loader
from services.runtime.repository.repository import Repository
from tests.kit.executors import InlineExecutor
from tests.kit.toy import NoEvents, ToyModel, toy_manifest
from tests.kit.virtual_time import VirtualTimeLoop, run_virtual

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from concurrent.futures import Executor
    from pathlib import Path

    from services.runtime.model.registry import Artefact

T = TypeVar("T")

BROKEN = b"this opens as nothing"

SEQUENCE = SequenceDefaults(idle_timeout_s=60, lifetime_s=600)


class Folders:
    """One root of exported toys. Whatever is put into it has a time of change of its own, as on a disk."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(exist_ok=True)

    def add(self, version: str, content: bytes = b"weights", *, name: str = "toy", manifest: bool = True) -> ModelId:
        """Puts a version there; without its manifest it is one that is still being copied."""
        folder = self.root / name / version
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(content)
        digest = sha256(content).hexdigest()
        if manifest:
            fields = {"name": name, "files": {"model.onnx": digest}, "weights_digest": digest, "sequence": SEQUENCE}
            save_manifest(folder, toy_manifest(version).model_copy(update=fields))
        return ModelId(name, version, digest)

    def remove(self, version: str, *, name: str = "toy") -> None:
        """Takes a version away."""
        shutil.rmtree(self.root / name / version)

    def limit(self, text: str, *, name: str = "toy") -> None:
        """Writes the operator's file of a model."""
        (self.root / name).mkdir(exist_ok=True)
        (self.root / name / "serving.json").write_text(text)


class HandOffload:
    """Runs work at once, in the loop's own thread; what comes once `left` has run waits until `go_on` is set."""

    def __init__(self) -> None:
        self.left = -1
        self.go_on = asyncio.Event()

    async def run(self, work: Callable[[], T]) -> T:
        """See `Offload`."""
        if self.left == 0:
            await self.go_on.wait()
        self.left -= 1
        return work()

    def close(self) -> None:
        """See `Offload`."""


class Bench:
    """A repository of toys, on virtual time. `opened` are the versions that were opened, in order."""

    def __init__(
        self,
        loop: VirtualTimeLoop,
        *roots: Path,
        names: frozenset[str] | None = None,
        live: Callable[[ModelId], int | None] = lambda _: None,
        executor: Executor | None = None,
        **settings: Any,
    ) -> None:
        values: Any = {"artefacts": roots, "inline_run_us_max": 0, **settings}
        self.loop = loop
        self.catalogue = Catalogue()
        self.events = NoEvents()
        self.offload = HandOffload()
        self.opened: list[str] = []
        self.on_open: Callable[[], object] | None = None
        made = Settings(**values)
        loader = Loader(
            made,
            {},
            loop,
            NoEvents(),
            open_model=self._open,
            make_executor=lambda _: executor or InlineExecutor(),
        )
        self.repository = Repository(made, names, self.catalogue, loader, self.offload, loop, self.events, live)

    def _open(self, artefact: Artefact, _: Settings, __: int) -> ToyModel:
        verify_files(artefact.folder, artefact.manifest)
        self.opened.append(artefact.manifest.version)
        if self.on_open is not None:
            self.on_open()
        if (artefact.folder / "model.onnx").read_bytes().startswith(BROKEN):
            raise RuntimeError(f"Load model from {artefact.folder / 'model.onnx'} failed: {BROKEN.decode()}")
        model = ToyModel(artefact.manifest.version)
        model.manifest = load_manifest(artefact.folder)
        return model

    def states(self, name: str = "toy") -> dict[str, str]:
        """The state of every version of a model."""
        return {entry.version: entry.state for entry in self.repository.index() if entry.name == name}

    def reason(self, version: str) -> str:
        """Of the index."""
        (found,) = [entry.reason for entry in self.repository.index() if entry.version == version]
        return found

    def newest(self) -> str:
        """The version that a sequence would be started on now."""
        return self.catalogue.find("toy").model_id.version


Make = Callable[..., Bench]


def play(scenario: Callable[[Make], Awaitable[None]]) -> None:
    """Runs a scenario on virtual time; what it makes is closed at the end."""
    loop = VirtualTimeLoop()
    benches: list[Bench] = []

    def make(*roots: Path, **settings: Any) -> Bench:
        benches.append(Bench(loop, *roots, **settings))
        return benches[-1]

    async def main() -> None:
        try:
            await scenario(make)
        finally:
            for bench in benches:
                await bench.repository.close()

    run_virtual(main(), loop)
    assert not loop.broken
