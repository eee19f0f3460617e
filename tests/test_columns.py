"""Packed columns against the arrays that they were packed from, whole and in slices."""

from io import BytesIO

import numpy as np
import pytest

from edge_asr.columns import Choice, Column, Either, References, Sums, pack_column, read_column

SIZES = (0, 1, 7, 4_096, 9_000)  # notes of how far a column has come are 4,096 values apart


def packed(array: np.ndarray) -> Column:
    return read_column(BytesIO(pack_column(array)))


def check(column: Column, expected: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    assert len(column) == len(expected)
    np.testing.assert_array_equal(column, expected)
    for low, high in [(0, 0), (len(expected),) * 2, *np.sort(rng.integers(0, len(expected) + 1, (50, 2))).tolist()]:
        np.testing.assert_array_equal(column[low:high], expected[low:high])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("limit", [2, 256, 70_000, 1 << 31])
def test_numbers_of_any_width_come_back(size, limit):
    numbers = np.random.default_rng(size).integers(0, limit, size)
    check(packed(numbers), numbers)
    assert packed(numbers).max(initial=5) == numbers.max(initial=5)


@pytest.mark.parametrize("size", SIZES)
def test_flags_come_back_and_are_counted(size):
    flags = np.random.default_rng(size).random(size) < 0.3
    column = packed(flags)
    check(column, flags)
    for row in (0, size // 2, size):
        assert column.n_before(row) == flags[:row].sum()


@pytest.mark.parametrize("size", SIZES)
def test_references_are_steps_ahead_or_numbers(size):
    references = np.random.default_rng(size).integers(0, np.arange(1, size + 1), size) if size else np.zeros(0, int)
    steps = np.diff(np.maximum.accumulate(references), prepend=-1)
    check(References(packed(steps), packed(references[steps == 0]), offset=3), references + 3)


@pytest.mark.parametrize("size", SIZES)
def test_one_column_or_the_other_takes_its_turn(size):
    rng = np.random.default_rng(size)
    flags, values = rng.random(size) < 0.6, rng.integers(0, 1_000, size)
    check(Either(packed(flags), packed(values[flags]), packed(values[~flags])), values)
    check(Either(packed(flags), packed(values[flags])), np.where(flags, values, 0))


@pytest.mark.parametrize("size", SIZES)
def test_choices_of_a_table_and_running_sums(size):
    numbers = np.random.default_rng(size).integers(0, 9, size)
    table = np.linspace(0, 1, 9, dtype=np.float32)
    check(Choice(packed(numbers), table), table[numbers])
    check(Sums(packed(numbers)), np.append(0, np.cumsum(numbers)))
