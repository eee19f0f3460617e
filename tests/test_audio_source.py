"""Files, pipes and streams: what is none of them, what changes while it is read, what cannot be named."""

import errno
import io
import os
import threading

import numpy as np
import pytest
import soundfile
from broken_audio import chunk, wav_bytes
from test_audio import tone

from edge_asr import audio_source
from edge_asr.audio import AudioFile, RawFormat, load_audio, read_blocks
from edge_asr.errors import (
    AudioDirectoryError,
    AudioEmptyError,
    AudioError,
    AudioFormatError,
    AudioNotFoundError,
    StreamError,
)

pytestmark = pytest.mark.skipif(os.name != "posix", reason="pipes and links of POSIX")

SAMPLES = (tone(seconds=2.0) * 32_767).astype("<i2")
WAV = wav_bytes(SAMPLES.tobytes())


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(WAV)
    return path


class Dripping(io.RawIOBase):
    """A stream that gives a few bytes at a time, none at times, and fails where it is told to."""

    def __init__(self, content: bytes, fails_at: int | None = None) -> None:
        super().__init__()
        self._content, self._fails_at, self._at, self._turn = content, fails_at, 0, 0

    def readable(self) -> bool:
        return True

    def read(self, n_bytes: int = -1) -> bytes | None:
        self._turn += 1
        if self._turn % 5 == 0:
            return None
        if self._fails_at is not None and self._at >= self._fails_at:
            raise OSError(errno.EIO, "Input/output error")
        data = self._content[self._at : self._at + min(n_bytes, 7_919)]
        self._at += len(data)
        return data


# --- streams -------------------------------------------------------------------------------------------------------


def test_a_stream_that_drips_is_read_like_a_file(wav):
    assert np.array_equal(load_audio(Dripping(WAV)), load_audio(wav))


def test_a_stream_stays_open_for_its_owner():
    stream = io.BytesIO(WAV)
    load_audio(stream)
    assert not stream.closed


def test_a_pipe_is_heard_while_it_is_written():
    reading, writing = os.pipe()
    with open(reading, "rb") as stream, open(writing, "wb", buffering=0) as out:
        out.write(wav_bytes(SAMPLES[:16_000].tobytes(), data_size=0xFFFFFFFF))
        blocks = read_blocks(stream)
        assert len(next(blocks)) == 8_000  # and the pipe is still open
        out.close()
        assert sum(map(len, blocks)) == 8_000


def test_a_text_stream_is_refused():
    with pytest.raises(StreamError, match=r"binary stream.*\.buffer"):
        AudioFile(io.StringIO("RIFF"))


@pytest.mark.parametrize("source", [3, None, np.zeros(3)])
def test_what_is_no_source_is_refused(source):
    with pytest.raises(StreamError, match="path or a binary stream"):
        AudioFile(source)


def test_an_empty_stream_says_so():
    with pytest.raises(AudioEmptyError, match="standard input: is 0 bytes long"):
        AudioFile(io.BytesIO())


def test_a_stream_that_fails_gives_what_came_before():
    with AudioFile(Dripping(WAV, fails_at=32_000)) as audio:
        assert sum(map(len, audio)) == pytest.approx(16_000, abs=4_000)
        assert "Input/output error" in audio.damage


def test_a_stream_that_fails_at_once_is_an_error():
    with pytest.raises(AudioNotFoundError, match="Input/output error"):
        AudioFile(Dripping(WAV, fails_at=0))


def test_raw_samples_come_from_any_source(wav):
    with AudioFile(wav, raw=RawFormat()) as audio:
        assert sum(map(len, audio)) == len(WAV) // 2


def test_a_compressed_stream_without_room_for_its_copy_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    file = io.BytesIO()
    soundfile.write(file, tone(), 16_000, format="FLAC")
    with pytest.raises(AudioError, match="TMPDIR"):
        AudioFile(io.BytesIO(file.getvalue()))


