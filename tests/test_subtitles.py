"""Subtitles: no word is broken or lost, no cue overlaps, limits are kept, and cuts lie where speakers pause."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr import writers
from edge_asr.errors import UsageError
from edge_asr.subtitles import MAX_CUE_S, Layout, cues
from edge_asr.writers import Transcript


@dataclass(frozen=True)
class Word:
    text: str
    start: float
    end: float
    confidence: float = 1.0


@dataclass(frozen=True)
class Segment:
    start: float
    end: float
    text: str
    words: tuple


def said(text: str, start: float = 0.0, word_s: float = 0.25, gap_s: float = 0.05, pauses=None) -> Segment:
    """A segment in which each word takes `word_s`; after the words in `pauses` comes a longer gap."""
    words = []
    for word in text.split():
        words.append(Word(word, start, start + word_s))
        start += word_s + (pauses or {}).get(word, gap_s)
    return Segment(words[0].start, words[-1].end, text, tuple(words))


def lines(segments: list[Segment], layout: Layout) -> list[list[str]]:
    return [[" ".join(line) for line in cue.lines] for cue in cues(segments, layout)]


SPEECH = (
    "we went down to the river in the morning and there was nobody to be seen but an old man with a boat "
    "who asked us whether we would like to cross and so we did although it had begun to rain"
)
word = st.builds(
    lambda text, gap, length: (text, gap, length),
    st.text("abcdefghij'", min_size=1, max_size=14),
    st.integers(0, 2_500).map(lambda ms: ms / 1000),
    st.integers(40, 1_500).map(lambda ms: ms / 1000),
)


@st.composite
def recordings(draw) -> list[Segment]:
    segments, now = [], 0.0
    for texts in draw(st.lists(st.lists(word, min_size=1, max_size=30), max_size=4)):
        words = []
        for text, gap, length in texts:
            words.append(Word(text, now + gap, now + gap + length))
            now += gap + length
        segments.append(Segment(words[0].start, words[-1].end, " ".join(w.text for w in words), tuple(words)))
    return segments


layouts = st.builds(Layout, st.integers(0, 60), st.integers(0, 3), st.sampled_from([0, 5, 20]), st.booleans())


@settings(max_examples=200, deadline=None)
@given(recordings(), layouts)
def test_every_word_is_shown_once_while_it_is_said_and_no_cue_overlaps(segments, layout):
    end_s = segments[-1].end if segments else 0.0
    shown = list(cues(segments, layout, end_s))
    texts = [w for segment in segments for w in segment.words]
    if layout.highlight_words:
        marked = [[w for line in cue.lines for w in line][cue.word] for cue in shown if cue.word is not None]
        assert marked == [w.text for w in texts]
    else:
        assert [w for cue in shown for line in cue.lines for w in line] == [w.text for w in texts]
    for cue, following in pairwise(shown):
        assert cue.end_ms <= following.start_ms
    assert all(cue.start_ms < cue.end_ms for cue in shown)
    assert not shown or shown[-1].end_ms <= round(1000 * end_s) + len(shown)  # a millisecond each where words crowd


@settings(max_examples=200, deadline=None)
@given(recordings(), layouts)
def test_cues_keep_within_their_limits(segments, layout):
    if not layout.max_line_width:
        return
    for cue in cues(segments, Layout(layout.max_line_width, layout.max_line_count, 0)):
        for line in cue.lines:
            assert len(" ".join(line)) <= layout.max_line_width or len(line) == 1
        n_words = sum(len(line) for line in cue.lines)
        assert n_words == 1 or not layout.max_line_count or len(cue.lines) <= layout.max_line_count
        assert n_words == 1 or cue.end_ms - cue.start_ms <= 1000 * MAX_CUE_S + 1


def test_a_long_segment_is_cut_where_the_speaker_paused():
    segment = said(SPEECH, pauses={"morning": 0.5, "boat": 0.6, "cross": 0.5})
    ends = [cue[-1].split()[-1] for cue in lines([segment], Layout())]
    assert {"boat", "cross"} <= set(ends)


def test_lines_are_of_like_length_and_do_not_end_with_a_leading_word():
    for width in (32, 37, 42):
        for cue in lines([said(SPEECH)], Layout(max_line_width=width)):
            assert all(line.split()[-1] not in ("the", "a", "an", "of") for line in cue[:-1])
            assert len(cue) == 1 or min(map(len, cue)) >= width // 4


def test_without_a_width_a_segment_is_one_line():
    assert lines([said(SPEECH)], Layout(max_line_width=0)) == [[SPEECH]]


def test_a_word_longer_than_a_line_stays_whole():
    assert lines([said("an antidisestablishmentarianism indeed")], Layout(max_line_width=10, max_line_count=1)) == [
        ["an"], ["antidisestablishmentarianism"], ["indeed"],
    ]  # fmt: skip


def test_hurried_words_stay_until_they_are_read_but_never_into_the_next():
    hurried, following = said("forty characters in not even two seconds", word_s=0.1, gap_s=0), said("then", start=1.5)
    alone, before = cues([hurried], Layout(), 10.0), cues([hurried, following], Layout(), 10.0)
    assert [cue.end_ms for cue in alone] == [2000]  # 40 characters at 20 a second
    assert [(cue.start_ms, cue.end_ms) for cue in before] == [(0, 1500), (1500, 1750)]
    assert [cue.end_ms for cue in cues([hurried], Layout(max_chars_per_second=0))] == [700]
    assert [cue.end_ms for cue in cues([hurried], Layout(), 1.2)] == [1200]  # the recording ends


def test_words_are_underlined_while_they_are_said_as_whisper_does_it():
    transcript = Transcript("a.wav", 9.0, [said("turn on", word_s=0.5, gap_s=0.25)])
    layout = Layout(highlight_words=True)
    assert writers.srt(transcript, layout) == (
        "1\n00:00:00,000 --> 00:00:00,500\n<u>turn</u> on\n\n"
        "2\n00:00:00,500 --> 00:00:00,750\nturn on\n\n"
        "3\n00:00:00,750 --> 00:00:01,250\nturn <u>on</u>\n\n"
    )
    assert "00:00.750 --> 00:01.250\nturn <u>on</u>\n" in writers.vtt(transcript, layout)
    assert writers.tsv(transcript, layout) == "start\tend\ttext\n0\t500\tturn\n750\t1250\ton\n"


def test_vtt_escapes_what_would_be_markup():
    assert "a &lt;b&gt; &amp;" in writers.vtt(Transcript("a.wav", 9.0, [said("a <b> &")]))


@pytest.mark.parametrize("name", ["max_line_width", "max_line_count", "max_chars_per_second"])
def test_limits_below_zero_make_no_sense(name):
    with pytest.raises(UsageError, match=name):
        Layout(**{name: -1})
