"""What a training run takes from others, checkpoints or shipped models: its first weights, its teacher."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from edge_asr.checkpoint import load_checkpoint
from edge_asr.encoders import build
from edge_asr.encoders.layers import GatedDilatedConvolution
from edge_asr.errors import TrainingError
from edge_asr.model_files import ModelFiles
from edge_asr.tokens import TokenTable


def weights_of(init: str) -> dict[str, Tensor]:
    """Of a checkpoint, or of a model folder's encoder.onnx."""
    if Path(init).is_dir():
        from edge_asr.onnx_weights import shipped_weights  # onnx, which nothing else of a training run needs

        return shipped_weights(init)
    return load_checkpoint(init)["averaged"]


def teacher_of(source: str, tokens: TokenTable) -> nn.Module:
    """The encoder of a checkpoint or model folder, for inference. Raises TrainingError, CheckpointError, ModelError."""
    if Path(source).is_dir():
        model = ModelFiles.open(source)
        kind, config, known = model.config["encoder"], model.config["encoder_config"], model.tokens
    else:
        checkpoint = load_checkpoint(source)
        kind, config, known = checkpoint["encoder"], checkpoint["encoder_config"], TokenTable(checkpoint["tokens"])
    if known != tokens:
        raise TrainingError(
            f"need a teacher with the run's {len(tokens)} tokens, have {len(known)} other ones in {source}; "
            "choose another, or its --tokens"
        )
    encoder = build(kind, config)
    encoder.load_state_dict(weights_of(source), strict=False)  # a model folder lacks what is for training only
    return encoder.eval().requires_grad_(False)


def moved_layers(weights: dict[str, Tensor], sources: tuple[int, ...], n_layers: int) -> dict[str, Tensor]:
    """Weights under the names of a deeper encoder: its layer i gets those of layer sources[i], none where that is −1.

    The intermediate output stays out: it would stand after another layer. Raises TrainingError.
    """
    if len(sources) != n_layers:
        raise TrainingError(f"need one number in --init-layers for each of {n_layers} layers, have {len(sources)}")
    moved = {name: value for name, value in weights.items() if name.startswith("output.")}
    for i, source in enumerate(sources):
        own = f"layers.{source}."
        moved |= {f"layers.{i}.{n.removeprefix(own)}": value for n, value in weights.items() if n.startswith(own)}
    return moved


def silence(layer: nn.Module) -> None:
    """Make a new gated residual layer pass its input on unchanged: the half that the gate lets through is zero."""
    if not isinstance(layer, GatedDilatedConvolution):
        raise TrainingError(f"need a gated convolution where --init-layers has -1, have a {type(layer).__name__}")
    with torch.no_grad():
        for value in layer.project.parameters():
            value[: len(value) // 2] = 0