def test_a_wav_that_only_libraries_know_is_told_to_be_saved_first():
    file = io.BytesIO()
    soundfile.write(file, tone(), 16_000, format="WAV", subtype="GSM610")
    with pytest.raises(AudioFormatError, match="save it to a file first"):
        AudioFile(io.BytesIO(file.getvalue()))


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["with space.wav", "new\nline.wav", "🎤 données.wav", "-", "concat:a|b.wav", "%d.wav"])
def test_any_name_is_a_name(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(WAV)
    assert len(load_audio(path)) == len(SAMPLES)


@pytest.mark.parametrize("container", ["WAV", "FLAC", "MP3"])
def test_a_name_that_is_no_unicode_is_a_name(tmp_path, container):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.bin")
    file = io.BytesIO()
    soundfile.write(file, tone(), 16_000, format=container)
    with open(path, "wb") as out:
        out.write(file.getvalue())
    assert len(load_audio(path)) == pytest.approx(16_000, abs=1_700)
    assert len(load_audio(os.fsdecode(path))) == pytest.approx(16_000, abs=1_700)


def test_a_name_that_is_too_long_is_a_missing_file(tmp_path):
    with pytest.raises(AudioNotFoundError, match="too long"):
        load_audio(tmp_path / ("a" * 300))


def test_a_loop_of_symbolic_links_is_told(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(AudioNotFoundError, match="symbolic links"):
        load_audio(tmp_path / "a")


def test_a_symbolic_link_leads_to_its_file(tmp_path, wav):
    (tmp_path / "link").symlink_to(wav)
    assert len(load_audio(tmp_path / "link")) == len(SAMPLES)


def test_a_link_to_a_folder_is_a_folder(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(AudioDirectoryError, match="folder"):
        load_audio(tmp_path / "link")


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may read all")
def test_a_file_without_permission_is_told(wav):
    wav.chmod(0)
    with pytest.raises(AudioNotFoundError, match="Permission denied"):
        load_audio(wav)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom"])
def test_a_device_is_not_read(device):
    with pytest.raises(AudioFormatError, match="device"):
        AudioFile(device)


def test_a_named_pipe_is_read_when_somebody_writes(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(WAV,))
    writer.start()
    try:
        assert len(load_audio(path)) == len(SAMPLES)
    finally:
        writer.join()


def test_a_named_pipe_that_nobody_writes_to_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_source, "PIPE_WAIT_S", 0.05)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(AudioNotFoundError, match="no program writes"):
        AudioFile(path)


def test_a_file_that_grows_while_it_is_read_is_read_to_its_new_end(tmp_path):
    path = tmp_path / "growing.wav"
    path.write_bytes(wav_bytes(SAMPLES[:16_000].tobytes(), data_size=2 * len(SAMPLES)))
    with AudioFile(path) as audio:
        blocks = iter(audio)
        n_samples = len(next(blocks))
        with path.open("ab") as more:
            more.write(SAMPLES[16_000:].tobytes() + chunk(b"LIST", b"later"))
        n_samples += sum(map(len, blocks))
    assert n_samples == len(SAMPLES)
    assert audio.damage is None


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_file_that_shrinks_while_it_is_read_ends_there(tmp_path, container):
    path = tmp_path / "shrinking"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 160_000)
    soundfile.write(path, noise, 16_000, format=container)
    with AudioFile(path, block_ms=100) as audio:
        blocks = iter(audio)
        n_samples = len(next(blocks))
        os.truncate(path, path.stat().st_size // 2)
        n_samples += sum(map(len, blocks))
    assert 1_600 <= n_samples < 120_000
    assert audio.damage is not None


def test_a_file_that_is_deleted_while_it_is_read_is_read_to_its_end(wav):
    with AudioFile(wav) as audio:
        blocks = iter(audio)
        n_samples = len(next(blocks))
        wav.unlink()
        assert n_samples + sum(map(len, blocks)) == len(SAMPLES)
