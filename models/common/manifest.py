"""What an exported network is: the typed, checked description that serving trusts (no torch).

An artefact is a folder ``models/artefacts/<task>/<version>/`` with ``model.onnx``, the files that its
features need (a vocabulary) and ``manifest.json``, which is a :class:`Manifest`. The manifest is data from
disk, so everything in it is validated once, here; whoever holds a ``Manifest`` need not check it again.

Axes are named, not numbered: ``"time"`` is T, ``"batch"`` is N, anything else is a fixed size. The wire to
the graph is time-major, (T, N, ...), and a state is (L, N, H) with the batch on axis 1.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

if TYPE_CHECKING:
    from collections.abc import Iterable

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"

BATCH_AXIS = 1
"""Axis of N in every state and in every time-major tensor."""

Dim = Annotated[int, Field(ge=1)] | Literal["time", "batch"]
DType = Literal["float32", "float64", "int32", "int64", "uint8", "bool"]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,63}$")]
Scalar = bool | int | float | str


class ArtefactError(Exception):
    """An artefact cannot be trusted; ``where`` names the file or the manifest field, ``reason`` says why."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason


class _Record(BaseModel):
    # Infinity and NaN are not JSON; a metric that has become one is a failed training, not a figure.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class InputSpec(_Record):
    """A graph input that is not a state: features of a chunk, or the true length of each row."""

    name: Name
    dtype: DType
    dims: tuple[Dim, ...]
    role: Literal["features", "lengths"]

    @model_validator(mode="after")
    def _check_dims(self) -> Self:
        if self.role == "lengths":
            if self.dims != ("batch",) or self.dtype != "int32":
                raise ValueError(f"{self.name}: lengths are int32 of dims ['batch']")
        elif self.dims[:2] != ("time", "batch") or not _fixed(self.dims[2:]):
            raise ValueError(f"{self.name}: features are time-major, dims start with ['time', 'batch']")
        return self


class OutputSpec(_Record):
    """A graph output that is not a state, one row per timestep or one per chunk."""

    name: Name
    dtype: DType
    dims: tuple[Dim, ...]

    @property
    def per(self) -> Literal["timestep", "chunk"]:
        """What one row of this output belongs to; read from the dims."""
        return "timestep" if "time" in self.dims else "chunk"

    @model_validator(mode="after")
    def _check_dims(self) -> Self:
        lead = 2 if "time" in self.dims else 1
        if self.dims[:lead] != ("time", "batch")[-lead:] or not _fixed(self.dims[lead:]):
            raise ValueError(f"{self.name}: dims start with ['time', 'batch'] or with ['batch']")
        return self


class StateSpec(_Record):
    """A tensor that a sequence carries from chunk to chunk: fed to ``input``, replaced by ``output``."""

    name: Name
    input: Name
    output: Name
    dtype: DType
    dims: tuple[Dim, ...]
    initial: float | tuple[float, ...] = 0.0
    """What a new sequence starts with: one number for every element, or all elements of :meth:`shape`, the last
    axis fastest. A float32 survives: JSON keeps every digit that a double needs."""

    @model_validator(mode="after")
    def _check_dims(self) -> Self:
        ranked = len(self.dims) > BATCH_AXIS and self.dims[BATCH_AXIS] == "batch"
        if not ranked or not _fixed(dim for axis, dim in enumerate(self.dims) if axis != BATCH_AXIS):
            raise ValueError(f"{self.name}: a state has its batch on axis {BATCH_AXIS} and fixed sizes beside it")
        if isinstance(self.initial, tuple) and len(self.initial) != math.prod(self.shape()):
            raise ValueError(f"{self.name}: initial has {len(self.initial)} elements, the state {self.shape()}")
        return self

    def shape(self) -> tuple[int, ...]:
        """Shape for one sequence: the dims without the batch axis, (L, H) for (L, N, H)."""
        return tuple(dim for dim in self.dims if isinstance(dim, int))

    def initial_array(self) -> npt.NDArray[np.generic]:
        """What a new sequence starts with: shape :meth:`shape`, filled from ``initial``; a fresh array."""
        dtype = np.dtype(self.dtype)
        if isinstance(self.initial, tuple):
            return np.array(self.initial, dtype=dtype).reshape(self.shape())
        return np.full(self.shape(), self.initial, dtype=dtype)

    @property
    def byte_count(self) -> int:
        """Bytes of this state for one sequence."""
        return math.prod(self.shape()) * np.dtype(self.dtype).itemsize


