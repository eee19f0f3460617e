"""What the encoders share: normalisation and frame stacking, the gated dilated convolution, the output layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

N_MEL = 80
SUBSAMPLING = 4  # feature frames of 10 ms per encoder frame of 40 ms
N_LOOKAHEAD = 8  # encoder frames: 320 ms, the most a default model may wait


def channel_mask(x: Tensor, share: float, training: bool) -> Tensor:
    """Dropout of whole channels for a whole sequence: (N, T, D) times (N, 1, D), nearly free on a CPU."""
    if not training or share == 0:
        return x
    keep = torch.empty(x.shape[0], 1, x.shape[2], dtype=x.dtype).to(x.device).bernoulli_(1 - share) / (1 - share)
    return x * keep


class Subsample(nn.Module):
    """Normalise by the corpus statistics, stack 4 frames with the 4 before them, project: (N, T, 80) → (N, T/4, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(N_MEL))
        self.register_buffer("inverse_std", torch.ones(N_MEL))
        self.project = nn.Linear(2 * SUBSAMPLING * N_MEL, dim)
        self.norm = nn.LayerNorm(dim)
        self.state_shapes = ((1, SUBSAMPLING * N_MEL),)

    def forward(self, x: Tensor, state: tuple[Tensor]) -> tuple[Tensor, tuple[Tensor]]:
        x = (x - self.mean) * self.inverse_std
        x = x.reshape(x.shape[0], -1, SUBSAMPLING * N_MEL)  # (N, T/4, 320)
        x = torch.cat([state[0], x], 1)
        return self.norm(self.project(torch.cat([x[:, :-1], x[:, 1:]], 2))), (x[:, -1:],)


class GatedDilatedConvolution(nn.Module):
    """Residual convolution over frames t-2d, t-d, t with a gate: y = x[t-l] + tanh-free GLU; (N, T, D) → (N, T, D).

    The residual is read `lookahead` frames back, so that with l = d the taps lie around it: that is how a causal
    network looks ahead. A dense convolution as one matrix product over shifted copies: the fastest form on CPUs.
    """

    def __init__(self, dim: int, dilation: int, lookahead: int, dropout: float) -> None:
        super().__init__()
        if not 0 <= lookahead <= 2 * dilation:
            raise ValueError(f"lookahead {lookahead} must lie within the convolution's reach 0…{2 * dilation}")
        self.dilation, self.lookahead, self.dropout = dilation, lookahead, dropout
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(3 * dim, 2 * dim)
        self.state_shapes = ((2 * dilation, dim),)

    def forward(self, x: Tensor, state: tuple[Tensor]) -> tuple[Tensor, tuple[Tensor]]:
        n, d = x.shape[1], self.dilation
        x = torch.cat([state[0].to(x.dtype), x], 1)  # (N, 2d + T, D)
        h = channel_mask(self.norm(x), self.dropout, self.training)
        h = torch.cat([h[:, :n], h[:, d : d + n], h[:, 2 * d :]], 2)  # (N, T, 3D)
        y = F.glu(self.project(h), 2)
        first = 2 * d - self.lookahead
        return x[:, first : first + n] + y, (x[:, n:],)


class Output(nn.Module):
    """Final norm, projection to V tokens, log-softmax: (N, T, D) → (N, T, V)."""

    def __init__(self, dim: int, n_tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.project = nn.Linear(dim, n_tokens)

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.project(self.norm(x)).float(), -1)


class Encoder(nn.Module):
    """Runs `layers`, each `y, state = layer(x, state)` with `state_shapes`, handing each its part of the flat state."""

    def __init__(self, layers: list[nn.Module], dim: int, n_tokens: int, lookahead_frames: int, aux_after: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.output = Output(dim, n_tokens)
        self.aux_output = Output(dim, n_tokens)  # intermediate CTC (Lee and Watanabe 2021), training only
        self.aux_after = aux_after
        self.lookahead_frames = lookahead_frames  # feature frames by which log_probs are late
        self.aux_lookahead_frames = SUBSAMPLING * sum(getattr(m, "lookahead", 0) for m in layers[:aux_after])
        self.chunk_frames = 32  # feature frames: 320 ms
        self.max_chunk_frames = 0  # no limit

    def initial_state(self, n_batch: int) -> tuple[Tensor, ...]:
        """Zeros, not None: the first chunk runs the same graph as the rest."""
        like = self.output.project.weight
        return tuple(
            torch.zeros(n_batch, *shape, device=like.device) for layer in self.layers for shape in layer.state_shapes
        )

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        y, _, state = self.forward_with_aux(x, state, aux=False)
        return y, state

    def forward_with_aux(
        self,
        x: Tensor,
        state: tuple[Tensor, ...],
        aux: bool = True,
    ) -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
        """As forward, with the log-probabilities of the intermediate output as well (late by aux_lookahead_frames)."""
        next_state: list[Tensor] = []
        aux_log_probs, first = None, 0
        for number, layer in enumerate(self.layers):
            n = len(layer.state_shapes)
            x, new = layer(x, state[first : first + n])
            next_state.extend(new)
            first += n
            if aux and number + 1 == self.aux_after:
                aux_log_probs = self.aux_output(x)
        return self.output(x), aux_log_probs, tuple(next_state)
