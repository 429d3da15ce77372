"""The artefact of an exported network: its facts, and the folder that is written whole or not at all (no torch)."""

from __future__ import annotations

import contextlib
import datetime as dt
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import onnx
from pydantic import ValidationError

from models.common.export.errors import ExportError
from models.common.export.facts import said
from models.common.manifest import MODEL_FILE, Manifest, digest_of, save_manifest
from models.common.report import summary

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from models.common.export.facts import Facts
    from models.common.manifest import InputSpec, OutputSpec, StateSpec
    from models.common.parity import ParityReport


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


def write_artefact(
    facts: Facts, make: Callable[[Path], tuple[Manifest, ParityReport]], *, allow_inexact: bool
) -> tuple[Manifest, ParityReport]:
    """Make an artefact in a folder beside its place, look at its report, and move it there.

    ``make`` fills the folder it is given, but for manifest and report.

    Raises:
        ExportError: the report does not allow it to be served.
    """
    facts.folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        dir=facts.folder.parent, prefix=".unfinished-", ignore_cleanup_errors=True
    ) as kept:
        made = Path(kept) / "artefact"
        made.mkdir()
        try:
            manifest, report = make(made)
            refuse(report, allow_inexact=allow_inexact, suspects=inexact_operations(made / MODEL_FILE))
        except BaseException:
            shutil.rmtree(kept)
            with contextlib.suppress(OSError):  # not empty: it has other versions
                facts.folder.parent.rmdir()
            raise
        manifest = manifest.model_copy(update={"bit_equal": report.exact})
        save_manifest(made, manifest)
        report.save(made)
        if facts.folder.exists():
            facts.folder.rename(Path(kept) / "replaced")
        made.rename(facts.folder)
    return manifest, report


def refuse(report: ParityReport, *, allow_inexact: bool, suspects: Sequence[str] = ()) -> None:
    """Raise ExportError where a report does not allow a network to be served; ``suspects`` are named for it."""
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
        by = f"; operations that are known for it are here: {', '.join(suspects)}" if suspects else ""
        raise ExportError(
            f"the exported graph: the last bits of an answer depend on {how} that it is computed in (by {off:.3g}), so "
            f"a step that is repeated elsewhere could get another answer{by}. allow_inexact=True accepts it, and the "
            "manifest says so"
        )


_INEXACT = {
    *("RNN", "ReduceSum", "ReduceMean", "Einsum", "Softplus"),
    *("Elu", "Selu", "Celu", "Log", "Sin", "Cos", "Asin", "Atan"),
}
"""Measured with ONNX Runtime 1.32: docs/export.md."""


def inexact_operations(model: Path) -> list[str]:
    """Operations of a file whose last bits, in ONNX Runtime, depend on where in memory a row lies."""
    names: set[str] = set()

    def visit(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            names.add(node.op_type)
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    visit(attribute.g)

    visit(onnx.load(model).graph)
    return sorted(names & _INEXACT)
