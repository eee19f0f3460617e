"""sherpa-onnx's zipformer2-ctc models in our recogniser: the same tokens, and clear words for what is not supported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import soundfile
from tones import speak
from zipformers import CHUNK, METADATA, PIECES, WINDOW, cache_shapes, write_zipformer, write_zipformer_folder

from edge_asr.cli import main as edge_asr_main
from edge_asr.endpoint import EndpointRules
from edge_asr.errors import ModelDamagedError, ModelNotFoundError
from edge_asr.features import KaldiFbankStream, fbank
from edge_asr.recognizer import Recognizer
from edge_asr.runtime import advance
from edge_asr.sherpa_export import export_sherpa, tail_ms
from edge_asr.zipformer import SILENCE, TAIL_FRAMES, ZipformerSession, open_model, read_tokens

sherpa_onnx = pytest.importorskip("sherpa_onnx")

RATE = 16_000
NEVER = EndpointRules.never()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("zipformer") / "streaming-ctc"
    write_zipformer_folder(directory)
    return directory


@pytest.fixture(scope="module")
def session(folder) -> ZipformerSession:
    files = open_model(folder)
    return ZipformerSession(files.encoder("fp32"), files.tokens)


def noise(seconds: float, seed: int) -> np.ndarray:
    """Noise whose loudness and colour change, so that random weights say something new in every chunk."""
    rng = np.random.default_rng(seed)
    n = int(seconds * RATE)
    samples = rng.standard_normal(n)
    colour = np.repeat(rng.uniform(0, 0.95, n // 1600 + 1), 1600)[:n]
    samples = samples - colour * np.concatenate([[0], samples[:-1]])
    return (samples * np.repeat(10 ** rng.uniform(-4, -0.5, n // 800 + 1), 800)[:n]).astype(np.float32)


def emissions(session: ZipformerSession, frames: np.ndarray) -> np.ndarray:
    stream = session.create_stream()
    stream.accept(frames)
    stream.finish()
    out = []
    while stream.n_ready_frames:
        out.extend(advance(session, [stream]))
    return np.concatenate(out)


def their_fbank(samples: np.ndarray) -> np.ndarray:
    """sherpa-onnx's own features: random weights decide between equals, where the last bits of a feature count."""
    stream = KaldiFbankStream()
    return np.concatenate([stream.accept(samples), stream.flush()])


def test_a_thousand_random_chunks_give_the_greedy_tokens_of_sherpa_onnx(folder, session):
    samples = noise(1_000 * CHUNK / 100, seed=0)
    samples = np.concatenate([samples, np.zeros(WINDOW * 160, np.float32)])
    recognizer = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
        tokens=str(folder / "tokens.txt"), model=str(folder / "ctc-chunk-16-left-128.onnx"), num_threads=1
    )
    stream = recognizer.create_stream()
    stream.accept_waveform(RATE, samples)
    stream.input_finished()
    n_chunks = 0
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
        n_chunks += 1
    assert n_chunks >= 1_000

    log_probs = emissions(session, their_fbank(samples))[: n_chunks * CHUNK // 4]
    best = log_probs.argmax(axis=1)
    starts = np.flatnonzero(np.diff(best, prepend=0) * best)
    result = recognizer.get_result_all(stream)
    assert result.tokens == [PIECES[i].replace("▁", " ") for i in best[starts]]
    np.testing.assert_allclose(result.timestamps, 0.04 * starts, atol=1e-3)
    assert len(set(best.tolist())) > len(PIECES) // 2  # random weights that always say one thing would prove nothing
    assert len(result.tokens) > 1_000


def test_the_recognizer_joins_the_pieces_that_sherpa_onnx_finds(folder):
    samples = noise(4.0, seed=1)
    recognizer = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
        tokens=str(folder / "tokens.txt"), model=str(folder / "ctc-chunk-16-left-128.onnx"), num_threads=1
    )
    stream = recognizer.create_stream()
    stream.accept_waveform(RATE, samples)
    stream.accept_waveform(RATE, np.zeros(2 * RATE, np.float32))
    stream.input_finished()
    while recognizer.is_ready(stream):
        recognizer.decode_stream(stream)
    (segment,) = Recognizer(folder, "fp32", endpoint=NEVER).transcribe(samples)
    words = "".join(recognizer.tokens(stream)).split()
    # the last frames of a recording lie over its edge, which is a mirror for us and silence for those who append it
    assert [word.text for word in segment.words][:8] == words[:8]
    assert len(words) > 8


