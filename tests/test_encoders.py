"""One contract, every encoder: any split of a stream gives what one long chunk gives."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.encoders import ENCODERS, SIZES, build, config_of
from edge_asr.encoders.hierarchical_attention import (
    N_RECENT,
    N_SUMMARIES,
    HierarchicalAttentionConfig,
    TwoLevelAttention,
)
from edge_asr.encoders.layers import GatedDilatedConvolution
from edge_asr.errors import UsageError

VARIANTS = {
    "tcn": ("tcn", {}),
    "lstm": ("lstm", {}),
    "gru": ("lstm", {"cell": "gru"}),
    "rnn": ("lstm", {"cell": "rnn"}),
    "attention": ("attention", {}),
    "attention-cosine": ("attention", {"gate": "cosine", "cosine_threshold": 0.9}),
    "attention-learned": ("attention", {"gate": "learned"}),
}


def lively(kind: str, options: dict, size: str = "tiny") -> torch.nn.Module:
    """An untrained encoder in which no parameter is zero, so that a forgotten state shows."""
    torch.manual_seed(0)
    encoder = build(kind, {**SIZES[size][kind], **options}).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return encoder


@pytest.fixture(scope="module", params=VARIANTS)
def encoder(request) -> torch.nn.Module:
    return lively(*VARIANTS[request.param])


def n_parameters(encoder: torch.nn.Module) -> int:
    return sum(p.numel() for name, p in encoder.named_parameters() if not name.startswith("aux_"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("n_frames", [40, 400, 1240])
def test_training_computes_what_a_stream_does_from_its_start_and_after(variant, n_frames):
    kind, options = VARIANTS[variant]
    encoder, x = lively(kind, {"dropout": 0.0, **options}), torch.randn(2, n_frames, 80)
    state = encoder.initial_state(2)
    for _ in range(2):
        (expected, after), (trained, state) = encoder.eval()(x, state), encoder.train()(x, state)
        torch.testing.assert_close(trained, expected, atol=1e-4, rtol=0)
        for a, b in zip(state, after, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@settings(max_examples=8, deadline=None)
@given(splits=st.lists(st.integers(1, 130), min_size=1, max_size=6), seed=st.integers(0, 99))
@torch.inference_mode()
def test_any_split_of_a_stream_equals_one_long_chunk(encoder, splits, seed):
    x = torch.randn(2, 4 * sum(splits), 80, generator=torch.Generator().manual_seed(seed))
    whole, last = encoder(x, encoder.initial_state(2))
    parts, state = [], encoder.initial_state(2)
    for part in x.split([4 * n for n in splits], 1):
        y, state = encoder(part, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-4, rtol=0)
    for a, b in zip(state, last, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_state_keeps_its_shapes_and_is_not_changed_in_place(encoder):
    state = encoder.initial_state(3)
    before = [s.clone() for s in state]
    _, after = encoder(torch.randn(3, 64, 80), state)
    assert [s.shape for s in after] == [s.shape for s in before]
    assert all(torch.equal(s, b) for s, b in zip(state, before))


@torch.inference_mode()
def test_what_comes_later_never_changes_what_was_said(encoder):
    x = torch.randn(1, 160, 80)
    y, _ = encoder(x, encoder.initial_state(1))
    x[:, 100:] = 1e4
    z, _ = encoder(x, encoder.initial_state(1))
    torch.testing.assert_close(y[:, :25], z[:, :25])


@torch.inference_mode()
def test_streams_of_a_batch_do_not_hear_each_other(encoder):
    x = torch.randn(3, 96, 80)
    together, _ = encoder(x, encoder.initial_state(3))
    alone, _ = encoder(x[1:2], encoder.initial_state(1))
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=0)


def test_a_batch_may_hold_streams_of_different_age():
    encoder = lively("attention", {})
    x = torch.randn(1, 4 * 150, 80)
    with torch.inference_mode():
        _, old = encoder(x, encoder.initial_state(1))
        state = tuple(torch.cat([a, b]) for a, b in zip(old, encoder.initial_state(1)))
        y, _ = encoder(x[:, :80].expand(2, -1, -1), state)
        expected_old, _ = encoder(x[:, :80], old)
        expected_new, _ = encoder(x[:, :80], encoder.initial_state(1))
    torch.testing.assert_close(y, torch.cat([expected_old, expected_new]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_parameter_budgets_of_a_size_lie_within_five_percent(size):
    counts = [n_parameters(build(kind, options)) for kind, options in SIZES[size].items()]
    assert max(counts) <= 1.05 * min(counts)
    low, high = {"tiny": (0.9e6, 1.2e6), "small": (2.5e6, 6e6), "base": (4.5e6, 6e6)}[size]
    assert all(low <= n <= high for n in counts)


def test_default_models_look_ahead_at_most_320_ms():
    for size in SIZES.values():
        assert all(build(kind, options).lookahead_frames <= 32 for kind, options in size.items())


def test_configuration_survives_json(encoder):
    kind = next(kind for kind, (class_, _) in ENCODERS.items() if isinstance(encoder, class_))
    again = build(kind, json.loads(json.dumps(config_of(encoder))))
    assert again.config == encoder.config


def test_a_bidirectional_lstm_refuses_to_stream():
    encoder = build("lstm", {**SIZES["tiny"]["lstm"], "bidirectional": True})
    with pytest.raises(UsageError, match="needs the whole recording"):
        encoder.require_streaming()


def test_an_unknown_cell_is_refused_by_name():
    with pytest.raises(UsageError, match="lstm, gru, rnn"):
        build("lstm", {"cell": "qrnn"})


def test_the_convolution_equals_torchs_own():
    layer = GatedDilatedConvolution(8, dilation=3, lookahead=2, dropout=0.0).eval()
    x = torch.randn(1, 20, 8)
    y, _ = layer(x, (torch.zeros(1, 6, 8),))
    padded = torch.cat([torch.zeros(1, 6, 8), x], 1)
    kernel = layer.project.weight.reshape(16, 3, 8).transpose(1, 2)
    convolved = torch.nn.functional.conv1d(layer.norm(padded).transpose(1, 2), kernel, layer.project.bias, dilation=3)
    value, gate = convolved.transpose(1, 2).chunk(2, 2)
    torch.testing.assert_close(y, padded[:, 4:24] + value * gate.sigmoid())


def attend_naively(layer: TwoLevelAttention, x: torch.Tensor) -> torch.Tensor:
    """The module's definition, vector by vector, for one stream without a gate: (T, D) → (T, D)."""
    dim, n_heads = x.shape[1], layer.n_heads
    q, k, v = layer.qkv(layer.norm(x)).split(dim, 1)
    split = lambda a: a.reshape(-1, n_heads, dim // n_heads)  # noqa: E731
    pools = []
    for first in range(0, len(x) - N_RECENT + 1, N_RECENT):
        part = slice(first, first + N_RECENT)
        weight = layer.pool(k[part]).softmax(0)  # (100, H)
        pools.append([torch.einsum("th,thd->hd", weight, split(a[part])) for a in (k, v)])
    rows = []
    for t in range(len(x)):
        first = max(0, t - N_RECENT + 1)
        n_seen = t // N_RECENT  # a group may be seen from the vector after its last
        summaries = pools[max(0, n_seen - N_SUMMARIES) : n_seen]
        keys = torch.cat([split(k[first : t + 1]), *[p[0][None] for p in summaries]])
        values = torch.cat([split(v[first : t + 1]), *[p[1][None] for p in summaries]])
        logits = torch.einsum("hd,thd->ht", split(q[t : t + 1])[0], keys) * (dim // n_heads) ** -0.5
        ages = torch.arange(t - first, -1, -1)
        far = torch.arange(len(summaries) - 1, -1, -1)
        logits = logits + torch.cat([layer.recent_bias[:, ages], layer.summary_bias[:, far]], 1)
        rows.append(torch.einsum("ht,thd->hd", logits.softmax(1), values).reshape(-1))
    return x + layer.project(torch.stack(rows))


@torch.inference_mode()
def test_two_level_attention_is_what_its_definition_says():
    torch.manual_seed(1)
    layer = TwoLevelAttention(HierarchicalAttentionConfig(dim=16, n_heads=2)).eval()
    layer.recent_bias.normal_()
    layer.summary_bias.normal_()
    x = torch.randn(1, 330, 16)
    y, _ = layer(x, tuple(torch.zeros(1, *s) for s in layer.state_shapes))
    torch.testing.assert_close(y[0], attend_naively(layer, x[0]), atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_only_the_last_hundred_summaries_are_kept():
    torch.manual_seed(2)
    layer = TwoLevelAttention(HierarchicalAttentionConfig(dim=8, n_heads=2)).eval()
    x = torch.randn(1, N_RECENT * (N_SUMMARIES + 3) + 7, 8)
    state = tuple(torch.zeros(1, *s) for s in layer.state_shapes)
    for part in x.split(400, 1):
        y, state = layer(part, state)
    assert state[2].tolist() == [[[x.shape[1], N_SUMMARIES]]]
    torch.testing.assert_close(y[0, -1:], attend_naively(layer, x[0])[-1:], atol=1e-4, rtol=1e-4)


@torch.inference_mode()
def test_the_cosine_gate_stores_a_repeated_group_once():
    torch.manual_seed(3)
    layer = TwoLevelAttention(
        HierarchicalAttentionConfig(dim=8, n_heads=2, gate="cosine", cosine_threshold=0.99)
    ).eval()
    group, other = torch.randn(1, N_RECENT, 8), torch.randn(1, N_RECENT, 8)
    x = torch.cat([group, group, other, group, other], 1)
    _, state = layer(x, tuple(torch.zeros(1, *s) for s in layer.state_shapes))
    assert state[2][0, 0, 1] == 2
