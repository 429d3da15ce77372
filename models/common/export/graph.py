"""torch -> ONNX by one trace, with every recurrent layer as one node.

The TorchScript exporter (``dynamo=False``, opset 17) is used: of the two in torch 2.13 it gives the leaner graph
and keeps the time axis dynamic. It has no way to say "these rows are shorter" without packing, so the
``lengths`` input is wired to ``sequence_lens`` of every recurrent node afterwards, on the graph itself.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.jit import TracerWarning  # pyright: ignore[reportPrivateImportUsage] - documented there

from models.common.export.errors import ExportError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.common.manifest import Dim, InputSpec, OutputSpec, StateSpec

OPSET = 17
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


def direct_graph(net: nn.Module, signature: Signature, arguments: Sequence[Tensor]) -> onnx.ModelProto:
    """``net`` as an ONNX graph whose rows may have different lengths, as far as recurrent nodes keep the state.

    ``arguments`` is one tensor for each of ``signature.taken()``, of more than one timestep and row.

    Raises:
        ExportError: a recurrent layer is bidirectional or batch-major, or keeps a state that is no input; or
            the graph does not have the signature.
    """
    model = trace(net, signature, arguments)
    _take_lengths(model.graph, signature)
    _wire(model.graph, signature.lengths())
    strip(model)
    check_signature(model, signature)
    return model


def trace(net: nn.Module, signature: Signature, arguments: Sequence[Tensor]) -> onnx.ModelProto:
    """The graph that one run of ``net`` leaves; what depends on sizes in Python is fixed at those of ``arguments``.

    Raises:
        ExportError: an operation has no ONNX counterpart.
    """
    taken, given = signature.taken(), signature.given()
    # The exporter writes to a stream too, its annotation names only paths.
    stream: Any = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            # That this exporter is the older one; that an LSTM with a dynamic batch needs explicit states, which it
            # has here; and that torch's checks of layer sizes are not traced. What it makes is checked below.
            for category in (DeprecationWarning, UserWarning, TracerWarning):
                warnings.filterwarnings("ignore", category=category)
            torch.onnx.export(
                net,
                tuple(arguments),
                stream,
                input_names=list(taken),
                output_names=list(given),
                dynamic_axes={name: _dynamic(dims) for name, (_, dims) in (taken | given).items()},
                opset_version=OPSET,
                dynamo=False,
                training=torch.onnx.TrainingMode.PRESERVE,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"the network: {_said(error)}") from error
    return onnx.load_from_string(stream.getvalue())


def _said(error: Exception) -> str:
    """What an exporter's error says, without the dump of the graph."""
    return str(error).partition("  [Caused by")[0].partition("\n")[0].partition("Please ")[0].strip()


def _dynamic(dims: Sequence[Dim]) -> dict[int, str]:
    return {axis: dim for axis, dim in enumerate(dims) if isinstance(dim, str)}


def _take_lengths(graph: onnx.GraphProto, signature: Signature) -> None:
    """Make lengths an input where the network does not look at them; the exporter drops what is not used."""
    names = list(signature.taken())
    lengths = signature.lengths()
    if lengths is None or lengths in {value.name for value in graph.input}:
        return
    value = onnx.helper.make_tensor_value_info(lengths, onnx.TensorProto.INT32, ["batch"])
    graph.input.insert(names.index(lengths), value)


def _wire(graph: onnx.GraphProto, lengths: str | None) -> None:
    """Give every recurrent node the true lengths; refuse what cannot be streamed."""
    outside = {value.name for value in graph.input}
    made_by = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type not in RECURRENT:
            continue
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        if attributes.get("direction", b"forward") != b"forward":
            raise ExportError(f"{node.name}: reads backwards too, so it cannot go on from a chunk to the next")
        if attributes.get("layout", 0) != 0:
            raise ExportError(f"{node.name}: batch-major, which ONNX Runtime refuses")
        for slot in _NODE_STATES[node.op_type]:
            if len(node.input) <= slot or not _comes_from(node.input[slot], outside, made_by):
                raise ExportError(f"{node.name}: starts from a state that is not a graph input")
        if lengths is not None:
            node.input[_SEQUENCE_LENS] = lengths


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
        session: Any = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
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
