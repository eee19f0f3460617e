"""The weights of a shipped model, out of its encoder.onnx, under the names that torch has for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from edge_asr.encoders import build
from edge_asr.errors import CheckpointError
from edge_asr.model_files import read_config

LSTM_GATES = (0, 2, 3, 1)  # ONNX has them as input, output, forget, cell; torch as input, forget, cell, output


def shipped_weights(folder: str | Path) -> dict[str, Tensor]:
    """Name → tensor of the encoder in a model folder, as its state_dict has them; what is for training only is missing.

    Raises CheckpointError where the file holds no such tensor or one of another shape.
    """
    folder = Path(folder)
    config = read_config(folder)
    encoder = build(config["encoder"], config["encoder_config"])
    graph = onnx.load(folder / "encoder.onnx").graph
    stored = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "Cast" and node.input[0] in stored:  # kept in fp16
            stored[node.output[0]] = stored[node.input[0]].astype(np.float32)
    found = {name.removeprefix("encoder."): value for name, value in stored.items()}
    for node in graph.node:  # matrices lose their names when they are transposed for MatMul
        module = node.name.rpartition("/")[0].strip("/").replace("/", ".").removeprefix("encoder.")
        if node.op_type == "MatMul" and node.input[1] in stored:
            found[f"{module}.weight"] = stored[node.input[1]].T
        elif node.op_type == "LSTM":
            found |= _lstm_weights(module, *(stored[name] for name in node.input[1:4]))
    return _checked(encoder, found, folder)


def _lstm_weights(module: str, w: np.ndarray, r: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """w (1, 4H, I), r (1, 4H, R), b (1, 8H) of ONNX as torch names and orders them."""

    def gates(x: np.ndarray) -> np.ndarray:
        return np.concatenate([np.split(x, 4)[g] for g in LSTM_GATES])

    input_bias, hidden_bias = np.split(b[0], 2)
    return {
        f"{module}.weight_ih_l0": gates(w[0]),
        f"{module}.weight_hh_l0": gates(r[0]),
        f"{module}.bias_ih_l0": gates(input_bias),
        f"{module}.bias_hh_l0": gates(hidden_bias),
    }


def _checked(encoder: nn.Module, found: dict[str, np.ndarray], folder: Path) -> dict[str, Tensor]:
    own = {name: value for name, value in encoder.state_dict().items() if not name.startswith("aux_")}
    wrong = [name for name, value in own.items() if name not in found or found[name].shape != tuple(value.shape)]
    if wrong:
        raise CheckpointError(
            f"need the weights of a {type(encoder).__name__} in {folder}/encoder.onnx, have none or of another shape "
            f"for {', '.join(wrong[:5])}{' …' if wrong[5:] else ''}; start from the checkpoint that it was made from"
        )
    return {name: torch.from_numpy(np.array(found[name])) for name in own}
