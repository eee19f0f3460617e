"""Keeps what a live session heard, as the model got it: 16 kHz mono float samples in a wav file."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import soundfile

from edge_asr.audio import SAMPLE_RATE
from edge_asr.errors import OutputError, UsageError


class Recording:
    """A wav file that grows. Its time line is that of the transcript: lost audio is silence in it.

    Raises: UsageError for another container, OutputError where it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.suffix.lower() != ".wav":
            raise UsageError(f"{path}: needs a name that ends in .wav, whose float samples keep the sound exactly")
        self.n_samples = 0
        try:
            self._file = soundfile.SoundFile(self.path, "w", SAMPLE_RATE, 1, "FLOAT", format="WAV")
        except (soundfile.LibsndfileError, OSError) as error:
            raise OutputError(f"{path}: cannot be written ({error}); choose another folder") from error

    def write(self, samples: np.ndarray) -> None:
        """(n,) float32 at 16 kHz."""
        try:
            self._file.write(samples)
        except (soundfile.LibsndfileError, OSError, AssertionError) as error:  # libsndfile wrote less: a full disk
            raise OutputError(f"{self.path}: cannot be written ({error}); make room on the disk") from error
        self.n_samples += len(samples)

    def silence_until(self, seconds: float) -> None:
        """Write zeros up to this time."""
        n_missing = round(seconds * SAMPLE_RATE) - self.n_samples
        while n_missing > 0:
            n_block = min(n_missing, SAMPLE_RATE)
            self.write(np.zeros(n_block, np.float32))
            n_missing -= n_block

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
