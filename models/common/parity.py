"""Does the exported graph keep its promises? torch = ONNX, batched = alone, chunked = whole.

The first is agreement within a tolerance (two libraries sum in different orders). The other two are the same
bytes: serving merges whoever is ready into one run and cuts texts wherever they were cut, and a reply must not
show it. No standard promises that, so it is measured for every model, on ONNX Runtime with one intra-op thread.

A difference is taken relative to the wanted value where that is larger than 1, else as it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt
import onnxruntime

from models.common.manifest import BATCH_AXIS, MODEL_FILE, Manifest

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

PARITY_FILE = "parity.json"
_READY_SHARE = 0.7
"""How many of the live sequences take part in a run, when chunks are compared with wholes."""

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
Features = dict[str, Array]
"""One sequence: for each features input an array (T, ...)."""
Draw = Callable[[np.random.Generator, int], Features]
"""Random features of one sequence of T timesteps."""
_PIECES = (1, 1, 2, 5, 17, 64)
"""Lengths of chunks; short ones are what a live stream sends."""
_REFERENCE_ROWS = 2
"""How many sequences of each batch are run through torch, one at a time."""


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
        options.log_severity_level = 4  # what fails is raised as well
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
class OutputReport:
    """One output: one row a timestep or a chunk; ``causal`` where nothing that follows a timestep changes its row.

    Of an output that comes once a chunk ``causal`` is None: it stands for all that was read.
    """

    name: str
    per: Literal["timestep", "chunk"]
    causal: bool | None


@dataclass(frozen=True, slots=True)
class ParityReport:
    """What was compared and what came out; kept beside the model as ``parity.json``."""

    seed: int
    sequences: int
    timesteps: int
    lengths: tuple[int, int]
    """Of the shortest and the longest sequence, in timesteps."""
    batch_sizes: tuple[int, ...]
    chunk_timesteps: tuple[int, ...]
    runs: int
    batched_equal: bool
    batched_difference_max: float
    chunked_equal: bool
    chunked_difference_max: float
    torch_equal: bool | None
    """None, as the next, where there was no network to compare with. Two libraries hardly ever agree in every bit."""
    torch_difference_max: float | None
    torch_tolerance: float
    outputs: tuple[OutputReport, ...]
    intra_op_threads: int
    onnxruntime: str

    @property
    def exact(self) -> bool:
        """Batched and chunked runs gave the same bytes as single and whole ones."""
        return self.batched_equal and self.chunked_equal

    @property
    def close(self) -> bool:
        """Nothing differs by more than the tolerance, and no output looks ahead."""
        differences = (self.batched_difference_max, self.chunked_difference_max, self.torch_difference_max or 0.0)
        return max(differences) <= self.torch_tolerance and all(o.causal is not False for o in self.outputs)

    @property
    def passed(self) -> bool:
        """Every promise kept."""
        return self.exact and self.close

    def save(self, folder: Path) -> None:
        """Write ``parity.json``."""
        (folder / PARITY_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


@dataclass(slots=True)
class _Tally:
    """Comparisons so far."""

    sequences: int = 0
    timesteps: int = 0
    runs: int = 0
    equal: dict[str, bool] = field(default_factory=lambda: {"batched": True, "chunked": True, "torch": True})
    off: dict[str, float] = field(default_factory=lambda: {"batched": 0.0, "chunked": 0.0, "torch": 0.0})

    def compare(self, what: str, wanted: Sequence[Step], found: Sequence[Step]) -> None:
        for one, other in zip(wanted, found, strict=True):
            if one.same_bytes(other):
                continue
            self.equal[what] = False
            self.off[what] = max(self.off[what], _difference(other, one))


def check_parity(
    model: Path | bytes,
    manifest: Manifest,
    draw: Draw,
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
    and sequences leaving as they end. ``reference`` is given the first few of each size.
    """
    generator = np.random.default_rng(seed)
    runner = Runner(model if isinstance(model, bytes) else model / MODEL_FILE, manifest)
    tally = _Tally()
    shortest, longest = timesteps_max, 1
    for size in batch_sizes:
        counts = generator.integers(1, timesteps_max + 1, size)
        drawn = [draw(generator, int(count)) for count in counts]
        alone = [runner.whole(features) for features in drawn]
        tally.compare("batched", alone, runner.run(drawn, [runner.initial()] * size))
        pieced, piece_runs = _in_chunks(runner, drawn, generator)
        tally.compare("chunked", alone, pieced)
        if reference is not None:
            some = drawn[:_REFERENCE_ROWS]
            tally.compare("torch", [reference(features) for features in some], alone[: len(some)])
        tally.sequences, tally.timesteps = tally.sequences + size, tally.timesteps + int(counts.sum())
        tally.runs += 1 + piece_runs
        shortest, longest = min(shortest, int(counts.min())), max(longest, int(counts.max()))
    return ParityReport(
        seed=seed,
        sequences=tally.sequences,
        timesteps=tally.timesteps,
        lengths=(shortest, longest),
        batch_sizes=tuple(batch_sizes),
        chunk_timesteps=tuple(sorted(set(_PIECES))),
        runs=tally.runs,
        batched_equal=tally.equal["batched"],
        batched_difference_max=tally.off["batched"],
        chunked_equal=tally.equal["chunked"],
        chunked_difference_max=tally.off["chunked"],
        torch_equal=None if reference is None else tally.equal["torch"],
        torch_difference_max=None if reference is None else tally.off["torch"],
        torch_tolerance=tolerance,
        outputs=_causal(runner, manifest, draw, generator, max(2, timesteps_max // 2)),
        intra_op_threads=1,
        onnxruntime=version("onnxruntime"),
    )


def _causal(
    runner: Runner, manifest: Manifest, draw: Draw, generator: np.random.Generator, count: int
) -> tuple[OutputReport, ...]:
    """Whether rows before a cut stay the same bytes when all that follows the cut is another."""
    kept = {spec.name: True for spec in manifest.outputs if spec.per == "timestep"}
    for _ in range(4):
        one, other, cut = draw(generator, count), draw(generator, count), int(generator.integers(1, count))
        changed = {name: np.concatenate([array[:cut], other[name][cut:]]) for name, array in one.items()}
        before, after = runner.whole(one).outputs, runner.whole(changed).outputs
        for name in kept:
            kept[name] &= before[name][:cut].tobytes() == after[name][:cut].tobytes()
    return tuple(OutputReport(spec.name, spec.per, kept.get(spec.name)) for spec in manifest.outputs)


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
        end = min(count, at + int(generator.choice(_PIECES)))
        yield {name: array[at:end] for name, array in features.items()}
        at = end


def _difference(found: Step, wanted: Step) -> float:
    pairs = [(found.outputs[name], array) for name, array in wanted.outputs.items()]
    pairs += [(found.states[name], array) for name, array in wanted.states.items()]
    return max(difference(array, wanted) for array, wanted in pairs)


def difference(found: Array, wanted: Array) -> float:
    """The largest difference of two arrays, relative to the wanted value where that is larger than 1.

    Infinite where one is not finite and the other is something else, or where their shapes differ.
    """
    if found.shape != wanted.shape:
        return math.inf
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    with np.errstate(invalid="ignore"):
        off = np.where(same, 0.0, np.abs(a - b) / np.maximum(1.0, np.abs(b)))
    return float(np.where(np.isfinite(off), off, math.inf).max())
