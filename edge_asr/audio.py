"""Any recording → float32 mono blocks at 16 kHz, without holding the file in memory.

libsndfile (through soundfile) reads wav, flac, ogg/opus, mp3 and more; soxr resamples as the blocks go by.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import soundfile
import soxr

from edge_asr.errors import (
    AudioDirectoryError,
    AudioEmptyError,
    AudioError,
    AudioFormatError,
    AudioNotFoundError,
    AudioTruncatedError,
    StreamError,
)

SAMPLE_RATE = 16_000  # Hz, of everything after this file
BLOCK_MS = 500  # audio per block read from a file
MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000  # outside: a damaged header, not a recording
MAX_MAGNITUDE = 65_536.0  # a sample beyond twice the int16 range is damage; its square would overflow the features

_UNKNOWN_WAV_SIZES = range(0xFFFFFF00, 0x100000000)  # written by programs that could not seek back to fill it in
_SNDFILE_BAD_FILE = 7  # SFE_BAD_FILE
_OGG_END_OF_STREAM = 4
_OGG_PAGE_BYTES = 65_307  # the largest page (RFC 3533)


def replace_damaged(samples: np.ndarray) -> tuple[np.ndarray, int]:
    """Samples with NaN, Inf and impossible magnitudes set to 0, and how many there were.

    One NaN would otherwise stay in the encoder's state and mute the stream for good.
    """
    if samples.size == 0 or np.abs(samples).max() <= MAX_MAGNITUDE:  # NaN compares false
        return samples, 0
    good = np.abs(samples) <= MAX_MAGNITUDE
    return np.where(good, samples, np.float32(0)), int(samples.size - np.count_nonzero(good))


def as_mono(samples: np.ndarray) -> tuple[np.ndarray, int]:
    """(n,) or (n, channels), float in ±1 or a signed integer type → (n,) float32, and the count of damaged samples."""
    samples = np.asarray(samples)
    if samples.ndim not in (1, 2):
        raise StreamError(f"samples must be (n,) or (n, channels), got shape {samples.shape}; pass one stream")
    if np.issubdtype(samples.dtype, np.signedinteger):
        samples = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    elif not np.issubdtype(samples.dtype, np.floating):
        raise StreamError(f"samples must be float in ±1 or signed integers, got {samples.dtype}; convert them first")
    samples, n_replaced = replace_damaged(samples.astype(np.float32, copy=False))
    return (samples if samples.ndim == 1 else samples.mean(axis=1, dtype=np.float32)), n_replaced


class Resampler:
    """Streaming conversion to 16 kHz: the joined output does not depend on how the input was split."""

    def __init__(self, rate_hz: int) -> None:
        if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
            raise AudioFormatError(
                f"sample rate {rate_hz} Hz is outside {MIN_RATE_HZ}…{MAX_RATE_HZ} Hz; the header is damaged or wrong"
            )
        self.rate_hz = rate_hz
        self._soxr = None if rate_hz == SAMPLE_RATE else soxr.ResampleStream(rate_hz, SAMPLE_RATE, 1, "float32", "HQ")

    def process(self, samples: np.ndarray) -> np.ndarray:
        return samples if self._soxr is None else self._soxr.resample_chunk(samples)

    def flush(self) -> np.ndarray:
        nothing = np.zeros(0, np.float32)
        return nothing if self._soxr is None else self._soxr.resample_chunk(nothing, last=True)


class AudioFile:
    """A recording on disk as blocks (n,) float32 mono at 16 kHz, read once from front to back.

    `damage` is None, or says after the last block what was wrong with a file that could still be read in part.
    Raises: AudioNotFoundError, AudioDirectoryError, AudioEmptyError, AudioFormatError, AudioTruncatedError.
    """

    def __init__(self, path: str | os.PathLike[str], block_ms: int = BLOCK_MS) -> None:
        self.path = Path(path)
        n_bytes = _require_file(self.path)
        self._claim = _container_claim(self.path, n_bytes)
        self._file = self._open()
        self.rate_hz: int = self._file.samplerate
        self.n_channels: int = self._file.channels
        self.n_samples = 0  # given out so far, at 16 kHz
        self.n_replaced = 0
        self.damage: str | None = self._claim if self._claim != _WAV_SIZE_ZERO else None
        self._block_frames = max(1, self.rate_hz * block_ms // 1000)

    @property
    def duration_s(self) -> float | None:
        """Length by the header, or None where it does not know."""
        n_frames = self._file.frames
        return n_frames / self.rate_hz if 0 < n_frames < 2**62 else None

    def __iter__(self) -> Iterator[np.ndarray]:
        resampler = Resampler(self.rate_hz)
        for frames in self._frames():
            mono, n_replaced = as_mono(frames)
            self.n_replaced += n_replaced
            yield from self._count(resampler.process(mono))
        yield from self._count(resampler.flush())
        if self.n_samples == 0:
            raise self._nothing()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _open(self) -> soundfile.SoundFile:
        source = _WavWithUnknownSize(self.path) if self._claim == _WAV_SIZE_ZERO else os.fspath(self.path)
        try:
            return soundfile.SoundFile(source)
        except soundfile.LibsndfileError as error:
            if self._claim is not None and self._claim != _WAV_SIZE_ZERO:
                raise AudioTruncatedError(
                    f"{self.path}: {self._claim} and nothing before that can be read; copy the file again"
                ) from error
            # libsndfile reports an mp3 without a single frame as a missing file, and the file is known to be there
            reason = "no sound found in it." if error.code == _SNDFILE_BAD_FILE else error.error_string.strip()
            raise AudioFormatError(
                f"{self.path}: needs a recording that libsndfile reads (wav, flac, ogg, opus, mp3, aiff …), "
                f"have: {reason} Convert it, for example: ffmpeg -i INPUT -ar 16000 -ac 1 out.wav"
            ) from error

    def _frames(self) -> Iterator[np.ndarray]:
        """Blocks (n, channels) as libsndfile decodes them; a decoder error ends the file but keeps what came before."""
        block = np.empty((self._block_frames, self.n_channels), np.float32)
        while True:
            block[:] = np.nan  # so that what was decoded before an error can be told from what was not
            try:
                frames = self._file.read(out=block)
            except soundfile.LibsndfileError as error:
                self.damage = f"decoding stopped at {self._position_s():.1f} s: {error.error_string.strip()}"
                decoded = np.flatnonzero(~np.isnan(block).any(axis=1))
                if decoded.size:
                    yield block[: decoded[-1] + 1]
                return
            if len(frames) == 0:
                if self.duration_s is not None and self._position_s() < self.duration_s - 0.5:
                    self.damage = f"ends at {self._position_s():.1f} s, its header promises {self.duration_s:.1f} s"
                return
            yield frames

    def _position_s(self) -> float:
        return self.n_samples / SAMPLE_RATE

    def _count(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        if samples.size:
            self.n_samples += samples.size
            yield samples

    def _nothing(self) -> AudioError:
        if self.damage is not None:
            return AudioTruncatedError(f"{self.path}: {self.damage}; nothing could be read, copy the file again")
        return AudioEmptyError(f"{self.path}: is 0 samples long; nothing to transcribe, record it again")


def read_blocks(path: str | os.PathLike[str], block_ms: int = BLOCK_MS) -> Iterator[np.ndarray]:
    """Blocks (n,) float32 mono at 16 kHz of a file; see AudioFile for the errors and for what was found damaged."""
    with AudioFile(path, block_ms) as audio:
        yield from audio


def load_audio(path: str | os.PathLike[str]) -> np.ndarray:
    """(n,) float32 mono at 16 kHz of a whole file, for short clips."""
    return np.concatenate(list(read_blocks(path)))


_WAV_SIZE_ZERO = "its wav header says 0 bytes of samples"


def _require_file(path: Path) -> int:
    """The size in bytes of a file that exists, can be read and holds something."""
    try:
        if path.is_dir():
            raise AudioDirectoryError(f"{path}: is a folder; name the recordings in it, for example {path}/*.wav")
        n_bytes = path.stat().st_size
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise AudioNotFoundError(f"{path}: cannot be opened ({reason}); check the name and the permissions") from error
    if n_bytes == 0:
        raise AudioEmptyError(f"{path}: is 0 bytes long; nothing to transcribe, copy or record it again")
    return n_bytes


def _container_claim(path: Path, n_bytes: int) -> str | None:
    """What the container's own bookkeeping says is wrong: libsndfile shortens such files without a word."""
    with path.open("rb") as file:
        magic = file.read(4)
        if magic == b"RIFF":
            return _wav_claim(file, n_bytes)
        if magic == b"OggS":
            return _ogg_claim(file, n_bytes)
    return None


