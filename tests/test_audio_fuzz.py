"""Five hundred broken recordings, samples or a typed error for each; benchmarks/fuzz_audio.py breaks thousands."""

import io
import os

import numpy as np
import pytest
from broken_audio import any_wav, mutate, recordings
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.audio import AudioFile, RawFormat
from edge_asr.audio_wav import ENCODINGS
from edge_asr.errors import AudioError, StreamError

FILES = recordings()


class Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False


def hear(content: bytes, raw: RawFormat | None = None) -> None:
    """Reads to the end; every sample is finite, nothing but AudioError is raised."""
    try:
        with AudioFile(Pipe(content), raw=raw) as audio:
            for block in audio:
                assert block.dtype == np.float32
                assert np.isfinite(block).all()
    except AudioError as error:
        message = str(error)
    else:
        return
    assert message.startswith("standard input: ")


@settings(max_examples=200, deadline=None)
@given(any_wav)
def test_any_wav_header_gives_samples_or_an_audio_error(content):
    hear(content)


@settings(max_examples=250, deadline=None)
@given(st.sampled_from(sorted(FILES)), st.sampled_from(sorted(FILES)), st.integers(0, 2**32))
def test_a_mutated_recording_gives_samples_or_an_audio_error(name, other, seed):
    hear(mutate(FILES[name], np.random.default_rng(seed), FILES[other]))


@settings(max_examples=50, deadline=None)
@given(
    st.binary(min_size=1, max_size=5_000),
    st.builds(
        RawFormat, st.sampled_from([1_000, 16_000, 768_000]), st.sampled_from(sorted(ENCODINGS)), st.integers(1, 8)
    ),
)
def test_any_bytes_are_raw_samples(content, raw):
    hear(content, raw)


@pytest.mark.parametrize("name", sorted(FILES))
def test_reading_leaves_no_file_open(tmp_path, name):
    path = tmp_path / "recording"
    path.write_bytes(FILES[name][: len(FILES[name]) // 2])
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    for source in (path, Pipe(path.read_bytes())):
        try:
            with AudioFile(source) as audio:
                list(audio)
        except (AudioError, StreamError):
            continue
    assert before in (0, len(os.listdir("/proc/self/fd")))
