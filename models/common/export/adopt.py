"""A ready ONNX file with state inputs becomes an artefact (no torch)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import onnx

from models.common.export.choose import choose
from models.common.export.facts import make_facts
from models.common.export.file import OnnxFile, read_file
from models.common.export.scan import scan_around
from models.common.export.wiring import Signature, check_signature, take_lengths, wire
from models.common.export.write import Exported, describe, put_files, write_artefact
from models.common.manifest import BATCH_AXIS
from models.common.parity import Draw, Features, ParityReport, Step, check_parity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Literal, Unpack

    from models.common.export.facts import FactOptions, StrPath
    from models.common.manifest import Manifest


def adopt(  # noqa: PLR0913 - all but the first by name
    path: StrPath,
    *,
    name: str,
    state: Mapping[str, str] | None = None,
    initial: Mapping[str, object] | None = None,
    draw: Draw | None = None,
    tolerance: float = 1e-4,
    allow_inexact: bool = False,
    seed: int = 0,
    echo: Callable[[str], None] | None = print,
    **options: Unpack[FactOptions],
) -> Exported:
    """Check an ONNX file against itself and write it to ``<into>/<name>/<version>/``.

    The file is taken as it is where it honours an input ``lengths``. Else its recurrent nodes are given one, or where
    that is not enough a loop over time is put around it.

    Args:
        path: the file.
        name: of the model; clients ask for it.
        state: state input -> state output; None pairs them by name.
        initial: state input -> what a sequence starts with, a number or an array without the batch axis; else zeros.
        draw: makes the inputs of one sequence of T timesteps, from a generator and T; else they are random: floats of
            mean 0 and spread 1, and integers of 0 and 1.
        tolerance: largest difference that passes as rounding.
        allow_inexact: whether answers may depend in their last bits on batch and chunks.
        seed: of the random inputs of the comparison.
        echo: takes the report as text; None for silence.
        options: facts for the manifest.

    Raises:
        ExportError: the file cannot be served, or an argument is wrong; nothing is written.
    """
    facts = make_facts(name, options)
    file = read_file(Path(path), state, initial or {})
    signature = file.signature
    manifest = describe(facts, signature.inputs, signature.outputs, signature.states)
    draw_one = draw or _drawer(signature)
    reference = _reference(file)
    graph, model = choose(_candidates(file), manifest, draw_one, reference, tolerance)

    def make(folder: Path) -> tuple[Manifest, ParityReport]:
        digests = put_files(model, facts, folder)
        written = describe(facts, signature.inputs, signature.outputs, signature.states, digests)
        return written, check_parity(folder, written, draw_one, reference, seed=seed, tolerance=tolerance)

    written, report = write_artefact(facts, make, allow_inexact=allow_inexact)
    exported = Exported(facts.folder, written, report, graph)
    if echo is not None:
        echo(str(exported))
    return exported


def _candidates(file: OnnxFile) -> Iterator[tuple[Literal["adopted", "scan"], Callable[[], bytes]]]:
    signature = file.signature

    def wired() -> bytes:
        model = onnx.ModelProto()
        model.CopyFrom(file.model)
        take_lengths(model.graph, signature)
        _ordered(model.graph, signature)
        wire(model.graph, signature.lengths())
        check_signature(model, signature)
        return model.SerializeToString()

    if file.takes_lengths:
        yield "adopted", lambda: file.content
    yield "adopted", wired
    yield "scan", lambda: scan_around(file.model, signature).SerializeToString()


def _ordered(graph: onnx.GraphProto, signature: Signature) -> None:
    """Inputs and outputs in the order of the manifest, which is what a written file has."""
    for values, names in ((graph.input, list(signature.taken())), (graph.output, list(signature.given()))):
        kept = {value.name: value for value in values}
        ordered = [kept[name] for name in names]
        del values[:]
        values.extend(ordered)


def _drawer(signature: Signature) -> Draw:
    specs = [spec for spec in signature.inputs if spec.role == "features"]

    def draw(generator: np.random.Generator, count: int) -> Features:
        drawn: Features = {}
        for spec in specs:
            shape = (count, *(dim for dim in spec.dims if isinstance(dim, int)))
            numbers = (
                generator.standard_normal(shape) if spec.dtype.startswith("float") else generator.integers(0, 2, shape)
            )
            drawn[spec.name] = numbers.astype(spec.dtype)
        return drawn

    return draw


def _reference(file: OnnxFile) -> Callable[[Features], Step]:
    """The file as it was given, on one whole sequence."""
    signature = file.signature

    def run(features: Features) -> Step:
        feed: dict[str, Any] = {name: array[:, None] for name, array in features.items()}
        if file.takes_lengths:
            feed[str(signature.lengths())] = np.array([len(next(iter(features.values())))], dtype=np.int32)
        feed |= {spec.input: np.expand_dims(spec.initial_array(), BATCH_AXIS) for spec in signature.states}
        names = list(signature.given())
        found = dict(zip(names, cast("list[Any]", file.session.run(names, feed)), strict=True))
        return Step(
            {o.name: found[o.name][:, 0] if o.per == "timestep" else found[o.name][0] for o in signature.outputs},
            {s.name: found[s.output][:, 0] for s in signature.states},
        )

    return run
