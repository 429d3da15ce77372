"""Where a graph takes the last timestep of a chunk, it takes the last true one of each row (no torch)."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def take_true_ends(model: onnx.ModelProto, lengths: str) -> None:
    """Replace ``y[-1]`` along an axis of time, (T, N, ...) or (N, T, ...), by each row's element at ``lengths - 1``.

    The axis is known by its size, which is fixed along all others but the batch's; a layer's ``h[-1]`` is left alone.
    """
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: value.type.tensor_type.shape for value in [*inferred.value_info, *inferred.input]}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    constants |= {node.output[0]: node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"}
    places: dict[int, str] = {}
    for node in model.graph.node:
        if node.op_type != "Gather" or node.input[0] not in shapes or not _is_last(constants.get(node.input[1])):
            continue
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 0)
        dims = shapes[node.input[0]].dim
        if axis > 1 or [dim.HasField("dim_value") for dim in dims[:2]] != [False, False]:
            continue
        places[axis] = f"ends.places{axis}"
        taken = helper.make_node("GatherND", [node.input[0], places[axis]], list(node.output), name=node.name)
        node.CopyFrom(taken)
    if places:
        _put_places(model.graph, lengths, places)


def _is_last(index: onnx.TensorProto | None) -> bool:
    return index is not None and not index.dims and int(numpy_helper.to_array(index)) == -1


def _put_places(graph: onnx.GraphProto, lengths: str, places: dict[int, str]) -> None:
    """Indices (N, 2) of each row's last true timestep, for arrays with time first or the batch first."""
    nodes = end_nodes(lengths, "ends.")
    for axis, name in places.items():
        columns = ["ends.last", "ends.row"] if axis == 0 else ["ends.row", "ends.last"]
        nodes.append(helper.make_node("Concat", columns, [name], axis=1))
    kept = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *kept])
    graph.initializer.extend(end_constants("ends."))


def end_nodes(lengths: str, prefix: str) -> list[onnx.NodeProto]:
    """Columns (N, 1): ``last``, the index of a row's last true timestep, and ``row``, its own index."""

    def node(kind: str, came: list[str], went: str) -> onnx.NodeProto:
        return helper.make_node(kind, came, [prefix + went])

    zero, one, column = f"{prefix}zero", f"{prefix}one", f"{prefix}column"
    return [
        helper.make_node("Cast", [lengths], [f"{prefix}lengths"], to=TensorProto.INT64),
        node("Sub", [f"{prefix}lengths", one], "before"),
        node("Unsqueeze", [f"{prefix}before", column], "last"),
        node("Shape", [lengths], "shape"),
        node("Squeeze", [f"{prefix}shape"], "rows"),
        node("Range", [zero, f"{prefix}rows", one], "range"),
        node("Unsqueeze", [f"{prefix}range", column], "row"),
    ]


def end_constants(prefix: str) -> list[onnx.TensorProto]:
    """What :func:`end_nodes` needs."""
    values = {"zero": np.int64(0), "one": np.int64(1), "column": [1]}
    return [numpy_helper.from_array(np.array(value, np.int64), prefix + name) for name, value in values.items()]
