"""What a manifest says beside the graph, checked before any work is done (no torch)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, cast

from pydantic import BaseModel, ValidationError

from models.common.export.errors import ExportError
from models.common.manifest import DataSource, Scalar, SequenceDefaults, Training

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

StrPath = str | os.PathLike[str]
_R = TypeVar("_R", bound=BaseModel)


class FactOptions(TypedDict, total=False):
    """Facts about a model that may be left out."""

    version: str
    """Of the model, "1" by default; a running server keeps sequences on the version they began on."""
    into: StrPath
    """Folder of all models, "artefacts" by default."""
    task: str
    """Service that the model is for, "inference" by default."""
    chunk_timesteps_max: int
    """Longest chunk that a server takes at once, 256 by default."""
    idle_timeout_s: float
    """How long a sequence may rest before it is dropped."""
    lifetime_s: float
    """How long it may live in all."""
    durability: Literal["none", "step", "checkpoint"]
    """Whether steps are not stored, each before its reply, or every now and then."""
    options: Mapping[str, Scalar]
    """Facts for the service."""
    files: Sequence[StrPath]
    """Files that belong to the model."""
    metrics: Mapping[str, float]
    """Measured figures."""
    data: Sequence[DataSource | Mapping[str, Any]]
    """Data sets that it was trained on."""
    training: Training | Mapping[str, Any] | None
    """How to make the same weights."""
    overwrite: bool
    """Whether a version that is there may be replaced."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Checked facts, with the name of the model."""

    name: str
    version: str = "1"
    into: StrPath = "artefacts"
    task: str = "inference"
    chunk_timesteps_max: int = 256
    sequence: SequenceDefaults = field(default_factory=SequenceDefaults)
    options: Mapping[str, Scalar] = field(default_factory=dict[str, Scalar])
    files: Sequence[StrPath] = ()
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    data: Sequence[DataSource] = ()
    training: Training | None = None
    overwrite: bool = False

    @property
    def folder(self) -> Path:
        """Where the artefact will be."""
        return Path(self.into) / self.name / self.version

    def check(self) -> None:
        """Refuse what can be told before any work.

        Raises:
            ExportError: a name or version that is none, a file that is not there, or a folder that is.
        """
        for argument, value, pattern in (
            ("name", self.name, r"[A-Za-z][A-Za-z0-9_.-]{0,63}"),
            ("version", self.version, r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}"),
            ("task", self.task, r"[A-Za-z][A-Za-z0-9_.-]{0,63}"),
        ):
            if not re.fullmatch(pattern, value):
                raise ExportError(f"{argument}: {value!r} does not fit {pattern}")
        if self.chunk_timesteps_max < 1:
            raise ExportError(f"chunk_timesteps_max: {self.chunk_timesteps_max}, but at least 1 is needed")
        for path in self.files:
            if not Path(path).is_file():
                raise ExportError(f"files: {path} is no file")
        if self.folder.exists() and not self.overwrite:
            raise ExportError(f"{self.folder}: exists; give another version, or overwrite=True while nothing serves it")


_SEQUENCE = ("idle_timeout_s", "lifetime_s", "durability")


def make_facts(name: str, options: FactOptions) -> Facts:
    """Facts out of what was given by name.

    Raises:
        ExportError: an argument is wrong; it is named.
    """
    given = cast("dict[str, Any]", dict(options))
    if unknown := set(given) - set(FactOptions.__annotations__):
        raise ExportError(f"{min(unknown)}: there is no such argument")
    terms = {key: given.pop(key) for key in _SEQUENCE if key in given}
    checked: dict[str, Any] = {
        **given,
        "sequence": _record(SequenceDefaults, terms, ""),
        "data": [_record(DataSource, one, "data: ") for one in given.get("data", ())],
        "training": None if given.get("training") is None else _record(Training, given["training"], "training: "),
        "options": given.get("options") or {},
        "metrics": given.get("metrics") or {},
    }
    facts = Facts(name, **checked)
    facts.check()
    return facts


def _record(kind: type[_R], given: _R | Mapping[str, Any], where: str) -> _R:
    if isinstance(given, kind):
        return given
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise ExportError(f"{where}{said(error)}") from error


def said(error: ValidationError) -> str:
    """The first thing that a validation found, with the field."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])
