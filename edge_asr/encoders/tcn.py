"""TCN: gated dilated causal convolutions with residuals, after Bai, Kolter and Koltun 2018 and WaveNet's gate."""

from __future__ import annotations

from dataclasses import dataclass

from edge_asr.encoders.layers import SUBSAMPLING, Encoder, GatedDilatedConvolution, Subsample


@dataclass(frozen=True)
class TcnConfig:
    """dilations, lookaheads: encoder frames of 40 ms, one per block; the sum of lookaheads is the model's delay."""

    n_tokens: int = 40
    dim: int = 256
    dilations: tuple[int, ...] = (1, 1, 2, 4, 2, 4, 8, 2, 4, 8)
    lookaheads: tuple[int, ...] = (1, 1, 2, 4, 0, 0, 0, 0, 0, 0)
    dropout: float = 0.1


class Tcn(Encoder):
    """(N, T, 80) → (N, T/4, V); state: the last four feature frames and the last 2d frames before each block."""

    def __init__(self, config: TcnConfig) -> None:
        blocks = [
            GatedDilatedConvolution(config.dim, dilation, lookahead, config.dropout)
            for dilation, lookahead in zip(config.dilations, config.lookaheads, strict=True)
        ]
        super().__init__(
            [Subsample(config.dim), *blocks],
            config.dim,
            config.n_tokens,
            SUBSAMPLING * sum(config.lookaheads),
            aux_after=1 + len(blocks) * 6 // 10,
        )
        self.config = config
