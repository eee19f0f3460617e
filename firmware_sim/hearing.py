"""The recogniser in the loop: what a device that lost samples would have written down.

The same recogniser runs twice: on the whole audio, and on the samples that survived the simulated ring. Overruns
splice the audio as the device's reader would, so the words that they cost are really lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_asr.audio import load_audio
from edge_asr.errors import UsageError
from edge_asr.metrics import count_errors, normalise
from edge_asr.recognizer import Recognizer
from firmware_sim.model import Model
from firmware_sim.scenario import BLOCK_SAMPLES

HOP_MS = 10


@dataclass(frozen=True)
class Heard:
    """Both transcripts, and the word error rate of the loaded run against the unloaded one."""

    reference: str
    text: str
    n_words: int
    n_errors: int
    lost_samples: int
    n_gaps: int

    @property
    def word_error_percent(self) -> float:
        """0 where both runs heard nothing; 100 where only the loaded one heard something."""
        if self.n_words:
            return 100.0 * self.n_errors / self.n_words
        return 100.0 if self.n_errors else 0.0


def survivors(samples: np.ndarray, gaps: Sequence[tuple[int, int]]) -> np.ndarray:
    """The samples outside the gaps, spliced; gaps are (first sample, samples)."""
    keep = np.ones(len(samples), bool)
    for first, n in gaps:
        keep[first : first + n] = False
    return samples[keep]


def blocks(samples: np.ndarray) -> Iterator[np.ndarray]:
    """10 ms at a time, as captured."""
    for start in range(0, len(samples), BLOCK_SAMPLES):
        yield samples[start : start + BLOCK_SAMPLES]


def read_audio(path: str | Path) -> np.ndarray:
    """(n,) float32 at 16 kHz. Raises the audio errors of edge_asr."""
    return load_audio(path)


def open_recognizer(model: Model) -> Recognizer:
    """The recogniser of the model under test. Raises UsageError for a bare .onnx file: words need a model directory."""
    if model.directory is None:
        raise UsageError(
            f"need a model directory to hear words, have the single file {model.graph.path}; give its folder"
        )
    return Recognizer(model.directory, precision=model.precision, chunk_ms=model.chunk_frames * HOP_MS)


def transcribe(recognizer: Recognizer, samples: np.ndarray) -> str:
    """Final text of a whole recording."""
    final = [segment.text for segment in recognizer.stream(blocks(samples)) if segment.is_final]
    return " ".join(text for text in final if text)


def hear(recognizer: Recognizer, samples: np.ndarray, gaps: Sequence[tuple[int, int]]) -> Heard:
    """Transcripts with and without the losses; without losses the recogniser runs once."""
    reference = transcribe(recognizer, samples)
    left = survivors(samples, gaps)
    text = transcribe(recognizer, left) if gaps else reference
    words, heard = normalise(reference).split(), normalise(text).split()
    errors = count_errors(words, heard)
    return Heard(reference, text, len(words), errors.n_errors, len(samples) - len(left), len(gaps))
