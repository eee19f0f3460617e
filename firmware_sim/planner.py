"""Arena planner: tensor lifetimes to offsets, with the lower bound that no layout can beat.

Dynamic storage allocation is NP-hard (Garey and Johnson 1979, SR2); greedy-by-size (Pisarchyk and Lee 2020,
arXiv:2001.03288) is good but may miss the bound. Here several greedy orders are tried, then orders are improved by a
seeded search that moves the buffer that ends highest to the front, and it stops as soon as the bound is reached.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from firmware_sim.errors import PlanError

ALIGNMENT_BYTES = 4
SEARCH_ROUNDS = 400


@dataclass(frozen=True)
class Buffer:
    """Memory that must hold still from step `first` to step `last`, both included."""

    name: str
    n_bytes: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Plan:
    """Offsets in the order of the buffers; `lower_bound_bytes` is the fullest single step."""

    buffers: tuple[Buffer, ...]
    offsets: tuple[int, ...]
    arena_bytes: int
    lower_bound_bytes: int
    peak_step: int

    @property
    def is_optimal(self) -> bool:
        return self.arena_bytes == self.lower_bound_bytes


def plan_arena(buffers: Sequence[Buffer], alignment: int = ALIGNMENT_BYTES, rounds: int = SEARCH_ROUNDS) -> Plan:
    """Lay the buffers out in one arena; deterministic.

    Raises PlanError for a negative size, a lifetime that ends before it begins, or an alignment below one."""
    if alignment < 1:
        raise PlanError(f"need an alignment of at least 1 byte, have {alignment}")
    for buffer in buffers:
        if buffer.n_bytes < 0 or buffer.last < buffer.first:
            raise PlanError(
                f"buffer {buffer.name}: need size ≥ 0 and first ≤ last, have {buffer.n_bytes} bytes, "
                f"steps {buffer.first} … {buffer.last}"
            )
    sizes = [-(-b.n_bytes // alignment) * alignment for b in buffers]
    bound, peak_step = lower_bound(buffers, sizes)
    rivals = [
        [j for j, other in enumerate(buffers) if j != i and sizes[j] and b.meets(other)] for i, b in enumerate(buffers)
    ]
    best = min((place(order, sizes, rivals) for order in greedy_orders(buffers, sizes)), key=lambda p: p[0])
    if best[0] > bound:
        best = improve(best, sizes, rivals, bound, rounds)
    return Plan(tuple(buffers), tuple(best[1]), best[0], bound, peak_step)


def lower_bound(buffers: Sequence[Buffer], sizes: Sequence[int]) -> tuple[int, int]:
    """Bytes live at the fullest step, and that step."""
    events: dict[int, int] = {}
    for buffer, size in zip(buffers, sizes, strict=True):
        events[buffer.first] = events.get(buffer.first, 0) + size
        events[buffer.last + 1] = events.get(buffer.last + 1, 0) - size
    live = best = best_step = 0
    for step in sorted(events):
        live += events[step]
        if live > best:
            best, best_step = live, step
    return best, best_step


def greedy_orders(buffers: Sequence[Buffer], sizes: Sequence[int]) -> list[list[int]]:
    """Orders of placement worth trying first: by size, by the fullest step, by time, by size × life."""
    indices = range(len(buffers))
    load: dict[int, int] = {}
    for i in indices:
        for step in range(buffers[i].first, buffers[i].last + 1):
            load[step] = load.get(step, 0) + sizes[i]
    fullest = [max(load[s] for s in range(b.first, b.last + 1)) for b in buffers]
    span = [b.last - b.first + 1 for b in buffers]
    keys = (
        lambda i: (-sizes[i], buffers[i].first),
        lambda i: (-fullest[i], -sizes[i], buffers[i].first),
        lambda i: (-fullest[i], -span[i], -sizes[i]),
        lambda i: (buffers[i].first, -sizes[i]),
        lambda i: (-sizes[i] * span[i], buffers[i].first),
        lambda i: (-span[i], -sizes[i]),
    )
    return [sorted(indices, key=key) for key in keys]


def place(
    order: Sequence[int], sizes: Sequence[int], rivals: Sequence[Sequence[int]]
) -> tuple[int, list[int], list[int]]:
    """First fit in the given order: (arena bytes, offsets, order)."""
    offsets = [-1] * len(sizes)
    top = 0
    for i in order:
        offset = 0
        for low, high in sorted((offsets[j], offsets[j] + sizes[j]) for j in rivals[i] if offsets[j] >= 0):
            if low - offset >= sizes[i]:
                break
            offset = max(offset, high)
        offsets[i] = offset
        top = max(top, offset + sizes[i])
    return top, offsets, list(order)


def improve(
    best: tuple[int, list[int], list[int]],
    sizes: Sequence[int],
    rivals: Sequence[Sequence[int]],
    bound: int,
    rounds: int,
) -> tuple[int, list[int], list[int]]:
    """Seeded search over orders: the buffer that ends highest moves forward, sometimes two others swap."""
    rng = random.Random(0)
    current = best
    for _ in range(rounds):
        top, offsets, order = current
        order = list(order)
        highest = [i for i in order if offsets[i] + sizes[i] == top]
        order.remove(chosen := rng.choice(highest))
        order.insert(rng.randrange(len(order) + 1) if rng.random() < 0.5 else 0, chosen)
        if rng.random() < 0.5:
            a, b = rng.randrange(len(order)), rng.randrange(len(order))
            order[a], order[b] = order[b], order[a]
        trial = place(order, sizes, rivals)
        if trial[0] <= current[0] or rng.random() < 0.05:
            current = trial
        if trial[0] < best[0]:
            best = trial
        if best[0] == bound:
            break
    return best
