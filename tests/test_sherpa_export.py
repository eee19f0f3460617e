"""Our models in sherpa-onnx: the same tokens and words, from files in its own layout."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
from tones import LEXICON, TONE_S, speak

from edge_asr.cli import main as edge_asr_main
from edge_asr.endpoint import FRAME_S, EndpointRules
from edge_asr.errors import ExportError, UsageError
from edge_asr.recognizer import Recognizer
from edge_asr.runtime import EncoderSession
from edge_asr.sherpa_export import STATES, check_order, export_sherpa, verify, wrap_encoder

sherpa_onnx = pytest.importorskip("sherpa_onnx")

RATE = 16_000
NEVER = EndpointRules.never()
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
    recognizer = Recognizer(model, decoder=decoder, endpoint=NEVER, features="kaldi")
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
    late_s = np.array(result.timestamps) - [w.start + lookahead_s for w in segment.words]
    assert np.all((late_s > -1e-4) & (late_s < FRAME_S + 1e-4))  # words begin up to a frame earlier


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


def write_int8_lstm(path: Path, like: Path) -> None:
    """An encoder of one LSTM of 8 units, quantised as the exporter does it; metadata of the file `like`."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    rng = np.random.default_rng(0)
    sizes = {"w_in": (320, 6), "w": (1, 32, 6), "r": (1, 32, 8), "b": (1, 64), "w_out": (8, 40)}
    constants = {name: rng.normal(0, 0.3, size).astype(np.float32) for name, size in sizes.items()}
    constants |= {"stacked": np.array([0, -1, 320]), "one": np.array([1])}
    node = onnx.helper.make_node
    nodes = [
        node("Reshape", ["x", "stacked"], ["frames"]),
        node("MatMul", ["frames", "w_in"], ["low"]),
        node("Transpose", ["low"], ["steps"], perm=[1, 0, 2]),
        *(node("Transpose", [f"state_{i}"], [f"before_{i}"], perm=[1, 0, 2]) for i in range(2)),
        node("LSTM", ["steps", "w", "r", "b", "", "before_0", "before_1"], ["y", "after_0", "after_1"], hidden_size=8),
        *(node("Transpose", [f"after_{i}"], [f"next_state_{i}"], perm=[1, 0, 2]) for i in range(2)),
        node("Squeeze", ["y", "one"], ["heard"]),
        node("Transpose", ["heard"], ["turned"], perm=[1, 0, 2]),
        node("MatMul", ["turned", "w_out"], ["logits"]),
        node("LogSoftmax", ["logits"], ["log_probs"], axis=2),
    ]
    states = [(name, ["N", 1, 8]) for name in ("state_0", "state_1")]
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes,
        "lstm",
        [value(name, 1, shape) for name, shape in [("x", ["N", "T", 80]), *states]],
        [
            value(name, 1, shape)
            for name, shape in [("log_probs", ["N", "U", 40]), *((f"next_{n}", s) for n, s in states)]
        ],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    quantize_dynamic(path, path, op_types_to_quantize=["LSTM"], per_channel=True, weight_type=QuantType.QInt8)
    model = onnx.load(path)
    assert "DynamicQuantizeLSTM" in {n.op_type for n in model.graph.node}
    del model.metadata_props[:]
    model.metadata_props.extend(onnx.load(like).metadata_props)
    onnx.save(model, path)


def test_streams_beside_each_other_share_no_range_of_a_quantised_lstm(tone_encoder, tmp_path):
    write_int8_lstm(tmp_path / "int8.onnx", tone_encoder)
    encoder = EncoderSession(tmp_path / "int8.onnx")
    onnx.save(wrap_encoder(onnx.load(tmp_path / "int8.onnx"), 32), tmp_path / "wrapped.onnx")
    assert verify(encoder, tmp_path / "wrapped.onnx", 32) <= 1e-5  # two streams in a batch against each alone
    x = np.random.default_rng(1).normal(-5, 3, (2, 32, 80)).astype(np.float32)
    x[1] *= 3
    together = encoder.step(x, encoder.initial_states(2))[0][0]
    alone = encoder.step(x[:1], encoder.initial_states())[0][0]
    assert np.abs(together - alone).max() > 1e-4  # else this test would prove nothing


