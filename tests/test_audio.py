"""Any recording becomes mono 16 kHz blocks; what is no recording becomes a typed error that says what to do."""

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.audio import AudioFile, Resampler, as_mono, load_audio, read_blocks, replace_damaged
from edge_asr.errors import (
    AudioDirectoryError,
    AudioEmptyError,
    AudioFormatError,
    AudioNotFoundError,
    AudioTruncatedError,
    StreamError,
)


def tone(rate_hz: int = 16_000, seconds: float = 1.0, hz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(int(rate_hz * seconds)) / rate_hz)).astype(np.float32)


def strongest_hz(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum)) * 16_000 / len(samples)


@pytest.mark.parametrize(
    ("name", "container", "subtype"),
    [
        ("a.wav", "WAV", "PCM_16"),
        ("b.wav", "WAV", "PCM_24"),
        ("c.wav", "WAV", "PCM_32"),
        ("d.wav", "WAV", "FLOAT"),
        ("e.wav", "WAVEX", "PCM_24"),
        ("f.wav", "WAV", "PCM_U8"),
        ("g.flac", "FLAC", "PCM_16"),
        ("h.flac", "FLAC", "PCM_24"),
        ("i.ogg", "OGG", "VORBIS"),
        ("j.opus", "OGG", "OPUS"),
        ("k.mp3", "MP3", "MPEG_LAYER_III"),
    ],
)
@pytest.mark.parametrize("n_channels", [1, 2])
def test_every_container_gives_the_tone_that_went_in(tmp_path, name, container, subtype, n_channels):
    path = tmp_path / name
    soundfile.write(path, np.tile(tone()[:, None], n_channels), 16_000, format=container, subtype=subtype)
    samples = load_audio(path)
    assert samples.dtype == np.float32
    assert len(samples) == pytest.approx(16_000, abs=1_700)  # mp3 pads its frames
    assert strongest_hz(samples) == pytest.approx(440, abs=2)
    assert np.abs(samples[2_000:14_000]).max() == pytest.approx(0.3, abs=0.02)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000])
def test_any_rate_becomes_16_khz(tmp_path, rate_hz):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(rate_hz), rate_hz)
    samples = load_audio(path)
    assert abs(len(samples) - 16_000) <= 1
    assert strongest_hz(samples) == pytest.approx(440, abs=2)


def test_eight_channels_become_their_mean(tmp_path):
    path = tmp_path / "eight.wav"
    channels = np.random.default_rng(0).uniform(-1, 1, (5_000, 8)).astype(np.float32)
    soundfile.write(path, channels, 16_000, subtype="FLOAT")
    assert np.allclose(load_audio(path), channels.mean(axis=1), atol=1e-6)


def test_blocks_join_to_the_file_and_stay_small(tmp_path):
    path = tmp_path / "long.wav"
    soundfile.write(path, tone(seconds=3.3), 16_000, subtype="FLOAT")
    blocks = list(read_blocks(path, block_ms=100))
    assert max(map(len, blocks)) == 1_600
    assert np.array_equal(np.concatenate(blocks), tone(seconds=3.3))


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([8_000, 22_050, 44_100, 48_000]), st.lists(st.integers(0, 5_000), max_size=15))
def test_resampling_does_not_depend_on_the_split(rate_hz, sizes):
    samples = tone(rate_hz, 0.5)
    expected = soxr.resample(samples, rate_hz, 16_000, "HQ")
    resampler, parts, first = Resampler(rate_hz), [], 0
    for size in [*sizes, len(samples)]:
        parts.append(resampler.process(samples[first : first + size]))
        first += size
    streamed = np.concatenate([*parts, resampler.flush()])
    assert len(streamed) == len(expected)
    assert np.abs(streamed - expected).max() < 1e-5


def test_damaged_samples_are_replaced_and_counted(tmp_path):
    samples = tone()
    samples[[5, 99, 3_000, 9_000]] = [np.nan, np.inf, -np.inf, 1e30]
    path = tmp_path / "damaged.wav"
    soundfile.write(path, samples, 16_000, subtype="FLOAT")
    with AudioFile(path) as audio:
        clean = np.concatenate(list(audio))
    assert audio.n_replaced == 4
    assert clean[[5, 99, 3_000, 9_000]].tolist() == [0, 0, 0, 0]
    assert np.array_equal(np.delete(clean, [5, 99, 3_000, 9_000]), np.delete(tone(), [5, 99, 3_000, 9_000]))


def test_sound_samples_pass_through_uncopied():
    samples = tone()
    clean, n_replaced = replace_damaged(samples)
    assert clean is samples
    assert n_replaced == 0


