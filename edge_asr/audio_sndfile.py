"""Recordings that libsndfile decodes: flac, ogg (Vorbis, Opus, flac), mp3, aiff, au, caf and the odd kinds of wav."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import soundfile

from edge_asr.audio_parts import Part, PartFile, mp3_parts, ogg_parts
from edge_asr.audio_source import Container, Source
from edge_asr.errors import AudioFormatError, AudioTruncatedError

_SNDFILE_BAD_FILE = 7  # SFE_BAD_FILE
_CUT_SHORT = {
    "ogg": "is cut short: its last ogg page does not end the stream",
    "mp3": "is cut short: its header promises more frames than it holds",
}


class SndfileReader:
    """Blocks of a file, part after part, as libsndfile decodes them; an error ends a part but keeps what came before.

    Raises: AudioFormatError, AudioTruncatedError.
    """

    def __init__(self, source: Source, container: Container) -> None:
        self._source, self._container = source, container
        self._os_file = source.as_file()
        self._parts = self._find_parts()
        self.damage: str | None = None
        if not all(part.is_complete for part in self._parts):
            self.damage = _CUT_SHORT[container.name]
        try:
            self._file = self._open(self._parts[0])
        except soundfile.LibsndfileError as error:
            if self.damage is not None:
                raise AudioTruncatedError(
                    f"{source.name}: {self.damage} and nothing before that can be read; copy the file again"
                ) from error
            raise AudioFormatError(
                f"{source.name}: needs a sound {container.name} file, is damaged or of an unknown kind "
                f"({_reason(error)}); copy it again or convert it: ffmpeg -i INPUT -ar 16000 -ac 1 out.wav"
            ) from error
        self.rate_hz: int = self._file.samplerate
        self.n_channels: int = self._file.channels
        self.format = f"{container.name} {self._file.subtype.lower()}"

    @property
    def duration_s(self) -> float | None:
        """By the header of a file that is one recording, or by the frames of an mp3."""
        if self._parts[0].duration_s is not None:
            return sum(part.duration_s or 0.0 for part in self._parts)
        n_samples = self._file.frames if len(self._parts) == 1 else 0
        return n_samples / self.rate_hz if 0 < n_samples < 2**62 else None

    def frames(self, block_frames: int) -> Iterator[np.ndarray]:
        read_s = 0.0
        for index, part in enumerate(self._parts):
            if index:
                self._file.close()
                try:
                    self._file = self._open(part)
                except soundfile.LibsndfileError as error:
                    self.damage = f"a part cannot be decoded at {read_s:.1f} s: {_reason(error)}"
                    continue
            self.rate_hz = self._file.samplerate
            for block in self._blocks(block_frames, read_s):
                read_s += len(block) / self.rate_hz
                yield block
        self.damage = self._source.failure or self.damage

    def close(self) -> None:
        self._file.close()

    def _find_parts(self) -> list[Part]:
        find = {"ogg": ogg_parts, "mp3": mp3_parts}.get(self._container.name)
        parts = find(self._os_file) if find is not None else []
        return parts or [Part(0, self._os_file.seek(0, os.SEEK_END))]

    def _open(self, part: Part) -> soundfile.SoundFile:
        file = self._os_file
        if part.start == 0 and len(self._parts) == 1 and not part.prefix:
            file.seek(0)
            with self._quiet():
                return soundfile.SoundFile(file.fileno(), closefd=False)
        with self._quiet():
            return soundfile.SoundFile(PartFile(file, part))

    def _blocks(self, block_frames: int, began_s: float) -> Iterator[np.ndarray]:
        """Blocks (n, channels) of the open part."""
        block = np.empty((block_frames, self._file.channels), np.float32)
        n_read, n_promised = 0, self._file.frames if self._container.name != "mp3" else 0
        while True:
            block[:] = np.nan  # so that what was decoded before an error can be told from what was not
            try:
                with self._quiet():
                    frames = self._file.read(out=block)
            except soundfile.LibsndfileError as error:
                read_s = began_s + n_read / self.rate_hz
                self.damage = f"decoding stopped at {read_s:.1f} s: {_reason(error)}"
                decoded = np.flatnonzero(~np.isnan(block).any(axis=1))
                if decoded.size:
                    yield block[: decoded[-1] + 1]
                return
            if len(frames) == 0:
                missing_s = (n_promised - n_read) / self.rate_hz
                if missing_s > 0.5 and n_promised < 2**62:
                    self.damage = f"ends {missing_s:.1f} s before its header says so"
                return
            n_read += len(frames)
            yield frames

    def _quiet(self) -> contextlib.AbstractContextManager[None]:
        return _without_mpg123() if self._container.name in ("mp3", "wav") else contextlib.nullcontext()


def _reason(error: soundfile.LibsndfileError) -> str:
    # libsndfile reports an mp3 without a single frame as a missing file, and the file is known to be there
    return "no sound found in it" if error.code == _SNDFILE_BAD_FILE else error.error_string.strip(" .\n")


@contextlib.contextmanager
def _without_mpg123() -> Iterator[None]:
    """Keep mpg123's remarks, also made of sound files, off the screen; what others write there meanwhile still comes.

    It writes to the descriptor itself, which has no other switch in libsndfile.
    """
    with _screen_lock, _memory_file() as kept:
        sys.stderr.flush()
        screen = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(screen, 2)
            os.close(screen)
            _forward(kept)


_screen_lock = threading.Lock()  # there is but one descriptor 2


def _memory_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return open(os.memfd_create("remarks"), "w+b")
    return tempfile.TemporaryFile()


def _forward(kept: BinaryIO) -> None:
    if kept.seek(0, os.SEEK_END) == 0:
        return
    kept.seek(0)
    for line in kept:
        if line.strip() and not line.startswith((b"[src/libmpg123", b"Note:", b"Warning: Xing")):
            os.write(2, line)
