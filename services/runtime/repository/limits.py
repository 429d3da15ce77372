"""What operators have set for single models, as it was last good."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import structlog

from models.common.manifest import ArtefactError
from services.runtime.model.limits import ServingFile, load_serving_file
from services.runtime.repository.loader import without_paths

if TYPE_CHECKING:
    from services.runtime.model.registry import Fingerprint, ServingEntry
    from services.runtime.repository.loader import Offload

_log = structlog.get_logger(__name__)


class Limits:
    """The files `serving.json` of all models. One that is wrong changes nothing, and is told of until it is right."""

    def __init__(self) -> None:
        self._files: dict[str, ServingFile] = {}
        self._judged: dict[str, Fingerprint] = {}
        self._wrong: dict[str, str] = {}

    def of(self, name: str) -> ServingFile:
        """What holds for a model."""
        return self._files.get(name) or ServingFile()

    def wrong(self, name: str) -> str:
        """What is wrong with its file; empty where nothing is."""
        return self._wrong.get(name, "")

    async def read(self, name: str, entry: ServingEntry | None, offload: Offload) -> bool:
        """Looks at the file of a model as it stands now; True if other limits hold afterwards."""
        judged = entry.fingerprint if entry else ()
        if judged == self._judged.get(name, ()):
            return False
        self._judged[name] = judged
        before = self.of(name)
        try:
            self._files[name] = await offload.run(partial(load_serving_file, entry.path)) if entry else ServingFile()
            self._wrong.pop(name, None)
        except ArtefactError as error:
            self._wrong[name] = without_paths(error, entry.path.parent) if entry else ""
            _log.warning("limits of a model are wrong; those before stay", model=name, error=str(error))
        return self.of(name) != before
