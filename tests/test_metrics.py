"""Error counts equal a textbook alignment and the field's library."""

import math
from functools import cache

import jiwer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.metrics import ErrorCounts, count_errors, normalise, word_errors

sentences = st.lists(st.sampled_from("abcd"), max_size=8)


def cheapest(reference: tuple, hypothesis: tuple) -> tuple[int, int]:
    """(errors, −substitutions) of the best alignment, by trying them all."""

    @cache
    def best(i: int, j: int) -> tuple[int, int]:
        options = []
        if i and j:
            cost, negative = best(i - 1, j - 1)
            wrong = reference[i - 1] != hypothesis[j - 1]
            options.append((cost + wrong, negative - wrong))
        if i:
            options.append((best(i - 1, j)[0] + 1, best(i - 1, j)[1]))
        if j:
            options.append((best(i, j - 1)[0] + 1, best(i, j - 1)[1]))
        return min(options, default=(0, 0))

    return best(len(reference), len(hypothesis))


@given(sentences, sentences)
def test_counts_are_those_of_the_cheapest_alignment(reference, hypothesis):
    counts = count_errors(reference, hypothesis)
    assert (counts.n_errors, -counts.n_substitutions) == cheapest(tuple(reference), tuple(hypothesis))
    assert len(hypothesis) - len(reference) == counts.n_insertions - counts.n_deletions
    assert min(counts.n_substitutions, counts.n_insertions, counts.n_deletions) >= 0


@given(sentences.filter(bool), sentences)
def test_the_rate_is_that_of_jiwer(reference, hypothesis):
    expected = 100 * jiwer.wer(" ".join(reference), " ".join(hypothesis))
    assert count_errors(reference, hypothesis).percent == pytest.approx(expected)


def test_rates_of_a_set_weigh_every_word_alike():
    both = word_errors("a b c d", "a x c") + word_errors("e", "e f")
    assert both == ErrorCounts(5, 1, 1, 1)
    assert both.percent == 60


def test_nothing_said_has_no_rate():
    assert math.isnan(count_errors([], ["a"]).percent)


def test_case_and_punctuation_do_not_count():
    assert normalise("  It’s  GREAT, isn't_it? ") == "it's great isn't it"
    assert word_errors("Hello, World!", "hello world").n_errors == 0
