"""LSTM baseline: stacked frames, then layer-normalised unidirectional LSTMs with projection and residuals.

After He et al. 2018 ("Streaming end-to-end speech recognition for mobile devices"); the projection stands behind the
recurrence, since ONNX has no recurrent projection.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from edge_asr.encoders.layers import N_LOOKAHEAD, SUBSAMPLING, Encoder, Subsample, channel_mask
from edge_asr.errors import UsageError

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


@dataclass(frozen=True)
class LstmConfig:
    """hidden: cells per layer; dim: width between layers; cell: "lstm", "gru" or "rnn"."""

    n_tokens: int = 40
    dim: int = 256
    hidden: int = 448
    n_layers: int = 3
    cell: str = "lstm"
    bidirectional: bool = False
    dropout: float = 0.1


class RecurrentLayer(nn.Module):
    """x + W cell(norm(x)): (N, T, D) → (N, T, D); state: h, and c for an LSTM, each (N, 1, H)."""

    def __init__(self, config: LstmConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.dim)
        self.cell = CELLS[config.cell](config.dim, config.hidden, batch_first=True, bidirectional=config.bidirectional)
        self.project = nn.Linear(config.hidden * (2 if config.bidirectional else 1), config.dim)
        self.dropout = config.dropout
        n_directions = 2 if config.bidirectional else 1
        self.state_shapes = ((n_directions, config.hidden),) * (2 if config.cell == "lstm" else 1)

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        h = channel_mask(self.norm(x), self.dropout, self.training)
        before = tuple(s.transpose(0, 1).contiguous() for s in state)  # torch wants (1, N, H), the contract (N, 1, H)
        y, after = self.cell(h, before if len(before) == 2 else before[0])
        after = after if len(before) == 2 else (after,)
        return x + self.project(y), tuple(s.transpose(0, 1) for s in after)


class Lstm(Encoder):
    """(N, T, 80) → (N, T/4, V). It looks ahead by answering late: 8 frames of 40 ms, learnt, not built in.

    A bidirectional one is an offline reference only: `initial_state` refuses to start a stream.
    """

    def __init__(self, config: LstmConfig) -> None:
        if config.cell not in CELLS:
            raise UsageError(f"need a cell of {', '.join(CELLS)}, have {config.cell!r}")
        layers = [RecurrentLayer(config) for _ in range(config.n_layers)]
        lookahead = 0 if config.bidirectional else SUBSAMPLING * N_LOOKAHEAD
        super().__init__(
            [Subsample(config.dim), *layers],
            config.dim,
            config.n_tokens,
            lookahead,
            aux_after=1 + max(1, config.n_layers * 6 // 10),
        )
        self.aux_lookahead_frames = lookahead
        self.config = config

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, next_state = super().forward(x, state)
        if self.config.bidirectional:
            next_state = ()  # the end of this chunk was read from the future: there is nothing true to hand on
        return y, next_state

    def require_streaming(self) -> None:
        """Raise UsageError where the encoder cannot stream."""
        if self.config.bidirectional:
            raise UsageError(
                "a bidirectional LSTM needs the whole recording before its first output; have a stream; "
                "train with bidirectional=False to stream"
            )
