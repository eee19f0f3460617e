"""Our models in sherpa-onnx: the same tokens and words, from files in its own layout."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from tones import LEXICON, TONE_S, speak

from edge_asr.cli import main as edge_asr_main
from edge_asr.endpoint import EndpointRules
from edge_asr.errors import ExportError, UsageError
from edge_asr.recognizer import Recognizer
from edge_asr.runtime import EncoderSession
from edge_asr.sherpa_export import STATES, check_order, export_sherpa, verify, wrap_encoder

sherpa_onnx = pytest.importorskip("sherpa_onnx")

RATE = 16_000
NEVER = EndpointRules(float("inf"), float("inf"), float("inf"))
PHRASES = ("turn the light on", "one two three", "off", "four five four", "the light", "three three two one")


@pytest.fixture(scope="module")
def exported(tone_model, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("sherpa") / "tones"
    export_sherpa(tone_model, out)
    return out


def recognise(directory: Path, clips: list[np.ndarray], graph: bool = False, model: str = "model.int8.onnx") -> list:
    """What sherpa-onnx hears in a batch of streams, fed in pieces of 50 ms."""
    options = {"ctc_graph": str(directory / "graph.fst"), "ctc_max_active": 500} if graph else {}
    recognizer = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
        tokens=str(directory / "tokens.txt"), model=str(directory / model), num_threads=1, **options
    )
    streams = [recognizer.create_stream() for _ in clips]
    longest = max(map(len, clips))
    for first in range(0, longest, 800):
        for stream, clip in zip(streams, clips):
            if first < len(clip):
                stream.accept_waveform(RATE, clip[first : first + 800])
        while ready := [stream for stream in streams if recognizer.is_ready(stream)]:
            recognizer.decode_streams(ready)
    for stream in streams:
        stream.input_finished()
    while ready := [stream for stream in streams if recognizer.is_ready(stream)]:
        recognizer.decode_streams(ready)
    return [recognizer.get_result_all(stream) for stream in streams]


def with_tail(clip: np.ndarray, directory: Path) -> np.ndarray:
    """The clip and the zero samples that the README asks for."""
    n_zeros = int(re.search(r"(\d+) zero samples", (directory / "README.md").read_text())[1])
    return np.concatenate([clip, np.zeros(n_zeros, np.float32)])


def ours(model: Path, clip: np.ndarray, decoder: str) -> list[str]:
    recognizer = Recognizer(model, decoder=decoder, endpoint=NEVER)
    return [word.text for segment in recognizer.transcribe(clip) for word in segment.words]


@pytest.mark.parametrize("phrase", PHRASES)
def test_sherpa_onnx_hears_the_tokens_that_we_hear(tone_model, exported, phrase):
    clip = speak(phrase, tail_s=0.1)
    expected = " ".join(LEXICON[word] for word in phrase.split()).split()
    for model in ("model.onnx", "model.int8.onnx"):
        assert recognise(exported, [with_tail(clip, exported)], model=model)[0].tokens == expected
    assert ours(tone_model, clip, "greedy") == expected


@pytest.mark.parametrize("phrase", PHRASES)
def test_sherpa_onnx_finds_the_words_that_we_find(tone_model, exported, phrase):
    clip = speak(phrase)
    result = recognise(exported, [with_tail(clip, exported)], graph=True)[0]
    words = [line.split()[0] for line in (exported / "words.txt").read_text().splitlines()]
    assert [words[i] for i in result.words] == ours(tone_model, clip, "graph") == phrase.split()


@pytest.mark.parametrize("graph", [False, True])
def test_a_batch_of_streams_is_as_each_stream_alone(exported, graph):
    clips = [with_tail(speak(phrase, lead_s=0.1 * i), exported) for i, phrase in enumerate(PHRASES)]
    together = recognise(exported, clips, graph)
    for clip, result in zip(clips, together):
        alone = recognise(exported, [clip], graph)[0]
        assert (result.tokens, result.words, result.timestamps) == (alone.tokens, alone.words, alone.timestamps)


@pytest.mark.parametrize("missing_ms", range(0, 320, 40))
def test_the_silence_of_the_readme_is_enough_wherever_a_clip_ends(exported, missing_ms):
    clip = speak("on", tail_s=0.0)
    clip = clip[: len(clip) - int(RATE * 0.08)]  # ends with the last tone
    clip = np.concatenate([np.zeros(missing_ms * 16, np.float32), clip])
    assert recognise(exported, [with_tail(clip, exported)])[0].tokens == ["AA", "N"]


def test_times_in_sherpa_onnx_are_late_by_the_lookahead_and_no_more(tone_model, exported):
    clip = with_tail(speak("three", lead_s=0.4), exported)
    (segment,) = Recognizer(tone_model, decoder="greedy", endpoint=NEVER).transcribe(clip)
    lookahead_s = EncoderSession(tone_model / "encoder.onnx").info.lookahead_frames / 100
    result = recognise(exported, [clip])[0]
    np.testing.assert_allclose(result.timestamps, [w.start + lookahead_s for w in segment.words], atol=1e-4)


def test_a_reset_of_sherpa_onnx_loses_no_token(exported):
    recognizer = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
        tokens=str(exported / "tokens.txt"), model=str(exported / "model.onnx"), num_threads=1
    )
    stream, heard = recognizer.create_stream(), []
    clip = with_tail(speak("one two three four five"), exported)
    for first in range(0, len(clip), 1600):
        stream.accept_waveform(RATE, clip[first : first + 1600])
        while recognizer.is_ready(stream):
            recognizer.decode_stream(stream)
            heard += recognizer.tokens(stream)
            recognizer.reset(stream)
    expected = " ".join(LEXICON[word] for word in "one two three four five".split()).split()
    assert [token for i, token in enumerate(heard) if i == 0 or heard[i - 1] != token] == expected


def test_inputs_and_outputs_have_the_names_shapes_and_order_of_the_slot(exported):
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["x", *STATES]
    assert [o.name for o in session.get_outputs()] == ["log_probs", *(f"new_{name}" for name in STATES)]
    assert session.get_inputs()[0].shape == ["N", 32, 80]
    assert session.get_outputs()[0].shape == ["N", 8, 40]


def test_a_file_whose_inputs_are_in_another_order_is_refused(exported, tmp_path):
    model = onnx.load(exported / "model.onnx")
    inputs = [model.graph.input[i] for i in (0, 1, 3, 2, *range(4, 9))]
    inputs = [onnx.ValueInfoProto.FromString(value.SerializeToString()) for value in inputs]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    onnx.save(model, tmp_path / "swapped.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "swapped.onnx", providers=["CPUExecutionProvider"])
    with pytest.raises(ExportError, match="needs the inputs"):
        check_order(session, tmp_path / "swapped.onnx")


def test_an_encoder_that_is_not_the_wrapped_one_is_noticed(tone_encoder, tmp_path):
    model = onnx.load(tone_encoder)
    for constant in model.graph.initializer:
        if constant.name == "bias":
            bias = onnx.numpy_helper.to_array(constant).copy()
            bias[5] += 0.5
            constant.CopyFrom(onnx.numpy_helper.from_array(bias, "bias"))
    onnx.save(wrap_encoder(model, 32), tmp_path / "other.onnx")
    with pytest.raises(ExportError, match="log-probabilities within"):
        verify(EncoderSession(tone_encoder), tmp_path / "other.onnx", 32)


def test_only_domains_in_use_are_declared(tone_encoder):
    model = onnx.load(tone_encoder)
    model.opset_import.append(onnx.helper.make_opsetid("ai.onnx.preview", 1))
    assert [entry.domain for entry in wrap_encoder(model, 32).opset_import] == [""]


@pytest.mark.parametrize("chunk_ms", [80, 640])
def test_another_chunk_hears_the_same(tone_model, tmp_path, chunk_ms):
    report = export_sherpa(tone_model, tmp_path / "out", chunk_ms=chunk_ms, greedy=True)
    assert report["chunk_ms"] == chunk_ms
    assert not (tmp_path / "out" / "graph.fst").exists()
    clip = with_tail(speak("four five"), tmp_path / "out")
    assert recognise(tmp_path / "out", [clip])[0].tokens == "F AO R F AY V".split()


def test_the_readme_of_a_directory_runs_as_it_stands(exported, tmp_path, monkeypatch, capsys):
    import soundfile

    clip = speak("turn the light off", tail_s=TONE_S)
    for name in ("model.int8.onnx", "tokens.txt", "graph.fst", "words.txt"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    soundfile.write(tmp_path / "recording.wav", clip, RATE)
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)[1]
    exec(
        compile(code.replace('open("words.txt", encoding="utf-8")', "WORDS"), "README", "exec"),
        {"WORDS": (tmp_path / "words.txt").read_text().splitlines()},
    )  # the open file would warn here
    assert capsys.readouterr().out.strip() == "turn the light off"


def test_the_command_writes_the_directory(tone_model, tmp_path, capsys):
    out = tmp_path / "out"
    assert edge_asr_main(["export", "--target", "sherpa-onnx", str(tone_model), str(out)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["target"] == "sherpa-onnx"
    names = {"README.md", "graph.fst", "model.int8.onnx", "model.onnx", "tokens.txt", "words.txt"}
    assert {path.name for path in out.iterdir()} == names


def test_a_model_is_not_written_over(tone_model):
    with pytest.raises(UsageError, match="is the model itself"):
        export_sherpa(tone_model, tone_model)
