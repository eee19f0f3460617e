"""Checkpoints that survive a kill, and averages of their weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edge_asr.errors import CheckpointError
from edge_asr.model_files import read_config

CHECKPOINT_FORMAT = 1
SCHEDULE = (
    "passes", "batch_s", "muon_lr", "adam_lr", "weight_decay", "warm_up", "crf_from", "ctc_weight", "aux_weight",
    "consistency_weight", "init_layers", "average_every_s", "ema", "best_of", "tokens",
)  # fmt: skip
MAX_ANCESTORS = 8  # runs that started from runs; a circle of names ends here


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


def candidate_weights(
    last: dict[str, Tensor], best_passes: Sequence[Path], initial: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """What a run may end with: its last weights, the mean of its best passes', the mean of its last and initial ones.

    Two runs of which one goes on from the other's end lie in one basin, and their mean is nearer to its middle (model
    soups, Wortsman et al. 2022). initial: may lack some, or be empty.
    """
    candidates = {"last": last}
    if len(best_passes) > 1:
        states = [load_checkpoint(file)["averaged"] for file in best_passes]
        candidates[f"mean of the {len(states)} best passes"] = average_weights(states)
    if initial:
        candidates["mean of last and initial"] = average_weights([last, {**last, **initial}])
    return candidates


def training_record(checkpoint: Mapping[str, Any], n_ancestors: int = 0) -> dict[str, Any]:
    """How a checkpoint was trained, as plain data; a run that started from another one's weights carries its record.

    `heard_h` counts this run, `heard_h_in_all` also the runs before it, as far as their checkpoints are still there.
    """
    config, heard_s, spent_s = checkpoint["config"], checkpoint["heard_s"], checkpoint["spent_s"]
    record: dict[str, Any] = {
        "run": Path(config["out"]).name,
        "encoder": checkpoint["encoder"],
        "epochs": checkpoint["epoch"],
        "steps": checkpoint["step"],
        "heard_h": round(heard_s / 3600, 1),
        "spent_h": round(spent_s / 3600, 2),
        "x_real_time": round(heard_s / spent_s, 1) if spent_s else None,
        "seed": config["seed"],
        "machine": checkpoint.get("machine"),
        "n_processes": checkpoint.get("n_processes"),
        "schedule": {name: config[name] for name in SCHEDULE if name in config},
        "augment": config.get("augment", {}),
        "curve": [[row["heard_h"], row["dev_crf"]] for row in checkpoint["dev_log"] if "dev_crf" in row],
    }
    if checkpoint.get("chosen"):
        record["weights"] = checkpoint["chosen"]
    if config.get("teacher"):
        record["teacher"] = {"name": name_of(config["teacher"]), "weight": config["teacher_weight"]}
    record["heard_h_in_all"] = record["heard_h"]
    if config.get("init"):
        record["started_from"] = {"run": name_of(config["init"])}  # all that is known where it is gone
        if earlier := _earlier_record(Path(config["init"]), n_ancestors):
            record["started_from"] |= earlier
            record["heard_h_in_all"] = round(record["heard_h"] + earlier["heard_h_in_all"], 1)
    return record


def name_of(init: str) -> str:
    """Of the run or model that `--init` names: a checkpoint's folder, or a model folder itself."""
    return (Path(init).parent if Path(init).suffix else Path(init)).name


def _earlier_record(init: Path, n_ancestors: int) -> dict[str, Any]:
    """Empty where what a run started from is gone."""
    if init.is_dir():
        return read_config(init).get("training", {})
    if init.is_file() and n_ancestors < MAX_ANCESTORS:
        return training_record(load_checkpoint(init), n_ancestors + 1)
    return {}
