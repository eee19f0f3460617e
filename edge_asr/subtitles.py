"""Words with times → subtitles: cues of one or two lines that can be read, cut where a speaker paused.

A cue holds words of one segment and keeps within a `Layout`. Where a segment is too long, all ways to cut it are
weighed (dynamic programming): few cues, cut at pauses, not after "the" or "of". No word is broken, no cue overlaps the
next, and times are whole milliseconds, as files hold them. The limits are those of broadcasters' guides: 42 characters
in two lines (Netflix, EBU), 7 s, 20 characters a second.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edge_asr.errors import UsageError

if TYPE_CHECKING:
    from edge_asr.decoder import Word
    from edge_asr.recognizer import Segment

Lines = tuple[tuple[str, ...], ...]  # the words of each line

MAX_CUE_S = 7.0
MAX_PAUSE_S = 1.5  # a cue does not stay through a longer silence between its words
GOOD_PAUSE_S = 0.6  # from here on, a pause is as good a place to cut as the end of a sentence

# that stand before what they belong to: a line should not end with one
LEADING_WORDS = frozenset(
    "a an the my your his her its our their this these those no some any every each "
    "of to in on at by for from with without into onto over under about after before between through than as "
    "and or but nor so because if when while that which who whose where "
    "i you he she it we they is are was were am be been has have had do does did will would can could shall should may "
    "might must not mr mrs ms dr very i'm i've i'll you're he's she's it's we're they're don't didn't".split()
)


@dataclass(frozen=True)
class Layout:
    """How subtitles are laid out; 0 lifts a limit.

    max_line_width: characters; a longer word has a line of its own. Without it segments stay whole.
    max_chars_per_second: a cue stays on the screen, while nobody speaks, until it can be read at this rate.
    highlight_words: a cue for each word, the word underlined.
    """

    max_line_width: int = 42
    max_line_count: int = 2
    max_chars_per_second: float = 20.0
    highlight_words: bool = False

    def __post_init__(self) -> None:
        for name in ("max_line_width", "max_line_count", "max_chars_per_second"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} must be 0 (no limit) or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class Cue:
    """What is shown from `start_ms` to `end_ms`; of highlighted words, `word` counts over all lines."""

    start_ms: int
    end_ms: int
    lines: Lines
    word: int | None = None


def cues(segments: Iterable[Segment], layout: Layout, end_s: float = float("inf")) -> Iterator[Cue]:
    """The cues of a recording that ends at `end_s`, in order, none overlapping."""
    groups = [(group, segment) for segment in segments for group in _groups(segment, layout)]
    free_ms = 0
    for number, (words, segment) in enumerate(groups):
        following = groups[number + 1] if number + 1 < len(groups) else None
        until_s = min(end_s, _start_s(*following)) if following else end_s
        lines = _lines(words, layout) if words else ((segment.text,),)
        start_s, said_s = (words[0].start, words[-1].end) if words else (segment.start, segment.end)
        read_s = start_s + _n_chars(lines) / layout.max_chars_per_second if layout.max_chars_per_second else said_s
        start_ms = max(free_ms, round(1000 * start_s))
        end_ms = max(round(1000 * max(said_s, min(read_s, until_s))), start_ms + 1)
        if following:
            end_ms = max(min(end_ms, round(1000 * _start_s(*following))), start_ms + 1)
        free_ms = end_ms
        if layout.highlight_words and words:
            yield from _highlighted(words, lines, start_ms, end_ms)
        else:
            yield Cue(start_ms, end_ms, lines)


def _start_s(words: Sequence[Word], segment: Segment) -> float:
    return words[0].start if words else segment.start


def _n_chars(lines: Sequence[Sequence[str]]) -> int:
    return sum(len(word) + 1 for line in lines for word in line) - 1


def _highlighted(words: Sequence[Word], lines: Lines, start_ms: int, end_ms: int) -> Iterator[Cue]:
    """The same lines all the time, with the word that is being said; between words with none."""
    now_ms = start_ms
    for number, word in enumerate(words):
        first_ms = max(now_ms, round(1000 * word.start))
        last_ms = min(end_ms, max(first_ms, round(1000 * word.end)))
        if now_ms < first_ms < end_ms:
            yield Cue(now_ms, first_ms, lines)
        if first_ms < last_ms:
            yield Cue(first_ms, last_ms, lines, number)
        now_ms = max(now_ms, last_ms)
    if now_ms < end_ms:
        yield Cue(now_ms, end_ms, lines)


# --- cutting --------------------------------------------------------------------------------------------------------


def _groups(segment: Segment, layout: Layout) -> list[Sequence[Word]]:
    """The words of each cue of a segment: the cheapest way to cut it, by `_cost`."""
    words = segment.words
    if not layout.max_line_width or len(words) < 2:
        return [words]
    best: list[tuple[float, int]] = [(0.0, 0)]  # (cost, first word of the last cue) of the words before each place
    for stop in range(1, len(words) + 1):
        ways = []
        for first in range(stop - 1, -1, -1):
            if not _may_grow(words, first, stop, layout):
                break
            if stop - first == 1 or len(_filled(words[first:stop], layout.max_line_width)) <= _n_lines(layout):
                ways.append((best[first][0] + _cost(words, first, stop, layout), first))
        best.append(min(ways))
    groups: list[Sequence[Word]] = []
    stop = len(words)
    while stop:
        first = best[stop][1]
        groups.append(words[first:stop])
        stop = first
    return groups[::-1]


def _may_grow(words: Sequence[Word], first: int, stop: int, layout: Layout) -> bool:
    """False once words[first:stop], and all that begin earlier, are too much for a cue."""
    if stop - first == 1:
        return True
    if words[first + 1].start - words[first].end > MAX_PAUSE_S or words[stop - 1].end - words[first].start > MAX_CUE_S:
        return False
    room = _n_lines(layout) * (layout.max_line_width + 1)
    return sum(len(word.text) + 1 for word in words[first:stop]) <= room


def _n_lines(layout: Layout) -> int:
    return layout.max_line_count or 1_000


def _cost(words: Sequence[Word], first: int, stop: int, layout: Layout) -> float:
    """Of a cue: one for being a cue, more for being cut off in mid-speech or very short."""
    cost = 1.0
    if stop < len(words):
        pause_s = words[stop].start - words[stop - 1].end
        cost += 2.0 * (1.0 - min(1.0, max(0.0, pause_s) / GOOD_PAUSE_S))  # rather one cue more than cut off
        cost += 0.5 * (words[stop - 1].text.lower() in LEADING_WORDS)
    share = (sum(len(word.text) + 1 for word in words[first:stop]) - 1) / layout.max_line_width
    return cost + 2.0 * max(0.0, 0.5 - share) ** 2  # up to 0.5 where it is less than half a line


# --- lines ----------------------------------------------------------------------------------------------------------


def _filled(words: Sequence[Word], width: int) -> list[list[str]]:
    """Lines filled from the first on: no way to break needs fewer."""
    lines: list[list[str]] = []
    room = 0
    for word in words:
        if len(word.text) + 1 > room or not lines:
            lines.append([])
            room = width + 1
        lines[-1].append(word.text)
        room -= len(word.text) + 1
    return lines


def _lines(words: Sequence[Word], layout: Layout) -> Lines:
    """As few lines as can be, of like length, none ending with a word that leads to the next if that can be helped."""
    texts = tuple(word.text for word in words)
    if not layout.max_line_width:
        return (texts,)
    n_lines = len(_filled(words, layout.max_line_width))
    if n_lines == 1 or n_lines == len(texts):
        return (texts,) if n_lines == 1 else tuple((text,) for text in texts)
    target = (sum(map(len, texts)) + len(texts) - n_lines) / n_lines
    best: list[dict[int, tuple[float, int]]] = [{0: (0.0, 0)}]  # by words: lines → (cost, first word of the last line)
    for stop in range(1, len(texts) + 1):
        ways: dict[int, tuple[float, int]] = {}
        n_chars = -1
        for first in range(stop - 1, -1, -1):
            n_chars += len(texts[first]) + 1
            if n_chars > layout.max_line_width and stop - first > 1:
                break
            cost = ((n_chars - target) / layout.max_line_width) ** 2
            cost += 0.1 * (stop < len(texts) and texts[stop - 1].lower() in LEADING_WORDS)
            for n, (before, _) in best[first].items():
                ways[n + 1] = min(ways.get(n + 1, (float("inf"), 0)), (before + cost, first))
        best.append(ways)
    lines: list[tuple[str, ...]] = []
    stop = len(texts)
    for n in range(n_lines, 0, -1):
        first = best[stop][n][1]
        lines.append(texts[first:stop])
        stop = first
    return tuple(lines[::-1])
