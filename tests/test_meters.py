"""The meters against numpy and against a slow restatement of what they promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_asr.meters import LatencyHistogram, LevelMeter, StableWords

words = st.lists(st.sampled_from("abc"), max_size=5)


@given(st.lists(st.floats(2e-5, 50), min_size=1, max_size=200), st.floats(0.01, 1))
def test_quantiles_are_those_of_the_sorted_list_within_a_percent(durations_s, q):
    histogram = LatencyHistogram()
    for seconds in durations_s:
        histogram.add(seconds)
    exact = sorted(durations_s)[int(np.ceil(q * len(durations_s))) - 1]
    assert exact * 0.999 <= histogram.quantile(q) <= exact * 1.011


def test_no_durations_and_impossible_ones_break_nothing():
    histogram = LatencyHistogram()
    assert histogram.quantile(0.99) == 0
    for seconds in (-1, 0, 1e9):
        histogram.add(seconds)
    assert histogram.n == 3
    assert histogram.quantile(1) >= 100


def test_the_level_of_a_full_scale_sine_is_3_db_below_its_peak():
    meter = LevelMeter()
    sine = np.sin(2 * np.pi * 1_000 * np.arange(16_000) / 16_000).astype(np.float32)
    for block in np.array_split(sine, 13):
        meter.add(block)
    rms_db, peak_db, _ = meter.take()
    assert rms_db == pytest.approx(-3.01, abs=0.01)
    assert peak_db == pytest.approx(0, abs=0.01)


def test_zeros_in_a_row_are_counted_over_blocks_until_something_sounds():
    meter = LevelMeter()
    meter.add(np.zeros(100, np.float32))
    meter.add(np.zeros(50, np.float32))
    assert meter.take() == (-120, -120, 150)
    meter.add(np.array([0, 0.5, 0, 0], np.float32))
    meter.add(np.zeros(3, np.float32))
    assert meter.take()[2] == 5


@given(st.integers(0, 3), st.lists(words, max_size=12))
def test_a_word_is_shown_once_it_and_all_before_it_have_survived(n_chunks, partials):
    stable = StableWords(n_chunks)
    for i, partial in enumerate(partials):
        history = partials[max(0, i - n_chunks) : i + 1]
        expected = []
        if i >= n_chunks:
            while len(expected) < len(partial) and all(
                past[: len(expected) + 1] == partial[: len(expected) + 1] for past in history
            ):
                expected.append(partial[len(expected)])
        assert stable.update(partial) == expected


@given(st.integers(0, 3), st.lists(st.tuples(words, st.booleans()), max_size=12))
def test_words_shown_less_words_taken_back_are_the_words_on_the_screen(n_chunks, updates):
    stable, on_screen, n_of_finals = StableWords(n_chunks), [], 0
    for partial, is_final in updates:
        before, on_screen = on_screen, stable.update(partial, is_final)
        assert stable.changed == (before != on_screen)
        assert stable.n_shown - stable.n_taken_back == n_of_finals + len(on_screen)
        if is_final:
            assert on_screen == partial
            n_of_finals += len(on_screen)
            on_screen = []


def test_a_revised_word_takes_back_itself_and_all_after_it():
    stable = StableWords()
    stable.update(["turn", "of", "the"])
    stable.update(["turn", "off", "the", "light"])
    stable.update(["turn", "off", "the", "light"], is_final=True)
    assert (stable.n_shown, stable.n_taken_back) == (6, 2)
