"""Transcripts in the formats that other programs read."""

import json
from dataclasses import dataclass

import pytest

from edge_asr import writers
from edge_asr.errors import OutputError
from edge_asr.subtitles import Layout
from edge_asr.writers import Transcript, clock, save


@dataclass
class Word:
    text: str
    start: float
    end: float
    confidence: float


@dataclass
class Segment:
    start: float
    end: float
    text: str
    words: tuple


HELLO = Segment(0.5, 1.25, "hello there", (Word("hello", 0.5, 0.9, 0.98765), Word("there", 0.9, 1.25, 1.0)))
LATER = Segment(3_661.0, 3_662.4567, "good-bye", (Word("good-bye", 3_661.0, 3_662.4567, 0.5),))
TRANSCRIPT = Transcript("a.wav", 3_700.12345, [HELLO, LATER], "tones")


def test_txt_is_one_segment_per_line():
    assert writers.txt(TRANSCRIPT) == "hello there\ngood-bye\n"


def test_srt_counts_from_one_and_has_hours_and_a_comma():
    assert writers.srt(TRANSCRIPT) == (
        "1\n00:00:00,500 --> 00:00:01,250\nhello there\n\n2\n01:01:01,000 --> 01:01:02,457\ngood-bye\n\n"
    )


def test_vtt_has_a_header_and_hours_only_where_needed():
    assert writers.vtt(TRANSCRIPT) == (
        "WEBVTT\n\n00:00.500 --> 00:01.250\nhello there\n\n01:01:01.000 --> 01:01:02.457\ngood-bye\n\n"
    )


def test_tsv_is_in_milliseconds():
    assert writers.tsv(TRANSCRIPT) == "start\tend\ttext\n500\t1250\thello there\n3661000\t3662457\tgood-bye\n"


def test_jsonl_is_the_json_object_on_one_line():
    line = writers.jsonl(TRANSCRIPT)
    assert line.count("\n") == 1
    assert json.loads(line) == json.loads(writers.json_document(TRANSCRIPT))


def test_json_holds_segments_with_words():
    document = json.loads(writers.json_document(TRANSCRIPT))
    assert document["audio_filepath"] == "a.wav"
    assert document["text"] == "hello there good-bye"
    assert document["duration"] == 3_700.123
    assert document["segments"][0] == {
        "id": 0,
        "start": 0.5,
        "end": 1.25,
        "text": "hello there",
        "words": [
            {"word": "hello", "start": 0.5, "end": 0.9, "confidence": 0.988},
            {"word": "there", "start": 0.9, "end": 1.25, "confidence": 1.0},
        ],
    }


@pytest.mark.parametrize("name", writers.WRITERS)
def test_a_recording_without_words_is_a_valid_empty_document(name):
    text = writers.WRITERS[name](Transcript("quiet.wav", 2.0, []), Layout())
    assert "-->" not in text
    if name in ("json", "jsonl"):
        assert json.loads(text)["text"] == ""


def test_clocks_carry():
    assert clock(60_000, ".", False) == "01:00.000"
    assert clock(86_399_999, ",", True) == "23:59:59,999"
    assert clock(-1, ",", True) == "00:00:00,000"


def test_saving_replaces_the_whole_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "new folder" / "a.txt"
    save(path, "first")
    save(path, "second")
    assert path.read_text() == "second"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"a\.txt"):
        save(tmp_path / "file" / "a.txt", "text")
