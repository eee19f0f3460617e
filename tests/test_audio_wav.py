"""wav in every state in which recorders, editors and pipes leave it, and samples without a header."""

import io
import struct

import numpy as np
import pytest
import soundfile
from broken_audio import chunk, hum, wav_bytes

from edge_asr.audio import AudioFile, RawFormat, load_audio
from edge_asr.audio_wav import ENCODINGS
from edge_asr.errors import AudioEmptyError, AudioFormatError, AudioTruncatedError, UsageError

SAMPLES = (hum(0.2) * 32_767).astype("<i2")
PCM = SAMPLES.tobytes()


def read(content: bytes) -> tuple[np.ndarray, str | None]:
    """Samples and damage, read as a pipe; what a file gives must be the same."""
    with AudioFile(io.BytesIO(content)) as audio:
        return np.concatenate(list(audio)), audio.damage


def assert_sound(content: bytes, damage: str | None = None) -> None:
    samples, found = read(content)
    assert np.array_equal(samples, SAMPLES / np.float32(32_768))
    assert found is None if damage is None else damage in found


@pytest.mark.parametrize("as_file", [True, False])
@pytest.mark.parametrize("data_size", [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 0xFFFFFFDB])
def test_a_size_that_was_never_filled_in_means_to_the_end(tmp_path, data_size, as_file):
    content = wav_bytes(PCM, data_size=data_size, riff_size=0)
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with AudioFile(path if as_file else io.BytesIO(content)) as audio:
        assert np.array_equal(np.concatenate(list(audio)), SAMPLES / np.float32(32_768))
        assert audio.damage is None


@pytest.mark.parametrize("length", range(5))
@pytest.mark.parametrize("padded", [True, False])
def test_odd_chunks_before_the_samples_are_passed_with_or_without_padding(length, padded):
    assert_sound(wav_bytes(PCM, before=chunk(b"LIST", b"x" * length, padded=padded) + chunk(b"zzzz", b"")))


def test_chunks_behind_the_samples_are_not_heard():
    assert_sound(wav_bytes(PCM, after=chunk(b"LIST", b"INFOISFT" + bytes(range(200)))))
    assert_sound(wav_bytes(PCM, after=b"garbage" * 99))


def test_an_odd_number_of_sample_bytes_is_padded_too():
    samples, damage = read(wav_bytes(b"\x90\x70\x80", bits=8, after=b"\0" + chunk(b"LIST", b"later")))
    assert samples.tolist() == [0.125, -0.125, 0]
    assert damage is None


def test_a_chunk_behind_an_empty_recording_is_no_recording():
    with pytest.raises(AudioEmptyError, match="0 samples"):
        read(wav_bytes(b"", after=chunk(b"LIST", b"x" * 1_000)))


def test_garbage_between_the_chunks_is_seen_through():
    assert_sound(wav_bytes(PCM, before=b"\0\1\2\3\xff\xff\xff\x7f" + b"\0" * 99))


def test_a_chunk_that_claims_more_than_the_file_is_seen_through(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes(PCM, before=b"LIST\xf0\xff\xff\x7fINFO"))
    assert np.array_equal(load_audio(path), SAMPLES / np.float32(32_768))


@pytest.mark.parametrize("magic", [b"RIFX", b"RF64", b"BW64"])
def test_the_relatives_of_riff_are_read(magic):
    order = ">" if magic == b"RIFX" else "<"
    pcm = SAMPLES.astype(f"{order}i2").tobytes()
    ds64 = chunk(b"ds64", struct.pack("<QQQI", len(pcm) + 80, len(pcm), len(SAMPLES), 0))
    long = magic != b"RIFX"
    assert_sound(
        wav_bytes(pcm, magic=magic, before=ds64 if long else b"", data_size=0xFFFFFFFF if long else None)
        + (chunk(b"LIST", b"not heard!") if long else b"")
    )


def test_a_64_bit_size_of_a_cut_file_is_told():
    ds64 = chunk(b"ds64", struct.pack("<QQQI", 1 << 41, 1 << 40, 1 << 39, 0))
    assert_sound(
        wav_bytes(PCM, magic=b"RF64", before=ds64, data_size=0xFFFFFFFF), damage="promises 1099511627776 bytes"
    )


def test_w64_of_sonys_programs_is_read(tmp_path):
    path = tmp_path / "a.wav"  # the name says nothing
    soundfile.write(path, SAMPLES, 16_000, format="W64")
    assert np.array_equal(load_audio(path), SAMPLES / np.float32(32_768))


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64", "W64"])
@pytest.mark.parametrize("endian", ["LITTLE", "BIG"])
def test_samples_are_those_of_libsndfile(tmp_path, container, subtype, endian):
    if endian == "BIG" and container != "WAV":
        pytest.skip("no such file")
    path = tmp_path / "a.wav"
    noise = np.random.default_rng(0).uniform(-0.99, 0.99, (2_000, 3)).astype(np.float32)
    soundfile.write(path, noise, 16_000, format=container, subtype=subtype, endian=endian)
    expected = soundfile.read(path, dtype="float32")[0].mean(axis=1, dtype=np.float32)
    assert np.allclose(load_audio(path), expected, atol=1e-6)


@pytest.mark.parametrize(("tag", "subtype"), [(6, "ALAW"), (7, "ULAW")])
def test_every_telephone_byte_is_the_sample_of_libsndfile(tag, subtype):
    content = wav_bytes(bytes(range(256)), bits=8, tag=tag)
    assert np.array_equal(read(content)[0], soundfile.read(io.BytesIO(content), dtype="float32")[0])