def _wav_claim(file: BinaryIO, n_bytes: int) -> str | None:
    found = _find_wav_data(file, n_bytes)
    if found is None:
        return None
    offset, claimed = found
    present = n_bytes - offset
    if claimed == 0 and present > 0:
        return _WAV_SIZE_ZERO
    if claimed > present and claimed not in _UNKNOWN_WAV_SIZES:
        return f"is cut short: its header promises {claimed} bytes of samples, the file holds {present}"
    return None


def _find_wav_data(file: BinaryIO, n_bytes: int) -> tuple[int, int] | None:
    """(offset of the samples, size by the header) of a RIFF file's data chunk."""
    position = 12  # "RIFF", size, "WAVE"
    while position + 8 <= n_bytes:
        file.seek(position)
        name, size = struct.unpack("<4sI", file.read(8))
        if name == b"data":
            return position + 8, size
        position += 8 + size + size % 2
    return None


def _ogg_claim(file: BinaryIO, n_bytes: int) -> str | None:
    tail_bytes = min(n_bytes, 2 * _OGG_PAGE_BYTES)
    file.seek(n_bytes - tail_bytes)
    tail = file.read(tail_bytes)
    last_page = tail.rfind(b"OggS")
    if last_page >= 0 and last_page + 6 <= len(tail) and tail[last_page + 5] & _OGG_END_OF_STREAM:
        return None
    return "is cut short: its last ogg page does not end the stream"


class _WavWithUnknownSize(io.RawIOBase):
    """A wav file whose data size reads 0xFFFFFFFF (unknown) instead of 0: libsndfile then reads to the end."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("rb")
        found = _find_wav_data(self._file, path.stat().st_size)
        self._size_offset = found[0] - 4 if found else 0
        self._file.seek(0)

    def read(self, n_bytes: int = -1) -> bytes:
        start = self._file.tell()
        data = bytearray(self._file.read(n_bytes))
        for at in range(max(self._size_offset, start), min(self._size_offset + 4, start + len(data))):
            data[at - start] = 0xFF
        return bytes(data)

    def readinto(self, buffer: memoryview) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        super().close()
