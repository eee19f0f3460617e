"""Small ONNX graphs with known costs, for the tests of this folder."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_asr.tokens import TokenTable

OPSET = 17
FLOAT = TensorProto.FLOAT


class Builder:
    """Collects nodes and initialisers; `save` writes a checked model."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, array: np.ndarray, name: str | None = None) -> str:
        name = name or f"c{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(self.rng.normal(0, 0.1, shape).astype(np.float32))

    def node(
        self,
        op: str,
        inputs: list[str],
        n_outputs: int = 1,
        domain: str = "",
        outputs: list[str] | None = None,
        **attributes,
    ):
        outputs = outputs or [f"v{len(self.nodes)}_{i}" for i in range(n_outputs)]
        self.nodes.append(
            helper.make_node(op, inputs, outputs, name=f"{op}{len(self.nodes)}", domain=domain, **attributes)
        )
        return outputs[0] if n_outputs == 1 else outputs

    def quantised_weight(self, array: np.ndarray, axis: int) -> str:
        """Per-channel int8 weight through DequantizeLinear."""
        reduce = tuple(i for i in range(array.ndim) if i != axis)
        scale = np.maximum(np.abs(array).max(reduce), 1e-6).astype(np.float32) / 127
        shape = [1] * array.ndim
        shape[axis] = -1
        q = np.clip(np.round(array / scale.reshape(shape)), -127, 127).astype(np.int8)
        zero = np.zeros(scale.shape, np.int8)
        return self.node("DequantizeLinear", [self.constant(q), self.constant(scale), self.constant(zero)], axis=axis)

    def quantised_bias(self, n: int) -> str:
        q = np.arange(n, dtype=np.int32)
        return self.node(
            "DequantizeLinear", [self.constant(q), self.constant(np.float32(1e-3)), self.constant(np.int32(0))]
        )

    def qdq(self, name: str) -> str:
        """QuantizeLinear and DequantizeLinear around an activation."""
        scale, zero = self.constant(np.float32(0.05)), self.constant(np.int8(0))
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [name, scale, zero]), scale, zero])

    def model(
        self, inputs: dict[str, list], outputs: dict[str, list], metadata: dict[str, str] | None = None
    ) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "test",
            [helper.make_tensor_value_info(n, FLOAT, s) for n, s in inputs.items()],
            [helper.make_tensor_value_info(n, FLOAT, s) for n, s in outputs.items()],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        helper.set_model_props(model, metadata or {})
        return model


ENCODER_METADATA = {
    "model_name": "toy",
    "encoder": "toy",
    "chunk_frames": "32",
    "max_chunk_frames": "0",
    "subsampling": "4",
}
ENCODER_METADATA |= {"lookahead_frames": "32", "sample_rate": "16000"}


