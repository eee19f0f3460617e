"""Training runs of seconds: three encoders of 32 dimensions on the samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edge_asr.train_config import TrainConfig

SAMPLES = Path(__file__).parent.parent / "samples" / "manifest.jsonl"
LITTLE = {
    "tcn": {"dim": 32, "dilations": (1, 2), "lookaheads": (1, 2)},
    "lstm": {"dim": 32, "hidden": 32, "n_layers": 1},
    "attention": {"dim": 32, "dilations": (1, 2), "lookaheads": (1, 2), "attention_after": (2,)},
}


def config_for(out: Path, cache: Path, encoder: str = "tcn", **changes) -> TrainConfig:
    return replace(
        TrainConfig(
            out=str(out),
            manifest=str(cache),
            encoder=encoder,
            size="tiny",
            encoder_options=LITTLE[encoder],
            passes=3,
            batch_s=12.0,
            precision="fp32",
            n_threads=1,
            crf_from=0.5,
        ),
        **changes,
    )
