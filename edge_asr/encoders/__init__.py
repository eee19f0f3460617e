"""The table of encoders, all of one shape: `log_probs, state = encoder(x, state)`; a new one is a file and a line.

x: (N, T, 80) log-mel features, T a multiple of 4. log_probs: (N, T/4, V), 40 ms each, late by `lookahead_frames`.
state: flat tuple of float32 tensors, batch in axis 0, zero at the start of a stream. Any split of a stream into
calls gives the same result as one call: offline is one long chunk.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn

from edge_asr.encoders.hierarchical_attention import HierarchicalAttention, HierarchicalAttentionConfig
from edge_asr.encoders.lstm import Lstm, LstmConfig
from edge_asr.encoders.tcn import Tcn, TcnConfig

ENCODERS = {
    "lstm": (Lstm, LstmConfig),
    "tcn": (Tcn, TcnConfig),
    "attention": (HierarchicalAttention, HierarchicalAttentionConfig),
}

# Equal parameter budgets: the three of a size lie within 5 % of each other (tests/test_encoders.py).
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "tiny": {
        "lstm": {"dim": 160, "hidden": 200, "n_layers": 3},
        "tcn": {"dim": 128, "dilations": (1, 1, 2, 4, 2, 4, 8, 2, 4, 8), "lookaheads": (1, 1, 2, 4, 0, 0, 0, 0, 0, 0)},
        "attention": {"dim": 128},
    },
    "small": {
        "lstm": {"dim": 224, "hidden": 384, "n_layers": 3},
        "tcn": {"dim": 224},
        "attention": {"dim": 224},
    },
    "base": {
        "lstm": {"dim": 272, "hidden": 488, "n_layers": 3},
        "tcn": {
            "dim": 224,
            "dilations": (1, 1, 2, 4, 1, 2, 4, 8, 1, 16, 2, 4, 8, 1, 16, 2),
            "lookaheads": (1, 1, 2, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        },
        "attention": {"dim": 280},
    },
}


def build(kind: str, config: dict[str, Any]) -> nn.Module:
    """An encoder of the table from its configuration as a plain dict (lists become tuples)."""
    encoder, config_class = ENCODERS[kind]
    return encoder(config_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}))


def config_of(encoder: nn.Module) -> dict[str, Any]:
    """The configuration of an encoder as a plain dict, as `build` takes it."""
    return asdict(encoder.config)