def test_windows_overlap_and_the_tail_is_silence(session):
    frames = np.random.default_rng(0).normal(-8, 3, (3 * CHUNK + 5, 80)).astype(np.float32)
    stream = session.create_stream()
    stream.accept(frames[:50])
    stream.accept(frames[50:])
    stream.finish()
    n_steps = -(-(len(frames) + TAIL_FRAMES) // CHUNK)
    padded = np.concatenate([frames, np.full(((n_steps - 1) * CHUNK + WINDOW - len(frames), 80), SILENCE, np.float32)])
    for i in range(n_steps):
        assert stream.n_ready_frames == WINDOW
        np.testing.assert_array_equal(stream.take()[0], padded[i * CHUNK : i * CHUNK + WINDOW])
    assert stream.n_ready_frames == 0


def test_silence_is_what_zero_samples_give():
    np.testing.assert_allclose(fbank(np.zeros(3200, np.float32)), SILENCE, atol=1e-5)


def test_a_batch_of_streams_equals_each_alone(session):
    clips = [fbank(noise(1.0 + 0.4 * i, seed=i)) for i in range(4)]
    streams = [session.create_stream() for _ in clips]
    together: list[list[np.ndarray]] = [[] for _ in clips]
    for stream, clip in zip(streams, clips):
        stream.accept(clip)
        stream.finish()
    while any(stream.n_ready_frames for stream in streams):
        for out, emitted in zip(together, advance(session, streams)):
            out.append(emitted)
    for out, clip in zip(together, clips):
        np.testing.assert_allclose(np.concatenate(out), emissions(session, clip), atol=1e-5)


def test_probabilities_add_up_to_one(session):
    log_probs = emissions(session, fbank(noise(1.0, seed=3)))
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1.0, atol=1e-5)


def test_our_own_model_exported_and_read_back_says_the_same_at_the_same_times(tone_model, tmp_path):
    report = export_sherpa(tone_model, tmp_path / "out")
    clip = speak("turn the light on", tail_s=tail_ms(report["chunk_ms"], report["lookahead_ms"]) / 1000)
    (ours,) = Recognizer(tone_model, decoder="greedy", endpoint=NEVER).transcribe(clip)
    (back,) = Recognizer(tmp_path / "out", endpoint=NEVER).transcribe(clip)
    assert [w.text for w in back.words] == [w.text for w in ours.words]
    np.testing.assert_allclose([w.start for w in back.words], [w.start for w in ours.words])
    np.testing.assert_allclose([w.confidence for w in back.words], [w.confidence for w in ours.words], rtol=1e-3)


def test_a_chunk_is_the_models_own(folder):
    assert Recognizer(folder, "fp32", chunk_ms=640).chunk_ms == Recognizer(folder, "fp32").chunk_ms == 320


def test_the_simulator_reads_a_folder_of_sherpa_onnx(folder, session):
    from firmware_sim.model import load_model

    model = load_model(folder, "fp32")
    assert (model.chunk_frames, model.lookahead_frames, model.encoder_kind) == (CHUNK, WINDOW - CHUNK, "zipformer2-ctc")
    assert model.state_bytes == session.state_bytes
    assert model.macs >= CHUNK // 4 * 4 * 80 * 24  # the first product alone
    assert model.search.max_active == 0


def test_the_simulator_refuses_another_chunk_than_the_models_own(folder):
    from firmware_sim.errors import BudgetError
    from firmware_sim.model import load_model

    with pytest.raises(BudgetError, match="need the chunk of 320 ms"):
        load_model(folder, "fp32", chunk_ms=640)


def test_the_microphone_and_the_batch_take_a_folder_of_sherpa_onnx(folder, tmp_path, capsys):
    samples = noise(4.0, seed=1)
    soundfile.write(tmp_path / "noise.wav", samples, RATE, "FLOAT")
    options = ["--model", str(folder), "--precision", "fp32", "--quiet"]
    (segment,) = Recognizer(folder, "fp32").transcribe(samples)
    assert len(segment.words) > 8
    for command in (
        ["transcribe", str(tmp_path / "noise.wav")],
        ["listen", "--from-file", str(tmp_path / "noise.wav")],
    ):
        assert edge_asr_main([*command, *options]) == 0
        assert capsys.readouterr().out.split() == [word.text for word in segment.words]


