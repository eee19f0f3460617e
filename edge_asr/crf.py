"""CTC-CRF (Xiang and Ou 2019): CTC normalised over all token strings, weighted by a token trigram.

loss = −log Σ_{π ∈ B⁻¹(reference)} p(π|x) + log Z, Z = Σ_l p_LM(l) Σ_{π ∈ B⁻¹(l)} p(π|x); the constant
−log p_LM(reference) is left out. State of the denominator: (last two tokens, was the last symbol a blank). Tokens are
1…V-1; 0, which as a symbol is the blank, stands in a history for "nothing yet".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numba
import numpy as np
import torch
from torch import Tensor

PRUNE = 1e-5  # histories below this share of a frame's mass are dropped; their gradient is of the same size


def token_trigram(sequences: Iterable[np.ndarray], n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Witten–Bell trigram of token sequences (ids 1…V-1): next (V, V, V) = p(c | a, b), end (V, V) = p(end | a, b).

    Index 0 of a history is "nothing yet"; next[:, :, 0] is 0. Each history's next and end sum to one.
    """
    counts: list[Counter[object]] = [Counter(), Counter(), Counter()]
    for sequence in sequences:
        a = b = 0
        for c in [*map(int, sequence), 0]:  # as a successor, 0 is the end
            counts[2][a, b, c] += 1
            counts[1][b, c] += 1
            counts[0][c] += 1
            a, b = b, c
    v = n_tokens
    unigram = np.full(v, 1.0)  # one of each: no token is impossible
    for c, n in counts[0].items():
        unigram[c] += n
    unigram /= unigram.sum()
    bigram, trigram = np.zeros((v, v)), np.zeros((v, v, v))
    for (b, c), n in counts[1].items():
        bigram[b, c] += n
    for (a, b, c), n in counts[2].items():
        trigram[a, b, c] += n
    for order, lower in ((bigram, unigram[None]), (trigram, bigram[None])):
        kinds = (order > 0).sum(-1, keepdims=True)
        order[:] = (order + kinds * lower) / np.maximum(order.sum(-1, keepdims=True) + kinds, 1)
        order += lower * (kinds == 0)  # a history never seen: the lower order alone
    end = trigram[:, :, 0].copy()
    trigram[:, :, 0] = 0
    return trigram.astype(np.float32), end.astype(np.float32)


