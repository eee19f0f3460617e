"""What `models/` ships: whole, small enough, exact when streamed, and it hears the samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr import Recognizer
from edge_asr.audio import load_audio
from edge_asr.evaluate import evaluate
from edge_asr.features import fbank
from edge_asr.model_files import DEFAULT_MODEL, ModelFiles, read_config
from edge_asr.runtime import EncoderSession, EncoderStream, advance

ROOT = Path(__file__).parent.parent
MODELS = ("tcn-base", "tcn-small", "tcn-small-150h", "tcn-tiny", "lstm-small", "attention-small")
CHUNKS = (8, 16, 32, 64, 400)  # feature frames: 80 ms … 4 s


def log_probs_of(session: EncoderSession, frames: np.ndarray, chunk_frames: int, splits: list[int]) -> np.ndarray:
    """(ceil(T / 4), V), the features handed over in pieces of `splits` frames, again and again."""
    stream, out, first = EncoderStream(session, chunk_frames), [], 0
    while first < len(frames):
        for n in splits:
            stream.accept(frames[first : first + n])
            first += n
            while stream.n_ready_frames:
                out += advance(session, [stream])
    stream.finish()
    while stream.n_ready_frames:
        out += advance(session, [stream])
    return np.concatenate(out)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return fbank(load_audio(ROOT / "samples" / "sentence-river.wav"))[:-3]  # a ragged tail


@pytest.fixture(scope="module", params=[(m, p) for m in MODELS for p in ("fp32", "int8")], ids="-".join)
def session(request) -> EncoderSession:
    name, precision = request.param
    return EncoderSession(ModelFiles.open(ROOT / "models" / name).encoder(precision))


@settings(max_examples=6, deadline=None)
@given(chunk_frames=st.sampled_from(CHUNKS), splits=st.lists(st.integers(1, 200), min_size=1, max_size=5))
def test_streamed_equals_offline(session, frames, chunk_frames, splits):
    whole = log_probs_of(session, frames, 400, [len(frames)])
    streamed = log_probs_of(session, frames, chunk_frames, splits)
    assert streamed.shape == whole.shape == (-(-len(frames) // 4), 40)
    if "int8" not in session.path.name:
        np.testing.assert_allclose(streamed, whole, atol=1e-4)
    elif session.info.encoder != "lstm":  # static ranges: only a rounding may tip over
        assert (streamed.argmax(1) == whole.argmax(1)).all()
    else:  # an LSTM's ranges are those of each chunk
        assert (streamed.argmax(1) == whole.argmax(1)).mean() > 0.9


@pytest.mark.parametrize("name", MODELS)
def test_the_text_is_the_same_for_every_chunk(name):
    path = ROOT / "samples" / "sentence-train.wav"
    texts = set()
    for chunk_ms in (80, 320, 640):
        recognizer = Recognizer(ROOT / "models" / name, chunk_ms=chunk_ms)
        texts.add(" ".join(segment.text for segment in recognizer.transcribe(path)))
    assert len(texts) == 1
    assert "train" in texts.pop()


def test_the_default_model_hears_the_clean_samples():
    report, results = evaluate(ROOT / "samples" / "manifest.jsonl", {"model": str(ROOT / "models" / DEFAULT_MODEL)})
    clean = [r.errors for r in results if not Path(r.clip.audio_filepath).name.startswith("noisy")]
    errors = sum(e.n_substitutions + e.n_insertions + e.n_deletions for e in clean)
    assert errors / sum(e.n_reference for e in clean) < 0.25
    assert not report["failed"]


@pytest.mark.parametrize("name", MODELS)
def test_int8_costs_at_most_two_percent_of_the_word_errors(name):
    rows = json.loads((ROOT / "models" / name / "results.json").read_text())["rows"]
    assert rows["dev-clean"]["wer"] <= 1.02 * rows["dev-clean fp32"]["wer"]


def test_a_grammar_of_the_home_hears_its_commands():
    recognizer = Recognizer(ROOT / "models" / DEFAULT_MODEL, grammar=ROOT / "samples" / "grammars" / "home.txt")
    text = " ".join(s.text for s in recognizer.transcribe(ROOT / "samples" / "command-lights.wav"))
    assert text == "turn on the lights in the kitchen"


def test_models_stay_under_a_hundred_megabytes():
    assert sum(f.stat().st_size for f in (ROOT / "models").rglob("*") if f.is_file()) < 100e6
    device = ROOT / "models" / "graphs" / "device"
    assert sum(f.stat().st_size for f in device.iterdir()) < 8e6


@pytest.mark.parametrize("name", MODELS)
def test_every_data_file_is_sealed_and_every_model_has_its_card(name):
    folder = ROOT / "models" / name
    assert {"encoder.onnx", "encoder.int8.onnx", "tokens.txt"} <= set(read_config(folder)["files"])
    card = (folder / "README.md").read_text()
    assert "CC BY 4.0" in card
    assert "What it is bad at" in card


@pytest.mark.parametrize("name", MODELS)
def test_one_graph_serves_every_model(name):
    files = ModelFiles.open(ROOT / "models" / name)
    assert files.graph is not None
    assert read_config(files.graph)["tokens_sha256"] == files.tokens.sha256
