"""Forced alignment of tone speech, whose phones and times are known."""

import json

import numpy as np
import pytest
import soundfile
from tones import LEXICON, TONE_S, speak

from edge_asr.align import Aligner, align
from edge_asr.cli import main
from edge_asr.data import read_manifest
from edge_asr.errors import AlignmentError
from edge_asr.tokens import Lexicon, TokenTable

LEAD_S, GAP_S = 0.3, 0.08


@pytest.fixture
def manifest(tmp_path):
    rows = []
    for name, said, text in [
        ("a.wav", "turn on the light", "turn on the light"),
        ("short.wav", "one", "one " * 40),
        ("b.wav", "the the five", "the the five"),
    ]:
        samples = speak(said, lead_s=LEAD_S, word_gap_s=GAP_S)
        soundfile.write(tmp_path / name, samples, 16_000)
        rows.append({"audio_filepath": name, "duration": len(samples) / 16_000, "text": text, "speaker": "tones"})
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def lexicon(tmp_path):
    path = tmp_path / "lexicon.txt"
    path.write_text("the DH IY\nthe DH AH\nlight L AY T\nlight L AY D AH T\non AO N\non AA N\n")
    return path


def test_the_pronunciation_that_was_said_is_found_with_its_times(tmp_path, tone_model, manifest, lexicon, capsys):
    out = tmp_path / "out" / "aligned.jsonl"
    code = main(
        ["align", "--manifest", str(manifest), "--out", str(out), "--model", str(tone_model), "--lexicon", str(lexicon)]
    )
    assert code == AlignmentError.exit_code  # of the clip whose text does not fit
    assert "short.wav" in capsys.readouterr().err
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["text"] for row in rows] == ["turn on the light", "the the five"]
    for row in rows:
        assert row["pronunciations"] == [LEXICON[word] for word in row["text"].split()]
        assert 0.3 < row["alignment"] <= 1
        at = LEAD_S
        for word, (start, end) in zip(row["text"].split(), row["word_times"], strict=True):
            length = TONE_S * len(LEXICON[word].split())
            assert abs(start - at) <= 0.08
            assert abs(end - (at + length)) <= 0.08
            at += length + GAP_S
    clips = read_manifest(out)
    assert clips[0].pronunciations == tuple(rows[0]["pronunciations"])
    assert clips[0].speaker == "tones"
    assert all((out.parent / row["audio_filepath"]).is_file() for row in rows)


def test_clips_that_do_not_fit_their_text_can_be_dropped(tmp_path, tone_model, manifest, capsys):
    out = tmp_path / "aligned.jsonl"
    main(["align", "--manifest", str(manifest), "--out", str(out), "--model", str(tone_model), "--drop-below", "0.999"])
    assert out.read_text() == ""
    assert "aligned 0 of 3 clips" in capsys.readouterr().err


def test_a_text_that_was_not_said_scores_low(tone_model, manifest):
    aligner = Aligner(str(tone_model))
    clip = read_manifest(manifest)[0]
    said = aligner.align(clip).score
    changed = type(clip)(**{**vars(clip), "text": "one five three four"})
    assert aligner.align(changed).score < 0.5 * said


@pytest.mark.parametrize("n_frames", [0, 3])
def test_what_cannot_be_aligned_is_an_error(n_frames):
    tokens = TokenTable.phones()
    log_probs = np.full((n_frames, len(tokens)), -np.log(len(tokens)), np.float32)
    with pytest.raises(AlignmentError, match="need"):
        align(log_probs, "one two three", Lexicon.cmudict(), tokens)
