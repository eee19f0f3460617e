"""How fast encoders train, in turn on one core: × real time of the encoder's forward and backward pass with CTC.

The runs themselves were timed beside other work, on whatever machine there was; here all encoders take the same steps
in the same run. CTC-CRF is left out: its cost does not depend on the encoder, but on how sure of itself it has become.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_asr.encoders import build
from edge_asr.losses import to_batch, total_loss
from edge_asr.model_files import read_config
from edge_asr.train import choose_precision

BATCH, FRAMES, TOKENS = 8, 800, 80  # eight utterances of 8 s, ten phones a second
ROUNDS = 4
AUX_WEIGHT = 0.3


def measure_training(models: list[Path]) -> dict[str, dict[str, Any]]:
    """Name of the model -> its training speed in this run; models whose configuration is not recorded are left out."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    device = torch.device("cpu")
    dtype, why = choose_precision(device)
    rng = np.random.default_rng(0)
    batch = to_batch(
        {
            "x": rng.standard_normal((BATCH, FRAMES, 80)).astype(np.float32),
            "n_frames": np.full(BATCH, FRAMES),
            "targets": rng.integers(1, 40, (BATCH, TOKENS)),
            "n_targets": np.full(BATCH, TOKENS),
        },
        device,
    )
    configs = {model.name: read_config(model) for model in models}
    encoders = {
        name: build(config["encoder"], config["encoder_config"]).train()
        for name, config in configs.items()
        if "encoder_config" in config
    }
    spent = {name: [] for name in encoders}
    for _ in range(ROUNDS + 1):
        for name, encoder in encoders.items():
            began = time.process_time()
            with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
                loss, _ = total_loss(encoder, batch, None, 0.0, AUX_WEIGHT)
            loss.backward()
            encoder.zero_grad(set_to_none=True)
            spent[name].append(time.process_time() - began)
    audio_s = BATCH * FRAMES / 100
    medians = {name: float(np.median(times[1:])) for name, times in spent.items()}  # the first one warms up
    return {
        name: {
            "x_real_time": round(audio_s / s, 1),
            "ratio_to_fastest": round(min(medians.values()) / s, 3),
            "precision": why,
            "peers": sorted(set(medians) - {name}),
        }
        for name, s in medians.items()
    }
