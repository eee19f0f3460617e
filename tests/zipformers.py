"""A small streaming zipformer2-ctc model with random weights, in the layout of icefall's exports.

Two stacks of two and one layers. Every cache, the state of the front end and the count of frames change the output, so
that a state in the wrong place shows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save

WINDOW, CHUNK, HIDDEN, N_MEL = 45, 32, 24, 80
PIECES = ("<blk>", "<sos/eos>", "<unk>", "▁THE", "S", "▁A", "ING", "▁", "'", "▁AND", "ED", "E", "▁OF", "T", "▁TO", "N")
METADATA = {
    "model_type": "zipformer2", "version": "1", "encoder_dims": "16,24", "query_head_dims": "4,3",
    "value_head_dims": "2,2", "num_heads": "2,3", "num_encoder_layers": "2,1", "cnn_module_kernels": "7,5",
    "left_context_len": "6,3", "T": str(WINDOW), "decode_chunk_len": str(CHUNK),
}  # fmt: skip


def cache_shapes() -> list[tuple[str, list[int | str]]]:
    """By hand from the metadata above: name and shape of each state, N where the batch is."""
    shapes: list[tuple[str, list[int | str]]] = []
    for layer, (dim, key, value, conv, left) in enumerate([(16, 8, 4, 3, 6), (16, 8, 4, 3, 6), (24, 9, 6, 2, 3)]):
        shapes += [
            (f"cached_key_{layer}", [left, "N", key]),
            (f"cached_nonlin_attn_{layer}", [1, "N", left, 3 * dim // 4]),
            (f"cached_val1_{layer}", [left, "N", value]),
            (f"cached_val2_{layer}", [left, "N", value]),
            (f"cached_conv1_{layer}", ["N", dim, conv]),
            (f"cached_conv2_{layer}", ["N", dim, conv]),
        ]
    return [*shapes, ("embed_states", ["N", 128, 3, 19]), ("processed_lens", ["N"])]


def write_zipformer(path: Path, seed: int = 0, **changed_metadata: str | None) -> None:
    """One file; metadata given as None are left out."""
    rng = np.random.default_rng(seed)
    constants: list[TensorProto] = []
    nodes = []

    def constant(value: np.ndarray | list[int]) -> str:
        array = np.asarray(value)
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        constants.append(numpy_helper.from_array(array, f"c{len(constants)}"))
        return f"c{len(constants) - 1}"

    def weight(n_in: int, n_out: int, gain: float = 1.0) -> str:
        return constant(gain * rng.standard_normal((n_in, n_out)) / np.sqrt(n_in))

    def node(kind: str, inputs: list[str], output: str = "", **attributes: object) -> str:
        output = output or f"v{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    one = constant([1])
    # a window of 45 frames: eight vectors of four frames, and what the rest says about all of them
    scaled = node("Mul", ["x", constant(np.float32(0.2))])
    frames = node("Slice", [scaled, constant([0]), constant([CHUNK]), one])
    rest = node("Slice", [scaled, constant([CHUNK]), constant([WINDOW]), one])
    hidden = node("MatMul", [node("Reshape", [frames, constant([0, -1, 4 * N_MEL])]), weight(4 * N_MEL, HIDDEN)])
    ahead = node("MatMul", [node("ReduceMean", [rest], axes=[1], keepdims=1), weight(N_MEL, HIDDEN, 0.5)])
    hidden = node("Add", [hidden, ahead])
    states = cache_shapes()
    for name, shape in states[:-1]:
        flat = name
        if shape[0] != "N":  # the batch first
            order = [1, 0, *range(2, len(shape))]
            flat = node("Transpose", [name], perm=order)
        size = int(np.prod([n for n in shape if n != "N"]))
        flat = node("Reshape", [flat, constant([-1, 1, size])])
        hidden = node("Add", [hidden, node("MatMul", [flat, weight(size, HIDDEN, 0.7)])])
    angle = node("Mul", [node("Cast", ["processed_lens"], to=TensorProto.FLOAT), constant(np.float32(0.37))])
    turned = node("Reshape", [node("Sin", [angle]), constant([-1, 1, 1])])
    hidden = node("Tanh", [node("Add", [hidden, node("Mul", [turned, constant(rng.standard_normal(HIDDEN))])])])
    logits = node("MatMul", [hidden, weight(HIDDEN, len(PIECES), 4.0)])
    node("LogSoftmax", [logits], "log_probs", axis=2)

    summary = node("ReduceMean", [hidden], axes=[1], keepdims=0)  # (N, HIDDEN)
    for name, shape in states[:-1]:
        sizes = [int(n) for n in shape if n != "N"]
        new = node("Tanh", [node("MatMul", [summary, weight(HIDDEN, int(np.prod(sizes)), 3.0)])])
        if shape[0] == "N":
            new = node("Reshape", [new, constant([-1, *sizes])])
        else:
            new = node("Reshape", [new, constant([-1, *sizes])])
            new = node("Transpose", [new], perm=[1, 0, *range(2, len(shape))])
        kept = node("Mul", [name, constant(np.float32(0.4))])
        node("Add", [kept, node("Mul", [new, constant(np.float32(0.6))])], f"new_{name}")
    node("Add", ["processed_lens", constant([CHUNK // 2])], "new_processed_lens")

    def value(name: str, shape: list[int | str]) -> object:
        kind = TensorProto.INT64 if name.endswith("processed_lens") else TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, shape)

    graph = helper.make_graph(
        nodes,
        "zipformer2-ctc",
        [value("x", ["N", WINDOW, N_MEL]), *(value(*state) for state in states)],
        [value("log_probs", ["N", CHUNK // 4, len(PIECES)]), *(value(f"new_{n}", s) for n, s in states)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    for key, text in {**METADATA, **changed_metadata}.items():
        if text is not None:
            model.metadata_props.add(key=key, value=text)
    checker.check_model(model)
    save(model, str(path))


def write_zipformer_folder(directory: Path, seed: int = 0) -> None:
    directory.mkdir(parents=True)
    write_zipformer(directory / "ctc-chunk-16-left-128.onnx", seed)
    (directory / "tokens.txt").write_text("".join(f"{piece} {i}\n" for i, piece in enumerate(PIECES)), encoding="utf-8")
