"""Evaluation: the figures of a set, of its sources, and of what failed."""

import json

import pytest
import soundfile
from tones import speak

from edge_asr import errors
from edge_asr.cli import main

CLIPS = [  # file, what is said, what the manifest says, source
    ("a.wav", "turn on the light", "turn on the light", "commands"),
    ("b.flac", "one two three", "one two four", "digits"),
    ("c.wav", "one two", "one", "digits"),
]


@pytest.fixture
def manifest(tmp_path):
    rows = []
    for name, said, text, source in CLIPS:
        samples = speak(said)
        soundfile.write(tmp_path / name, samples, 16_000)
        rows.append({"audio_filepath": name, "duration": len(samples) / 16_000, "text": text, "source": source})
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def evaluate(capsys, tone_model, manifest, *options) -> tuple[int, dict]:
    code = main(["evaluate", "--model", str(tone_model), "--manifest", str(manifest), "--json", *options])
    return code, json.loads(capsys.readouterr().out)


def test_figures_add_up_over_sources(capsys, tone_model, manifest):
    code, figures = evaluate(capsys, tone_model, manifest)
    assert code == 0
    assert (figures["words"], figures["substitutions"], figures["insertions"], figures["deletions"]) == (8, 1, 1, 0)
    assert figures["wer"] == 25
    assert figures["sources"]["commands"]["wer"] == 0
    assert figures["sources"]["digits"]["wer"] == 50
    assert figures["rtf"] > 0
    assert 0 < figures["chunk_latency_ms"]["p50"] <= figures["chunk_latency_ms"]["p99"]
    assert (figures["model"], figures["precision"], figures["decoder"], figures["chunk_ms"]) == (
        "tones", "int8", "graph", 320,
    )  # fmt: skip


def test_the_rate_does_not_depend_on_the_chunk_the_precision_or_the_workers(capsys, tone_model, manifest):
    expected = evaluate(capsys, tone_model, manifest)[1]["sources"]["digits"]["wer"]
    for options in (["--chunk-ms", "80"], ["--precision", "fp32", "--chunk-ms", "640"], ["--workers", "2"]):
        figures = evaluate(capsys, tone_model, manifest, *options)[1]
        assert figures["sources"]["digits"]["wer"] == expected


def test_a_limit_takes_the_first_clips(capsys, tone_model, manifest):
    assert evaluate(capsys, tone_model, manifest, "--limit", "1")[1]["clips"] == 1


def test_a_clip_that_cannot_be_read_is_reported_and_counts_as_deleted(capsys, tone_model, manifest):
    (manifest.parent / "a.wav").unlink()
    code, figures = evaluate(capsys, tone_model, manifest)
    assert code == errors.AudioNotFoundError.exit_code
    assert figures["deletions"] == 4
    assert "a.wav" in figures["failed"][0]["error"]


def test_hypotheses_are_written_beside_the_references(capsys, tone_model, manifest):
    path = manifest.parent / "hypotheses.jsonl"
    evaluate(capsys, tone_model, manifest, "--hypotheses", str(path))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["pred_text"] for row in rows] == [said for _, said, _, _ in CLIPS]
    assert [row["text"] for row in rows] == [text for _, _, text, _ in CLIPS]


def test_people_get_a_table(capsys, tone_model, manifest):
    assert main(["evaluate", "--model", str(tone_model), "--manifest", str(manifest)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["source", "commands", "digits", "all", "model"]
    assert "WER 25.00 %" in lines[-1]


def test_a_manifest_that_is_wrong_is_named(tone_model, tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    path.write_text("not json\n")
    assert main(["evaluate", "--model", str(tone_model), "--manifest", str(path)]) == errors.ManifestError.exit_code
    assert "bad.jsonl" in capsys.readouterr().err
