"""Meters of a live session, each of constant size however long it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SILENCE_DB = -120.0  # shown for nothing at all


class LatencyHistogram:
    """Quantiles of durations to within 1 %, from 10 µs to 100 s, in 13 kB."""

    SHORTEST_S, LONGEST_S, RATIO = 1e-5, 100.0, 1.01

    def __init__(self) -> None:
        n_bins = math.ceil(math.log(self.LONGEST_S / self.SHORTEST_S, self.RATIO)) + 1
        self._counts = np.zeros(n_bins, np.int64)
        self.n = 0

    def add(self, seconds: float) -> None:
        place = math.log(max(seconds, self.SHORTEST_S) / self.SHORTEST_S, self.RATIO)
        self._counts[min(math.ceil(place), len(self._counts) - 1)] += 1
        self.n += 1

    def quantile(self, q: float) -> float:
        """Seconds that a share `q` of the durations does not exceed, rounded up to a bin; 0 where there are none."""
        if self.n == 0:
            return 0.0
        place = int(np.searchsorted(self._counts.cumsum(), max(1, math.ceil(q * self.n))))
        return self.SHORTEST_S * self.RATIO**place


class LevelMeter:
    """Loudness since it was last read, and for how long there has been digital silence."""

    def __init__(self) -> None:
        self.n_samples = 0
        self._n_zeros = 0
        self._energy = self._peak = 0.0

    def add(self, samples: np.ndarray) -> None:
        """samples: (n,) float32, n > 0."""
        self.n_samples += len(samples)
        self._energy += float(np.dot(samples, samples))
        self._peak = max(self._peak, float(np.abs(samples).max()))
        sounding = np.flatnonzero(samples)
        self._n_zeros = len(samples) - 1 - int(sounding[-1]) if sounding.size else self._n_zeros + len(samples)

    def take(self) -> tuple[float, float, int]:
        """Root mean square and peak in dB since the last call; samples of exactly 0 in a row until now."""
        rms = math.sqrt(self._energy / max(1, self.n_samples))
        taken = decibels(rms), decibels(self._peak), self._n_zeros
        self.n_samples, self._energy, self._peak = 0, 0.0, 0.0
        return taken


class StableWords:
    """Which words of a changing partial text to show, and how often a shown word was taken back.

    A word is shown once it, and all before it, have stayed for `n_chunks` updates after the first; 0 shows everything.
    """

    def __init__(self, n_chunks: int = 0) -> None:
        self.n_chunks = n_chunks
        self.n_shown = 0  # words that appeared, each time that they did; those of final texts too
        self.n_taken_back = 0  # of those, how many disappeared or changed later
        self.changed = False  # by the last update
        self._words: list[str] = []
        self._ages: list[int] = []  # updates that each word has seen; never more than the word before it
        self._shown: list[str] = []

    def update(self, words: Sequence[str], is_final: bool = False) -> list[str]:
        """The words to show; a final text is shown whole, and the next update begins a new one."""
        n_same = n_common(self._words, words)
        self._words = list(words)
        self._ages = [age + 1 for age in self._ages[:n_same]] + [1] * (len(words) - n_same)
        shown = self._words if is_final else [w for w, age in zip(words, self._ages) if age > self.n_chunks]
        n_kept = n_common(self._shown, shown)
        self.n_taken_back += len(self._shown) - n_kept
        self.n_shown += len(shown) - n_kept
        self.changed = shown != self._shown
        self._shown = shown
        if is_final:
            self._words, self._ages, self._shown = [], [], []
        return shown


def n_common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the common beginning."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def decibels(amplitude: float) -> float:
    """Of full scale."""
    return 20 * math.log10(amplitude) if amplitude > 10 ** (SILENCE_DB / 20) else SILENCE_DB
