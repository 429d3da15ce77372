"""An exported network in ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import onnxruntime as ort
import structlog

from models.common.manifest import BATCH_AXIS, MODEL_FILE, Manifest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    Array = npt.NDArray[np.generic]

_log = structlog.get_logger(__name__)

COMPARED_ROWS: Final = (1, 2, 5, 8, 16)
"""Batch sizes at which one thread and several are compared."""

# Builds of ONNX Runtime may report their use to Microsoft; a server of other people's data must not.
cast("Any", ort).disable_telemetry_events()


class OnnxModel:
    """One ONNX graph, ready to run from any thread.

    Runs that overlap take one thread each: two of them at a time do more than two threads in one (docs/benchmarks.md).
    A lone run takes `lone_threads`, if they give the same bytes; the graph is then in memory twice.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, lone_threads: int = 1) -> None:
        self._manifest = manifest
        self._session = _session(folder / MODEL_FILE, 1)
        self._lone = _session(folder / MODEL_FILE, lone_threads) if lone_threads > 1 else None

    @property
    def manifest(self) -> Manifest:
        """Description of the graph."""
        return self._manifest

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array], *, lone: bool = False) -> list[Array]:
        """The named outputs for time-major inputs (T, N, ...), lengths (N,) and states (L, N, H).

        With `lone`, which says that no other run is made meanwhile, it may take several threads.
        """
        session = self._session if self._lone is None or not lone else self._lone
        return cast("list[Array]", session.run(outputs, feeds))

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """First runs, which allocate and pack, before a client waits for one."""
        wanted = [spec.name for spec in self._manifest.outputs] + [state.output for state in self._manifest.states]
        for size in batch_sizes:
            self._session.run(wanted, _feeds(self._manifest, size, timesteps=1))
        for size in {*COMPARED_ROWS, *batch_sizes}:
            for timesteps in (1, min(8, self._manifest.chunk_timesteps_max)):
                self._compare(wanted, _feeds(self._manifest, size, timesteps))

    def _compare(self, wanted: Sequence[str], feeds: Mapping[str, Array]) -> None:
        """Gives up running on several threads where it shows in the results: a reply must not tell who was there."""
        if self._lone is None:
            return
        one, several = (cast("list[Array]", session.run(wanted, feeds)) for session in (self._session, self._lone))
        if any(a.tobytes() != b.tobytes() for a, b in zip(one, several, strict=True)):
            self._lone = None
            _log.info("several threads give other bits, so each run takes one", model=self._manifest.name)


def _session(path: Path, threads: int) -> Any:  # noqa: ANN401 - the runtime's own types are partly unknown
    options = cast("Any", ort.SessionOptions())
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Threads that wait asleep cost a lone run a third of its speed; once it is done nobody spins.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if threads > 1 else "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 3  # warnings of the optimiser are for whoever exports
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _feeds(manifest: Manifest, batch_size: int, timesteps: int) -> dict[str, Array]:
    """Inputs of the right shape: floats drawn at random, everything else 0, which every vocabulary has."""
    generator = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for spec in manifest.features():
        sizes = {"time": timesteps, "batch": batch_size}
        shape = [dim if isinstance(dim, int) else sizes[dim] for dim in spec.dims]
        drawn = generator.standard_normal(shape) if spec.dtype.startswith("float") else np.zeros(shape)
        feeds[spec.name] = drawn.astype(spec.dtype)
    lengths = manifest.lengths()
    if lengths is not None:
        feeds[lengths.name] = np.full(batch_size, timesteps, dtype=lengths.dtype)
    for state in manifest.states:
        feeds[state.input] = np.stack([state.initial_array()] * batch_size, axis=BATCH_AXIS)
    return feeds
