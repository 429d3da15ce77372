"""torch -> ONNX with explicit state, checked against the description that serving will trust.

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

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from models.common.manifest import Dim, InputSpec, OutputSpec, StateSpec

OPSET = 17
_RECURRENT = {"LSTM", "GRU", "RNN"}
_SEQUENCE_LENS, _INITIAL_H, _INITIAL_C = 4, 5, 6
_NODE_STATES = {"LSTM": (_INITIAL_H, _INITIAL_C), "GRU": (_INITIAL_H,), "RNN": (_INITIAL_H,)}
_SAMPLE = {"time": 3, "batch": 2}


class ExportError(Exception):
    """The network cannot be exported as a streaming graph; the message says what stands in the way."""


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


def export_onnx(net: nn.Module, signature: Signature, path: Path) -> None:
    """Write ``net`` as an ONNX file whose rows may have different lengths.

    Raises:
        ExportError: a recurrent layer is bidirectional or batch-major, or keeps a state that is no input; or
            the graph does not have the signature.
    """
    model = _trace(net.cpu().eval(), signature)
    lengths = [spec.name for spec in signature.inputs if spec.role == "lengths"]
    _wire(model.graph, lengths[0] if lengths else None)
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    _check_signature(model, signature)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def _trace(net: nn.Module, signature: Signature) -> onnx.ModelProto:
    taken, given = signature.taken(), signature.given()
    arguments = tuple(_sample(dtype, dims) for dtype, dims in taken.values())
    for spec, at in zip(signature.inputs, range(len(arguments)), strict=False):
        if spec.role == "lengths":
            arguments[at].fill_(_SAMPLE["time"])
    # The exporter writes to a stream too, its annotation names only paths.
    stream: Any = io.BytesIO()
    with warnings.catch_warnings():
        # That this exporter is the older one; that an LSTM with a dynamic batch needs explicit states, which it
        # has here; and that torch's checks of layer sizes are not traced. What it makes is checked below.
        for category in (DeprecationWarning, UserWarning, TracerWarning):
            warnings.filterwarnings("ignore", category=category)
        torch.onnx.export(
            net,
            arguments,
            stream,
            input_names=list(taken),
            output_names=list(given),
            dynamic_axes={name: _dynamic(dims) for name, (_, dims) in (taken | given).items()},
            opset_version=OPSET,
            dynamo=False,
        )
    return onnx.load_from_string(stream.getvalue())


def _sample(dtype: str, dims: Sequence[Dim]) -> Tensor:
    return torch.zeros([dim if isinstance(dim, int) else _SAMPLE[dim] for dim in dims], dtype=getattr(torch, dtype))


def _dynamic(dims: Sequence[Dim]) -> dict[int, str]:
    return {axis: dim for axis, dim in enumerate(dims) if isinstance(dim, str)}


def _wire(graph: onnx.GraphProto, lengths: str | None) -> None:
    """Give every recurrent node the true lengths; refuse what cannot be streamed."""
    outside = {value.name for value in graph.input}
    made_by = {name: node for node in graph.node for name in node.output}
    recurrent = [node for node in graph.node if node.op_type in _RECURRENT]
    if lengths is not None and not recurrent:
        raise ExportError("lengths: no recurrent layer in the graph to give them to")
    for node in recurrent:
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


def _strip(model: onnx.ModelProto) -> None:
    """Drop what the exporter notes about the source: it holds paths of the machine."""
    model.doc_string = ""
    model.graph.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]


def _check_signature(model: onnx.ModelProto, signature: Signature) -> None:
    session: Any = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for what, wanted, found in (
        ("inputs", signature.taken(), session.get_inputs()),
        ("outputs", signature.given(), session.get_outputs()),
    ):
        names = [value.name for value in found]
        if names != list(wanted):
            raise ExportError(f"{what}: the graph has {names}, the signature {list(wanted)}; is one of them unused?")
        for value in found:
            dtype, dims = wanted[value.name]
            if len(value.shape) != len(dims) or _type_name(dtype) != value.type:
                raise ExportError(f"{value.name}: {value.type} {value.shape} in the graph, {dtype} {list(dims)} wanted")


def _type_name(dtype: str) -> str:
    return {"float32": "tensor(float)", "float64": "tensor(double)"}.get(dtype, f"tensor({dtype})")