class SequenceDefaults(_Record):
    """What a sequence of this model gets unless its owner or the operator says otherwise."""

    idle_timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    lifetime_s: Annotated[float, Field(gt=0)] = 86400.0
    durability: Literal["none", "step", "checkpoint"] = "checkpoint"


class DataSource(_Record):
    """A data set that the weights were trained or validated on."""

    name: str
    licence: str
    url: str


class Training(_Record):
    """How to train the same weights again."""

    command: str
    seed: int
    epochs: Annotated[float, Field(ge=0)]
    libraries: dict[str, str]


class Manifest(_Record):
    """Description of one version of one exported network; see the module docstring for the axes."""

    format_version: Literal[1] = FORMAT_VERSION
    name: Name
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,31}$")]
    task: Name
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...] = Field(min_length=1)
    states: tuple[StateSpec, ...]
    chunk_timesteps_max: Annotated[int, Field(ge=1)]
    options: dict[str, Scalar] = {}
    files: dict[str, Digest]
    weights_digest: Digest
    state_bytes: Annotated[int, Field(ge=0)]
    sequence: SequenceDefaults = SequenceDefaults()
    metrics: dict[str, float] = {}
    data: tuple[DataSource, ...] = ()
    training: Training | None = None
    bit_equal: bool = True
    """Whether a reply has the same bits alone or in any batch, in one chunk or in many; where it is False, whoever
    exported the network accepted differences within the tolerance of its parity report."""
    created: AwareDatetime

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        roles = [spec.role for spec in self.inputs]
        if "features" not in roles or roles.count("lengths") > 1:
            raise ValueError("inputs: at least one of role features and at most one of role lengths")
        _refuse_repeats("inputs and states", [spec.name for spec in self.inputs] + [s.input for s in self.states])
        _refuse_repeats("outputs and states", [spec.name for spec in self.outputs] + [s.output for s in self.states])
        _refuse_repeats("states", [state.name for state in self.states])
        needed = sum(state.byte_count for state in self.states)
        if self.state_bytes != needed:
            raise ValueError(f"state_bytes: {self.state_bytes}, but the states take {needed}")
        for file in self.files:
            if PurePosixPath(file).name != file or file in {"", ".", "..", MANIFEST_FILE} or "\\" in file:
                raise ValueError(f"files: {file!r} is not the plain name of a file beside the manifest")
        if self.files.get(MODEL_FILE) != self.weights_digest:
            raise ValueError(f"weights_digest: not the digest that files gives for {MODEL_FILE}")
        return self

    def features(self) -> tuple[InputSpec, ...]:
        """The inputs that carry timesteps."""
        return tuple(spec for spec in self.inputs if spec.role == "features")

    def lengths(self) -> InputSpec | None:
        """The input that carries the true length of each row; None where the graph takes no padding."""
        return next((spec for spec in self.inputs if spec.role == "lengths"), None)

    def dumps(self) -> str:
        """The text of ``manifest.json``."""
        return self.model_dump_json(indent=2) + "\n"


def load_manifest(folder: Path) -> Manifest:
    """Read and validate ``folder/manifest.json``.

    Raises:
        ArtefactError: the file is missing, is not JSON, or a field (named in ``where``) is wrong.
    """
    path = folder / MANIFEST_FILE
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ArtefactError(str(path), error.strerror or "cannot be read") from error
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ArtefactError(f"{path}: {field}" if field else str(path), first["msg"]) from error


def save_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``folder/manifest.json``."""
    (folder / MANIFEST_FILE).write_text(manifest.dumps(), encoding="utf-8")


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Check that every file the manifest names is there with the bytes it was exported with.

    Raises:
        ArtefactError: the first file that is missing or differs.
    """
    for file, digest in manifest.files.items():
        path = folder / file
        try:
            found = digest_of(path)
        except OSError as error:
            raise ArtefactError(str(path), error.strerror or "cannot be read") from error
        if found != digest:
            raise ArtefactError(str(path), f"sha256 is {found}, the manifest says {digest}")


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fixed(dims: Iterable[Dim]) -> bool:
    return all(isinstance(dim, int) for dim in dims)


def _refuse_repeats(what: str, names: list[str]) -> None:
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{what}: {', '.join(repeated)} named twice")