@numba.njit(parallel=True, fastmath=True, cache=True)
def _log_z(
    prob: np.ndarray,
    n_frames: np.ndarray,
    following: np.ndarray,
    end: np.ndarray,
    prune: float,
    log_z: np.ndarray,
    posterior: np.ndarray,
) -> None:
    """Forward–backward over prob (N, T, V); fills log_z (N,) and posterior (N, T, V). One utterance per task."""
    n_batch, _, v = prob.shape
    for n in numba.prange(n_batch):
        t_end = n_frames[n]
        alpha = np.zeros((t_end + 1, 2, v, v), np.float32)  # [:, 0] after a blank, [:, 1] after a token
        active = np.zeros((t_end + 1, v * v), np.int32)
        n_active = np.zeros(t_end + 1, np.int32)
        alpha[0, 0, 0, 0] = 1
        n_active[0] = 1
        total = 0.0
        for t in range(t_end):
            y, now, new = prob[n, t], alpha[t], alpha[t + 1]
            for k in range(n_active[t]):
                a, b = active[t, k] // v, active[t, k] % v
                blank, token = now[0, a, b], now[1, a, b]
                new[0, a, b] += y[0] * (blank + token)
                new[1, a, b] += y[b] * token if b > 0 else np.float32(0)
                both = blank + token
                row, out = following[a, b], new[1, b]
                same = out[b]
                for c in range(1, v):
                    out[c] += both * row[c] * y[c]
                if b > 0:
                    out[b] = same + blank * row[b] * y[b]  # the same token again needs a blank between
            mass = np.float32(0)
            for h in range(2):
                for a in range(v):
                    for b in range(v):
                        mass += new[h, a, b]
            scale, floor, count = 1 / mass, mass * np.float32(prune), 0
            for a in range(v):
                for b in range(v):
                    if new[0, a, b] + new[1, a, b] > floor:
                        new[0, a, b] *= scale
                        new[1, a, b] *= scale
                        active[t + 1, count] = a * v + b
                        count += 1
                    else:
                        new[0, a, b] = 0
                        new[1, a, b] = 0
            n_active[t + 1] = count
            total += np.log(mass)
        beta = np.zeros((2, v, v), np.float32)
        last = np.float32(0)
        for k in range(n_active[t_end]):
            a, b = active[t_end, k] // v, active[t_end, k] % v
            last += (alpha[t_end, 0, a, b] + alpha[t_end, 1, a, b]) * end[a, b]
            beta[0, a, b] = end[a, b]
            beta[1, a, b] = end[a, b]
        log_z[n] = total + np.log(last)
        older = np.zeros((2, v, v), np.float32)
        weighted = np.zeros(v, np.float32)
        for t in range(t_end - 1, -1, -1):
            y, now, g = prob[n, t], alpha[t], posterior[n, t]
            for k in range(n_active[t]):
                a, b = active[t, k] // v, active[t, k] % v
                blank, token = now[0, a, b], now[1, a, b]
                both = blank + token
                row, target = following[a, b], beta[1, b]
                into_blank = y[0] * beta[0, a, b]
                g[0] += both * into_blank
                stay = y[b] * beta[1, a, b] if b > 0 else np.float32(0)
                g[b] += token * stay
                onward = np.float32(0)
                for c in range(1, v):
                    weighted[c] = row[c] * y[c] * target[c]
                    onward += weighted[c]
                    g[c] += both * weighted[c]
                repeat = weighted[b] if b > 0 else np.float32(0)
                g[b] -= token * repeat
                older[0, a, b] = into_blank + onward
                older[1, a, b] = into_blank + stay + onward - repeat
            mass = np.float32(0)
            for c in range(v):
                mass += g[c]
            for c in range(v):
                g[c] /= mass  # posteriors of a frame sum to one
            for k in range(n_active[t + 1]):  # what is not active at t must be zero when beta is read at t - 1
                a, b = active[t + 1, k] // v, active[t + 1, k] % v
                beta[0, a, b] = 0
                beta[1, a, b] = 0
            largest = np.float32(1e-30)
            for k in range(n_active[t]):
                a, b = active[t, k] // v, active[t, k] % v
                largest = max(largest, older[1, a, b], older[0, a, b])
            for k in range(n_active[t]):
                a, b = active[t, k] // v, active[t, k] % v
                beta[0, a, b] = older[0, a, b] / largest
                beta[1, a, b] = older[1, a, b] / largest


class _LogZ(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, log_probs: Tensor, n_frames: Tensor, following: np.ndarray, end: np.ndarray, prune: float
    ) -> Tensor:
        prob = log_probs.detach().float().exp().cpu().numpy()
        log_z = np.zeros(len(prob), np.float64)
        posterior = np.zeros_like(prob)
        _log_z(prob, n_frames.cpu().numpy().astype(np.int64), following, end, prune, log_z, posterior)
        ctx.save_for_backward(torch.from_numpy(posterior).to(log_probs.device))
        return torch.from_numpy(log_z).to(log_probs)

    @staticmethod
    def backward(ctx, grad: Tensor):
        (posterior,) = ctx.saved_tensors
        return grad[:, None, None] * posterior, None, None, None, None


def log_partition(
    log_probs: Tensor, n_frames: Tensor, following: np.ndarray, end: np.ndarray, prune: float = PRUNE
) -> Tensor:
    """log Z (N,) of log_probs (N, T, V), differentiable; following, end as from `token_trigram`.

    prune=0 is exact. Runs on the CPU over as many threads as numba has, whatever the device of log_probs.
    """
    return _LogZ.apply(log_probs, n_frames, following, end, prune)
