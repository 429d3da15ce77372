"""Does the exported graph keep its promises? torch = ONNX, batched = alone, chunked = whole.

The first is agreement within a tolerance (two libraries sum in different orders). The other two are the same
bytes: serving merges whoever is ready into one run and cuts texts wherever they were cut, and a reply must not
show it. No standard promises that, so it is measured for every model, on ONNX Runtime with one intra-op thread.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import onnxruntime

from models.common.manifest import BATCH_AXIS, MODEL_FILE, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

PARITY_FILE = "parity.json"
_READY_SHARE = 0.7
"""How many of the live sequences take part in a run, when chunks are compared with wholes."""

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Features = dict[str, Array]
"""One sequence: for each features input an array (T, ...)."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one sequence gets from one run: outputs (per chunk (...), per timestep (T, ...)), states (L, H)."""

    outputs: Arrays
    states: Arrays

    def same_bytes(self, other: Step) -> bool:
        """Equal in every bit of every output and state."""
        return _bytes(self.outputs) == _bytes(other.outputs) and _bytes(self.states) == _bytes(other.states)


def _bytes(arrays: Arrays) -> dict[str, tuple[tuple[int, ...], bytes]]:
    return {name: (array.shape, array.tobytes()) for name, array in arrays.items()}


class Runner:
    """Runs chunks of several sequences at once, as serving does, on one thread."""

    def __init__(self, model: Path | bytes, manifest: Manifest) -> None:
        options = cast("Any", onnxruntime.SessionOptions())
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        source = model if isinstance(model, bytes) else str(model)
        self._session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self._manifest = manifest

    def initial(self) -> Arrays:
        """States of a new sequence by name."""
        return {spec.name: spec.initial_array() for spec in self._manifest.states}

    def run(self, chunks: Sequence[Features], states: Sequence[Arrays]) -> list[Step]:
        """One run: for each row its chunk (T >= 1) and its states; rows may differ in T."""
        manifest = self._manifest
        feed = {spec.name: _padded([chunk[spec.name] for chunk in chunks]) for spec in manifest.features()}
        counts = [len(next(iter(chunk.values()))) for chunk in chunks]
        if (lengths := manifest.lengths()) is not None:
            feed[lengths.name] = np.array(counts, dtype=np.int32)
        for spec in manifest.states:
            feed[spec.input] = np.stack([state[spec.name] for state in states], axis=BATCH_AXIS)
        names = [spec.name for spec in manifest.outputs] + [spec.output for spec in manifest.states]
        values = cast("list[Array]", self._session.run(names, feed))
        found = dict(zip(names, values, strict=True))
        return [
            Step(
                {
                    spec.name: found[spec.name][:count, row] if spec.per == "timestep" else found[spec.name][row]
                    for spec in manifest.outputs
                },
                {spec.name: found[spec.output][:, row] for spec in manifest.states},
            )
            for row, count in enumerate(counts)
        ]

    def joined(self, parts: Sequence[Arrays]) -> Arrays:
        """Outputs of consecutive chunks as those of one: timesteps one after the other, of a chunk the last."""
        return {
            spec.name: np.concatenate([part[spec.name] for part in parts])
            if spec.per == "timestep"
            else parts[-1][spec.name]
            for spec in self._manifest.outputs
        }

    def whole(self, features: Features) -> Step:
        """A whole sequence, alone, in one chunk."""
        return self.run([features], [self.initial()])[0]


def _padded(rows: Sequence[Array]) -> Array:
    """Rows (T_i, ...) to (T, N, ...), padded with zeros at the end of time."""
    out = np.zeros((max(map(len, rows)), len(rows), *rows[0].shape[1:]), dtype=rows[0].dtype)
    for column, row in enumerate(rows):
        out[: len(row), column] = row
    return out


