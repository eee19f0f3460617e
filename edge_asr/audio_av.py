"""Recordings that PyAV decodes (the extra `[av]`): m4a, mp4, webm, mkv, aac, wma, amr, 3gp and what FFmpeg knows more.

The demuxer is ours to name, from the file's first bytes: FFmpeg's own guess would also follow playlists to other files.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from edge_asr.audio_source import Container, Source
from edge_asr.audio_wav import MAX_RATE_HZ, MIN_RATE_HZ
from edge_asr.errors import AudioError, AudioFormatError, AudioTruncatedError, DependencyError

if TYPE_CHECKING:
    import av

MAX_FRAME_SAMPLES = 1 << 20  # of one channel in one packet; a claim of more is damage
MAX_GAP_S = 600.0  # a pause of a recording is filled with silence up to this; a longer one is a damaged time stamp
# FFmpeg's own decoders of these refuse the frames that phones send while nobody speaks
_WITH_PAUSES = {"amrnb": "libopencore_amrnb", "amrwb": "libopencore_amrwb"}
_MAX_CHANNELS = 64  # of libswresample
_SAFE_PLANES = 7  # PyAV reads the planes of a frame up to the first null pointer; with eight there is none
_DISCARD_ALL = 48  # AVDISCARD_ALL
_MIN_GAP_S = 0.1  # less is jitter of time stamps
_MAX_FILLED_S = 3_600.0  # in one file


def is_installed() -> bool:
    return importlib.util.find_spec("av") is not None


def _require(name: str, container: Container) -> None:
    """Raises: DependencyError where PyAV is not installed or cannot be loaded."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"{name}: is {container.name}, which needs PyAV; have wav, flac, ogg, opus, mp3 without it ({error}). "
            "Install it: pip install 'edge-asr[av]', or convert: ffmpeg -i INPUT -ar 16000 -ac 1 out.wav"
        ) from error


