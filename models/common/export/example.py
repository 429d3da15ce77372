"""The example inputs of a network: what their axes are, and random inputs like them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from models.common.export.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models.common.export.tree import Tree
    from models.common.parity import Array, Draw, Features

LENGTHS = "lengths"
DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.uint8: "uint8",
    torch.bool: "bool",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """Where time and batch are in what ``forward`` takes: (T, N, ...), (N, T, ...), or one timestep (N, ...)."""

    batch_first: bool
    cell: bool

    def sizes(self, shape: torch.Size) -> tuple[int, int]:
        """T and N of an input's shape."""
        if self.cell:
            return 1, shape[0]
        return (shape[1], shape[0]) if self.batch_first else (shape[0], shape[1])

    def rest(self, shape: torch.Size) -> tuple[int, ...]:
        """The sizes that are neither."""
        return tuple(shape[1:] if self.cell else shape[2:])

    def inward(self, x: Tensor) -> Tensor:
        """(T, N, ...) as ``forward`` takes it; T is 1 where that is one timestep."""
        if self.cell:
            return x[0]
        return x.transpose(0, 1) if self.batch_first else x

    def described(self) -> str:
        """The axes that an example starts with."""
        if self.cell:
            return "(batch, ...)"
        return "(batch, time, ...)" if self.batch_first else "(time, batch, ...)"


@dataclass(frozen=True, slots=True)
class Input:
    """One input of ``forward``: by position where ``key`` is a number, else by name."""

    name: str
    key: int | str
    dtype: torch.dtype
    rest: tuple[int, ...]
    lengths: bool = False


@dataclass(frozen=True, slots=True)
class Example:
    """The inputs, and the tensors that were given for them, with T and N of those."""

    inputs: tuple[Input, ...]
    tensors: dict[str, Tensor]
    layout: Layout
    timesteps: int
    batch: int

    def features(self) -> list[Input]:
        """Inputs that carry timesteps."""
        return [spec for spec in self.inputs if not spec.lengths]

    def arguments(self, native: Mapping[str, Tensor]) -> tuple[list[Any], dict[str, Any]]:
        """Positional and keyword arguments of ``forward`` from inputs as it takes them."""
        placed = [native[spec.name] for spec in self.inputs if isinstance(spec.key, int)]
        return placed, {spec.key: native[spec.name] for spec in self.inputs if isinstance(spec.key, str)}


def parameters(net: nn.Module) -> dict[str, inspect.Parameter]:
    """Parameters of ``forward`` by name, without those that gather what is left."""
    try:
        found = inspect.signature(net.forward).parameters
    except (TypeError, ValueError):
        return {}
    gathers = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: parameter for name, parameter in found.items() if parameter.kind not in gathers}


def read_example(net: nn.Module, example: Tree, layout: Layout) -> Example:
    """Names, types and sizes of the example inputs.

    Raises:
        ExportError: something in it is no tensor, has no time or batch axis, or disagrees with another.
    """
    named = _named(net, example)
    inputs: list[Input] = []
    sizes: dict[str, tuple[int, int]] = {}
    for key, (name, value) in named.items():
        where = f"example: {name}"
        if not isinstance(value, Tensor):
            raise ExportError(f"{where}: {type(value).__name__}, but a tensor is needed")
        if value.dtype not in DTYPES:
            raise ExportError(f"{where}: {value.dtype} cannot be served; the types are {', '.join(DTYPES.values())}")
        if name == LENGTHS and value.dim() == 1:
            inputs.append(Input(name, key, value.dtype, (), lengths=True))
            continue
        if value.dim() < (1 if layout.cell else 2):
            raise ExportError(f"{where}: has shape {tuple(value.shape)}, but its axes are {layout.described()}")
        sizes[name] = layout.sizes(value.shape)
        inputs.append(Input(name, key, value.dtype, layout.rest(value.shape)))
    if not sizes:
        raise ExportError("example: holds no input")
    (first, (timesteps, batch)), *others = sizes.items()
    for name, found in others:
        if found != (timesteps, batch):
            raise ExportError(
                f"example: {name} has time {found[0]} and batch {found[1]}, {first} {timesteps} and {batch}; its axes "
                f"are {layout.described()}"
            )
    if min(timesteps, batch) < 1:
        raise ExportError(f"example: {first} is empty")
    tensors = {name: value.detach().cpu() for name, value in named.values()}
    return Example(tuple(inputs), tensors, layout, timesteps, batch)