def test_integer_samples_are_scaled_to_one():
    assert as_mono(np.array([-32_768, 16_384], np.int16))[0].tolist() == [-1, 0.5]
    assert as_mono(np.array([[2**30, -(2**31)]], np.int32))[0].tolist() == [-0.25]


def test_a_float64_that_float32_cannot_hold_is_damaged():
    samples, n_replaced = as_mono(np.array([0.5, 6.8e38, -1e300]))
    assert (samples.tolist(), n_replaced) == ([0.5, 0.0, 0.0], 2)


@pytest.mark.parametrize("samples", [np.zeros((2, 2, 2)), np.array(["a"]), np.zeros(3, np.uint8)])
def test_arrays_that_are_no_samples_are_refused(samples):
    with pytest.raises(StreamError, match="samples must be"):
        as_mono(samples)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(AudioNotFoundError, match=r"nowhere\.wav.*No such file"):
        load_audio(tmp_path / "nowhere.wav")


def test_a_name_with_a_null_byte_is_a_missing_file():
    with pytest.raises(AudioNotFoundError):
        load_audio("a\0b.wav")


def test_a_folder_is_not_a_recording(tmp_path):
    with pytest.raises(AudioDirectoryError, match="folder"):
        load_audio(tmp_path)


def test_an_empty_file_says_so(tmp_path):
    path = tmp_path / "empty.wav"
    path.touch()
    with pytest.raises(AudioEmptyError, match="0 bytes"):
        load_audio(path)


def test_zero_samples_say_so(tmp_path):
    path = tmp_path / "silent.wav"
    soundfile.write(path, tone()[:0], 16_000)
    with pytest.raises(AudioEmptyError, match="0 samples"):
        load_audio(path)


def test_one_sample_is_a_recording(tmp_path):
    path = tmp_path / "one.wav"
    soundfile.write(path, tone()[:1], 16_000)
    assert len(load_audio(path)) == 1


@pytest.mark.parametrize("content", [b"hello, this is no recording\n" * 50, bytes(range(256)) * 40, b"\0" * 5_000])
@pytest.mark.parametrize("name", ["garbage.wav", "garbage.flac", "garbage.bin"])
def test_garbage_is_told_from_a_recording(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(AudioFormatError, match="needs a recording"):
        load_audio(path)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_truncated_file_gives_what_it_holds_and_says_where_it_ends(tmp_path, suffix):
    path = tmp_path / f"whole.{suffix}"
    soundfile.write(path, tone(seconds=20) + 0.01 * np.random.default_rng(0).standard_normal(320_000), 16_000)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with AudioFile(cut) as audio:
        n_samples = sum(map(len, audio))
    assert 100_000 < n_samples < 200_000
    assert audio.damage is not None


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
def test_a_file_cut_off_before_its_samples_is_truncated(tmp_path, suffix):
    path = tmp_path / f"whole.{suffix}"
    soundfile.write(path, tone(), 16_000)
    cut = tmp_path / f"cut.{suffix}"
    cut.write_bytes(path.read_bytes()[: {"wav": 44, "flac": 200, "ogg": 2_000}[suffix]])
    with pytest.raises(AudioTruncatedError, match="copy the file again"):
        load_audio(cut)


@pytest.mark.parametrize("riff_size", [None, 0, 0xFFFFFFFF])
@pytest.mark.parametrize("data_size", [0, 0xFFFFFFFF, 0xFFFFFFDB])
def test_a_wav_header_of_unknown_length_is_read_to_the_end(tmp_path, data_size, riff_size):
    path = tmp_path / "streamed.wav"
    soundfile.write(path, tone(), 16_000)
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", data_size)
    if riff_size is not None:
        content[4:8] = struct.pack("<I", riff_size)
    path.write_bytes(content)
    with AudioFile(path) as audio:
        samples = np.concatenate(list(audio))
    assert np.allclose(samples, tone(), atol=1e-4)
    assert audio.damage is None


def test_a_sample_rate_that_no_recorder_has_is_a_damaged_header(tmp_path):
    path = tmp_path / "rate.wav"
    soundfile.write(path, tone(), 16_000)
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", 3)
    path.write_bytes(content)
    with pytest.raises(AudioFormatError, match="sample rate 3 Hz"):
        load_audio(path)


def test_hours_of_audio_are_read_in_flat_memory(tmp_path):
    resource = pytest.importorskip("resource")
    path = Path(tmp_path) / "hours.flac"
    with soundfile.SoundFile(path, "w", 8_000, 1) as file:
        for _ in range(600):
            file.write(np.zeros(8_000 * 6, np.float32))
    blocks = iter(AudioFile(path))
    next(blocks)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    n_samples = sum(map(len, blocks))
    assert n_samples > 16_000 * 3_500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 5_000  # the whole hour would take 230 MB
