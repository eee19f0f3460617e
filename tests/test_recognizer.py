"""The whole pipeline on speech whose words are certain: any split, any chunk, one text."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from tones import LEXICON, PHONES, speak, write_tone_encoder

import edge_asr
from edge_asr.endpoint import EndpointRules
from edge_asr.errors import ModelMismatchError, StreamError, UsageError
from edge_asr.recognizer import Recognizer, Segment

CHUNKS_MS = (40, 80, 160, 320, 640, 2_560)


def hush(seconds: float, seed: int = 1) -> np.ndarray:
    return (1e-4 * np.random.default_rng(seed).standard_normal(int(16_000 * seconds))).astype(np.float32)


TWO_SENTENCES = np.concatenate([speak("turn on the light"), hush(2), speak("one two three four")])


@pytest.fixture(scope="module")
def recognizers(tone_model):
    return {chunk_ms: Recognizer(tone_model, chunk_ms=chunk_ms) for chunk_ms in CHUNKS_MS}


@pytest.fixture(scope="module")
def recognizer(recognizers):
    return recognizers[320]


def run(recognizer: Recognizer, blocks: list[np.ndarray], sample_rate: int = 16_000) -> list[Segment]:
    return list(recognizer.stream(blocks, sample_rate, partials=False))


def text(segments: list[Segment]) -> str:
    return " | ".join(segment.text for segment in segments)


def test_two_sentences_become_two_segments_with_the_times_of_their_words(recognizer):
    first, second = recognizer.transcribe(TWO_SENTENCES)
    assert first.text == "turn on the light"
    assert second.text == "one two three four"
    assert first.is_final
    assert first.start == pytest.approx(0.3 - 0.04, abs=0.05)  # a word begins a frame before its first token
    spoken_s = len(speak("turn on the light")) / 16_000
    assert first.end == pytest.approx(spoken_s - 0.38, abs=0.1)
    assert second.start == pytest.approx(spoken_s + 2 + 0.3 - 0.04, abs=0.05)  # times run on over the endpoint
    for segment in (first, second):
        words = segment.words
        assert all(0 <= word.confidence <= 1 for word in words)
        assert all(a.end <= b.start for a, b in itertools.pairwise(words))


@settings(deadline=None, max_examples=25)
@given(
    st.sampled_from(CHUNKS_MS),
    st.integers(0, len(TWO_SENTENCES)),
    st.lists(st.integers(0, 20_000), max_size=12),
)
def test_text_and_times_depend_neither_on_the_split_nor_on_the_chunk(recognizers, chunk_ms, n_samples, sizes):
    samples = TWO_SENTENCES[:n_samples]
    bounds = np.minimum(np.cumsum([0, *sizes]), n_samples)
    blocks = [samples[a:b] for a, b in zip(bounds, [*bounds[1:], n_samples])]
    streamed, whole = run(recognizers[chunk_ms], blocks), run(recognizers[320], [samples])
    assert [(s.text, s.start, s.end) for s in streamed] == [(s.text, s.start, s.end) for s in whole]


def test_partials_grow_into_the_final(recognizer):
    segments = list(recognizer.stream(np.array_split(TWO_SENTENCES, 50)))
    finals = [segment.text for segment in segments if segment.is_final]
    assert finals == ["turn on the light", "one two three four"]
    partials = [segment.text for segment in segments[: segments.index(next(s for s in segments if s.is_final))]]
    assert partials[0].startswith("turn")
    assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(partials))


def test_the_verbs_one_by_one(recognizer):
    stream = recognizer.create_stream()
    finals = []
    for block in np.array_split(TWO_SENTENCES, 20):
        stream.accept_waveform(16_000, block)
        while recognizer.is_ready(stream):
            recognizer.decode(stream)
            if recognizer.is_endpoint(stream):
                finals.append(recognizer.result(stream))
                recognizer.reset(stream)
                assert recognizer.result(stream).text == ""
    stream.input_finished()
    while recognizer.is_ready(stream):
        recognizer.decode(stream)
    finals.append(recognizer.result(stream))
    assert all(segment.is_final for segment in finals)
    assert text(finals) == "turn on the light | one two three four"
    assert stream.duration_s == pytest.approx(len(TWO_SENTENCES) / 16_000)


def test_many_streams_in_one_batch_give_what_each_gives_alone(recognizer):
    sentences = ["one two", "turn off the light", "five four three two one", "on", ""]
    streams = [recognizer.create_stream() for _ in sentences]
    for stream, sentence in zip(streams, sentences):
        if sentence:
            stream.accept_waveform(16_000, speak(sentence))
        stream.input_finished()
    while any(recognizer.is_ready(stream) for stream in streams):
        recognizer.decode_streams(streams)
    assert [recognizer.result(stream).text for stream in streams] == sentences


@pytest.mark.parametrize("rate_hz", [22_050, 44_100, 48_000, 192_000])
def test_any_rate_gives_the_same_words(recognizer, rate_hz):
    samples = soxr.resample(speak("turn off the light"), 16_000, rate_hz)
    assert text(run(recognizer, np.array_split(samples, 7), rate_hz)) == "turn off the light"


def test_integers_and_channels_give_the_same_words(recognizer):
    integers = (speak("one two three") * 32_767).astype(np.int16)
    assert text(run(recognizer, [integers])) == "one two three"
    assert text(run(recognizer, [np.tile(integers[:, None], (1, 8))])) == "one two three"


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros(1), np.zeros(79), np.zeros(80_000), hush(5)])
def test_silence_yields_no_words(recognizer, samples):
    assert run(recognizer, [samples.astype(np.float32)]) == []


def test_full_scale_clipping_is_survived(recognizer):
    clipped = np.clip(50 * speak("one two three"), -1, 1)
    square = np.sign(np.sin(np.arange(32_000))).astype(np.float32)
    assert text(run(recognizer, [square, hush(3), clipped])).endswith("three")


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf, 1e38])
def test_a_damaged_sample_is_counted_and_never_mutes_the_stream(recognizer, damage):
    stream = recognizer.create_stream()
    samples = speak("one two three")
    samples[[100, 2_000, 2_001]] = damage
    stream.accept_waveform(16_000, samples)
    stream.input_finished()
    assert text(list(recognizer.finals(stream))) == "one two three"
    assert stream.n_replaced == 3


def test_greedy_search_gives_the_phones(tone_model):
    greedy = Recognizer(tone_model, decoder="greedy")
    assert greedy.decoder_kind == "greedy"
    assert text(run(greedy, [speak("two three")])) == f"{LEXICON['two']} {LEXICON['three']}"


def test_an_utterance_without_pauses_ends_by_rule_3(tone_model):
    endpoint = EndpointRules(rule3_min_utterance_length=3.0)
    segments = run(Recognizer(tone_model, endpoint=endpoint), [speak(" ".join(["one two three four five"] * 4))])
    assert len(segments) > 2
    assert text(segments).replace(" | ", " ").split()[:5] == ["one", "two", "three", "four", "five"]


def test_audio_after_the_end_is_refused(recognizer):
    stream = recognizer.create_stream()
    stream.input_finished()
    stream.input_finished()
    assert recognizer.result(stream) == Segment(0, 0, "", (), True)
    with pytest.raises(StreamError, match="input_finished"):
        stream.accept_waveform(16_000, hush(1))


def test_a_change_of_rate_within_a_stream_is_refused(recognizer):
    stream = recognizer.create_stream()
    stream.accept_waveform(16_000, hush(1))
    with pytest.raises(StreamError, match="began at 16000 Hz and got 8000 Hz"):
        stream.accept_waveform(8_000, hush(1))


@pytest.mark.parametrize(
    "options",
    [{"precision": "int4"}, {"decoder": "magic"}, *({"chunk_ms": chunk_ms} for chunk_ms in (50, 45, 0, -320))],
)
def test_options_that_make_no_sense_are_refused(tone_model, options):
    with pytest.raises(UsageError):
        Recognizer(tone_model, **options)


def test_a_grammar_is_searched_without_the_scale_for_the_language_model(tmp_path, tone_model):
    copy = shutil.copytree(tone_model, tmp_path / "scaled")
    own = json.loads((copy / "config.json").read_text())
    graph = os.path.relpath((tone_model / own["graph"]).resolve(), copy)
    (copy / "config.json").write_text(json.dumps(own | {"graph": graph, "decoder": {"acoustic_scale": 1.5}}))
    (tmp_path / "lights.txt").write_text("turn (on | off) the light")
    options = {"grammar": tmp_path / "lights.txt"}

    def scale(**chosen) -> float:
        return Recognizer(**{"model": copy, **chosen}).create_stream().decoder.acoustic_scale

    assert (scale(), scale(**options), scale(**options, acoustic_scale=0.7)) == (1.5, 1.0, 0.7)
    assert scale(**Recognizer.shared_graph({"model": copy, **options})) == 1.0


@pytest.mark.parametrize(("limit_frames", "expected_ms"), [("0", 2_560), ("64", 640)])
def test_for_recordings_the_chunk_is_as_large_as_the_model_takes(tmp_path, tone_model, limit_frames, expected_ms):
    copy = tmp_path / "limited"
    copy.mkdir()
    (copy / "tokens.txt").write_bytes((tone_model / "tokens.txt").read_bytes())
    (copy / "config.json").write_text("{}")
    write_tone_encoder(copy / "encoder.int8.onnx", max_chunk_frames=limit_frames)
    recognizer = Recognizer(copy, chunk_ms=None, decoder="greedy")
    assert recognizer.chunk_ms == expected_ms
    of_file = recognizer.create_stream(whole_file=True).encoder.chunk_frames * 10
    assert of_file == (10_240 if limit_frames == "0" else expected_ms)


def test_tokens_of_another_model_are_refused(tone_model, tmp_path):
    copy = tmp_path / "mixed"
    copy.mkdir()
    for path in tone_model.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "config.json").write_text("{}")
    symbols = [*PHONES.symbols[:-2], PHONES.symbols[-1], PHONES.symbols[-2]]
    type(PHONES)(symbols).save(copy / "tokens.txt")
    with pytest.raises(ModelMismatchError, match=r"encoder\.int8\.onnx"):
        Recognizer(copy)


def test_the_function_takes_a_path_or_an_array(tone_model, tmp_path):
    path = tmp_path / "speech.flac"
    soundfile.write(path, speak("turn on"), 16_000)
    assert text(list(edge_asr.transcribe(path, model=tone_model))) == "turn on"
    assert text(list(edge_asr.transcribe(speak("turn on"), model=tone_model))) == "turn on"


def test_transcribing_imports_nothing_that_only_training_or_a_microphone_needs(tone_model, tmp_path):
    path = tmp_path / "speech.wav"
    soundfile.write(path, speak("turn on the light"), 16_000)
    program = (
        "import sys; from edge_asr.cli import main; code = main(sys.argv[1:]);"
        "heavy = {'torch', 'torchaudio', 'sounddevice', 'numba', 'onnx', 'matplotlib', 'scipy', 'rich'};"
        "print(sorted(heavy & set(sys.modules))); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "transcribe", "--model", str(tone_model), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "turn on the light\n[]\n"


def test_importing_the_package_imports_nothing_else():
    program = "import sys; import edge_asr; print(sorted({'numpy', 'onnxruntime', 'kaldifst'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
    assert set(edge_asr.__all__) <= set(dir(edge_asr))
    with pytest.raises(AttributeError, match="no attribute 'Recogniser'"):
        _ = edge_asr.Recogniser


def test_the_public_names_are_those_of_their_modules():
    for name in edge_asr.__all__:
        assert getattr(edge_asr, name) is not None
    assert Path(edge_asr.__file__).name == "__init__.py"
