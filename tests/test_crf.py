"""CTC-CRF's denominator against enumeration of every path."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from edge_asr.crf import log_partition, token_trigram

V = 4


@pytest.fixture(scope="module")
def trigram():
    rng = np.random.default_rng(0)
    return token_trigram([rng.integers(1, V, rng.integers(1, 5)) for _ in range(12)], V)


def enumerate_log_z(log_probs: np.ndarray, following: np.ndarray, end: np.ndarray) -> float:
    """log Σ over all V^T symbol paths of p(path) · p_LM(its collapsed tokens)."""
    total = 0.0
    for path in itertools.product(range(V), repeat=len(log_probs)):
        weight = math.exp(sum(log_probs[t, symbol] for t, symbol in enumerate(path)))
        a = b = 0
        for c in (symbol for symbol, _ in itertools.groupby(path) if symbol):
            weight *= float(following[a, b, c])
            a, b = b, c
        total += weight * float(end[a, b])
    return math.log(total)


def test_every_history_of_the_trigram_sums_to_one(trigram):
    following, end = trigram
    np.testing.assert_allclose(following.sum(2) + end, 1, atol=1e-6)
    assert (following[:, :, 1:] > 0).all()


def test_trigram_follows_the_counts():
    following, end = token_trigram([np.array([1, 2, 3])] * 50, V)
    assert following[0, 0, 1] > 0.9
    assert following[1, 2, 3] > 0.9
    assert end[2, 3] > 0.9


@pytest.mark.parametrize("n_frames", [1, 2, 3, 5])
def test_partition_equals_the_sum_over_all_paths(trigram, n_frames):
    log_probs = torch.randn(3, 5, V, generator=torch.Generator().manual_seed(n_frames)).log_softmax(-1)
    log_z = log_partition(log_probs, torch.tensor([n_frames] * 3), *trigram, prune=0.0)
    expected = [enumerate_log_z(row[:n_frames].double().numpy(), *trigram) for row in log_probs]
    np.testing.assert_allclose(log_z.numpy(), expected, atol=1e-4)


def test_gradient_is_the_derivative_of_the_partition(trigram):
    log_probs = torch.randn(1, 4, V, generator=torch.Generator().manual_seed(7)).log_softmax(-1)
    leaf = log_probs.clone().requires_grad_()
    log_partition(leaf, torch.tensor([4]), *trigram, prune=0.0).sum().backward()
    values, step = log_probs[0].double().numpy(), 1e-5
    for t, v in itertools.product(range(4), range(V)):
        up, down = values.copy(), values.copy()
        up[t, v] += step
        down[t, v] -= step
        slope = (enumerate_log_z(up, *trigram) - enumerate_log_z(down, *trigram)) / (2 * step)
        assert float(leaf.grad[0, t, v]) == pytest.approx(slope, abs=1e-4)


def test_padding_frames_get_no_gradient(trigram):
    leaf = torch.randn(2, 6, V).log_softmax(-1).requires_grad_()
    log_partition(leaf, torch.tensor([6, 2]), *trigram).sum().backward()
    assert leaf.grad[1, 2:].abs().max() == 0
    torch.testing.assert_close(leaf.grad[0].sum(1), torch.ones(6))


def test_pruning_changes_peaky_emissions_little():
    rng = np.random.default_rng(1)
    trigram = token_trigram([rng.integers(1, 40, 20) for _ in range(200)], 40)
    log_probs = (6 * torch.randn(2, 50, 40, generator=torch.Generator().manual_seed(0))).log_softmax(-1)
    exact = log_partition(log_probs, torch.tensor([50, 50]), *trigram, prune=0.0)
    pruned = log_partition(log_probs, torch.tensor([50, 50]), *trigram)
    torch.testing.assert_close(pruned, exact, atol=0.05, rtol=0)


def test_the_loss_is_least_when_the_reference_is_certain(trigram):
    certain = torch.full((1, 4, V), -12.0)
    for t, symbol in enumerate([1, 0, 2, 3]):
        certain[0, t, symbol] = 0.0
    certain = certain.log_softmax(-1)
    ctc = torch.nn.functional.ctc_loss(
        certain.transpose(0, 1), torch.tensor([[1, 2, 3]]), torch.tensor([4]), torch.tensor([3]), reduction="sum"
    )
    following, end = trigram
    prior = math.log(following[0, 0, 1] * following[0, 1, 2] * following[1, 2, 3] * end[2, 3])
    posterior = -float(ctc) + prior - float(log_partition(certain, torch.tensor([4]), following, end, prune=0.0))
    assert math.exp(posterior) == pytest.approx(1, abs=1e-2)
