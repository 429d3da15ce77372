"""A whole network as the body of one Scan over time (no torch).

The network is run on one timestep, and the graph around it steps through time, so any loop, cell or arithmetic is
served whose step is the same at each timestep. A row's state is kept as it is from its true length on; of an output
that comes once a chunk, the row's last true timestep is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.compose
from onnx import TensorProto, helper, numpy_helper

from models.common.export.ends import end_constants, end_nodes
from models.common.export.errors import ExportError
from models.common.export.wiring import check_signature
from models.common.manifest import BATCH_AXIS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.common.export.wiring import Signature
    from models.common.manifest import Dim

OPSET_MIN = 15
_ELEMENT = {
    "float32": TensorProto.FLOAT,
    "float64": TensorProto.DOUBLE,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "uint8": TensorProto.UINT8,
    "bool": TensorProto.BOOL,
}
_STEP, _NOW, _ENDS = "step.", "now.", "ends."
"""Before the names of the trace, and before the others of the body: a name means one thing in the whole file."""


def scan_around(step: onnx.ModelProto, signature: Signature) -> onnx.ModelProto:
    """A graph that runs ``step`` on one timestep after the other; ``step`` has the signature, lengths or not.

    Raises:
        ExportError: its operators are too old, or what comes out does not load.
    """
    lengths = signature.lengths()
    opset = next((one.version for one in step.opset_import if not one.domain), 0)
    if opset < OPSET_MIN or lengths is None:
        raise ExportError(f"the graph: has operators of version {opset}; a loop over time needs {OPSET_MIN} or later")
    inner = onnx.compose.add_prefix_graph(step.graph, _STEP)
    nodes, scanned = _around(signature, lengths)
    scan = helper.make_node(
        "Scan",
        [*(state.input for state in signature.states), *(name for name, _ in scanned), "scan.real"],
        [*(state.output for state in signature.states), *(_collected(o.name, o.per) for o in signature.outputs)],
        name="scan",
        body=_body(inner, signature, lengths),
        num_scan_inputs=len(scanned) + 1,
    )
    ends = _last_rows(signature, lengths)
    nodes += [scan, *ends]
    graph = helper.make_graph(
        nodes,
        "streamed",
        [_value(name, dtype, dims) for name, (dtype, dims) in signature.taken().items()],
        [_value(name, dtype, dims) for name, (dtype, dims) in signature.given().items()],
        # Outside the body: a subgraph sees them, and ONNX Runtime packs them once.
        [*inner.initializer, *_constants(), *(end_constants(_ENDS) if ends else [])],
    )
    model = helper.make_model(graph, opset_imports=step.opset_import, ir_version=step.ir_version)
    check_signature(model, signature)
    return model


def _around(signature: Signature, lengths: str) -> tuple[list[onnx.NodeProto], list[tuple[str, str]]]:
    """Nodes before the Scan: ``scan.real`` (T, N) is true where a row has not ended; and the features to scan."""
    features = [(spec.name, spec.dtype) for spec in signature.inputs if spec.role == "features"]
    nodes = [
        helper.make_node("Shape", [features[0][0]], ["scan.shape"], start=0, end=1),
        helper.make_node("Squeeze", ["scan.shape", "scan.axis0"], ["scan.steps"]),
        helper.make_node("Range", ["scan.zero", "scan.steps", "scan.one"], ["scan.time"]),
        helper.make_node("Unsqueeze", ["scan.time", "scan.axis1"], ["scan.column"]),
        helper.make_node("Cast", [lengths], ["scan.lengths"], to=TensorProto.INT64),
        helper.make_node("Less", ["scan.column", "scan.lengths"], ["scan.real"]),
    ]
    return nodes, features


def _constants() -> list[onnx.TensorProto]:
    values = {"scan.zero": np.int64(0), "scan.one": np.int64(1), "scan.axis0": [0], "scan.axis1": [1]}
    return [numpy_helper.from_array(np.array(value, dtype=np.int64), name) for name, value in values.items()]


def _body(step: onnx.GraphProto, signature: Signature, lengths: str) -> onnx.GraphProto:
    """States, one timestep of each feature, whether each row is still real -> new states, outputs."""
    features = [spec for spec in signature.inputs if spec.role == "features"]
    inputs = [_value(_STEP + s.input, s.dtype, s.dims) for s in signature.states]
    inputs += [_value(_NOW + f.name, f.dtype, f.dims[1:]) for f in features]
    inputs.append(_value(f"{_NOW}real", "bool", ("batch",)))
    nodes = [helper.make_node("Unsqueeze", [_NOW + f.name, "scan.axis0"], [_STEP + f.name]) for f in features]
    # To a network that looks at lengths each timestep is a chunk of one.
    nodes += [
        helper.make_node("Shape", [f"{_NOW}real"], [f"{_NOW}rows"]),
        helper.make_node("ConstantOfShape", [f"{_NOW}rows"], [_STEP + lengths], value=_one()),
        *step.node,
    ]
    outputs: list[onnx.ValueInfoProto] = []
    for state in signature.states:
        axes = numpy_helper.from_array(np.arange(1, len(state.dims) - BATCH_AXIS, dtype=np.int64))
        real, kept = f"{_NOW}real.{state.output}", _NOW + state.output
        nodes += [
            helper.make_node("Constant", [], [f"{real}.axes"], value=axes),
            helper.make_node("Unsqueeze", [f"{_NOW}real", f"{real}.axes"], [real]),
            helper.make_node("Where", [real, _STEP + state.output, _STEP + state.input], [kept]),
        ]
        outputs.append(_value(kept, state.dtype, state.dims))
    for output in signature.outputs:
        found, now = _STEP + output.name, _NOW + output.name
        timed = output.per == "timestep"
        nodes.append(helper.make_node("Squeeze", [found, "scan.axis0"], [now]) if timed else _same(found, now))
        outputs.append(_value(now, output.dtype, output.dims[1 if timed else 0 :]))
    return helper.make_graph(nodes, "step", inputs, outputs)


def _one() -> onnx.TensorProto:
    return numpy_helper.from_array(np.ones(1, dtype=np.int32))


def _same(source: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Identity", [source], [target])


def _collected(name: str, per: str) -> str:
    """What the Scan calls an output: of one that comes once a chunk the last true timestep is still to be taken."""
    return name if per == "timestep" else f"scan.{name}"


def _last_rows(signature: Signature, lengths: str) -> list[onnx.NodeProto]:
    """Take (N, ...) at ``lengths - 1`` out of each stacked (T, N, ...)."""
    wanted = [output.name for output in signature.outputs if output.per == "chunk"]
    if not wanted:
        return []
    nodes = end_nodes(lengths, _ENDS)
    nodes.append(helper.make_node("Concat", [f"{_ENDS}last", f"{_ENDS}row"], ["scan.places"], axis=1))
    return nodes + [helper.make_node("GatherND", [f"scan.{name}", "scan.places"], [name]) for name in wanted]


def _value(name: str, dtype: str, dims: Sequence[Dim]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, _ELEMENT[dtype], list(dims))
