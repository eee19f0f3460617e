"""Memory that only loading needs, given back to the system. On Linux; elsewhere nothing happens.

Loading a model runs through much code once: 20 MB of onnxruntime's library are in memory afterwards, of which
recognising needs a fifth. These pages are the files' own, so that what is needed again is simply there again.
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_M_MMAP_THRESHOLD = -3  # of glibc's mallopt
_LARGE_BYTES = 1 << 20
_MADV_DONTNEED = 4
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ (\d+)")  # begin, end, permissions, inode


def map_large_arrays() -> None:
    """Tells glibc to map large arrays one by one: in its heap the gaps between them would stay, 40 MB after a load."""
    _call("mallopt", _M_MMAP_THRESHOLD, _LARGE_BYTES)


def give_back_heap() -> None:
    """What was freed in pieces too small to be mapped."""
    _call("malloc_trim", 0)


def give_back_code() -> None:
    """Pages of libraries that no one has written to; those that are used are mapped again as they are used."""
    if sys.platform == "linux":
        with suppress(OSError):  # no /proc
            for begin, end in _clean_mappings(Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")):
                _call("madvise", ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTNEED)


def _clean_mappings(smaps: str) -> Iterator[tuple[int, int]]:
    """(begin, end) of read-only private mappings of files without a page of their own: no relocation would be lost."""
    span: tuple[int, int] | None = None
    for line in smaps.splitlines():
        if found := _MAPPING.match(line):
            begin, end, permissions, inode = found.groups()
            is_code = permissions in ("r-xp", "r--p") and inode != "0"
            span = (int(begin, 16), int(end, 16)) if is_code else None
        elif span is not None and line.split() == ["Anonymous:", "0", "kB"]:
            yield span


def _call(name: str, *arguments: object) -> None:
    if sys.platform == "linux":
        function = getattr(ctypes.CDLL(None), name, None)  # not in musl
        if function is not None:
            function(*arguments)
