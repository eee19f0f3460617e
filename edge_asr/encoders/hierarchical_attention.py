"""Chunked hierarchical attention: 100 recent vectors and 100 summaries of 100 vectors each, at constant cost.

Every vector attends to itself and the 99 before it (level 1), and to a summary of each of the last 100 full groups of
100 vectors (level 2): 10,000 vectors, 400 s, lie within two steps of attention, where a recurrence needs 10,000.
Summaries are attention pooled over keys and values. The optional write gate keeps a summary out of memory when it
is too like what is stored ("cosine"), or weighs it by what the network learns ("learned").
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edge_asr.encoders.layers import SUBSAMPLING, Encoder, GatedDilatedConvolution, Subsample, channel_mask

N_RECENT = 100  # vectors seen one by one, and vectors per summary
N_SUMMARIES = 100
HIDDEN = -1e4  # added to the logit of what must not be seen; finite, so that int8 ranges and fp16 survive it


@dataclass(frozen=True)
class HierarchicalAttentionConfig:
    """dilations, lookaheads: of the gated convolutions, encoder frames; gate: "none", "cosine" or "learned"."""

    n_tokens: int = 40
    dim: int = 256
    n_heads: int = 4
    dilations: tuple[int, ...] = (1, 1, 2, 4, 2, 4, 2, 4)
    lookaheads: tuple[int, ...] = (1, 1, 2, 4, 0, 0, 0, 0)
    attention_after: tuple[int, ...] = (4, 6, 8)  # convolutions
    gate: str = "none"
    cosine_threshold: float = 0.98
    dropout: float = 0.1


class TwoLevelAttention(nn.Module):
    """x + attention over recent vectors and summaries: (N, T, D) → (N, T, D).

    State, all zero at the start: keys and values of the last 100 vectors (N, 100, 2D), keys and values of the stored
    summaries, newest last (N, 100, 2D), [vectors seen, summaries stored] (N, 1, 2). Slots not yet filled are masked.
    """

    lookahead = 0

    def __init__(self, config: HierarchicalAttentionConfig) -> None:
        super().__init__()
        dim = config.dim
        self.config, self.n_heads = config, config.n_heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.project = nn.Linear(dim, dim)
        self.recent_bias = nn.Parameter(torch.zeros(config.n_heads, N_RECENT))  # by age in vectors
        self.summary_bias = nn.Parameter(torch.zeros(config.n_heads, N_SUMMARIES))  # by age in summaries
        self.pool = nn.Linear(dim, config.n_heads)  # what of a vector's value goes into its group's summary
        self.write = nn.Linear(dim, 1) if config.gate == "learned" else None
        self.state_shapes = ((N_RECENT, 2 * dim), (N_SUMMARIES, 2 * dim), (1, 2))

    def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        recent, summaries, counts = state
        n, t, dim = x.shape
        empty = self.training and not counts.any()  # the start of a stream: masked as it is, its past is left out
        n_past, n_slots = (0, 0) if empty else (N_RECENT, N_SUMMARIES)
        h = channel_mask(self.norm(x), self.config.dropout, self.training)
        q, kv = self.qkv(h).split([dim, 2 * dim], 2)
        recent = torch.cat([recent.to(kv.dtype), kv], 1)  # (N, 100 + T, 2D), the vector at index i has age 100 + t - i
        n_seen, n_stored = counts[:, :, 0], counts[:, :, 1]  # (N, 1)
        index = torch.arange(n_past + t, device=x.device)
        position = index[None] - n_past + n_seen  # (N, P + T) since the start of the stream, negative: not filled

        heard = recent[:, N_RECENT:] if empty else recent
        groups, n_written, group_end = self._summarise(heard, position, n_seen, t, summaries, n_stored)
        memory = torch.cat([summaries.to(groups.dtype), groups], 1)  # (N, 100 + M, 2D)
        stored = memory[:, N_SUMMARIES:] if empty else memory
        y = self._attend(q, heard, n_past, position, stored, n_slots, n_stored, n_written, group_end)

        total = n_written[:, -1:]  # (N, 1) summaries written in this call: the window of 100 slides by so many
        slots = torch.arange(N_SUMMARIES, device=x.device)[None] + total
        summaries = torch.gather(memory, 1, slots.long()[:, :, None].expand(-1, -1, 2 * dim))
        counts = torch.stack([n_seen + t, torch.clamp(n_stored + total, max=float(N_SUMMARIES))], 2)
        return x + self.project(y), (recent[:, t:], summaries, counts)

    def _summarise(
        self,
        recent: Tensor,
        position: Tensor,
        n_seen: Tensor,
        t: int,
        summaries: Tensor,
        n_stored: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pool each group of 100 completed in this call, written ones first.

        Returns groups (N, M, 2D), n_written (N, M): how many of the first m+1 were written, and group_end (N, M): the
        position from which each row of `groups` may be seen.
        """
        n, _, width = recent.shape
        n_groups = (t + N_RECENT - 1) // N_RECENT  # at most so many can be completed by t vectors
        first_group = torch.floor(n_seen / N_RECENT)  # (N, 1)
        group = first_group + torch.arange(n_groups, device=recent.device)[None]  # (N, M)
        member = torch.floor(position / N_RECENT)[:, None] == group[:, :, None]  # (N, M, 100 + T)
        complete = ((group + 1) * N_RECENT <= n_seen + t).float()  # (N, M)
        keys, values = recent.split([width // 2, width // 2], 2)
        score = (
            self.pool(keys).float().transpose(1, 2)[:, :, None] + torch.where(member, 0.0, HIDDEN)[:, None]
        )  # (N, H, M, 100 + T)
        weight = score.softmax(3)
        heads = (n, -1, self.n_heads, width // 2 // self.n_heads)
        pooled = [
            (weight @ part.reshape(heads).transpose(1, 2)).transpose(1, 2).reshape(n, -1, width // 2)
            for part in (keys, values)
        ]  # (N, H, M, 100 + T) x (N, H, 100 + T, hs) -> (N, M, D)
        groups = torch.cat(pooled, 2)
        end = (group + 1) * N_RECENT
        if self.config.gate != "cosine":
            return groups, torch.cumsum(complete, 1), end
        return self._write_novel(groups, complete, end, summaries, n_stored)

    def _write_novel(
        self,
        groups: Tensor,
        complete: Tensor,
        end: Tensor,
        summaries: Tensor,
        n_stored: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keep only groups whose cosine with every stored value lies below the threshold; one after another."""
        half = groups.shape[2] // 2
        direction = nn.functional.normalize(torch.cat([summaries, groups], 1)[:, :, half:], dim=2)
        likeness = direction[:, N_SUMMARIES:] @ direction.transpose(1, 2)  # (N, M, 100 + M)
        slot = torch.arange(N_SUMMARIES, device=groups.device)[None]
        stored = (slot >= N_SUMMARIES - n_stored).float()  # (N, 100 + m) what the m-th group is compared with
        written: list[Tensor] = []
        for m in range(groups.shape[1]):
            nearest = (likeness[:, m, : N_SUMMARIES + m] * stored - 2 * (1 - stored)).amax(1, keepdim=True)
            written.append(complete[:, m : m + 1] * (nearest < self.config.cosine_threshold).float())
            stored = torch.cat([stored, written[-1]], 1)
        keep = torch.cat(written, 1)
        order = torch.argsort(1 - keep, dim=1, stable=True) if groups.shape[1] > 1 else torch.zeros_like(keep).long()
        return (
            torch.gather(groups, 1, order[:, :, None].expand_as(groups)),
            torch.cumsum(torch.gather(keep, 1, order), 1),
            torch.gather(end, 1, order),
        )

    def _attend(
        self,
        q: Tensor,
        recent: Tensor,
        n_past: int,
        position: Tensor,
        memory: Tensor,
        n_slots: int,
        n_stored: Tensor,
        n_written: Tensor,
        group_end: Tensor,
    ) -> Tensor:
        n, t, dim = q.shape
        heads = (n, -1, self.n_heads, dim // self.n_heads)
        q = q.reshape(heads).transpose(1, 2) * (dim // self.n_heads) ** -0.5  # (N, H, T, hs)
        age = torch.arange(t, device=q.device)[:, None] + n_past - torch.arange(n_past + t, device=q.device)[None]
        seen = ((age >= 0) & (age < N_RECENT))[None] & (position >= 0)[:, None]  # (N, T, 100 + T)
        bias = self.recent_bias[:, age.clamp(0, N_RECENT - 1)][None] + torch.where(seen, 0.0, HIDDEN)[:, None]

        now = position[:, n_past:]  # (N, T)
        rank = torch.cat(
            [
                torch.arange(n_slots, device=q.device)[None] - n_slots + torch.zeros_like(n_stored),
                n_written - 1,
            ],
            1,
        )  # (N, 100 + M): stored ones −100 … −1, new ones 0, 1, …
        ready = torch.cat([torch.zeros_like(memory[:, :n_slots, 0]) - 1, group_end], 1)  # (N, 100 + M)
        is_new = torch.cat(
            [
                torch.zeros_like(memory[:, :n_slots, 0]),
                n_written - torch.cat([torch.zeros_like(n_written[:, :1]), n_written[:, :-1]], 1),
            ],
            1,
        )
        exists = torch.cat([(rank[:, :n_slots] >= -n_stored).float(), is_new[:, n_slots:]], 1) > 0
        visible = exists[:, None] & (ready[:, None] <= now[:, :, None])  # (N, T, 100 + M)
        newest = (is_new[:, None] * (ready[:, None] <= now[:, :, None]).float()).sum(2, keepdim=True) - 1  # (N, T, 1)
        summary_age = newest - rank[:, None]  # 0: the newest that this vector can see
        visible = visible & (summary_age < N_SUMMARIES)
        far = self.summary_bias[:, summary_age.clamp(0, N_SUMMARIES - 1).long()].transpose(0, 1)  # (N, H, T, 100 + M)
        far = far + torch.where(visible, 0.0, HIDDEN)[:, None]
        k, v = torch.cat([recent, memory], 1).split([dim, dim], 2)
        if self.write is not None:
            gate = nn.functional.logsigmoid(self.write(memory[:, :, dim:]).float())  # (N, 100 + M, 1)
            far = far + gate.transpose(1, 2)[:, None]
        k, v = k.reshape(heads).transpose(1, 2), v.reshape(heads).transpose(1, 2)  # (N, H, 200 + T + M, hs)
        weight = (q @ k.transpose(2, 3) + torch.cat([bias, far], 3)).softmax(3)
        return (weight @ v).transpose(1, 2).reshape(n, t, dim)


class HierarchicalAttention(Encoder):
    """(N, T, 80) → (N, T/4, V): gated convolutions (local detail, look-ahead) between two-level attention."""

    def __init__(self, config: HierarchicalAttentionConfig) -> None:
        layers: list[nn.Module] = [Subsample(config.dim)]
        for number, (dilation, lookahead) in enumerate(zip(config.dilations, config.lookaheads, strict=True), 1):
            layers.append(GatedDilatedConvolution(config.dim, dilation, lookahead, config.dropout))
            if number in config.attention_after:
                layers.append(TwoLevelAttention(config))
        super().__init__(
            layers, config.dim, config.n_tokens, SUBSAMPLING * sum(config.lookaheads), aux_after=len(layers) * 6 // 10
        )
        self.config = config
        self.max_chunk_frames = SUBSAMPLING * N_RECENT  # an exported graph completes at most one summary per call