@pytest.mark.parametrize("n_channels", range(1, 9))
@pytest.mark.parametrize("extensible", [True, False])
def test_channels_become_their_mean(n_channels, extensible):
    channels = np.random.default_rng(0).integers(-30_000, 30_000, (999, n_channels)).astype("<i2")
    samples, _ = read(wav_bytes(channels.tobytes(), n_channels=n_channels, extensible=extensible))
    assert np.allclose(samples, channels.mean(axis=1) / 32_768, atol=1e-6)


def test_twenty_bits_lie_at_the_top_of_three_bytes():
    samples, _ = read(wav_bytes(b"\x00\x00\x40" * 4, bits=20, align=3, extensible=True))
    assert samples.tolist() == [0.5] * 4


@pytest.mark.parametrize("align", [0, 3, 7, 0xFFFF])
def test_a_wrong_block_size_gives_way_to_the_bits(align):
    assert_sound(wav_bytes(PCM, align=align, n_channels=1, bits=16) if align != 3 else wav_bytes(PCM))


@pytest.mark.parametrize("rate_hz", [0, 1, 999, 768_001, 0xFFFFFFFF])
def test_a_rate_of_no_recorder_is_refused(rate_hz):
    with pytest.raises(AudioFormatError, match=f"sample rate {rate_hz} Hz"):
        read(wav_bytes(PCM, rate_hz=rate_hz))


@pytest.mark.parametrize("rate_hz", [4_000, 11_025, 192_000])
def test_a_rate_of_a_recorder_is_taken(rate_hz):
    samples, _ = read(wav_bytes(PCM, rate_hz=rate_hz))
    assert abs(len(samples) - len(SAMPLES) * 16_000 / rate_hz) <= 1


@pytest.mark.parametrize("n_channels", [0, 129, 0xFFFF])
def test_channels_of_no_recorder_are_refused(n_channels):
    with pytest.raises(AudioFormatError, match=f"says {n_channels};"):
        read(wav_bytes(PCM, n_channels=n_channels))


@pytest.mark.parametrize("bits", [0, 40, 48, 0xFFFF])
def test_bits_of_no_recorder_are_refused(bits):
    with pytest.raises(AudioFormatError, match=f"says {bits} bits"):
        read(wav_bytes(PCM, bits=bits, align=0))


def test_samples_before_their_format_are_refused():
    with pytest.raises(AudioFormatError, match="'fmt ' chunk"):
        read(b"RIFF\0\0\0\0WAVE" + chunk(b"data", PCM) + chunk(b"fmt ", bytes(16)))


@pytest.mark.parametrize("n_bytes", [13, 20, 36, 43])
def test_a_file_that_ends_in_its_header_is_truncated(n_bytes):
    with pytest.raises(AudioTruncatedError, match="nothing could be read"):
        read(wav_bytes(PCM)[:n_bytes])


@pytest.mark.parametrize("n_lost", [1, 2, 1_001])
def test_a_cut_file_gives_all_whole_samples(n_lost):
    samples, damage = read(wav_bytes(PCM)[:-n_lost])
    assert len(samples) == len(SAMPLES) - (n_lost + 1) // 2
    assert "cut short" in damage


def test_a_recording_past_4_gb_has_its_whole_length_though_the_header_wrapped(tmp_path):
    path = tmp_path / "day.wav"
    n_bytes = 5 << 30
    with path.open("wb") as file:
        file.write(wav_bytes(b"", data_size=n_bytes % (1 << 32)))
        file.truncate(file.tell() + n_bytes)  # takes no room on disk
    with AudioFile(path) as audio:
        assert audio.duration_s == n_bytes / 2 / 16_000


def test_a_claim_of_a_tebibyte_takes_no_memory():
    content = wav_bytes(b"", rate_hz=768_000, n_channels=128, bits=64, tag=3, data_size=0xFFFFFFFE) + bytes(102_400)
    samples, _ = read(content)
    assert len(samples) <= 3


# --- without a header ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", list(ENCODINGS))
def test_samples_without_a_header_are_those_of_libsndfile(encoding):
    subtype = {
        "u8": "PCM_U8", "s8": "PCM_S8", "s16": "PCM_16", "s24": "PCM_24", "s32": "PCM_32",
        "f32": "FLOAT", "f64": "DOUBLE", "mulaw": "ULAW", "alaw": "ALAW",
    }[encoding.removesuffix("le").removesuffix("be")]  # fmt: skip
    stored = {"format": "RAW", "subtype": subtype, "endian": "BIG" if encoding.endswith("be") else "LITTLE"}
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).uniform(-1, 1, (999, 2)), 16_000, **stored)
    file.seek(0)
    with AudioFile(file, raw=RawFormat(16_000, encoding, 2)) as audio:
        samples = np.concatenate(list(audio))
    file.seek(0)
    expected = soundfile.read(file, dtype="float32", samplerate=16_000, channels=2, **stored)[0].mean(axis=1)
    assert np.allclose(samples, expected, atol=1e-6)


def test_half_a_frame_at_the_end_of_raw_samples_is_left_out():
    with AudioFile(io.BytesIO(PCM[:-1]), raw=RawFormat()) as audio:
        assert sum(map(len, audio)) == len(SAMPLES) - 1


@pytest.mark.parametrize(
    "wrong", [{"rate_hz": 0}, {"encoding": "s17le"}, {"n_channels": 0}, {"n_channels": 999}, {"rate_hz": 10**9}]
)
def test_a_format_of_raw_samples_that_cannot_be_is_a_usage_error(wrong):
    with pytest.raises(UsageError, match="raw samples must be"):
        RawFormat(**wrong)
