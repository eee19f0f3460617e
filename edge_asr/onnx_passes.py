"""Passes over a quantised encoder, so that the same audio gives the same tokens wherever and beside whatever it runs.

An int8 encoder rounds its activations: one bit of difference before a rounding may become a whole step behind it, and
there a token. So the operators in float between the products have to give the same bits in every runtime.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edge_asr.errors import ExportError

LSTM_STREAM_INPUTS = (0, 5, 6)  # X, initial_h and initial_c of DynamicQuantizeLSTM: what belongs to a stream
PART = "part"  # prefix of what is inside a Scan over streams


class Constants:
    """Named constants of added nodes, under names that no encoder uses."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.tensors: list[onnx.TensorProto] = []

    def add(self, value: object, dtype: type = np.int64) -> str:
        name = f"{self.prefix}_constant_{len(self.tensors)}"
        self.tensors.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name


def replace_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """The nodes of a graph, in place; they may be nodes of that graph."""
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


# --- the same bits in every release --------------------------------------------------------------------------------


def spell_out_norms(graph: onnx.GraphProto) -> int:
    """Write each LayerNormalization over the last axis as sums, a root and products, in place; returns their number.

    Its kernel gives other last bits since some release between onnxruntime 1.28 and 1.31; those of the single operators
    give the same in 1.27, 1.28 and 1.31 (on x86). The mean of squares is spelt as ReduceSumSquare, for which no
    release puts the norm together again.
    """
    constants = Constants("norm")
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    n_norms = 0
    for node in graph.node:
        if node.op_type == "LayerNormalization" and _axis(node) == -1 and node.input[1] in weights:
            nodes += _norm(node, weights[node.input[1]], constants)
            n_norms += 1
        else:
            nodes.append(node)
    replace_nodes(graph, nodes)
    graph.initializer.extend(constants.tensors)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    kept = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in kept]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return n_norms


def _axis(node: onnx.NodeProto) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), -1)


def _norm(node: onnx.NodeProto, gain: np.ndarray, constants: Constants) -> list[onnx.NodeProto]:
    """d = x - mean; y = d / sqrt(Σd² + n·epsilon) · (gain·sqrt(n)) + bias, over n numbers."""
    x, *_ = node.input
    bias = node.input[2] if len(node.input) > 2 else ""
    y = node.output[0]
    epsilon = next((attribute.f for attribute in node.attribute if attribute.name == "epsilon"), 1e-5)
    mean, apart, squares, raised, root, unit, scaled = (
        f"{y}_{part}" for part in ("mean", "apart", "squares", "raised", "root", "unit", "scaled")
    )
    widened = constants.add(gain * np.sqrt(gain.size), np.float32)
    nodes = [
        helper.make_node("ReduceMean", [x], [mean], axes=[-1], keepdims=1),
        helper.make_node("Sub", [x, mean], [apart]),
        helper.make_node("ReduceSumSquare", [apart], [squares], axes=[-1], keepdims=1),
        helper.make_node("Add", [squares, constants.add(epsilon * gain.size, np.float32)], [raised]),
        helper.make_node("Sqrt", [raised], [root]),
        helper.make_node("Div", [apart, root], [unit]),
        helper.make_node("Mul", [unit, widened], [scaled if bias else y]),
    ]
    return [*nodes, helper.make_node("Add", [scaled, bias], [y])] if bias else nodes


# --- the same bits beside any stream -------------------------------------------------------------------------------


def part_streams(graph: onnx.GraphProto) -> int:
    """Put every dynamically quantised LSTM into a Scan over the streams of a batch, in place; returns their number.

    It takes one range for a whole tensor, so that each stream would depend on those beside it.
    """
    constants = Constants(PART)
    lstms = [node for node in graph.node if node.op_type == "DynamicQuantizeLSTM"]
    if lstms:
        axes = {name: constants.add([axis]) for name, axis in (("X", 1), ("Y", 2))}
        replace_nodes(graph, [_scan_of(n, axes) if n.op_type == "DynamicQuantizeLSTM" else n for n in graph.node])
        graph.initializer.extend(constants.tensors)
    return len(lstms)


def _scan_of(lstm: onnx.NodeProto, axes: Mapping[str, str]) -> onnx.NodeProto:
    """X (T, N, F), h and c (1, N, H) → Y (T, 1, N, H), h and c; weights and scales are seen from inside."""
    one = onnx.NodeProto.FromString(lstm.SerializeToString())
    outer = [lstm.input[i] for i in LSTM_STREAM_INPUTS if i < len(lstm.input)]
    if len(outer) < 3 or not all(outer) or len(lstm.output) < 3 or not all(lstm.output):
        raise ExportError(f"{lstm.name}: needs h and c in and out, has {list(lstm.input)}; export the encoder again")
    prefix = f"{PART}_{lstm.output[0]}"
    scanned = [f"{prefix}_{name}" for name in ("x", "h", "c", "y", "next_h", "next_c")]
    whole = [f"{name}_whole" for name in scanned]
    for position, name in zip(LSTM_STREAM_INPUTS, whole):
        one.input[position] = name
    one.output[:] = whole[3:]
    across = [axes["X"], axes["X"], axes["X"], axes["Y"], axes["X"], axes["X"]]
    body = helper.make_graph(
        [
            *(helper.make_node("Unsqueeze", [scanned[i], across[i]], [whole[i]]) for i in range(3)),
            one,
            *(helper.make_node("Squeeze", [whole[i], across[i]], [scanned[i]]) for i in range(3, 6)),
        ],
        prefix,
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in scanned[:3]],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in scanned[3:]],
    )
    return helper.make_node(
        "Scan",
        outer,
        list(lstm.output),
        body=body,
        num_scan_inputs=3,
        scan_input_axes=[1, 1, 1],
        scan_output_axes=[2, 1, 1],
    )


def join_streams(graph: onnx.GraphProto) -> int:
    """Undo `part_streams`, in place, for tools that follow one stream and no control flow; returns their number."""
    nodes: list[onnx.NodeProto] = []
    n_joined = 0
    for node in graph.node:
        body = next((a.g for a in node.attribute if node.op_type == "Scan" and a.name == "body"), None)
        if body is None or not body.name.startswith(PART):
            nodes.append(node)
            continue
        (inner,) = (n for n in body.node if n.op_type == "DynamicQuantizeLSTM")
        lstm = onnx.NodeProto.FromString(inner.SerializeToString())
        for position, name in zip(LSTM_STREAM_INPUTS, node.input, strict=True):
            lstm.input[position] = name
        lstm.output[:] = node.output
        nodes.append(lstm)
        n_joined += 1
    replace_nodes(graph, nodes)
    return n_joined
