"""Checkpoints that survive a kill, and averages of their weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge_asr.errors import CheckpointError

CHECKPOINT_FORMAT = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write beside, then rename: a kill at any moment leaves the old file or the new one, whole."""
    beside = path.with_suffix(".part")
    torch.save({"format": CHECKPOINT_FORMAT, **content}, beside)
    os.replace(beside, path)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of this module. Raises CheckpointError."""
    if not Path(path).is_file():
        raise CheckpointError(f"need a checkpoint, have no file {path}; train first")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as problem:  # torch raises a dozen kinds here, from pickle to zip errors
        raise CheckpointError(
            f"need a checkpoint of edge-asr train, have a damaged file {path} ({problem})"
        ) from problem
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"need a checkpoint of format {CHECKPOINT_FORMAT}, have another file in {path}; train again"
        )
    return content


def average_weights(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Element-wise mean of several weight dictionaries."""
    return {k: sum(s[k].double() for s in states).div(len(states)).to(states[0][k].dtype) for k in states[0]}