class AvReader:
    """The sound track of a file in blocks. Times are kept: pauses between packets become silence."""

    def __init__(self, source: Source, container: Container) -> None:
        _require(source.name, container)
        import av

        self.damage: str | None = None
        self._name, self._kind = source.name, container.name
        self._n_bad = 0
        self._packer: tuple[tuple[str, str, int], av.AudioResampler] | None = None
        try:
            self._container = av.open(source.as_file(), format=container.av, metadata_errors="ignore")
        except (av.FFmpegError, OSError, ValueError, OverflowError) as error:  # OSError: an offset led out of the file
            raise self._unreadable(error) from error
        try:
            self._stream = self._choose_stream()
        except AudioError:
            self._container.close()
            raise
        for stream in self._container.streams:
            if stream is not self._stream and hasattr(stream, "discard"):  # from PyAV 17 on
                stream.discard = _DISCARD_ALL  # pictures are not even read, where the container has an index
        context = self._decoder = self._choose_decoder()
        self.rate_hz: int = context.sample_rate
        self.n_channels: int = context.layout.nb_channels
        self.format = f"{container.name} {context.name}"

    @property
    def duration_s(self) -> float | None:
        if self._stream.duration and self._stream.time_base:
            duration_s = float(self._stream.duration * self._stream.time_base)
        else:
            duration_s = (self._container.duration or 0) / 1e6
        return duration_s if 0 < duration_s < 1e9 else None

    def frames(self, block_frames: int) -> Iterator[np.ndarray]:
        parts: list[np.ndarray] = []
        n_held = 0
        for rate_hz, samples in self._filled():
            if parts and (n_held >= block_frames or rate_hz != self.rate_hz or samples.shape[1] != parts[0].shape[1]):
                yield np.concatenate(parts)
                parts, n_held = [], 0
            self.rate_hz = rate_hz
            parts.append(samples)
            n_held += len(samples)
        if parts:
            yield np.concatenate(parts)

    def close(self) -> None:
        self._container.close()

    def _choose_stream(self) -> av.AudioStream:
        streams = [stream for stream in self._container.streams.audio if stream.codec_context is not None]
        if not streams:
            kinds = ", ".join(sorted({stream.type for stream in self._container.streams})) or "nothing"
            raise AudioFormatError(f"{self._name}: needs a sound track that can be decoded, holds {kinds}; convert it")
        return streams[0]

    def _choose_decoder(self) -> av.AudioCodecContext:
        import av

        context = self._stream.codec_context
        if context.name in _WITH_PAUSES and _WITH_PAUSES[context.name] in av.codecs_available:
            own = av.CodecContext.create(_WITH_PAUSES[context.name], "r")
            own.sample_rate, own.layout = context.sample_rate, context.layout
            context = own
        context.thread_count = 1
        context.options = {"max_samples": str(MAX_FRAME_SAMPLES)}
        return context

    def _filled(self) -> Iterator[tuple[int, np.ndarray]]:
        """Rate and samples (n, channels) of the frames, with silence where the time stamps leave a pause, so that
        times stay those of the whole file, as a player of its pictures counts them."""
        began_s = None if self._container.start_time is None else self._container.start_time / 1e6
        given_s = filled_s = 0.0
        for at_s, rate_hz, samples in self._decoded():
            if at_s is not None:
                began_s = at_s if began_s is None else began_s
                gap_s = at_s - began_s - given_s
                if _MIN_GAP_S < gap_s <= MAX_GAP_S and filled_s + gap_s <= _MAX_FILLED_S:
                    filled_s += gap_s
                    given_s += gap_s
                    for silence in _silence(round(gap_s * rate_hz), samples.shape[1]):
                        yield rate_hz, silence
                elif abs(gap_s) > MAX_GAP_S:  # a damaged stamp: count on from here
                    began_s = at_s - given_s
            given_s += len(samples) / rate_hz
            yield rate_hz, samples

    def _decoded(self) -> Iterator[tuple[float | None, int, np.ndarray]]:
        """Time in seconds, rate and samples (n, channels) of all that can be decoded; damaged packets are left out
        and told of."""
        import av

        last_s, first_bad_s = 0.0, 0.0
        try:
            for packet in self._container.demux(self._stream):
                try:
                    frames = self._decoder.decode(packet if packet.size else None)
                    decoded = [self._samples(frame) for frame in frames if self._is_sound(frame)]
                except (av.FFmpegError, ValueError):  # ValueError: a kind of sample that numpy does not know
                    first_bad_s = first_bad_s if self._n_bad else last_s
                    self._n_bad += 1
                    continue
                for at_s, rate_hz, samples in decoded:
                    last_s = last_s if at_s is None else at_s
                    yield at_s, rate_hz, samples
        except (av.FFmpegError, OSError, ValueError) as error:
            self.damage = f"decoding stopped at {last_s:.1f} s: {_words(error)}"
        else:
            if self._n_bad:
                self.damage = f"{self._n_bad} damaged packets were left out, the first at {first_bad_s:.1f} s"
            elif self.duration_s is not None and last_s < self.duration_s - 1.0:
                self.damage = f"ends at {last_s:.1f} s, its header promises {self.duration_s:.1f} s"

    def _is_sound(self, frame: av.AudioFrame) -> bool:
        return (
            frame.samples > 0
            and MIN_RATE_HZ <= frame.sample_rate <= MAX_RATE_HZ
            and 1 <= frame.layout.nb_channels <= _MAX_CHANNELS
        )

    def _samples(self, frame: av.AudioFrame) -> tuple[float | None, int, np.ndarray]:
        """Time, rate and samples (n, channels) of a frame, in float or signed integers."""
        at_s, rate_hz, n_channels = frame.time, frame.sample_rate, frame.layout.nb_channels
        if frame.format.is_planar and n_channels > _SAFE_PLANES:
            frame = self._packed(frame)
        array = frame.to_ndarray()  # (channels, n) where planar, else (1, n * channels)
        samples = array.T if frame.format.is_planar else array.reshape(-1, n_channels)
        return at_s, rate_hz, (samples ^ 0x80).view(np.int8) if samples.dtype == np.uint8 else samples

    def _packed(self, frame: av.AudioFrame) -> av.AudioFrame:
        """The frame interleaved, so that PyAV does not read beyond its planes."""
        import av

        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._packer is None or self._packer[0] != kind:
            self._packer = (kind, av.AudioResampler(frame.format.packed.name, frame.layout, frame.sample_rate))
        frame.pts = None  # or it would fill the pauses itself
        (packed,) = self._packer[1].resample(frame)
        return packed

    def _unreadable(self, error: Exception) -> AudioError:
        import av

        if isinstance(error, av.error.EOFError):
            return AudioTruncatedError(
                f"{self._name}: ends before its sound begins; nothing could be read, copy it again"
            )
        return AudioFormatError(
            f"{self._name}: needs a sound {self._kind} file, is damaged or cut short ({_words(error)}); copy it again"
        )


def _silence(n_samples: int, n_channels: int) -> Iterator[np.ndarray]:
    """Zeros in pieces, so that a long pause takes no more memory than a short one."""
    while n_samples > 0:
        n_now = min(n_samples, 65_536)
        yield np.zeros((n_now, n_channels), np.float32)
        n_samples -= n_now


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
