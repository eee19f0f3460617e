"""What a batch tells people on stderr: a bar while it runs, a table when it is over.

    edge-asr: error: rec/b.mp3: is 0 bytes long; nothing to transcribe, copy or record it again
     62 %|██████████████▍        | 6203/10000 files, 20.6/33.1 h, 41.3 × real time, ETA 18:09, 1 failed
"""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from edge_asr.errors import MIXED_FAILURES_EXIT_CODE, EdgeAsrError
from edge_asr.sources import Failure, Recording, shown

if TYPE_CHECKING:
    from tqdm import tqdm

N_NAMES = 5  # of failed recordings, for each kind of failure in the table
DRAW_S = 0.1  # between two drawings of the bar
SETTLED_S = 1.0  # until a speed means something
HOUR_S, MINUTE_S = 3_600, 60


def above_bar(file: TextIO) -> AbstractContextManager[None]:
    """While this lasts a bar leaves the screen to what is written to `file`. No bar was imported: there is none."""
    module = sys.modules.get("tqdm")
    return nullcontext() if module is None else module.tqdm.external_write_mode(file=file)


def say(message: str) -> None:
    """A line on stderr, above a bar if there is one."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    line = shown(f"edge-asr: {message}")  # file names may hold anything
    with above_bar(sys.stderr):
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)


def length(seconds: float, of: float | None = None) -> str:
    """75.2 → '1.3 min'; with the whole it is a part of: '1.3/4.0 min'."""
    largest = seconds if of is None else max(seconds, of)
    divisor, unit = (1, "s") if largest < 2 * MINUTE_S else (MINUTE_S, "min") if largest < 2 * HOUR_S else (HOUR_S, "h")
    return f"{seconds / divisor:.1f}{'' if of is None else f'/{of / divisor:.1f}'} {unit}"


class Estimate:
    """How much audio is left, from the sizes of files: what a byte holds is learnt for each suffix."""

    def __init__(self, recordings: Iterable[Recording]) -> None:
        self._bytes_left: Counter[str] = Counter()
        self._bytes_known: Counter[str] = Counter()
        self._seconds_known: defaultdict[str, float] = defaultdict(float)
        for recording in recordings:
            self._bytes_left[recording.suffix] += recording.n_bytes

    def learn(self, suffix: str, n_bytes: int, duration_s: float) -> None:
        """So many bytes of such files hold so many seconds."""
        if duration_s > 0:
            self._bytes_known[suffix] += n_bytes
            self._seconds_known[suffix] += duration_s

    def finished(self, recording: Recording, duration_s: float) -> None:
        self._bytes_left[recording.suffix] -= recording.n_bytes
        self.learn(recording.suffix, recording.n_bytes, duration_s)

    @property
    def seconds_left(self) -> float | None:
        """Of the recordings that are not finished; None while nothing is known."""
        n_bytes, seconds = sum(self._bytes_known.values()), sum(self._seconds_known.values())
        if not n_bytes:
            return None
        return sum(
            n_left * (self._seconds_known[suffix] / n if (n := self._bytes_known[suffix]) else seconds / n_bytes)
            for suffix, n_left in self._bytes_left.items()
        )


class Progress:
    """The bar of a batch; shown on a terminal only, and never when `quiet`."""

    def __init__(self, recordings: Iterable[Recording], quiet: bool) -> None:
        recordings = list(recordings)
        self._estimate = Estimate(recordings)
        self._n_files, self._n_done, self._n_failed = len(recordings), 0, 0
        self._heard_s = self._done_s = 0.0
        self._began: float | None = None  # with the first audio: loading is not counted
        self._drawn = 0.0
        self._bar: tqdm | None = None
        if not quiet and sys.stderr.isatty():
            self._bar = _new_bar()
            self._look(recordings)

    def _look(self, recordings: list[Recording]) -> None:
        """What the header of the largest file of each suffix says, for a first estimate."""
        from edge_asr.audio import AudioFile

        for recording in {r.suffix: r for r in sorted(recordings, key=lambda r: r.n_bytes) if r.n_bytes}.values():
            with suppress(EdgeAsrError), AudioFile(recording.path) as audio:
                self._estimate.learn(recording.suffix, recording.n_bytes, audio.duration_s or 0.0)

    def finished(self, recording: Recording, duration_s: float, failed: bool) -> None:
        self._estimate.finished(recording, duration_s)
        self._n_done += 1
        self._n_failed += failed
        self._done_s += duration_s
        self.heard(0.0)

    def heard(self, seconds: float) -> None:
        """So much more audio, of recordings that may still go on."""
        self._heard_s += seconds
        now = time.monotonic()
        if self._began is None:
            self._began = now
        if self._bar is not None and now - self._drawn > DRAW_S:
            self._drawn = now
            self._draw(self._bar, now - self._began)

    def _draw(self, bar: tqdm, elapsed_s: float) -> None:
        heard_s = max(self._heard_s, self._done_s)  # not every engine tells what it hears
        left_s = self._estimate.seconds_left
        whole_s = None if left_s is None else max(heard_s, self._done_s + left_s)
        parts = [f"{self._n_done}/{self._n_files} files"] if self._n_files > 1 else []
        parts.append(length(heard_s, whole_s))
        if heard_s and elapsed_s > SETTLED_S:
            parts.append(f"{heard_s / elapsed_s:.1f} × real time")
            if whole_s is not None:
                parts.append(f"ETA {bar.format_interval((whole_s - heard_s) * elapsed_s / heard_s)}")
        if self._n_failed:
            parts.append(f"{self._n_failed} failed")
        bar.set_description_str(", ".join(parts), refresh=False)
        share = self._n_done / self._n_files if whole_s is None else heard_s / max(whole_s, 1e-9)
        bar.n = min(1.0, share)
        bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            if self._drawn:
                self._bar.clear()
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _new_bar() -> tqdm:
    from tqdm import tqdm  # a tenth of the time that starting takes, which a batch without a terminal need not wait for

    tqdm.monitor_interval = 0  # its thread would be in the way of forked workers
    return tqdm(
        total=1.0, bar_format="{percentage:3.0f} %|{bar}| {desc}", leave=False, dynamic_ncols=True, delay=0.5,
        file=sys.stderr,
    )  # fmt: skip


@dataclass
class Summary:
    """What came of a batch. `failures` are paths and recordings without text; those skipped were done before."""

    model: str  # and how it was used, for people
    n_files: int = 0  # with the paths that led to none
    n_done: int = 0
    n_skipped: int = 0
    n_words: int = 0
    audio_s: float = 0.0  # of those done now
    skipped_s: float = 0.0
    load_s: float = 0.0
    wall_s: float = 0.0  # without loading
    can_resume: bool = False
    failures: list[Failure] = field(default_factory=list)

    @property
    def n_left(self) -> int:
        """Recordings that a batch did not come to because it was stopped."""
        return self.n_files - self.n_done - self.n_skipped - len(self.failures)

    @property
    def exit_code(self) -> int:
        """0, the code of the failures if they are of one kind, or `MIXED_FAILURES_EXIT_CODE`."""
        codes = {failure.exit_code for failure in self.failures}
        return 0 if not codes else codes.pop() if len(codes) == 1 else MIXED_FAILURES_EXIT_CODE

    @property
    def speed(self) -> str:
        rtf = self.wall_s / max(self.audio_s, 1e-9)
        return f"{1 / max(rtf, 1e-9):.1f} × real time (RTF {rtf:.4f})"

    def table(self) -> list[str]:
        """The figures for people, as lines; only one where one file made no trouble."""
        if self.n_done == 1 == self.n_files:
            return [f"{length(self.audio_s)} of audio, {self.speed}; {self.model}, loaded in {self.load_s:.2f} s"]
        speed = f" in {length(self.wall_s)}, {self.speed}" if self.n_done else ""
        rows = [("done", self.n_done, f"{length(self.audio_s)} of audio{speed}")]
        if self.n_skipped:
            rows.append(("done before", self.n_skipped, f"{length(self.skipped_s)} of audio, not done again"))
        if self.n_left:
            rows.append(("not done", self.n_left, "stopped before" + "; go on with --resume" * self.can_resume))
        for (kind, code), names in _by_kind(self.failures).items():
            told = ", ".join(shown(name) for name in names[:N_NAMES])
            more = f" and {len(names) - N_NAMES} more" if len(names) > N_NAMES else ""
            rows.append(("failed", len(names), f"{kind} (exit code {code}): {told}{more}"))
        width = len(str(max(count for _, count, _ in rows)))
        files = "1 file" if self.n_files == 1 else f"{self.n_files} files"
        loaded = f", loaded in {self.load_s:.2f} s" if self.load_s else ""
        return [
            f"{files}: {self.model}{loaded}",
            *(f"    {name:<11}  {count:>{width}}  {text}" for name, count, text in rows),
        ]


def _by_kind(failures: Iterable[Failure]) -> dict[tuple[str, int], list[str]]:
    kinds: dict[tuple[str, int], list[str]] = {}
    for failure in failures:
        kinds.setdefault((type(failure.error).__name__, failure.exit_code), []).append(failure.path)
    return kinds