# --- what is not supported -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [key for key in METADATA if key not in ("model_type", "version")])
def test_missing_metadata_are_named(folder, tmp_path, key):
    write_zipformer(tmp_path / "ctc.onnx", **{key: None})
    with pytest.raises(ModelDamagedError, match=rf"lacks the metadata {key}"):
        ZipformerSession(tmp_path / "ctc.onnx", read_tokens(folder / "tokens.txt"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_encoder_layers": "2,2"}, "has 21 inputs and lacks cached_key_3, .*, cached_conv2_3;"),
        ({"num_encoder_layers": "1,1"}, "needs 15 inputs for 2 layers, has 21"),
        ({"query_head_dims": "4,4"}, r"needs cached_key_2 \(3, 1, 12\)"),
        ({"cnn_module_kernels": "9,5"}, r"needs cached_conv1_0 \(1, 16, 4\)"),
        ({"T": "77"}, r"needs x \(1, 77, 80\)"),
        ({"decode_chunk_len": "16"}, r"needs log-probabilities \(1, 4, 16\)"),
        ({"decode_chunk_len": "30"}, "a multiple of 4"),
        ({"num_heads": "2"}, "lists of equal length"),
        ({"T": "many"}, "cannot be read"),
    ],
)
def test_metadata_that_do_not_fit_the_file_are_refused(folder, tmp_path, changed, message):
    write_zipformer(tmp_path / "ctc.onnx", **changed)
    with pytest.raises(ModelDamagedError, match=message):
        ZipformerSession(tmp_path / "ctc.onnx", read_tokens(folder / "tokens.txt"))


@pytest.mark.parametrize("missing", [0, 4, 18, 19])
def test_an_input_that_was_dropped_is_noticed(folder, tmp_path, missing):
    model = onnx.load(folder / "ctc-chunk-16-left-128.onnx")
    name = ["x", *(name for name, _ in cache_shapes())][missing]
    (position,) = (i for i, value in enumerate(model.graph.input) if value.name == name)
    value = model.graph.input[position]
    shape = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
    dtype = np.int64 if name == "processed_lens" else np.float32
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(shape, dtype), name))
    del model.graph.input[position]
    onnx.save(model, tmp_path / "ctc.onnx")
    with pytest.raises(ModelDamagedError, match=f"has 20 inputs and lacks {name};"):
        ZipformerSession(tmp_path / "ctc.onnx", read_tokens(folder / "tokens.txt"))


def test_a_transducer_is_refused_by_its_parts(folder, tmp_path):
    for name in ("encoder-epoch-99.onnx", "decoder-epoch-99.onnx", "joiner-epoch-99.onnx"):
        write_zipformer(tmp_path / name)
    (tmp_path / "tokens.txt").write_bytes((folder / "tokens.txt").read_bytes())
    with pytest.raises(ModelDamagedError, match=r"is a transducer .*joiner-epoch-99.onnx"):
        Recognizer(tmp_path, "fp32")


def test_a_precision_that_is_not_there_is_named(folder):
    with pytest.raises(
        ModelNotFoundError, match=r"lacks an ONNX file of precision int8, has ctc-chunk-16-left-128.onnx"
    ):
        Recognizer(folder, "int8")


def test_two_files_of_one_precision_are_a_question(folder, tmp_path):
    (tmp_path / "tokens.txt").write_bytes((folder / "tokens.txt").read_bytes())
    for name in ("chunk-16.onnx", "chunk-32.onnx"):
        write_zipformer(tmp_path / name)
    with pytest.raises(ModelNotFoundError, match=r"has chunk-16.onnx, chunk-32.onnx"):
        Recognizer(tmp_path, "fp32")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<blk> 0\nA 1\nB 3\n", "lacks the id 2"),
        ("A 0\n<blk> 1\n", "needs blank as id 0, has <blk> elsewhere"),
        ("A 0\nB 1\n", "none of <blk>, <eps>, <blank>"),
        ("<blk> zero\n", "needs 'symbol id' lines"),
        ("", "lacks the id 0"),
        ("<blk> 0\nA 1\nA 2\n", "twice"),
    ],
)
def test_token_tables_that_cannot_be_used_are_refused(tmp_path, text, message):
    (tmp_path / "tokens.txt").write_text(text)
    with pytest.raises(ModelDamagedError, match=message):
        read_tokens(tmp_path / "tokens.txt")


def test_a_token_table_may_be_in_any_order_and_hold_a_space(tmp_path):
    (tmp_path / "tokens.txt").write_text("A 1\n  2\n<eps> 0\n")
    assert read_tokens(tmp_path / "tokens.txt").symbols == ["<blk>", "A", "▁"]


def test_a_folder_without_tokens_says_so(folder, tmp_path):
    write_zipformer(tmp_path / "ctc.onnx")
    with pytest.raises(ModelNotFoundError, match=r"tokens.txt: is missing"):
        Recognizer(tmp_path, "fp32")
