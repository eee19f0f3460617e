"""What training minimises: CTC, CTC-CRF, intermediate CTC, consistency, the distance to a teacher; and dev scores.

Batches are run as one long chunk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edge_asr.crf import log_partition
from edge_asr.data import FeatureSet
from edge_asr.encoders.layers import SUBSAMPLING
from edge_asr.features import SILENCE

Trigram = tuple[np.ndarray, np.ndarray]  # of tokens, as crf.token_trigram gives it


@dataclass(frozen=True)
class Batch:
    """x (N, T, 80), n_frames (N,), targets (N, U), n_targets (N,)."""

    x: Tensor
    n_frames: Tensor
    targets: Tensor
    n_targets: Tensor
    undisturbed: Tensor | None = None  # (N / views, T, 80), for a teacher


def to_batch(arrays: dict[str, np.ndarray], device: torch.device) -> Batch:
    return Batch(**{k: torch.from_numpy(np.asarray(v)).to(device, non_blocking=True) for k, v in arrays.items()})


def run_offline(encoder: nn.Module, batch: Batch, aux: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """One long chunk: undelayed log-probabilities (N, T/4, V), those of the intermediate output, lengths (N,)."""
    n_out = batch.x.shape[1] // SUBSAMPLING
    x = batch.x
    if encoder.lookahead_frames:  # the tail that the runtime feeds as well
        x = F.pad(x, (0, 0, 0, encoder.lookahead_frames), value=SILENCE)
    y, aux_y, _ = encoder.forward_with_aux(x, encoder.initial_state(len(x)), aux=aux)
    late = encoder.lookahead_frames // SUBSAMPLING
    if aux_y is not None:
        early = encoder.aux_lookahead_frames // SUBSAMPLING
        aux_y = aux_y[:, early : early + n_out]
    return y[:, late : late + n_out], aux_y, -(-batch.n_frames // SUBSAMPLING)


def ctc_losses(log_probs: Tensor, lengths: Tensor, batch: Batch) -> Tensor:
    """CTC loss of each clip (N,); inf where the targets do not fit into the frames."""
    return F.ctc_loss(log_probs.transpose(0, 1), batch.targets, lengths, batch.n_targets, blank=0, reduction="none")


def consistency_loss(log_probs: Tensor, lengths: Tensor) -> Tensor:
    """How far two views of the same clips are from each other, summed over frames (CR-CTC, Yao et al. 2024).

    log_probs (2N, T, V): all first views, then all second ones. Each view is drawn to the other as it stands:
    Kullback–Leibler divergence both ways, no gradient through the one aimed at.
    """
    first, second = log_probs.chunk(2)
    other = torch.cat([second, first]).detach()
    inside = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths.to(log_probs.device)[:, None]
    return ((other.exp() * (other - log_probs)).sum(-1) * inside).sum()


def teacher_loss(log_probs: Tensor, lengths: Tensor, batch: Batch, teacher: nn.Module) -> Tensor:
    """How far emissions (N, T, V) are from those of a teacher that hears the clips undisturbed, summed over frames.

    Kullback–Leibler divergence (Hinton et al. 2015). Emissions are undelayed: frame t is the same moment in both.
    """
    with torch.no_grad():
        aim, _, _ = run_offline(teacher, replace(batch, x=batch.undisturbed), aux=False)
    aim = aim.repeat(len(log_probs) // len(aim), 1, 1)
    inside = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths.to(log_probs.device)[:, None]
    return ((aim.exp() * (aim - log_probs)).sum(-1) * inside).sum()


def total_loss(
    encoder: nn.Module,
    batch: Batch,
    crf: Trigram | None,
    ctc_weight: float,
    aux_weight: float,
    consistency_weight: float = 0.0,
    teacher: nn.Module | None = None,
    teacher_weight: float = 0.0,
) -> tuple[Tensor, dict[str, float]]:
    """Loss per target token, and its parts for the log. crf: the trigram, or None before `crf_from`.

    With consistency_weight the batch holds two views of each clip, with a teacher the clips undisturbed as well, see
    `FeatureSet.collate`.
    """
    log_probs, aux, lengths = run_offline(encoder, batch, aux=aux_weight > 0)
    ctc = ctc_losses(log_probs, lengths, batch)
    fits = torch.isfinite(ctc)
    n_tokens = batch.n_targets[fits].sum().clamp(min=1)
    ctc = torch.where(fits, ctc, 0).sum() / n_tokens
    loss, parts = ctc, {"ctc": float(ctc.detach())}
    if crf is not None:
        log_z = torch.where(fits, log_partition(log_probs, lengths, *crf), 0).sum() / n_tokens
        loss = (1 + ctc_weight) * ctc + log_z
        parts["crf"] = float((ctc + log_z).detach())
    if consistency_weight:
        apart = consistency_loss(log_probs, lengths) / n_tokens
        loss, parts["apart"] = loss + consistency_weight * apart, float(apart.detach())
    if teacher is not None:
        taught = teacher_loss(log_probs, lengths, batch, teacher) / n_tokens
        loss, parts["taught"] = loss + teacher_weight * taught, float(taught.detach())
    if aux is not None:
        aux_ctc = ctc_losses(aux, lengths, batch)
        loss = loss + aux_weight * torch.where(fits & torch.isfinite(aux_ctc), aux_ctc, 0).sum() / n_tokens
    return loss, parts


def dev_scores(
    encoder: nn.Module,
    features: FeatureSet,
    targets: list[np.ndarray],
    trigram: Trigram,
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, float]:
    """Over a set without augmentation: greedy token error rate (percent), CTC and CTC-CRF loss per token."""
    from rapidfuzz.distance import Levenshtein

    encoder.eval()
    errors = total = 0
    loss = log_z = 0.0
    rng = np.random.default_rng(0)
    with torch.inference_mode(), torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
        for indices in features.batches(targets, 240.0, rng):
            batch = to_batch(features.collate(indices, targets, rng), device)
            log_probs, _, lengths = run_offline(encoder, batch, aux=False)
            ctc = ctc_losses(log_probs, lengths, batch)
            loss += float(torch.where(torch.isfinite(ctc), ctc, 0).sum())
            log_z += float(torch.where(torch.isfinite(ctc), log_partition(log_probs, lengths, *trigram), 0).sum())
            for best, n, i in zip(log_probs.argmax(-1).cpu(), lengths, indices):
                best = torch.unique_consecutive(best[: int(n)])
                errors += Levenshtein.distance(best[best > 0].tolist(), targets[i].tolist())
                total += len(targets[i])
    encoder.train()
    return {
        "dev_ter": round(100 * errors / total, 2),
        "dev_ctc": round(loss / total, 4),
        "dev_crf": round((loss + log_z) / total, 4),
    }
