"""The terminal of a live session: finals scroll by, the partial text and the meters rewrite themselves below.

Everything live goes to stderr; finals go to stdout. Each update is one write, so nothing flickers.
"""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from edge_asr.live import Progress
    from edge_asr.recognizer import Segment

ERASE_LIVE = "\r\x1b[1A\x1b[J"  # from the end of the second live line
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
STYLES = {"dim": "2", "partial": "36", "warning": "33", "red": "31", "green": "32"}
METER_CELLS, METER_FLOOR_DB = 14, -60.0
LOUD_DB = -3.0  # a peak above is about to clip
CLOCK_WIDTH = 9  # as in "  1:02:03.4"
EIGHTHS = " ▏▎▍▌▋▊▉█"


def can_draw(stream: TextIO) -> bool:
    """A terminal that understands cursor movements."""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


class Screen:
    """Two live lines at the bottom of a terminal: the words that may still change, and the meters."""

    def __init__(self, live: TextIO, out: TextIO) -> None:
        self._live, self._out = live, out
        self._out_is_terminal = out.isatty()
        self._colour = "NO_COLOR" not in os.environ
        self._unicode = "utf" in (live.encoding or "").lower()
        self._drawn = False
        self._partial = ""
        self._progress: Progress | None = None
        if sys.platform == "win32":
            os.system("")  # switches on escape sequences in older consoles

    def partial(self, segment: Segment) -> None:
        self._partial = segment.text
        self._draw()

    def progress(self, progress: Progress) -> None:
        self._progress = progress
        self._draw()

    def final(self, segment: Segment) -> None:
        self._partial = ""
        if not self._out_is_terminal:
            print(segment.text, file=self._out, flush=True)
            self._draw()
            return
        self._erase()
        print(f"{self._styled('dim', clock(segment.start))}  {segment.text}", file=self._out, flush=True)
        self._draw()

    def notice(self, text: str, style: str = "warning") -> None:
        """A line of status above the live ones."""
        self._erase()
        for line in textwrap.wrap(text, shutil.get_terminal_size().columns - 1):
            print(self._styled(style, line), file=self._live, flush=True)
        self._draw()

    def close(self) -> None:
        self._progress = None
        self._erase()
        self._live.write(SHOW_CURSOR)
        self._live.flush()

    def _erase(self) -> None:
        if self._drawn:
            self._live.write(ERASE_LIVE)
            self._live.flush()
            self._drawn = False

    def _draw(self) -> None:
        if self._progress is None:
            return
        width = shutil.get_terminal_size().columns - 1  # a full line would wrap on some terminals
        text = tail(self._partial, width - CLOCK_WIDTH - 2, "…" if self._unicode else "...")
        lines = f"{' ' * CLOCK_WIDTH}  {self._styled('partial', text)}\n{self._status(self._progress, width)}"
        self._live.write((ERASE_LIVE if self._drawn else HIDE_CURSOR) + lines)
        self._live.flush()
        self._drawn = True

    def _status(self, now: Progress, width: int) -> str:
        figures = (
            f"{now.level_db:4.0f} dB", f"ring {100 * now.ring_fill:3.0f} %",
            f"chunk {now.latency_ms:3.0f} ms", f"RTF {now.rtf:.3f}",
        )  # fmt: skip
        separator = " │ " if self._unicode else " | "
        plain = clock(now.audio_s) + "  "
        room = width - len(plain) - METER_CELLS - 1
        told = ""
        for i, figure in enumerate(figures):
            joined = figure if i == 0 else separator + figure
            if len(told) + len(joined) > room:  # a narrow terminal: the last ones are left out
                break
            told += joined
        if room < 0:
            return plain[:width]
        return f"{self._styled('dim', plain)}{self._meter(now)} {self._styled('dim', told)}"

    def _meter(self, now: Progress) -> str:
        """A bar of the level, red when the peak is about to clip."""
        share = min(1.0, max(0.0, 1 - now.level_db / METER_FLOOR_DB))
        eighths = round(share * METER_CELLS * 8)
        whole, part = divmod(eighths, 8)
        bar = EIGHTHS[-1] * whole + (EIGHTHS[part] if part else "") if self._unicode else "#" * whole
        colour = "red" if now.peak_db > LOUD_DB else "green"
        empty = ("·" if self._unicode else ".") * (METER_CELLS - len(bar))
        return self._styled(colour, bar) + self._styled("dim", empty)

    def _styled(self, style: str, text: str) -> str:
        return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if self._colour and text else text


def clock(seconds: float) -> str:
    """75.24 → '   1:15.2', CLOCK_WIDTH wide up to ten hours."""
    tenths = int(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    rest = f"{tenths // 10:02d}.{tenths % 10}"
    told = f"{hours}:{minutes:02d}:{rest}" if hours else f"{minutes}:{rest}"
    return told.rjust(CLOCK_WIDTH)


def tail(text: str, width: int, ellipsis: str) -> str:
    """The end of a text that does not fit, cut between words."""
    if len(text) <= width:
        return text
    kept = text[-max(1, width - len(ellipsis) - 1) :]
    return f"{ellipsis} {kept.partition(' ')[2] or kept}"[: max(0, width)]
