"""Columns of a packed table, kept as the few bytes that each value needs; a slice of one is an array.

What is read once from front to back, such as a decoding graph that is being filled in, need not be in memory as arrays
of four or eight bytes a value. `np.asarray` gives a whole column where one is needed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

COLUMN = struct.Struct("<BQQ")  # bytes for each value (0: bits), values, bytes deflated
_MARK = 1 << 12  # values from one note of how far a column has come to the next


class Column:
    """Values of one type; `column[low:high]` is an array. Slices have no step and no negative bounds."""

    dtype: np.dtype

    def __init__(self, n: int, dtype: Any) -> None:
        self._n, self.dtype = n, np.dtype(dtype)

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, rows: slice) -> np.ndarray:
        low = rows.start or 0
        high = self._n if rows.stop is None else min(rows.stop, self._n)
        return self.read(low, max(low, high))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.read(0, self._n).astype(self.dtype if dtype is None else dtype, copy=bool(copy))

    def max(self, initial: int) -> int:
        """The largest value, or `initial` if that is larger."""
        return max([initial, *(int(block.max()) for block in self.blocks())])

    def blocks(self) -> Iterator[np.ndarray]:
        return (self[low : low + _MARK] for low in range(0, self._n, _MARK))

    def read(self, low: int, high: int) -> np.ndarray:
        raise NotImplementedError


class Numbers(Column):
    """Integers ≥ 0 as planes of bytes (n_bytes, n), those of one significance together."""

    def __init__(self, planes: np.ndarray) -> None:
        super().__init__(planes.shape[1], {1: "<u1", 2: "<u2"}.get(len(planes), "<u4"))
        self._planes = planes

    def read(self, low: int, high: int) -> np.ndarray:
        if len(self._planes) == 1:
            return self._planes[0, low:high]
        values = np.zeros((high - low, self.dtype.itemsize), np.uint8)
        values[:, : len(self._planes)] = self._planes[:, low:high].T
        return values.view(self.dtype)[:, 0]


class Flags(Column):
    """Bits, with a count of those that are set before each mark."""

    def __init__(self, bits: np.ndarray, n: int) -> None:
        super().__init__(n, bool)
        self._bits = bits
        self._before = np.cumsum([0, *(np.count_nonzero(block) for block in self.blocks())])

    def read(self, low: int, high: int) -> np.ndarray:
        first = low // 8
        bits = np.unpackbits(self._bits[first : -(-high // 8)], count=max(0, high - 8 * first))
        return bits[low - 8 * first :].view(bool)

    def n_before(self, row: int) -> int:
        """How many are set in the rows before this one."""
        mark = row // _MARK
        return int(self._before[mark]) + int(np.count_nonzero(self.read(mark * _MARK, row)))


class References(Column):
    """Numbers stored as steps ahead of the furthest so far, and, where the step is 0, in a column of their own."""

    def __init__(self, steps: Column, back: Column, offset: int = 0) -> None:
        super().__init__(len(steps), np.int32)
        self._steps, self._back = steps, back
        self._furthest = np.cumsum([offset - 1, *(int(block.sum(dtype=np.int64)) for block in steps.blocks())])
        self._n_back = np.cumsum([0, *(len(block) - np.count_nonzero(block) for block in steps.blocks())])
        self._offset = offset

    def read(self, low: int, high: int) -> np.ndarray:
        mark = low // _MARK
        steps = self._steps[mark * _MARK : high]
        references = np.cumsum(steps, dtype=np.int32) + np.int32(self._furthest[mark])
        goes_back = steps == 0
        first = int(self._n_back[mark])
        references[goes_back] = self._back[first : first + np.count_nonzero(goes_back)] + np.int32(self._offset)
        return references[low - mark * _MARK :]


class Either(Column):
    """Where a flag is set the next value of one column, elsewhere the next of another, or 0."""

    def __init__(self, flags: Flags, one: Column, other: Column | None = None) -> None:
        super().__init__(len(flags), np.int32)
        self._flags, self._one, self._other = flags, one, other

    def read(self, low: int, high: int) -> np.ndarray:
        flags, n_before = self._flags[low:high], self._flags.n_before(low)
        n_set = np.count_nonzero(flags)
        values = np.zeros(len(flags), np.int32)
        values[flags] = self._one[n_before : n_before + n_set]
        if self._other is not None:
            values[~flags] = self._other[low - n_before : high - n_before - n_set]
        return values


class Choice(Column):
    """Values of a small table, by their number in it."""

    def __init__(self, choice: Column, table: np.ndarray) -> None:
        super().__init__(len(choice), table.dtype)
        self._choice, self._table = choice, table

    def read(self, low: int, high: int) -> np.ndarray:
        return self._table[self._choice[low:high]]


class Sums(Column):
    """0 and the running sums of a column of numbers, one value more than it has."""

    def __init__(self, numbers: Column) -> None:
        super().__init__(len(numbers) + 1, np.int64)
        self._numbers = numbers
        self._before = np.cumsum([0, *(int(block.sum(dtype=np.int64)) for block in numbers.blocks())])

    def read(self, low: int, high: int) -> np.ndarray:
        mark = low // _MARK
        sums = np.zeros(max(1, high - mark * _MARK), np.int64)
        np.cumsum(self._numbers[mark * _MARK : mark * _MARK + len(sums) - 1], out=sums[1:])
        return (sums + self._before[mark])[low - mark * _MARK : high - mark * _MARK]


def pack_column(column: np.ndarray) -> bytes:
    """Booleans or integers ≥ 0."""
    if column.dtype == bool:
        n_bytes, raw = 0, np.packbits(column).tobytes()
    else:
        n_bytes = max(1, (int(column.max(initial=0)).bit_length() + 7) // 8)
        planes = np.asarray(column).astype("<u8").view(np.uint8).reshape(-1, 8)[:, :n_bytes]
        raw = planes.T.tobytes()  # bytes of one significance together: the high ones hardly vary
    data = zlib.compress(raw, 9)
    return COLUMN.pack(n_bytes, len(column), len(data)) + data


def read_column(file: BinaryIO) -> Numbers | Flags:
    """The column that begins where the file stands. Raises struct.error, zlib.error or ValueError where it is none."""
    n_bytes, n, n_deflated = COLUMN.unpack(file.read(COLUMN.size))
    n_raw = n * n_bytes or -(-n // 8)
    raw = np.frombuffer(zlib.decompress(file.read(n_deflated), bufsize=max(1, n_raw)), np.uint8)
    return Flags(raw, n) if n_bytes == 0 else Numbers(raw.reshape(n_bytes, n))
