"""What an ONNX graph is: its signature, lengths given to its recurrent nodes, and whether it loads (no torch)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import onnx
import onnxruntime

from models.common.export.errors import ExportError

if TYPE_CHECKING:
    from models.common.manifest import Dim, InputSpec, OutputSpec, StateSpec

RECURRENT = ("LSTM", "GRU", "RNN")
_SEQUENCE_LENS, _INITIAL_H, _INITIAL_C = 4, 5, 6
_NODE_STATES = {"LSTM": (_INITIAL_H, _INITIAL_C), "GRU": (_INITIAL_H,), "RNN": (_INITIAL_H,)}


@dataclass(frozen=True, slots=True)
class Signature:
    """Inputs, outputs and states of a graph, in the order of the network's ``forward``.

    ``forward`` takes the inputs, then one tensor a state; it returns the outputs, then the new states.
    """

    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    states: tuple[StateSpec, ...]

    def taken(self) -> dict[str, tuple[str, tuple[Dim, ...]]]:
        """Name -> (dtype, dims) of everything that goes in, in order."""
        return {s.name: (s.dtype, s.dims) for s in self.inputs} | {s.input: (s.dtype, s.dims) for s in self.states}

    def given(self) -> dict[str, tuple[str, tuple[Dim, ...]]]:
        """Name -> (dtype, dims) of everything that comes out, in order."""
        return {s.name: (s.dtype, s.dims) for s in self.outputs} | {s.output: (s.dtype, s.dims) for s in self.states}

    def lengths(self) -> str | None:
        """Name of the input that carries the true lengths."""
        return next((spec.name for spec in self.inputs if spec.role == "lengths"), None)


def take_lengths(graph: onnx.GraphProto, signature: Signature) -> None:
    """Make lengths an input where the network does not look at them; the exporter drops what is not used."""
    names = list(signature.taken())
    lengths = signature.lengths()
    if lengths is None or lengths in {value.name for value in graph.input}:
        return
    value = onnx.helper.make_tensor_value_info(lengths, onnx.TensorProto.INT32, ["batch"])
    graph.input.insert(names.index(lengths), value)


def wire(graph: onnx.GraphProto, lengths: str | None) -> None:
    """Give every recurrent node the true lengths.

    Raises:
        ExportError: a node is bidirectional or batch-major, or keeps a state that is no input of the graph.
    """
    outside = {value.name for value in graph.input}
    made_by = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type not in RECURRENT:
            continue
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if attributes.get("direction", b"forward") != b"forward":
            raise ExportError(f"{_label(node)}: reads backwards too, so it cannot go on from a chunk to the next")
        if attributes.get("layout", 0) != 0:
            raise ExportError(f"{_label(node)}: batch-major, which ONNX Runtime refuses")
        for slot in _NODE_STATES[node.op_type]:
            if len(node.input) <= slot or not _comes_from(node.input[slot], outside, made_by):
                raise ExportError(f"{_label(node)}: starts from a state that is not a graph input")
        if lengths is not None:
            node.input[_SEQUENCE_LENS] = lengths


def _label(node: onnx.NodeProto) -> str:
    return f"{node.name or 'a node without a name'} ({node.op_type})"


def _comes_from(name: str, outside: set[str], made_by: dict[str, onnx.NodeProto]) -> bool:
    """Whether ``name`` depends on a graph input by its values (a shape alone does not count)."""
    if name in outside:
        return True
    node = made_by.get(name)
    if node is None or node.op_type in {"Shape", "ConstantOfShape"}:
        return False
    return any(_comes_from(source, outside, made_by) for source in node.input)


def strip(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes about the source: it holds paths of the machine."""
    model.doc_string = ""
    model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]


def check_signature(model: onnx.ModelProto, signature: Signature) -> None:
    """Check that the graph is valid, loads, and has the inputs and outputs that the manifest will say.

    Raises:
        ExportError: it is not, or has not.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
        options = cast("Any", onnxruntime.SessionOptions())
        options.log_severity_level = 4  # what fails is raised as well
        session: Any = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime has no class for all that it raises
        raise ExportError(f"the graph: does not load: {str(error).splitlines()[0]}") from error
    for what, wanted, found in (
        ("inputs", signature.taken(), session.get_inputs()),
        ("outputs", signature.given(), session.get_outputs()),
    ):
        names = [value.name for value in found]
        if names != list(wanted):
            raise ExportError(f"{what}: the graph has {names}, the signature {list(wanted)}; is one of them unused?")
        for value in found:
            dtype, dims = wanted[value.name]
            if len(value.shape) != len(dims) or type_name(dtype) != value.type:
                raise ExportError(f"{value.name}: {value.type} {value.shape} in the graph, {dtype} {list(dims)} wanted")


def type_name(dtype: str) -> str:
    """ONNX Runtime's name for a tensor of this type."""
    return {"float32": "tensor(float)", "float64": "tensor(double)"}.get(dtype, f"tensor({dtype})")
