"""The ONNX session: which runs take several threads, and that nobody can tell from the results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from models.common.manifest import load_manifest
from services.runtime.config import Settings
from services.runtime.engine.collate import output_names
from services.runtime.model.session import OnnxModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

FOLDER = Settings().artefacts[0] / "sentiment" / "1"
MANIFEST = load_manifest(FOLDER)
NAMES = output_names(MANIFEST)


def feeds(rows: int, timesteps: int = 3) -> dict[str, Any]:
    """Random words for so many sequences that begin."""
    words = np.random.default_rng(rows).integers(0, 1000, (timesteps, rows), dtype=np.int64)
    states = {spec.input: np.stack([spec.initial_array()] * rows, axis=1) for spec in MANIFEST.states}
    return {"words": words, "lengths": np.full(rows, timesteps, dtype=np.int32), **states}


class Watched:
    """A session that counts its runs, and may give other bits."""

    def __init__(self, inner: Any, *, error: float = 0.0) -> None:
        self._inner = inner
        self._error = error
        self.runs = 0

    def run(self, names: Sequence[str], given: Mapping[str, Any]) -> list[Any]:
        """As that of ONNX Runtime."""
        self.runs += 1
        return [array + np.asarray(self._error, array.dtype) for array in self._inner.run(names, given)]


def watched(*, error: float = 0.0) -> tuple[OnnxModel, Watched, Watched]:
    """A model, its session of one thread and that of two."""
    model = OnnxModel(FOLDER, MANIFEST, lone_threads=2)
    one, several = Watched(model._session), Watched(model._lone, error=error)
    model._session, model._lone = one, several
    return model, one, several


def test_only_a_lone_run_takes_several_threads() -> None:
    """Runs that overlap keep to one thread each, so that each finds one."""
    model, one, several = watched()
    model.run(NAMES, feeds(2), lone=True)
    assert (one.runs, several.runs) == (0, 1)
    model.run(NAMES, feeds(2))
    assert (one.runs, several.runs) == (1, 1)


@pytest.mark.parametrize("timesteps", [1, 7])
def test_several_threads_give_the_same_bytes(timesteps: int) -> None:
    """A reply does not show whether its run was alone."""
    plain, model = OnnxModel(FOLDER, MANIFEST), OnnxModel(FOLDER, MANIFEST, lone_threads=2)
    for rows in (1, 2, 3, 16, 64):
        given = feeds(rows, timesteps)
        pairs = zip(plain.run(NAMES, given), model.run(NAMES, given, lone=True), strict=True)
        assert all(a.tobytes() == b.tobytes() for a, b in pairs)


def test_where_bits_differ_each_run_takes_one_thread() -> None:
    """Warming up compares; a network whose results depend on the number of threads is never run on several."""
    model, one, several = watched(error=1e-6)
    model.warm_up([1])
    seen = several.runs
    model.run(NAMES, feeds(1), lone=True)
    assert several.runs == seen > 0
    assert one.runs
