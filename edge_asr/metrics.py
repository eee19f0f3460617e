"""Word error rate with its substitutions, insertions and deletions, by minimum edit distance.

Counts add up: the rate of a set is the sum of the errors over the sum of the reference words, never a mean of rates.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

_NOT_IN_A_WORD = re.compile(r"[^\w']+|_+")


@dataclass(frozen=True)
class ErrorCounts:
    """Errors of one or many hypotheses; `n_reference` counts the words (or phones) that were said."""

    n_reference: int = 0
    n_substitutions: int = 0
    n_insertions: int = 0
    n_deletions: int = 0

    @property
    def n_errors(self) -> int:
        return self.n_substitutions + self.n_insertions + self.n_deletions

    @property
    def percent(self) -> float:
        """The error rate in percent; NaN where nothing was said."""
        return 100 * self.n_errors / self.n_reference if self.n_reference else float("nan")

    def __add__(self, other: Self) -> ErrorCounts:
        return ErrorCounts(
            self.n_reference + other.n_reference,
            self.n_substitutions + other.n_substitutions,
            self.n_insertions + other.n_insertions,
            self.n_deletions + other.n_deletions,
        )


def normalise(text: str) -> str:
    """Lower case, words and apostrophes only, single spaces: the form in which texts are compared."""
    return " ".join(_NOT_IN_A_WORD.sub(" ", text.lower().replace("’", "'")).split())


def count_errors(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> ErrorCounts:
    """Errors of the cheapest alignment; among equally cheap ones the one with the most substitutions, as in Kaldi."""
    n, m = len(reference), len(hypothesis)
    ids: dict[Hashable, int] = {}
    ref = np.array([ids.setdefault(word, len(ids)) for word in reference], np.int64)
    hyp = np.array([ids.setdefault(word, len(ids)) for word in hypothesis], np.int64)
    # One integer per cell holds cost · big − substitutions, so that one minimum settles both; row by row.
    big = n + m + 1
    along = np.arange(m + 1) * big
    row = along.copy()  # the empty reference: insertions only
    for word in ref:
        different = (hyp != word).astype(np.int64)
        best = np.empty(m + 1, np.int64)
        best[0] = row[0] + big
        best[1:] = np.minimum(row[1:] + big, row[:-1] + different * (big - 1))
        # insertions run along the row: best[j] = min over i ≤ j of best[i] + (j − i) · big
        row = np.minimum.accumulate(best - along) + along
    cost = -(-int(row[m]) // big)
    n_substitutions = cost * big - int(row[m])
    n_insertions = (cost - n_substitutions + m - n) // 2
    return ErrorCounts(n, n_substitutions, n_insertions, cost - n_substitutions - n_insertions)


def word_errors(reference: str, hypothesis: str) -> ErrorCounts:
    """Word errors of one utterance, both texts normalised."""
    return count_errors(normalise(reference).split(), normalise(hypothesis).split())
