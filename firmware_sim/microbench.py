"""Small ONNX networks of every operator class that streaming encoders are made of, for calibration.

Each is a chain of one kind of operator, so that the cost of a call does not hide the cost of the operator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from firmware_sim.cost import OpCost, cost_graph, shape_cost
from firmware_sim.graph import Graph, load_graph

CHAIN = 4
PAIRS = 2  # products there and back
OPSET = 17


@dataclass(frozen=True)
class Network:
    """An ONNX file in memory with its costs."""

    name: str
    content: bytes
    graph: Graph
    ops: tuple[OpCost, ...]


class Chain:
    """Builds one network from `x` to `y`."""

    def __init__(self, *shape: int, is_open: bool = False) -> None:
        self.rng = np.random.default_rng(0)
        self.shape = shape
        self.declared = ["N", "T", shape[2]] if is_open else shape
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(self.rng.normal(0, shape[0] ** -0.5, shape).astype(np.float32))

    def whole(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def node(self, op: str, inputs: list[str], n_outputs: int = 1, domain: str = "", **attributes: object) -> list[str]:
        outputs = [f"v{len(self.nodes)}_{i}" for i in range(n_outputs)]
        self.nodes.append(helper.make_node(op, inputs, outputs, domain=domain, **attributes))
        return outputs

    def quantised_weight(self, k: int, n: int) -> str:
        values = self.rng.integers(-127, 128, (k, n)).astype(np.int8)
        scale, zero = np.full(n, 0.01 / k**0.5, np.float32), np.zeros(n, np.int8)
        return self.node("DequantizeLinear", [self.constant(v) for v in (values, scale, zero)], axis=1)[0]

    def qdq(self, name: str) -> str:
        scale, zero = self.constant(np.float32(0.03)), self.constant(np.uint8(128))
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [name, scale, zero])[0], scale, zero])[0]

    def finish(self, name: str, last: str) -> Network:
        """Close the chain and cost it."""
        self.nodes[-1].output[list(self.nodes[-1].output).index(last)] = "y"
        graph = helper.make_graph(
            self.nodes,
            "micro",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.declared)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            self.constants,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        loaded = load_graph(Path(f"{name}.onnx"), self.shape[1], model=model)
        return Network(name, model.SerializeToString(), loaded, (*cost_graph(loaded), shape_cost(loaded)))


def networks() -> list[Network]:
    """The whole set in a fixed order: one operator at a time, then blocks as encoders mix them."""
    return [*make_networks(), *make_blocks()]


def make_networks() -> Iterator[Network]:
    for rows in (1, 4, 8, 16, 32):
        for k, n in ((80, 320), (224, 224), (224, 896), (672, 448), (448, 40), (1120, 224)):
            yield product(rows, k, n, False)
            yield product(rows, k, n, True)
    for steps in (1, 4, 8, 16):
        for n_in, hidden in ((160, 200), (224, 384), (320, 512)):
            yield lstm(steps, n_in, hidden, False)
            yield lstm(steps, n_in, hidden, True)
    for pairs in (4, 6):  # weights beyond the second-level cache
        for rows in (4, 8, 16):
            yield product(rows, 672, 448, False, pairs)
            yield product(rows, 672, 448, True, 2 * pairs)
    for steps in (4, 8, 16):
        yield lstm(steps, 512, 768, False)
        yield lstm(steps, 512, 768, True)
    for rows, past in ((4, 50), (8, 108), (16, 200), (8, 208)):
        for width in (32, 56):
            yield attention(rows, past, width)
    for rows, width in ((1, 2), (4, 128), (8, 224), (8, 448), (32, 224), (108, 448)):
        yield elementwise(rows, width, ("Add", "Mul"), "plain")
        yield elementwise(rows, width, ("Sigmoid", "Tanh"), "transcendental")
        yield norm(rows, width, "LayerNormalization")
        yield norm(rows, width, "Softmax")
        yield copies(rows, width)
        yield transposes(rows, width)
        yield shifts(rows, width)
        yield shapes(rows, width)
    for rows, width in ((8, 64), (8, 208), (100, 224), (100, 448)):
        yield gathers(rows, width)
        yield heads(rows, width)


def product(rows: int, k: int, n: int, quantised: bool, pairs: int = PAIRS) -> Network:
    """MatMul there and back."""
    c, y = Chain(1, rows, k), "x"
    for a, b in ((k, n), (n, k)) * pairs:
        y = c.node("MatMul", [c.qdq(y), c.quantised_weight(a, b)] if quantised else [y, c.weight(a, b)])[0]
    return c.finish(f"product {'int8' if quantised else 'fp32'} {rows}x{k}x{n} × {pairs}", y)


def lstm(steps: int, n_in: int, hidden: int, quantised: bool) -> Network:
    """One recurrent layer over a chunk, in float or as DynamicQuantizeLSTM."""
    c = Chain(steps, 1, n_in)
    y = c.node("Add", [lstm_node(c, "x", n_in, hidden, quantised), c.weight(1)])[0]
    return c.finish(f"lstm {'int8' if quantised else 'fp32'} {steps}x{n_in}x{hidden}", y)


def lstm_node(c: Chain, x: str, n_in: int, hidden: int, quantised: bool) -> str:
    """(T, 1, n_in) → (T, 1, hidden)."""
    bias = c.constant(np.zeros((1, 8 * hidden), np.float32))
    state = [c.constant(np.zeros((1, 1, hidden), np.float32)) for _ in range(2)]
    if quantised:
        weights = [c.constant(c.rng.integers(-127, 128, (1, m, 4 * hidden)).astype(np.int8)) for m in (n_in, hidden)]
        scale = c.constant(np.full((1, 4 * hidden), 5e-4, np.float32))
        zero = c.constant(np.zeros((1, 4 * hidden), np.int8))
        inputs = [x, *weights, bias, "", *state, "", scale, zero, scale, zero]
        y = c.node("DynamicQuantizeLSTM", inputs, domain="com.microsoft", hidden_size=hidden)[0]
    else:
        weights = [c.constant(c.rng.normal(0, 0.05, (1, 4 * hidden, m)).astype(np.float32)) for m in (n_in, hidden)]
        y = c.node("LSTM", [x, *weights, bias, "", *state], hidden_size=hidden)[0]
    return c.node("Squeeze", [y, c.whole(1)])[0]


def attention(rows: int, past: int, width: int, heads: int = 4) -> Network:
    """Scores, softmax, weighted sum over a window of `past` vectors."""
    c = Chain(1, heads, rows, width)
    keys = c.node("Expand", [c.node("ReduceMean", ["x"], axes=[2])[0], c.whole(1, heads, past, width)])[0]
    y = "x"
    for _ in range(CHAIN):
        scores = c.node("MatMul", [y, c.node("Transpose", [keys], perm=[0, 1, 3, 2])[0]])[0]
        y = c.node("MatMul", [c.node("Softmax", [scores], axis=-1)[0], keys])[0]
    return c.finish(f"attention {rows}x{past}x{width}", y)


def elementwise(rows: int, width: int, operators: tuple[str, str], label: str) -> Network:
    c, y = Chain(1, rows, width), "x"
    for op in operators * (2 * CHAIN):
        y = c.node(op, [y, c.weight(width)] if op in ("Add", "Mul") else [y])[0]
    return c.finish(f"{label} {rows}x{width}", y)


def norm(rows: int, width: int, op: str) -> Network:
    c, y = Chain(1, rows, width), "x"
    for _ in range(2 * CHAIN):
        extra = [c.constant(np.ones(width, np.float32)), c.weight(width)] if op == "LayerNormalization" else []
        y = c.node(op, [y, *extra], axis=-1)[0]
    return c.finish(f"{op.lower()} {rows}x{width}", y)


def copies(rows: int, width: int) -> Network:
    """Concat along time, then a slice back to length."""
    c, y = Chain(1, rows, width), "x"
    for _ in range(2 * CHAIN):
        both = c.node("Concat", [y, "x"], axis=1)[0]
        y = c.node("Slice", [both, c.whole(rows), c.whole(2 * rows), c.whole(1)])[0]
    return c.finish(f"copies {rows}x{width}", y)


def transposes(rows: int, width: int) -> Network:
    """Transposes that onnxruntime cannot cancel, with additions between."""
    c, y = Chain(1, rows, width), "x"
    for i in range(2 * CHAIN):
        side = rows if i % 2 == 0 else width
        y = c.node("Transpose", [c.node("Add", [y, c.weight(1, 1)])[0]], perm=[0, 2, 1])[0]
        y = c.node("Add", [y, c.weight(side)])[0]
    return c.finish(f"transposes {rows}x{width}", y)


def shifts(rows: int, width: int) -> Network:
    """Three time shifts side by side, as a dilated convolution takes them, and a gate."""
    c, y = Chain(1, rows + 4, width), "x"
    for _ in range(CHAIN):
        parts = [c.node("Slice", [y, c.whole(2 * k), c.whole(2 * k + rows), c.whole(1)])[0] for k in range(3)]
        wide = c.node("Concat", parts, axis=2)[0]
        a, _b, _c = c.node("Split", [wide], 3, axis=2)
        y = c.node("Concat", [a, c.node("Slice", [y, c.whole(0), c.whole(4), c.whole(1)])[0]], axis=1)[0]
    return c.finish(f"shifts {rows}x{width}", y)


def shapes(rows: int, width: int) -> Network:
    """Reshapes by computed shapes over an open time axis, with an addition between."""
    c, y = Chain(1, rows, width, is_open=True), "x"
    for _ in range(2 * CHAIN):
        time = c.node("Gather", [c.node("Shape", [y])[0], c.constant(np.array(1))])[0]
        size = [c.whole(1), c.node("Unsqueeze", [time, c.whole(0)])[0], c.whole(width)]
        y = c.node("Reshape", [y, c.node("Concat", size, axis=0)[0]])[0]
        y = c.node("Add", [y, c.weight(width)])[0]
    return c.finish(f"shapes {rows}x{width}", y)


def gathers(rows: int, width: int) -> Network:
    """Elements picked along time, then along the last axis."""
    c, y = Chain(1, rows, width), "x"
    index = c.constant(np.broadcast_to(np.arange(rows)[::-1, None], (1, rows, width)).astype(np.int64))
    order = c.constant(np.arange(width, dtype=np.int64)[::-1].copy())
    for _ in range(CHAIN):
        y = c.node("GatherElements", [y, index], axis=1)[0]
        y = c.node("Gather", [y, order], axis=2)[0]
    return c.finish(f"gathers {rows}x{width}", y)


def heads(rows: int, width: int) -> Network:
    """Split into four heads and back, as attention does."""
    c, y = Chain(1, rows, width), "x"
    for _ in range(2 * CHAIN):
        split = c.node("Reshape", [y, c.whole(1, rows, 4, width // 4)])[0]
        turned = c.node("Add", [c.node("Transpose", [split], perm=[0, 2, 1, 3])[0], c.weight(1)])[0]
        y = c.node("Reshape", [c.node("Transpose", [turned], perm=[0, 2, 1, 3])[0], c.whole(1, rows, width)])[0]
    return c.finish(f"heads {rows}x{width}", y)


def make_blocks() -> Iterator[Network]:
    """Mixtures of operators: what a node costs among others of its network differs from what it costs in a loop.

    Their time axis is open, as an encoder's is: with a fixed one onnxruntime would fuse product and bias to Gemm, which
    it does not run in 8 bits by columns."""
    for quantised in (False, True):
        for dim, layers, rows in ((96, 6, 8), (160, 4, 16), (192, 10, 8), (256, 8, 8), (320, 5, 4)):
            yield convolutional(dim, layers, rows, quantised)
        for dim, hidden, layers, rows in ((128, 256, 2, 8), (192, 320, 4, 8), (256, 448, 3, 4), (160, 384, 2, 16)):
            yield recurrent(dim, hidden, layers, rows, quantised)
    for dim, layers, rows, past in ((128, 3, 8, 60), (192, 5, 8, 100), (256, 3, 16, 120), (160, 6, 4, 200)):
        yield attentive(dim, layers, rows, past)


def dense(c: Chain, y: str, n_in: int, n_out: int, quantised: bool) -> str:
    """A linear layer with bias."""
    product = [c.qdq(y), c.quantised_weight(n_in, n_out)] if quantised else [y, c.weight(n_in, n_out)]
    return c.node("Add", [c.weight(n_out), c.node("MatMul", product)[0]])[0]  # in an exporter's order


def normed(c: Chain, y: str, dim: int) -> str:
    return c.node("LayerNormalization", [y, c.constant(np.ones(dim, np.float32)), c.weight(dim)], axis=-1)[0]


def convolutional(dim: int, layers: int, rows: int, quantised: bool) -> Network:
    """Gated dilated convolutions as shifts, one product and a gate, with residuals."""
    c, y = Chain(1, rows, dim, is_open=True), "x"
    for layer in range(layers):
        step = 1 + layer % 3
        past = c.constant(c.rng.normal(0, 1, (1, 2 * step, dim)).astype(np.float32))
        seen = c.node("Concat", [past, normed(c, y, dim)], axis=1)[0]
        taps = [c.node("Slice", [seen, c.whole(k * step), c.whole(k * step + rows), c.whole(1)])[0] for k in range(3)]
        wide = dense(c, c.node("Concat", taps, axis=2)[0], 3 * dim, 2 * dim, quantised)
        value, gate = c.node("Split", [wide], 2, axis=2)
        y = c.node("Add", [y, c.node("Mul", [value, c.node("Sigmoid", [gate])[0]])[0]])[0]
    return c.finish(f"convolutional {'int8' if quantised else 'fp32'} {dim}x{layers}x{rows}", y)


def recurrent(dim: int, hidden: int, layers: int, rows: int, quantised: bool) -> Network:
    """Normalised LSTM layers with projection and residual."""
    c, y = Chain(1, rows, dim, is_open=True), "x"
    for _ in range(layers):
        turned = c.node("Transpose", [normed(c, y, dim)], perm=[1, 0, 2])[0]
        out = c.node("Transpose", [lstm_node(c, turned, dim, hidden, quantised)], perm=[1, 0, 2])[0]
        y = c.node("Add", [y, dense(c, out, hidden, dim, quantised)])[0]
    return c.finish(f"recurrent {'int8' if quantised else 'fp32'} {dim}x{hidden}x{layers}x{rows}", y)


def attentive(dim: int, layers: int, rows: int, past: int, heads: int = 4) -> Network:
    """Attention to a cache with a gathered bias and a mask, over an open time axis, and a projection."""
    c, y = Chain(1, rows, dim, is_open=True), "x"
    for _ in range(layers):
        cache = c.constant(c.rng.normal(0, 1, (1, past, 2 * dim)).astype(np.float32))
        q, kv = c.node("Split", [dense(c, normed(c, y, dim), dim, 3 * dim, False), c.whole(dim, 2 * dim)], 2, axis=2)
        seen = c.node("Concat", [cache, kv], axis=1)[0]
        key, value = (head_split(c, part, dim, heads) for part in c.node("Split", [seen], 2, axis=2))
        turned = c.node("Transpose", [key], perm=[0, 1, 3, 2])[0]
        scores = c.node("MatMul", [head_split(c, q, dim, heads), turned])[0]
        ages = c.constant(c.rng.integers(0, past, (rows, past + rows)))
        bias = c.node("Gather", [c.weight(heads, past), ages], axis=1)[0]
        hidden = c.constant(c.rng.random((rows, past + rows)) < 0.1)
        masked = c.node("Where", [hidden, c.constant(np.float32(-1e4)), c.node("Add", [scores, bias])[0]])[0]
        mixed = c.node("MatMul", [c.node("Softmax", [masked], axis=-1)[0], value])[0]
        joined = c.node("Transpose", [mixed], perm=[0, 2, 1, 3])[0]
        flat = c.node("Reshape", [joined, c.whole(0, -1, dim)])[0]
        y = c.node("Add", [y, dense(c, flat, dim, dim, False)])[0]
    return c.finish(f"attentive {dim}x{layers}x{rows}x{past}", y)


def head_split(c: Chain, y: str, dim: int, heads: int) -> str:
    """(1, T, dim) → (1, heads, T, dim / heads), T computed as an exporter writes it."""
    time = c.node("Gather", [c.node("Shape", [y])[0], c.constant(np.array(1))])[0]
    size = [c.whole(1), c.node("Unsqueeze", [time, c.whole(0)])[0], c.whole(heads), c.whole(dim // heads)]
    split = c.node("Reshape", [y, c.node("Concat", size, axis=0)[0]])[0]
    return c.node("Transpose", [split], perm=[0, 2, 1, 3])[0]
