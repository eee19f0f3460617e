"""A recogniser whose answer is known: an encoder that hears tones, and speech made of tones.

Token k sounds as a tone at the centre of mel band 2·k, 80 ms long. The encoder is a real streaming ONNX file by the
contract: two states, four-fold subsampling, a delay line, and outputs that use both past and future. It is built in
milliseconds, and what it should hear is certain, so the whole pipeline is tested without a trained model.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from edge_asr.features import N_MEL
from edge_asr.graph import build_lm_graph, save_graph
from edge_asr.model_files import seal
from edge_asr.ngram import estimate
from edge_asr.tokens import Lexicon, TokenTable

PHONES = TokenTable.phones()
SUBSAMPLING = 4
LOOKAHEAD_FRAMES = 8
DELAY_VECTORS = LOOKAHEAD_FRAMES // SUBSAMPLING
TONE_S = 0.12
SILENCE_SCORE = 6.0  # tones beat this, the noise floor does not

LEXICON = {
    "one": "W AH N",
    "two": "T UW",
    "three": "TH R IY",
    "four": "F AO R",
    "five": "F AY V",
    "light": "L AY T",
    "on": "AA N",
    "off": "AO F",
    "the": "DH AH",
    "turn": "T ER N",
}


def mel_band_hz(band: int) -> float:
    """Centre of one of the 80 triangles from 20 to 7600 Hz on Kaldi's mel scale."""
    low, high = (1127 * np.log1p(hz / 700) for hz in (20, 7600))
    return float(700 * np.expm1((low + (band + 1) * (high - low) / (N_MEL + 1)) / 1127))


def speak(
    text: str, lead_s: float = 0.3, tail_s: float = 0.3, word_gap_s: float = 0.08, level: float = 0.3
) -> np.ndarray:
    """(n,) float32 at 16 kHz: each phone of each word as its tone, over a little noise."""
    parts = [np.zeros(int(16_000 * lead_s))]
    t = np.arange(int(16_000 * TONE_S)) / 16_000
    ramp = np.clip(np.minimum(t, TONE_S - t) / 0.01, 0, 1)
    for word in text.split():
        for phone in LEXICON[word].split():
            parts.append(level * ramp * np.sin(2 * np.pi * mel_band_hz(2 * PHONES.id(phone)) * t))
        parts.append(np.zeros(int(16_000 * word_gap_s)))
    parts.append(np.zeros(int(16_000 * tail_s)))
    samples = np.concatenate(parts)
    return (samples + 1e-4 * np.random.default_rng(len(samples)).standard_normal(len(samples))).astype(np.float32)


def write_tone_encoder(path: Path, **changed_metadata: str) -> None:
    """The encoder as an ONNX file: log_probs = log_softmax(0.9·W·now + 0.05·W·past + 0.05·W·future + bias)."""
    from onnx import TensorProto, checker, helper, numpy_helper, save

    n_tokens, width = len(PHONES), SUBSAMPLING * N_MEL
    weight = np.zeros((width, n_tokens), np.float32)
    for token in range(1, n_tokens):
        weight[2 * token :: N_MEL, token] = 1 / SUBSAMPLING
    bias = np.zeros(n_tokens, np.float32)
    bias[1:] = 8.0
    bias[0] = SILENCE_SCORE
    history = DELAY_VECTORS + 1  # vectors kept: the delay line and one vector of past
    constants = {
        "stacked_shape": np.array([0, -1, width]), "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]),
        "three": np.array([history]), "minus_one": np.array([-1]), "minus_two": np.array([-2]),
        "minus_three": np.array([-history]), "end": np.array([2**31 - 1]), "axis": np.array([1]),
        "weight": weight, "bias": bias, "now_share": np.float32(0.9), "side_share": np.float32(0.05),
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Reshape", ["x", "stacked_shape"], ["stacked"]),
        node("MatMul", ["stacked", "weight"], ["scores"]),
        node("Concat", ["state_0", "scores"], ["line"], axis=1),  # (N, 3 + U, V); line[u + 1] is DELAY vectors old
        node("Slice", ["line", "minus_three", "end", "axis"], ["next_state_0"]),
        node("Slice", ["line", "zero", "minus_three", "axis"], ["past"]),
        node("Slice", ["line", "one", "minus_two", "axis"], ["now"]),
        node("Slice", ["line", "two", "minus_one", "axis"], ["future"]),
        node("Add", ["past", "future"], ["sides"]),
        node("Mul", ["now", "now_share"], ["now_part"]),
        node("Mul", ["sides", "side_share"], ["side_part"]),
        node("Add", ["now_part", "side_part"], ["mixed"]),
        node("Add", ["mixed", "bias"], ["logits"]),
        node("LogSoftmax", ["logits"], ["log_probs"], axis=2),
        node("ReduceMean", ["stacked"], ["level"], axes=[1, 2], keepdims=1),  # a second state, of another rank
        node("Squeeze", ["level", "axis"], ["next_state_1"]),
    ]
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "tones",
        [
            helper.make_tensor_value_info("x", floats, ["N", "T", N_MEL]),
            helper.make_tensor_value_info("state_0", floats, ["N", history, n_tokens]),
            helper.make_tensor_value_info("state_1", floats, ["N", 1]),
        ],
        [
            helper.make_tensor_value_info("log_probs", floats, ["N", "U", n_tokens]),
            helper.make_tensor_value_info("next_state_0", floats, ["N", history, n_tokens]),
            helper.make_tensor_value_info("next_state_1", floats, ["N", 1]),
        ],
        [
            numpy_helper.from_array(np.asarray(value, np.float32 if value.dtype == np.float32 else np.int64), name)
            for name, value in constants.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    metadata = {
        "model_name": "tones", "encoder": "tones", "config": "{}", "feature": "{}", "sample_rate": "16000",
        "subsampling": "4", "chunk_frames": "32", "max_chunk_frames": "0", "lookahead_frames": str(LOOKAHEAD_FRAMES),
        "tokens_sha256": PHONES.sha256, "training": "{}", "wer": "{}",
        **changed_metadata,
    }  # fmt: skip
    for key, value in metadata.items():
        if value:
            entry = model.metadata_props.add()
            entry.key, entry.value = key, value
    checker.check_model(model)
    save(model, str(path))


def write_tone_model(directory: Path, with_graph: bool = True) -> None:
    """A whole model folder; its graph knows the words of LEXICON, any of them after any other."""
    directory.mkdir(parents=True)
    for name in ("encoder.onnx", "encoder.int8.onnx"):
        write_tone_encoder(directory / name)
    PHONES.save(directory / "tokens.txt")
    config: dict[str, object] = {"decoder": {"beam": 20.0, "max_active": 500}}
    if with_graph:
        lexicon = Lexicon({word: [tuple(phones.split())] for word, phones in LEXICON.items()})
        model = estimate([list(LEXICON), *([word] for word in LEXICON)], order=1)
        save_graph(build_lm_graph(lexicon, model, PHONES), directory.parent / "graphs" / "words")
        config["graph"] = "../graphs/words"
    (directory / "config.json").write_text(json.dumps(config))
    seal(directory)
