"""All that a training run depends on, and its flags."""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from edge_asr.data import AugmentConfig
from edge_asr.encoders import SIZES
from edge_asr.errors import UsageError


@dataclass(frozen=True)
class TrainConfig:
    """All that a run depends on; saved in each checkpoint. Shares (…_from, warm_up) are of the whole run."""

    out: str
    manifest: str
    dev: str = ""
    noise: str = ""
    encoder: str = "tcn"
    size: str = "small"
    encoder_options: dict[str, Any] = field(default_factory=dict)
    lexicon: str = ""  # a file of `word p1 p2 …` lines that go before CMUdict and the grapheme-to-phoneme model
    tokens: str = "phones"  # or "characters"
    init: str = ""  # a checkpoint or model folder whose weights to start from, where names and shapes agree
    init_layers: tuple[int, ...] = ()  # for each layer the one of `init` to start from, -1: a new one, silent at first
    passes: float = 20.0  # over the training data
    batch_s: float = 240.0  # padded seconds of audio per step and process
    muon_lr: float = 0.02
    adam_lr: float = 1.5e-3
    weight_decay: float = 0.05
    warm_up: float = 0.02
    crf_from: float = 0.15  # CTC alone before, CTC-CRF after
    ctc_weight: float = 0.1  # of CTC beside CTC-CRF
    aux_weight: float = 0.3  # of the intermediate CTC
    consistency_weight: float = 0.0  # of the distance between two views of each clip; 0: one view
    teacher: str = ""  # a checkpoint or model folder whose emissions for undisturbed clips are to be met
    teacher_weight: float = 1.0  # of the distance to them
    average_every_s: float = 0.0  # many processes: 0 averages gradients at each step, more averages weights so often
    ema: float = 0.998
    best_of: int = 3  # so many of the best dev passes are averaged
    precision: str = "auto"  # fp32, bf16, or the faster of the two on this machine
    n_threads: int = 0  # 0: all cores
    checkpoint_every_s: float = 120.0
    seed: int = 1
    augment: AugmentConfig = field(default_factory=AugmentConfig)


def build_parser() -> argparse.ArgumentParser:
    """One flag per field of TrainConfig; nested: `--augment.noise 0.5`, `--encoder-options '{"cell": "gru"}'`."""
    parser = argparse.ArgumentParser("edge-asr train", description=__doc__)
    for f in dataclasses.fields(TrainConfig):
        flag = "--" + f.name.replace("_", "-")
        if f.name == "augment":
            for a in dataclasses.fields(AugmentConfig):
                n = len(a.default) if isinstance(a.default, tuple) else None
                parser.add_argument(
                    f"--augment.{a.name}", type=type(a.default[0] if n else a.default), nargs=n, default=a.default
                )
        elif f.name == "init_layers":
            parser.add_argument(flag, type=int, nargs="+", default=())
        elif f.name == "encoder_options":
            parser.add_argument(flag, type=json.loads, default={}, metavar="JSON")
        elif f.default is dataclasses.MISSING:
            parser.add_argument(flag, required=True)
        else:
            parser.add_argument(flag, type=type(f.default), default=f.default)
    return parser


def config_from(arguments: argparse.Namespace) -> TrainConfig:
    values = vars(arguments)
    augment = {
        k.removeprefix("augment."): tuple(v) if isinstance(v, list) else v
        for k, v in values.items()
        if k.startswith("augment.")
    }
    config = TrainConfig(
        **{k: tuple(v) if k == "init_layers" else v for k, v in values.items() if not k.startswith("augment.")},
        augment=AugmentConfig(**augment),
    )
    if config.size not in SIZES or config.encoder not in SIZES[config.size]:
        raise UsageError(
            f"need an encoder of {', '.join(SIZES['small'])} and a size of {', '.join(SIZES)}, "
            f"have {config.encoder!r}, {config.size!r}"
        )
    return config