def _named(net: nn.Module, example: Tree) -> dict[int | str, tuple[str, Any]]:
    known = parameters(net)
    if isinstance(example, dict):
        given: dict[Any, Any] = example  # pyright: ignore[reportUnknownVariableType]
        unknown = [name for name in given if known and name not in known]
        if unknown:
            raise ExportError(f"example: forward takes no {unknown[0]!r}, only {', '.join(known)}")
        return {name: (str(name), value) for name, value in given.items()}
    values: list[Any] = list(example) if isinstance(example, tuple | list) else [example]  # pyright: ignore[reportUnknownArgumentType]
    names = [*known, *(f"x_{index}" for index in range(len(known), len(values)))]
    return {index: (names[index], value) for index, value in enumerate(values)}


class Drawer:
    """Random features of one sequence, like those of the example."""

    def __init__(self, example: Example, own: Draw | None = None) -> None:
        """``own`` is the user's function, which takes the place of random numbers."""
        self._example = example
        self._own = own
        self.rows: dict[str, int] = {}
        """Count of embedding rows, for inputs that are looked up in one."""
        self._scales: dict[str, tuple[float, float]] = {}
        for spec in example.features():
            values = example.tensors[spec.name].double()
            spread = float(values.std(correction=0))
            self._scales[spec.name] = (float(values.mean()), spread) if spread > 0 else (0.0, 1.0)

    def __call__(self, generator: np.random.Generator, count: int) -> Features:
        """Arrays (T, ...) by name for a sequence of ``count`` timesteps.

        Raises:
            ExportError: the user's function gives other names, types or shapes.
        """
        if self._own is not None:
            return self._checked(dict(self._own(generator, count)), count)
        return {spec.name: self._one(spec, generator, (count, *spec.rest)) for spec in self._example.features()}

    def _one(self, spec: Input, generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        if spec.dtype.is_floating_point:
            mean, spread = self._scales[spec.name]
            return (mean + spread * generator.standard_normal(shape)).astype(DTYPES[spec.dtype])
        if spec.dtype == torch.bool:
            return generator.random(shape) < 0.5  # noqa: PLR2004 - a fair coin
        low, high = int(self._example.tensors[spec.name].min()), int(self._example.tensors[spec.name].max())
        if spec.name in self.rows:
            low, high = 0, self.rows[spec.name] - 1
        return generator.integers(low, high + 1, shape).astype(DTYPES[spec.dtype])

    def _checked(self, drawn: Features, count: int) -> Features:
        for spec in self._example.features():
            array = drawn.get(spec.name)
            wanted = (count, *spec.rest)
            if array is None or np.asarray(array).shape != wanted:
                found = "nothing" if array is None else f"shape {np.asarray(array).shape}"
                raise ExportError(f"draw: gave {found} for {spec.name} of {count} timesteps, {wanted} is needed")
            drawn[spec.name] = np.asarray(array, dtype=DTYPES[spec.dtype])
        return {spec.name: drawn[spec.name] for spec in self._example.features()}

    def batch(self, generator: np.random.Generator, timesteps: int, size: int) -> dict[str, Tensor]:
        """Time-major tensors (T, N, ...) by name."""
        rows = [self(generator, timesteps) for _ in range(size)]
        return {name: torch.from_numpy(np.stack([row[name] for row in rows], axis=1)) for name in rows[0]}
