"""The figures of the comparison are measured as `edge-asr evaluate` measures, once, and told in the model's card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import soundfile
from tones import speak

from edge_asr.claims import notes
from edge_asr.evaluate import evaluate
from edge_asr.measured import load_models

ROOT = Path(__file__).parent.parent


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture
def speech(tmp_path) -> Path:
    """Dev sets of tones, two speakers each."""
    (tmp_path / "speech").mkdir()
    for name, texts in (
        ("dev-clean", ["turn on the light", "one two three", "four five", "turn the light off", "one one one two"]),
        ("dev-accent", ["two five"]),
        ("dev-commands", ["one", "five"]),
        ("dev-digits", ["three"]),
    ):
        rows = []
        for i, text in enumerate(texts):
            path = tmp_path / "speech" / f"{name}-{i}.wav"
            soundfile.write(path, speak(text), 16_000)
            rows.append({"audio_filepath": path.name, "duration": soundfile.info(path).duration,
                         "text": text.replace("five", "nine"), "speaker": f"s{i % 2}"})  # fmt: skip
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "speech" / f"{name}.jsonl").write_text(lines)
    return tmp_path / "speech"


@pytest.fixture
def copied(tone_model, tmp_path) -> Path:
    shutil.copytree(tone_model.parent, tmp_path / "made")
    config = tmp_path / "made" / tone_model.name / "config.json"
    export = {"parameters": 1000, "int8_bytes": 9000, "fp32_bytes": 9000, "int8_token_changes_percent": 0.0}
    config.write_text(json.dumps(json.loads(config.read_text()) | {"encoder": "tcn", "export": export}))
    return tmp_path / "made" / tone_model.name


def test_measuring_gives_what_evaluating_gives_and_is_never_done_twice(benchmarks, copied, speech, monkeypatch):
    import measure_models
    import measure_speed

    monkeypatch.setattr(measure_speed, "pocketsphinx_decoder", lambda: None)
    arguments = [str(speech), "--folder", str(copied.parent), "--models", copied.name, "--speed-clips", "2"]
    measure_models.main(arguments)
    results = json.loads((copied / "results.json").read_text())
    for name, options in (
        ("dev-clean", {}),
        ("dev-clean 80 ms", {"chunk_ms": 80}),
        ("dev-clean fp32", {"precision": "fp32"}),
    ):
        figures, _ = evaluate(speech / "dev-clean.jsonl", {"model": str(copied), **options})
        assert results["rows"][name]["wer"] == figures["wer"] > 0
    assert "dev-clean device graph" not in results["rows"]  # this model has none
    assert results["rows"]["dev-clean"]["worst_words"] == [["nine", 1, 1]]
    assert sum(words for _, words, _ in results["rows"]["dev-clean"]["speakers"].values()) == 17
    assert results["cost"]["int8 320 ms"]["macs_per_s"] == 320 * 40 * 25  # one product of 320 by 40 each 40 ms
    assert results["speed"]["run"]["chunks"]["320"]["ratio_to_fastest"] == 1
    assert results["rows"]["dev-clean"]["measured"]["machine"]["cores"] >= 1
    card = (copied / "README.md").read_text()
    assert "most often misheard in dev-clean: nine 1/1" in card
    found = load_models([str(copied)])[0]
    assert (found.row("dev-clean")["words"], found.stale) == (17, ())

    def never(*arguments):
        raise AssertionError("measured again")

    monkeypatch.setattr(measure_models.Bench, "figures", never)
    monkeypatch.setattr(measure_models, "cost_of", never)
    measure_models.main([*arguments[:-1], "0"])
    graph = copied.parent / "graphs" / "words" / "config.json"
    graph.write_text(json.dumps(json.loads(graph.read_text()) | {"files": {"graph.fst": {"crc32": "another"}}}))
    found = load_models([str(copied)])[0]
    assert "dev-clean" in found.stale
    assert "dev-commands with grammar" not in found.stale
    assert "another graph" in "\n".join(notes([found]))
    with pytest.raises(AssertionError, match="measured again"):
        measure_models.main([*arguments, "--again"])