@dataclass(frozen=True, slots=True)
class ParityReport:
    """What was compared and what came out; kept beside the model as ``parity.json``."""

    seed: int
    sequences: int
    timesteps: int
    batch_sizes: tuple[int, ...]
    runs: int
    batched_equal: bool
    chunked_equal: bool
    torch_difference_max: float
    torch_tolerance: float
    intra_op_threads: int
    onnxruntime: str

    @property
    def passed(self) -> bool:
        """Every promise kept."""
        return self.batched_equal and self.chunked_equal and self.torch_difference_max <= self.torch_tolerance

    def save(self, folder: Path) -> None:
        """Write ``parity.json``."""
        (folder / PARITY_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def check_parity(
    model: Path | bytes,
    manifest: Manifest,
    draw: Callable[[np.random.Generator, int], Features],
    reference: Callable[[Features], Step] | None = None,
    *,
    batch_sizes: Sequence[int] = (1, 2, 3, 5, 8, 13, 16, 31, 32, 48, 64),
    timesteps_max: int = 96,
    seed: int = 0,
    tolerance: float = 1e-4,
) -> ParityReport:
    """Compare the graph with itself alone and whole, and with ``reference`` (torch, one sequence) if given.

    ``draw(generator, T)`` makes the features of one sequence. For each batch size new sequences are run alone and
    whole, then together in one run, then together in random chunks with rows of different length in each run
    and sequences leaving as they end.
    """
    generator = np.random.default_rng(seed)
    runner = Runner(model if isinstance(model, bytes) else model / MODEL_FILE, manifest)
    sequences = timesteps = runs = 0
    batched_equal = chunked_equal = True
    difference = 0.0
    for size in batch_sizes:
        counts = generator.integers(1, timesteps_max + 1, size)
        drawn = [draw(generator, int(count)) for count in counts]
        alone = [runner.whole(features) for features in drawn]
        together = runner.run(drawn, [runner.initial()] * size)
        batched_equal &= all(a.same_bytes(b) for a, b in zip(alone, together, strict=True))
        pieced, piece_runs = _in_chunks(runner, drawn, generator)
        chunked_equal &= all(a.same_bytes(b) for a, b in zip(alone, pieced, strict=True))
        if reference is not None:
            difference = max([difference, *(_difference(a, reference(f)) for a, f in zip(alone, drawn, strict=True))])
        sequences, timesteps, runs = sequences + size, timesteps + int(counts.sum()), runs + 1 + piece_runs
    return ParityReport(
        seed=seed,
        sequences=sequences,
        timesteps=timesteps,
        batch_sizes=tuple(batch_sizes),
        runs=runs,
        batched_equal=batched_equal,
        chunked_equal=chunked_equal,
        torch_difference_max=difference,
        torch_tolerance=tolerance,
        intra_op_threads=1,
        onnxruntime=version("onnxruntime"),
    )


def _in_chunks(runner: Runner, drawn: Sequence[Features], generator: np.random.Generator) -> tuple[list[Step], int]:
    """Run all sequences to their ends in random chunks; at least one row is ready in every run."""
    waiting = [list(_cut(features, generator)) for features in drawn]
    states = [runner.initial() for _ in drawn]
    outputs: list[list[Arrays]] = [[] for _ in drawn]
    runs = 0
    while live := [row for row, chunks in enumerate(waiting) if chunks]:
        ready = [row for row in live if generator.random() < _READY_SHARE] or live  # membership changes between runs
        steps = runner.run([waiting[row].pop(0) for row in ready], [states[row] for row in ready])
        for row, step in zip(ready, steps, strict=True):
            states[row] = step.states
            outputs[row].append(step.outputs)
        runs += 1
    return [Step(runner.joined(parts), state) for parts, state in zip(outputs, states, strict=True)], runs


def _cut(features: Features, generator: np.random.Generator) -> Iterator[Features]:
    count = len(next(iter(features.values())))
    at = 0
    while at < count:
        end = min(count, at + int(generator.choice([1, 1, 2, 5, 17, 64])))
        yield {name: array[at:end] for name, array in features.items()}
        at = end


def _difference(found: Step, wanted: Step) -> float:
    pairs = [(found.outputs[name], array) for name, array in wanted.outputs.items()]
    pairs += [(found.states[name], array) for name, array in wanted.states.items()]
    return max(float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()) for a, b in pairs)
