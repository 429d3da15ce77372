"""torch -> ONNX by one trace: of the whole chunk, with every recurrent layer as one node, or of one timestep.

The TorchScript exporter (``dynamo=False``, opset 17) is used: of the two in torch 2.13 it gives the leaner graph
and keeps the time axis dynamic. It has no way to say "these rows are shorter" without packing, so the
``lengths`` input is wired to ``sequence_lens`` of every recurrent node afterwards, on the graph itself.
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import Tensor, nn
from torch.jit import TracerWarning  # pyright: ignore[reportPrivateImportUsage] - documented there

from models.common.export.ends import take_true_ends
from models.common.export.errors import ExportError
from models.common.export.scan import scan_around
from models.common.export.wiring import Signature, check_signature, strip, take_lengths, wire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.common.manifest import Dim

OPSET = 17


def direct_graph(net: nn.Module, signature: Signature, arguments: Sequence[Tensor]) -> onnx.ModelProto:
    """``net`` as an ONNX graph whose rows may have different lengths, as far as recurrent nodes keep the state.

    ``arguments`` is one tensor for each of ``signature.taken()``, of more than one timestep and row.

    Raises:
        ExportError: a recurrent layer is bidirectional or batch-major, or keeps a state that is no input; or
            the graph does not have the signature.
    """
    model = trace(net, signature, arguments)
    take_lengths(model.graph, signature)
    wire(model.graph, signature.lengths())
    if (lengths := signature.lengths()) is not None:
        take_true_ends(model, lengths)
    strip(model)
    check_signature(model, signature)
    return model


def scan_graph(net: nn.Module, signature: Signature, arguments: Sequence[Tensor]) -> onnx.ModelProto:
    """``net`` as an ONNX graph that runs it on one timestep after the other: see ``scan_around``.

    ``arguments`` is one tensor for each of ``signature.taken()``, of one timestep and more than one row.

    Raises:
        ExportError: an operation has no ONNX counterpart; or the graph does not have the signature.
    """
    model = trace(net, signature, arguments)
    strip(model)
    return scan_around(model, signature)


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
