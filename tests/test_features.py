"""Streamed features equal the whole file, bit for bit, and agree with the field's two references."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.errors import DependencyError, StreamError
from edge_asr.features import FbankStream, KaldiFbankStream, fbank


def speechlike(n_samples: int, seed: int = 0) -> np.ndarray:
    """Harmonics with a wandering pitch and an envelope, above a low noise floor."""
    rng = np.random.default_rng(seed)
    t = np.arange(n_samples) / 16_000
    pitch = 120 + 30 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / 16_000
    voice = sum(np.sin(k * phase) / k for k in range(1, 30))
    envelope = 0.1 * np.clip(np.sin(2 * np.pi * 2.3 * t), 0, 1)
    return (voice * envelope + 1e-3 * rng.standard_normal(n_samples)).astype(np.float32)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 8_000), st.lists(st.integers(0, 2_500), max_size=12))
def test_any_split_gives_the_frames_of_the_whole_file(n_samples, cuts):
    samples = speechlike(8_000)[:n_samples]
    stream, frames, first = FbankStream(), [], 0
    for size in cuts:
        frames.append(stream.accept(samples[first : first + size]))
        first = min(n_samples, first + size)
    frames += [stream.accept(samples[first:]), stream.flush()]
    assert np.array_equal(np.concatenate(frames), fbank(samples))


@pytest.mark.parametrize("n_samples", [0, 1, 79, 80, 239, 240, 399, 400, 401, 16_000])
def test_a_signal_gives_one_frame_for_each_10_ms_rounded(n_samples):
    assert fbank(speechlike(n_samples)).shape == ((n_samples + 80) // 160, 80)


@pytest.mark.parametrize("n_samples", [80, 100, 239, 300, 1_000, 32_000])
@pytest.mark.parametrize("offset", [0, 0.1])
def test_agrees_with_kaldi_native_fbank_on_the_whole_signal(n_samples, offset):
    samples = speechlike(n_samples) + np.float32(offset)
    reference = KaldiFbankStream()
    expected = np.concatenate([reference.accept(samples), reference.flush()])
    assert np.abs(fbank(samples) - expected).max() < 1e-3


def test_kaldis_own_frames_come_in_any_split_and_end_once():
    samples, whole, stream = speechlike(8_000), KaldiFbankStream(), KaldiFbankStream()
    expected = np.concatenate([whole.accept(samples), whole.flush()])
    frames = [stream.accept(piece) for piece in np.split(samples, [0, 100, 1_000, 1_000, 7_999])]
    assert np.array_equal(np.concatenate([*frames, stream.flush()]), expected)
    assert len(stream.flush()) == 0
    with pytest.raises(StreamError, match="flushed"):
        stream.accept(samples)


def test_without_the_package_kaldis_features_say_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "kaldi_native_fbank", None)
    with pytest.raises(DependencyError, match="needs the package kaldi-native-fbank"):
        KaldiFbankStream()


def test_agrees_with_torchaudio():
    torch = pytest.importorskip("torch")
    kaldi = pytest.importorskip("torchaudio.compliance.kaldi")
    samples = speechlike(32_000)
    expected = kaldi.fbank(
        torch.from_numpy(samples)[None].double(), num_mel_bins=80, high_freq=-400, dither=0, snip_edges=False
    )  # fmt: skip
    assert np.abs(fbank(samples) - expected.numpy()).max() < 1e-3


def test_a_frame_is_out_as_soon_as_its_25_ms_are_in():
    stream = FbankStream()
    assert len(stream.accept(speechlike(279))) == 0  # frame 0 covers samples −120 … 279
    assert len(stream.accept(speechlike(1))) == 1
    assert len(stream.accept(speechlike(159))) == 0
    assert len(stream.accept(speechlike(1))) == 1


def test_digital_silence_is_finite():
    assert np.isfinite(fbank(np.zeros(4_000, np.float32))).all()


def test_a_flushed_stream_refuses_more_samples():
    stream = FbankStream()
    stream.accept(speechlike(1_000))
    stream.flush()
    assert len(stream.flush()) == 0
    with pytest.raises(StreamError, match="flushed"):
        stream.accept(speechlike(10))


def test_an_hour_of_audio_leaves_memory_flat():
    resource = pytest.importorskip("resource")
    stream, block = FbankStream(), speechlike(16_000)
    for _ in range(60):
        stream.accept(block)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(600):
        stream.accept(block)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 2_000  # kept frames would take 19 MB