def test_the_simulator_sees_one_stream_of_a_parted_lstm(tone_encoder, tmp_path):
    from firmware_sim.model import load_model

    write_int8_lstm(tmp_path / "int8.onnx", tone_encoder)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tokens.txt").write_text("<blk> 0\n" + "".join(f"T{i} {i}\n" for i in range(1, 40)))
    onnx.save(wrap_encoder(onnx.load(tmp_path / "int8.onnx"), 32), tmp_path / "out" / "model.int8.onnx")
    assert load_model(tmp_path / "out").macs == load_model(tmp_path / "int8.onnx", chunk_ms=320).macs > 0


def test_the_simulator_reads_what_was_exported(tone_model, exported):
    from firmware_sim.model import load_model

    for precision in ("int8", "fp32"):
        ours, theirs = load_model(tone_model, precision), load_model(exported, precision)
        assert theirs.macs == ours.macs
        assert (theirs.chunk_frames, theirs.lookahead_frames) == (ours.chunk_frames, ours.lookahead_frames)


@pytest.mark.parametrize("chunk_ms", [80, 640])
def test_another_chunk_hears_the_same(tone_model, tmp_path, chunk_ms):
    report = export_sherpa(tone_model, tmp_path / "out", chunk_ms=chunk_ms, greedy=True)
    assert report["chunk_ms"] == chunk_ms
    assert not (tmp_path / "out" / "graph.fst").exists()
    clip = with_tail(speak("four five"), tmp_path / "out")
    assert recognise(tmp_path / "out", [clip])[0].tokens == "F AO R F AY V".split()


@pytest.fixture
def unpacked(exported, tmp_path, monkeypatch) -> Path:
    """The working directory: an exported folder without its README, and recording.wav."""
    for name in ("model.int8.onnx", "tokens.txt", "graph.fst", "words.txt"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    soundfile.write(tmp_path / "recording.wav", speak("turn the light off", tail_s=TONE_S), RATE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def code_of(exported: Path, language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)[1]


def test_the_python_of_a_readme_runs_as_it_stands(exported, unpacked, capsys):
    exec(compile(code_of(exported, "python"), "README", "exec"), {})
    assert capsys.readouterr().out.strip() == "turn the light off"


STAND_IN = """\
#!{python}
import sys
import numpy, soundfile, sherpa_onnx
options = dict(option[2:].split("=") for option in sys.argv[1:-1])
recognizer = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
    tokens=options["tokens"], model=options["zipformer2-ctc-model"], num_threads=int(options["num-threads"]),
    ctc_graph=options["ctc-graph"], ctc_max_active=int(options["ctc-max-active"]),
)
stream = recognizer.create_stream()
samples, rate = soundfile.read(sys.argv[-1], dtype="float32")
stream.accept_waveform(rate, numpy.concatenate([samples, numpy.zeros(8 * rate // 10, "float32")]))
stream.input_finished()
while recognizer.is_ready(stream):
    recognizer.decode_stream(stream)
print("Start to create recognizer", recognizer.get_result_as_json_string(stream), "", sep="\\n", file=sys.stderr)
"""


@pytest.mark.skipif(not (shutil.which("sh") and shutil.which("awk")), reason="needs a shell")
def test_the_command_line_of_a_readme_prints_words(exported, unpacked, monkeypatch):
    if shutil.which("sherpa-onnx") is None:  # the program is a package of its own; this one reads the same options
        (unpacked / "sherpa-onnx").write_text(STAND_IN.format(python=sys.executable))
        (unpacked / "sherpa-onnx").chmod(0o755)
        monkeypatch.setenv("PATH", f"{unpacked}{os.pathsep}{os.environ['PATH']}")
    command = code_of(exported, "sh").split("\n", 1)[1]  # without the installation
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "turn the light off"


def test_the_command_writes_the_directory(tone_model, tmp_path, capsys):
    out = tmp_path / "out"
    assert edge_asr_main(["export", "--target", "sherpa-onnx", str(tone_model), str(out)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["target"] == "sherpa-onnx"
    names = {"README.md", "graph.fst", "model.int8.onnx", "model.onnx", "tokens.txt", "words.txt"}
    assert {path.name for path in out.iterdir()} == names


def test_features_of_another_kind_are_refused(tone_model):
    with pytest.raises(UsageError, match="features must be one of numpy, kaldi, got 'mfcc'"):
        Recognizer(tone_model, features="mfcc")


def test_a_model_is_not_written_over(tone_model):
    with pytest.raises(UsageError, match="is the model itself"):
        export_sherpa(tone_model, tone_model)
