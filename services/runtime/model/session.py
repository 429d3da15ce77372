"""An exported network in ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnxruntime as ort

from models.common.manifest import MODEL_FILE, Manifest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt


# Builds of ONNX Runtime may report their use to Microsoft; a server of other people's data must not.
cast("Any", ort).disable_telemetry_events()


class OnnxModel:
    """One ONNX graph, ready to run from any thread. Weights stay constant initialisers and are pre-packed once."""

    def __init__(self, folder: Path, manifest: Manifest, *, intra_op_threads: int = 1) -> None:
        options = cast("Any", ort.SessionOptions())
        # One thread and no spinning beats two wherever cores are shared with the server: docs/benchmarks.md.
        options.intra_op_num_threads = intra_op_threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3  # warnings of the optimiser are for whoever exports
        self._session = ort.InferenceSession(folder / MODEL_FILE, options, providers=["CPUExecutionProvider"])
        self._manifest = manifest

    @property
    def manifest(self) -> Manifest:
        """Description of the graph."""
        return self._manifest

    def run(
        self, outputs: Sequence[str], feeds: Mapping[str, npt.NDArray[np.generic]]
    ) -> list[npt.NDArray[np.generic]]:
        """The named outputs for time-major inputs (T, N, ...), lengths (N,) and states (L, N, H)."""
        return cast("list[npt.NDArray[np.generic]]", self._session.run(outputs, feeds))

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """First runs, which allocate and pack, before a client waits for one."""
        wanted = [spec.name for spec in self._manifest.outputs]
        for size in batch_sizes:
            self.run(wanted, _zero_feeds(self._manifest, size))


def _zero_feeds(manifest: Manifest, batch_size: int) -> dict[str, npt.NDArray[np.generic]]:
    feeds: dict[str, npt.NDArray[np.generic]] = {}
    for spec in manifest.features():
        sizes = {"time": 1, "batch": batch_size}
        shape = [dim if isinstance(dim, int) else sizes[dim] for dim in spec.dims]
        feeds[spec.name] = np.zeros(shape, dtype=spec.dtype)
    lengths = manifest.lengths()
    if lengths is not None:
        feeds[lengths.name] = np.ones(batch_size, dtype=lengths.dtype)
    for state in manifest.states:
        feeds[state.input] = np.stack([state.initial_array()] * batch_size, axis=1)
    return feeds
