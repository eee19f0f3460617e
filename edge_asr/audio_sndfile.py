"""Recordings that libsndfile decodes: flac, ogg (Vorbis, Opus, flac), mp3, aiff, au, caf and the odd kinds of wav."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import soundfile

from edge_asr.audio_source import Container, Source
from edge_asr.errors import AudioFormatError, AudioTruncatedError

_SNDFILE_BAD_FILE = 7  # SFE_BAD_FILE
_OGG_END_OF_STREAM = 4
_OGG_PAGE_BYTES = 65_307  # the largest page (RFC 3533)


class SndfileReader:
    """Blocks of a file as libsndfile decodes them; a decoder's error ends the file but keeps what came before."""

    def __init__(self, source: Source, container: Container) -> None:
        file = source.as_file()
        self.damage = _ogg_claim(file) if container.name == "ogg" else None
        file.seek(0)
        try:
            self._file = soundfile.SoundFile(file.fileno(), closefd=False)
        except soundfile.LibsndfileError as error:
            if self.damage is not None:
                raise AudioTruncatedError(
                    f"{source.name}: {self.damage} and nothing before that can be read; copy the file again"
                ) from error
            # libsndfile reports an mp3 without a single frame as a missing file, and the file is known to be there
            reason = "no sound found in it" if error.code == _SNDFILE_BAD_FILE else error.error_string.strip(" .\n")
            raise AudioFormatError(
                f"{source.name}: needs a sound {container.name} file, is damaged or of an unknown kind ({reason}); "
                f"copy it again or convert it, for example: ffmpeg -i INPUT -ar 16000 -ac 1 out.wav"
            ) from error
        self.rate_hz: int = self._file.samplerate
        self.n_channels: int = self._file.channels
        self.format = f"{container.name} {self._file.subtype.lower()}"

    @property
    def duration_s(self) -> float | None:
        n_frames = self._file.frames
        return n_frames / self.rate_hz if 0 < n_frames < 2**62 else None

    def frames(self, block_frames: int) -> Iterator[np.ndarray]:
        block = np.empty((block_frames, self.n_channels), np.float32)
        n_read = 0
        while True:
            block[:] = np.nan  # so that what was decoded before an error can be told from what was not
            try:
                frames = self._file.read(out=block)
            except soundfile.LibsndfileError as error:
                self.damage = f"decoding stopped at {n_read / self.rate_hz:.1f} s: {error.error_string.strip()}"
                decoded = np.flatnonzero(~np.isnan(block).any(axis=1))
                if decoded.size:
                    yield block[: decoded[-1] + 1]
                return
            if len(frames) == 0:
                read_s = n_read / self.rate_hz
                if self.duration_s is not None and read_s < self.duration_s - 0.5:
                    self.damage = f"ends at {read_s:.1f} s, its header promises {self.duration_s:.1f} s"
                return
            n_read += len(frames)
            yield frames

    def close(self) -> None:
        self._file.close()


def _ogg_claim(file: BinaryIO) -> str | None:
    """What is missing by the container's own bookkeeping: libsndfile shortens such files without a word."""
    n_bytes = file.seek(0, os.SEEK_END)
    file.seek(max(0, n_bytes - 2 * _OGG_PAGE_BYTES))
    tail = file.read(2 * _OGG_PAGE_BYTES)
    last_page = tail.rfind(b"OggS")
    if last_page >= 0 and last_page + 6 <= len(tail) and tail[last_page + 5] & _OGG_END_OF_STREAM:
        return None
    return "is cut short: its last ogg page does not end the stream"
