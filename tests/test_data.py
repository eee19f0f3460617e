"""Manifests, the feature cache and augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from edge_asr import data
from edge_asr.data import (
    FLOOR,
    AugmentConfig,
    FeatureSet,
    add_noise,
    equalise,
    limit_band,
    mask_features,
    mel_bin,
    prepare,
    read_manifest,
    resample_features,
)
from edge_asr.errors import ManifestError
from edge_asr.features import N_MEL, fbank

SAMPLES = Path(__file__).parent.parent / "samples"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    folder, noise = tmp_path_factory.mktemp("cache"), tmp_path_factory.mktemp("noise")
    soundfile.write(noise / "hiss.wav", 0.01 * np.random.default_rng(0).normal(size=40_000), 16_000)
    prepare(SAMPLES / "manifest.jsonl", folder, noise_dir=noise, n_workers=1)
    return folder


def test_the_cache_holds_the_features_of_every_clip(cache):
    features = FeatureSet(cache)
    clips = read_manifest(SAMPLES / "manifest.jsonl")
    assert [c.text for c in features.clips] == [c.text for c in clips]
    drawn = features.view(features.clips[3], 1.0, np.random.default_rng(0))
    np.testing.assert_allclose(drawn, fbank(data.load_audio(clips[3].audio_filepath)), atol=0.02)  # stored as fp16


def test_a_room_keeps_length_and_timing_but_not_the_features(cache):
    features = FeatureSet(cache)
    clip = features.clips[0]
    span = slice(clip.first_frame, clip.first_frame + clip.n_frames)
    dry, room = (features.features[v][span].astype(np.float32).mean(1) for v in data.VARIANTS)
    assert not np.allclose(dry, room, atol=0.1)
    assert np.corrcoef(dry, room)[0, 1] > 0.7


def test_batches_cover_every_clip_once_and_keep_the_budget(cache):
    features = FeatureSet(cache)
    targets = [np.ones(3, np.int64) for _ in features.clips]
    batches = list(features.batches(targets, 20.0, np.random.default_rng(0)))
    assert sorted(i for b in batches for i in b) == list(range(len(features.clips)))
    assert all(len(b) == 1 or len(b) * max(features.clips[i].n_frames for i in b) <= 2000 for b in batches)


def test_ranks_share_the_batches_without_overlap(cache):
    features = FeatureSet(cache)
    targets = [np.ones(3, np.int64) for _ in features.clips]
    shares = [list(features.batches(targets, 10.0, np.random.default_rng(5), rank=r, n_ranks=2)) for r in (0, 1)]
    assert len(shares[0]) == len(shares[1])
    first, second = ({i for b in share for i in b} for share in shares)
    assert not first & second


def test_a_drawn_batch_is_the_same_for_the_same_seed(cache):
    features = FeatureSet(cache, AugmentConfig())
    targets = [np.arange(1, 5) for _ in features.clips]
    a, b = (features.collate([0, 5, 2], targets, np.random.default_rng(9)) for _ in range(2))
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert a["x"].shape[1] % 4 == 0
    assert np.isfinite(a["x"]).all()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 300), speed=st.floats(0.8, 1.25), warp=st.floats(0.85, 1.15))
def test_speed_changes_length_by_its_factor_and_stays_within_the_values(n, speed, warp):
    features = np.random.default_rng(n).normal(size=(n, N_MEL)).astype(np.float32)
    out = resample_features(features, speed, warp)
    assert out.shape == (max(1, round(n / speed)), N_MEL)
    assert out.min() >= features.min() - 1e-5
    assert out.max() <= features.max() + 1e-5


def test_speed_one_and_warp_one_change_nothing():
    features = np.random.default_rng(0).normal(size=(50, N_MEL)).astype(np.float32)
    np.testing.assert_allclose(resample_features(features, 1.0, 1.0), features, atol=1e-5)


def test_noise_added_to_mel_powers_is_close_to_noise_added_to_samples():
    rng = np.random.default_rng(0)
    voice = (0.1 * rng.normal(size=48_000) * np.repeat(rng.random(48) > 0.5, 1000)).astype(np.float32)
    noise = (0.03 * rng.normal(size=48_000)).astype(np.float32)
    truth = fbank(voice + noise)
    added = np.logaddexp(fbank(voice), fbank(noise))
    assert np.abs(truth - added).mean() < 0.35  # nepers of power; the cross term has mean zero
    louder, softer = (add_noise(fbank(voice), fbank(noise), snr).mean() for snr in (0.0, 30.0))
    assert louder > softer + 0.5


@pytest.mark.parametrize("cutoff_hz", [3000.0, 3400.0, 4000.0])
def test_a_limited_band_is_that_of_a_low_pass_filter(cutoff_hz):
    voice = (0.1 * np.random.default_rng(0).normal(size=48_000)).astype(np.float32)
    steep = signal.firwin(1601, cutoff_hz, fs=16_000)
    truth = fbank(signal.fftconvolve(voice, steep, mode="same").astype(np.float32)).mean(0)
    limited = limit_band(fbank(voice), cutoff_hz, FLOOR[0]).mean(0)
    edge = int(mel_bin(cutoff_hz))
    np.testing.assert_allclose(limited[: edge - 1], truth[: edge - 1], atol=0.2)
    assert np.all(limited[edge + 4 :] < limited[: edge - 1].min() - 5)
    assert np.all(truth[edge + 4 :] < truth[: edge - 1].min() - 5)


def test_an_equaliser_is_smooth_and_the_same_for_all_frames():
    features = np.random.default_rng(0).normal(size=(50, N_MEL)).astype(np.float32)
    gain = equalise(features, 4.0, np.random.default_rng(1)) - features
    np.testing.assert_allclose(gain, np.tile(gain[0], (50, 1)), atol=1e-5)
    assert 0.1 < gain[0].std() < 3
    assert np.abs(np.diff(gain[0], 2)).max() < 0.5


def test_masks_hide_no_more_than_their_share():
    config = AugmentConfig(n_mel_masks=0, time_mask_share=0.1)
    features = np.ones((400, N_MEL), np.float32)
    mask_features(features, config, np.zeros(N_MEL, np.float32), np.random.default_rng(0))
    assert 0 < (features == 0).all(1).sum() <= 40


@pytest.mark.parametrize(
    "line", ['{"audio_filepath": "a.wav"}', "not json", '{"audio_filepath": 1, "duration": "x", "text": ""}']
)
def test_a_bad_line_of_a_manifest_is_named(tmp_path, line):
    path = tmp_path / "m.jsonl"
    path.write_text('{"audio_filepath": "a.wav", "duration": 1, "text": "a"}\n' + line + "\n")
    with pytest.raises(ManifestError, match=r"m\.jsonl:2"):
        read_manifest(path)


def test_a_missing_or_empty_manifest_is_an_error(tmp_path):
    with pytest.raises(ManifestError, match="no file"):
        read_manifest(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ManifestError, match="empty manifest"):
        read_manifest(tmp_path / "empty.jsonl")
