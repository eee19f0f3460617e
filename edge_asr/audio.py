"""Any recording → float32 mono blocks at 16 kHz, without holding the file in memory.

wav is read by our own code (audio_wav), flac, ogg, opus, mp3 and more by libsndfile (audio_sndfile), what video and
phones record by PyAV where it is installed (audio_av); the first bytes decide. soxr resamples as the blocks go by.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

import numpy as np
import soxr

from edge_asr.audio_source import Container, Source, find_container, open_source
from edge_asr.audio_wav import MAX_RATE_HZ, MIN_RATE_HZ, PcmReader, RawFormat, check_claims, open_wav
from edge_asr.errors import AudioEmptyError, AudioError, AudioFormatError, AudioTruncatedError, StreamError

SAMPLE_RATE = 16_000  # Hz, of everything after this file
BLOCK_MS = 500  # audio per block read from a file
MAX_MAGNITUDE = 65_536.0  # a sample beyond twice the int16 range is damage; its square would overflow the features
_MAX_BLOCK_SAMPLES = 1 << 20  # of all channels together, whatever rate and channels a header claims


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
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes Inf, which is damaged
        samples = samples.astype(np.float32, copy=False)
    samples, n_replaced = replace_damaged(samples)
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


class Reader(Protocol):
    """What decodes a kind of recording; `damage` says after the last block what could not be read."""

    rate_hz: int  # of the block given out last; broadcasts change it on the way
    n_channels: int
    format: str  # container and encoding
    damage: str | None

    @property
    def duration_s(self) -> float | None: ...

    def frames(self, block_frames: int) -> Iterator[np.ndarray]: ...

    def close(self) -> None: ...


class AudioFile:
    """A recording as blocks (n,) float32 mono at 16 kHz, read once from front to back.

    `source` is a path or a binary stream, which need not be seekable (a wav of unknown length, or with `raw` samples
    without a header); a stream stays open. `damage` is None, or says after the last block what was wrong with a
    recording that could still be read in part.
    Raises: AudioNotFoundError, AudioDirectoryError, AudioEmptyError, AudioFormatError, AudioTruncatedError,
    DependencyError (a format that needs PyAV), StreamError.
    """

    def __init__(
        self, source: str | os.PathLike[str] | BinaryIO, block_ms: int = BLOCK_MS, raw: RawFormat | None = None
    ) -> None:
        self._source = open_source(source)
        self.name = self._source.name  # for messages
        self.path = Path(self.name)
        self.n_samples = 0  # given out so far, at 16 kHz
        self.n_replaced = 0
        try:
            self._reader = _open_reader(self._source) if raw is None else PcmReader(self._source, raw)
            check_claims(self.name, self._reader.rate_hz, self._reader.n_channels)
        except BaseException:
            self._source.close()
            raise
        self.rate_hz = self._reader.rate_hz
        self.n_channels = self._reader.n_channels
        self.format = self._reader.format
        self._block_frames = max(1, min(self.rate_hz * block_ms // 1000, _MAX_BLOCK_SAMPLES // self.n_channels))

    @property
    def damage(self) -> str | None:
        return self._reader.damage

    @property
    def duration_s(self) -> float | None:
        """Length by the header, or None where it does not know."""
        return self._reader.duration_s

    def __iter__(self) -> Iterator[np.ndarray]:
        resampler = Resampler(self.rate_hz)
        for frames in self._reader.frames(self._block_frames):
            if self._reader.rate_hz != resampler.rate_hz:
                yield from self._count(resampler.flush())
                resampler = Resampler(self._reader.rate_hz)
            mono, n_replaced = as_mono(frames)
            self.n_replaced += n_replaced
            yield from self._count(resampler.process(mono))
        yield from self._count(resampler.flush())
        if self.n_samples == 0:
            raise self._nothing()

    def close(self) -> None:
        self._reader.close()
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _count(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        if samples.size:
            self.n_samples += samples.size
            yield samples

    def _nothing(self) -> AudioError:
        if self.damage is not None:
            return AudioTruncatedError(f"{self.name}: {self.damage}; nothing could be read, copy the file again")
        return AudioEmptyError(f"{self.name}: is 0 samples long; nothing to transcribe, record it again")


def read_blocks(source: str | os.PathLike[str] | BinaryIO, block_ms: int = BLOCK_MS) -> Iterator[np.ndarray]:
    """Blocks (n,) float32 mono at 16 kHz of a file; see AudioFile for the errors and for what was found damaged."""
    with AudioFile(source, block_ms) as audio:
        yield from audio


def load_audio(source: str | os.PathLike[str] | BinaryIO) -> np.ndarray:
    """(n,) float32 mono at 16 kHz of a whole file, for short clips."""
    return np.concatenate(list(read_blocks(source)))


def _open_reader(source: Source) -> Reader:
    container = find_container(source)
    if container is None:
        raise AudioFormatError(
            f"{source.name}: needs a recording (wav, flac, ogg, opus, mp3, m4a, mp4, webm, mkv, aac, wma, amr …), "
            f"begins with {source.peek(8)[:8]!r}. Convert it, for example: ffmpeg -i INPUT -ar 16000 -ac 1 out.wav"
        )
    if container.name in ("wav", "w64"):
        reader = open_wav(source, container)
        if reader is not None:
            return reader
    return _open_with_library(source, container)


def _open_with_library(source: Source, container: Container) -> Reader:
    """libsndfile where it knows the container, PyAV otherwise or where libsndfile does not know what is inside."""
    failure: AudioError | None = None
    if container.sndfile:
        from edge_asr.audio_sndfile import SndfileReader

        try:
            return SndfileReader(source, container)
        except AudioFormatError as error:
            failure = error
    from edge_asr.audio_av import AvReader, is_installed

    if failure is not None and container.av is None:
        raise failure
    if failure is not None and not is_installed():
        raise AudioFormatError(f"{failure}; more kinds of it are read after: pip install 'edge-asr[av]'") from failure
    try:
        return AvReader(source, container)
    except AudioError as error:
        raise failure or error from error
