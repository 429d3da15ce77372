"""The artefact of an exported network: its facts, and the folder that is written whole or not at all (no torch)."""

from __future__ import annotations

import datetime as dt
import os
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from models.common.export.errors import ExportError
from models.common.manifest import (
    MODEL_FILE,
    DataSource,
    InputSpec,
    Manifest,
    OutputSpec,
    Scalar,
    SequenceDefaults,
    StateSpec,
    Training,
    digest_of,
    save_manifest,
)
from models.common.report import summary

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from models.common.parity import ParityReport

StrPath = str | os.PathLike[str]
Durability = Literal["none", "step", "checkpoint"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What the manifest says beside the graph, and where to write it; see ``network.export`` for the meanings."""

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


@dataclass(frozen=True, slots=True)
class Exported:
    """A written artefact. As text it is the report that a person reads."""

    folder: Path
    manifest: Manifest
    report: ParityReport
    graph: Literal["direct", "scan", "adopted"]
    """Recurrent layers as nodes of their own, a loop over time around the whole network, or as it was."""

    def __str__(self) -> str:
        return summary(self.manifest, self.report, self.graph, str(self.folder))


def sequence_defaults(idle_timeout_s: float, lifetime_s: float, durability: Durability) -> SequenceDefaults:
    """Checked defaults.

    Raises:
        ExportError: one of them is out of range.
    """
    try:
        return SequenceDefaults(idle_timeout_s=idle_timeout_s, lifetime_s=lifetime_s, durability=durability)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ExportError(f"{first['loc'][0]}: {first['msg']}") from error


def put_files(model: bytes, facts: Facts, folder: Path) -> dict[str, str]:
    """Write the model and copy the files beside it; digests by name."""
    (folder / MODEL_FILE).write_bytes(model)
    for path in facts.files:
        shutil.copyfile(path, folder / Path(path).name)
    return {name: digest_of(folder / name) for name in (MODEL_FILE, *(Path(path).name for path in facts.files))}


def describe(
    facts: Facts,
    inputs: Sequence[InputSpec],
    outputs: Sequence[OutputSpec],
    states: Sequence[StateSpec],
    digests: Mapping[str, str] | None = None,
) -> Manifest:
    """The manifest of files of these digests; without them it is one to check the graph by, not to keep.

    Raises:
        ExportError: the names or sizes of the graph cannot be served.
    """
    known = dict(digests or {MODEL_FILE: "0" * 64})
    try:
        return Manifest(
            name=facts.name,
            version=facts.version,
            task=facts.task,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            states=tuple(states),
            chunk_timesteps_max=facts.chunk_timesteps_max,
            options=dict(facts.options),
            files=known,
            weights_digest=known[MODEL_FILE],
            state_bytes=sum(state.byte_count for state in states),
            sequence=facts.sequence,
            metrics=dict(facts.metrics),
            data=tuple(facts.data),
            training=facts.training,
            created=dt.datetime.now(dt.UTC).replace(microsecond=0),
        )
    except ValidationError as error:
        raise ExportError(said(error)) from error


def said(error: ValidationError) -> str:
    """The first thing that a validation found, with the field."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else str(first["msg"])


def write_artefact(
    facts: Facts, make: Callable[[Path], tuple[Manifest, ParityReport]], *, allow_inexact: bool
) -> tuple[Manifest, ParityReport]:
    """Make an artefact in a folder beside its place, look at its report, and move it there.

    ``make`` fills the folder it is given, but for manifest and report.

    Raises:
        ExportError: the report does not allow it to be served.
    """
    facts.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=facts.folder.parent, prefix=".unfinished-") as kept:
        made = Path(kept) / "artefact"
        made.mkdir()
        manifest, report = make(made)
        refuse(report, allow_inexact=allow_inexact)
        manifest = manifest.model_copy(update={"bit_equal": report.exact})
        save_manifest(made, manifest)
        report.save(made)
        if facts.folder.exists():
            facts.folder.rename(Path(kept) / "replaced")
        made.rename(facts.folder)
    return manifest, report


def refuse(report: ParityReport, *, allow_inexact: bool) -> None:
    """Raise ExportError where a report does not allow a network to be served."""
    limit = report.torch_tolerance
    ahead = [output.name for output in report.outputs if output.causal is False]
    if ahead:
        raise ExportError(
            f"output {ahead[0]}: what follows a timestep changes its row, so it cannot be answered before"
        )
    for what, off in (
        ("in one run with others a sequence gets other answers than alone", report.batched_difference_max),
        ("in chunks a sequence gets other answers than whole", report.chunked_difference_max),
        ("ONNX Runtime gives other answers than torch", report.torch_difference_max or 0.0),
    ):
        if off > limit:
            raise ExportError(f"the exported graph: {what}; they differ by {off:.3g}, the tolerance is {limit:g}")
    if not report.exact and not allow_inexact:
        off = max(report.batched_difference_max, report.chunked_difference_max)
        how = "the batch" if not report.batched_equal else "the chunks"
        raise ExportError(
            f"the exported graph: the last bits of an answer depend on {how} that it is computed in (by {off:.3g}); a "
            "step that is repeated elsewhere could get another answer. allow_inexact=True accepts it, and the manifest "
            "says so"
        )


def library_facts(given: Training | Mapping[str, Any] | None) -> Training | None:
    """Training facts out of what was given.

    Raises:
        ExportError: a field is wrong.
    """
    if given is None or isinstance(given, Training):
        return given
    try:
        return Training.model_validate(dict(given))
    except ValidationError as error:
        raise ExportError(f"training: {said(error)}") from error


def data_facts(given: Sequence[DataSource | Mapping[str, Any]]) -> list[DataSource]:
    """Data sources out of what was given.

    Raises:
        ExportError: a field is wrong.
    """
    try:
        return [one if isinstance(one, DataSource) else DataSource.model_validate(dict(one)) for one in given]
    except ValidationError as error:
        raise ExportError(f"data: {said(error)}") from error