def save(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def subsample(b: Builder, dim: int) -> str:
    """(N, T, 80) → (N, T/4, dim) by stacking four frames."""
    stacked = b.node("Reshape", ["x", b.constant(np.array([0, -1, 320], np.int64))])
    return b.node("Add", [b.node("MatMul", [stacked, b.weight(320, dim)]), b.weight(dim)])


def head(b: Builder, y: str, dim: int) -> None:
    logits = b.node("Add", [b.node("MatMul", [y, b.weight(dim, 40)]), b.weight(40)])
    b.node("LogSoftmax", [logits], axis=-1, outputs=["log_probs"])


def encoder(b: Builder, states: dict[str, list], encoder: str) -> onnx.ModelProto:
    inputs = {"x": ["N", "T", 80]} | states
    outputs = {"log_probs": ["N", "U", 40]} | {f"next_{n}": s for n, s in states.items()}
    return b.model(inputs, outputs, ENCODER_METADATA | {"encoder": encoder})


def lstm_encoder(dim: int = 96, layers: int = 2) -> onnx.ModelProto:
    """Subsampling, then LSTM layers; states (N, dim) for hidden and cell."""
    b = Builder()
    y, states = subsample(b, dim), {}
    for layer in range(layers):
        h, c = f"state_{2 * layer}", f"state_{2 * layer + 1}"
        states |= {h: ["N", dim], c: ["N", dim]}
        zero = b.constant(np.array([0], np.int64))
        start = [b.node("Unsqueeze", [name, zero]) for name in (h, c)]
        inputs = [
            b.node("Transpose", [y], perm=[1, 0, 2]),
            b.weight(1, 4 * dim, dim),
            b.weight(1, 4 * dim, dim),
            b.weight(1, 8 * dim),
        ]
        out, last_h, last_c = b.node("LSTM", [*inputs, "", *start], 3, hidden_size=dim)
        y = b.node("Transpose", [b.node("Squeeze", [out, b.constant(np.array([1], np.int64))])], perm=[1, 0, 2])
        b.node("Squeeze", [last_h, zero], outputs=[f"next_{h}"])
        b.node("Squeeze", [last_c, zero], outputs=[f"next_{c}"])
    head(b, y, dim)
    return encoder(b, states, "lstm")


def tcn_encoder(dim: int = 96, layers: int = 3, quantised: bool = False) -> onnx.ModelProto:
    """Dilated convolution as shifted slices, Concat, MatMul and GLU, with residuals; QDQ where asked."""
    b = Builder()
    y, states = subsample(b, dim), {}
    for layer in range(layers):
        dilation = 2**layer
        name, past = f"state_{layer}", 2 * dilation
        states[name] = ["N", past, dim]
        norm = b.node("LayerNormalization", [y, b.constant(np.ones(dim, np.float32)), b.weight(dim)], axis=-1)
        seen = b.node("Concat", [name, norm], axis=1)
        ends = [-past, -dilation, 2**31 - 1]
        shifts = [b.node("Slice", [seen, i64(b, k * dilation), i64(b, ends[k]), i64(b, 1)]) for k in range(3)]
        stacked = b.node("Concat", shifts, axis=2)
        weight = b.rng.normal(0, 0.1, (3 * dim, 2 * dim)).astype(np.float32)
        if quantised:
            product = b.node("MatMul", [b.qdq(stacked), b.quantised_weight(weight, 1)])
        else:
            product = b.node("MatMul", [stacked, b.constant(weight)])
        a, g = b.node("Split", [b.node("Add", [product, b.weight(2 * dim)])], 2, axis=2)
        y = b.node("Add", [y, b.node("Mul", [a, b.node("Sigmoid", [g])])])
        b.node("Slice", [seen, i64(b, -past), i64(b, 2**31 - 1), i64(b, 1)], outputs=[f"next_{name}"])
    head(b, y, dim)
    return encoder(b, states, "tcn")


def attention_encoder(dim: int = 96, past: int = 100, layers: int = 2) -> onnx.ModelProto:
    """One head over a cache of `past` vectors: MatMul, Softmax, MatMul."""
    b = Builder()
    y, states = subsample(b, dim), {}
    for layer in range(layers):
        name = f"state_{layer}"
        states[name] = ["N", past, dim]
        seen = b.node("Concat", [name, y], axis=1)
        q, k, v = (b.node("MatMul", [s, b.weight(dim, dim)]) for s in (y, seen, seen))
        scores = b.node("Softmax", [b.node("MatMul", [q, b.node("Transpose", [k], perm=[0, 2, 1])])], axis=-1)
        y = b.node("Add", [y, b.node("MatMul", [scores, v])])
        b.node("Slice", [seen, i64(b, -past), i64(b, 2**31 - 1), i64(b, 1)], outputs=[f"next_{name}"])
    head(b, y, dim)
    return encoder(b, states, "attention")


def model_directory(folder: Path, fp32: onnx.ModelProto, int8: onnx.ModelProto) -> Path:
    """A model directory without a graph: the recogniser loads it and writes tokens of an untrained network."""
    folder.mkdir()
    tokens = TokenTable(["<blk>", *(f"P{i}" for i in range(1, 40))])
    tokens.save(folder / "tokens.txt")
    extra = {"tokens_sha256": tokens.sha256, "model_name": folder.name}
    for model, name in ((fp32, "encoder.onnx"), (int8, "encoder.int8.onnx")):
        entries = {e.key: e.value for e in model.metadata_props} | extra
        helper.set_model_props(model, entries)
        save(model, folder / name)
    (folder / "config.json").write_text("{}")
    return folder


def i64(b: Builder, value: int) -> str:
    return b.constant(np.array([value], np.int64))


# ST's streaming wakeword: (kind, kernel, channels in, channels out) of nodes 0 … 8, over 30 × 40 inputs.
WAKEWORD_LAYERS = (
    ("dw", 3, 40, 40), ("pw", 1, 40, 128), ("dw", 5, 128, 128), ("pw", 1, 128, 128), ("dw", 10, 128, 128),
    ("pw", 1, 128, 128), ("dw", 15, 128, 128), ("pw", 1, 128, 32),
)  # fmt: skip


def wakeword() -> onnx.ModelProto:
    """The MLPerf Tiny streaming-wakeword network in 8 bits, as ST's published report lists it."""
    b = Builder()
    scale, zero = b.constant(np.float32(0.05)), b.constant(np.int8(0))
    y = b.node("DequantizeLinear", ["x", scale, zero])
    for kind, kernel, n_in, n_out in WAKEWORD_LAYERS:
        group = n_in if kind == "dw" else 1
        w = b.quantised_weight(b.rng.normal(0, 0.1, (n_out, n_in // group, kernel)).astype(np.float32), 0)
        y = b.qdq(b.node("Conv", [y, w, b.quantised_bias(n_out)], group=group, kernel_shape=[kernel]))
    y = b.node("Flatten", [y])
    y = b.node(
        "Gemm", [y, b.quantised_weight(b.rng.normal(0, 0.1, (32, 3)).astype(np.float32), 1), b.quantised_bias(3)]
    )
    y = b.node("Softmax", [b.qdq(y)])
    b.node("QuantizeLinear", [y, scale, zero], outputs=["y"])
    model = b.model({"x": [1, 40, 30]}, {"y": [1, 3]}, {})
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.INT8
    return model
