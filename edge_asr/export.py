"""Checkpoint -> model directory: encoder.onnx, encoder.int8.onnx, tokens.txt, config.json, each verified.

    edge-asr export runs/tcn-small/final.pt models/tcn-small --calibration train.jsonl --graph ../graphs/general

`--target sherpa-onnx MODEL OUT` turns an exported model into one for sherpa-onnx instead (sherpa_export.py).

The weights are rounded to fp16 first and stored so (a Cast to fp32 follows each; the runtime folds it at load), so that
torch and encoder.onnx compute the same and the file is half the size. int8: matrix products of linear layers as QDQ
U8S8, per channel, static ranges from calibration audio; LSTM as DynamicQuantizeLSTM (onnxruntime has no other); norms
spelt out, so that every release of onnxruntime rounds alike; LSTMs in a loop over the streams of a batch, so that they
do not share a range.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxruntime import quantization

from edge_asr import features, sherpa_export
from edge_asr.audio import load_audio
from edge_asr.checkpoint import load_checkpoint, name_of, training_record
from edge_asr.data import read_manifest
from edge_asr.encoders import build
from edge_asr.encoders.layers import SUBSAMPLING
from edge_asr.errors import ExportError
from edge_asr.model_files import seal
from edge_asr.onnx_passes import part_streams, spell_out_norms
from edge_asr.runtime import EncoderSession, EncoderStream, advance
from edge_asr.tokens import TokenTable

OPSET = 17  # the first with LayerNormalization
TOLERANCE = 1e-4  # torch against ONNX, log-probabilities
FP16_FROM_ELEMENTS = 256  # smaller initialisers stay fp32
CALIBRATION_CHUNK_FRAMES = 400


def load_encoder(checkpoint: dict[str, Any]) -> torch.nn.Module:
    """The encoder of a checkpoint with its averaged weights, matrices rounded to fp16, ready for inference."""
    encoder = build(checkpoint["encoder"], checkpoint["encoder_config"])
    encoder.load_state_dict(checkpoint["averaged"])
    for value in encoder.state_dict().values():
        if value.numel() >= FP16_FROM_ELEMENTS:
            value.copy_(value.half().float())
    return encoder.eval()


def metadata_of(encoder: torch.nn.Module, checkpoint: dict[str, Any], name: str, tokens: TokenTable) -> dict[str, str]:
    """What the file says of itself; see DESIGN of the runtime (EncoderInfo) for the keys that are read."""
    config = checkpoint["config"]
    wanted = ("passes", "batch_s", "muon_lr", "adam_lr", "crf_from", "ctc_weight", "aux_weight", "seed", "augment")
    training = {key: config[key] for key in wanted}
    training["init"] = name_of(config.get("init", ""))
    training |= {
        "hours_heard": round(checkpoint["heard_s"] / 3600, 1),
        "steps": checkpoint["step"],
        "hours_of_training": round(checkpoint["spent_s"] / 3600, 2),
    }
    return {
        "model_name": name,
        "encoder": checkpoint["encoder"],
        "config": json.dumps(checkpoint["encoder_config"]),
        "feature": json.dumps(features.PARAMETERS),
        "sample_rate": str(features.SAMPLE_RATE),
        "subsampling": str(SUBSAMPLING),
        "chunk_frames": str(encoder.chunk_frames),
        "max_chunk_frames": str(encoder.max_chunk_frames),
        "lookahead_frames": str(encoder.lookahead_frames),
        "tokens_sha256": tokens.sha256,
        "training": json.dumps(training),
        "wer": "{}",
    }


def export_fp32(encoder: torch.nn.Module, path: Path) -> None:
    """The encoder as ONNX: x, state_0 … → log_probs, next_state_0 …; batch and time are free."""
    if getattr(encoder, "require_streaming", None):
        encoder.require_streaming()
    states = encoder.initial_state(1)
    inputs = ["x", *(f"state_{i}" for i in range(len(states)))]
    outputs = ["log_probs", *(f"next_state_{i}" for i in range(len(states)))]
    axes = {name: {0: "N"} for name in inputs + outputs} | {"x": {0: "N", 1: "T"}, "log_probs": {0: "N", 1: "U"}}
    x = torch.randn(1, encoder.chunk_frames, features.N_MEL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracing exporter announces its successor, which has no LSTM
        torch.onnx.export(
            _Flat(encoder).eval(),
            (x, *states),
            str(path),
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(path)
    if [i.name for i in model.graph.input] != inputs or [o.name for o in model.graph.output] != outputs:
        raise ExportError(
            f"need inputs {inputs}, have {[i.name for i in model.graph.input]} in {path}: a state is unused "
            f"or was reordered; mend the encoder"
        )
    _fix_shapes(model, encoder, states)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


class _Flat(torch.nn.Module):
    """The encoder with its states as separate arguments, as ONNX has them."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: torch.Tensor, *states: torch.Tensor) -> tuple[torch.Tensor, ...]:
        log_probs, states = self.encoder(x, states)
        return (log_probs, *states)


def _fix_shapes(model: onnx.ModelProto, encoder: torch.nn.Module, states: tuple[torch.Tensor, ...]) -> None:
    """Write the fixed sizes of outputs, which tracing leaves open, so that every reader of the file sees them."""
    shapes = [(None, None, encoder.output.project.out_features), *((None, *s.shape[1:]) for s in states)]
    for value, shape in zip(model.graph.output, shapes, strict=True):
        for size, dim in zip(shape, value.type.tensor_type.shape.dim, strict=True):
            if size is not None:
                dim.dim_value = size


def store_as_fp16(model: onnx.ModelProto) -> None:
    """Keep large fp32 initialisers as fp16 and a Cast, in place. Lossless for weights rounded before."""
    casts = []
    for initializer in model.graph.initializer:
        if initializer.data_type != onnx.TensorProto.FLOAT or np.prod(initializer.dims) < FP16_FROM_ELEMENTS:
            continue
        name = initializer.name
        initializer.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(initializer).astype(np.float16), name + "_fp16")
        )
        casts.append(onnx.helper.make_node("Cast", [name + "_fp16"], [name], name + "_cast", to=onnx.TensorProto.FLOAT))
    for position, node in enumerate(casts):
        model.graph.node.insert(position, node)


def write_metadata(model: onnx.ModelProto, metadata: dict[str, str]) -> None:
    """Replace the metadata of a model, in place."""
    del model.metadata_props[:]
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)


# --- int8 ----------------------------------------------------------------------------------------------------------


class CalibrationReader(quantization.CalibrationDataReader):
    """Chunks of real audio with the states that the fp32 encoder had when it met them."""

    def __init__(self, session: EncoderSession, clips: list[str]) -> None:
        self.chunks = self._read(session, clips)

    @staticmethod
    def _read(session: EncoderSession, clips: list[str]) -> Iterator[dict[str, np.ndarray]]:
        for path in clips:
            stream = EncoderStream(session, CALIBRATION_CHUNK_FRAMES)
            stream.accept(features.fbank(load_audio(path)))
            stream.finish()
            while stream.n_ready_frames:
                x = stream.take()
                yield {"x": x, **{f"state_{i}": s for i, s in enumerate(stream.states)}}
                stream.give(*_first_row(session.step(x, stream.states)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.chunks, None)


def _first_row(result: tuple[np.ndarray, list[np.ndarray]]) -> tuple[np.ndarray, list[np.ndarray]]:
    return result[0][0], result[1]


def linear_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the matrix products with a constant side; attention's own products stay fp32."""
    constants = {i.name for i in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type in ("MatMul", "Gemm") and constants & set(n.input)]


def export_int8(fp32: Path, path: Path, clips: list[str], exclude: tuple[str, ...] = ()) -> list[str]:
    """Quantise an fp32 encoder; returns the names of the nodes left in fp32 on request. Needs audio for the ranges."""
    logging.getLogger("root").setLevel(logging.ERROR)  # the quantiser advises pre-processing that was done
    with tempfile.TemporaryDirectory() as folder:
        prepared, static = Path(folder) / "prepared.onnx", Path(folder) / "static.onnx"
        quantization.quant_pre_process(str(fp32), str(prepared), skip_symbolic_shape=True)
        nodes = [n for n in linear_nodes(onnx.load(prepared)) if not any(part in n for part in exclude)]
        quantization.quantize_static(
            str(prepared),
            str(static),
            CalibrationReader(EncoderSession(fp32), clips),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_quantize=nodes,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={
                "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
                "WeightSymmetric": True,
                "ActivationSymmetric": False,
            },
        )
        has_lstm = any(n.op_type == "LSTM" for n in onnx.load(static).graph.node)
        if has_lstm:
            quantization.quantize_dynamic(
                str(static),
                str(path),
                op_types_to_quantize=["LSTM"],
                per_channel=True,
                weight_type=quantization.QuantType.QInt8,
            )
        else:
            path.write_bytes(static.read_bytes())
    return list(exclude)


# --- verification --------------------------------------------------------------------------------------------------


def stream_all(session: EncoderSession, frames: np.ndarray, chunk_frames: int) -> np.ndarray:
    """log_probs (ceil(T / 4), V) of (T, 80) features, streamed in chunks."""
    stream = EncoderStream(session, chunk_frames)
    stream.accept(frames)
    stream.finish()
    out = []
    while stream.n_ready_frames:
        out.extend(advance(session, [stream]))
    return np.concatenate(out)


def verify_fp32(encoder: torch.nn.Module, session: EncoderSession, frames: np.ndarray) -> float:
    """Largest difference between torch in one chunk and ONNX streamed; raises ExportError above TOLERANCE."""
    n_out = -(-len(frames) // SUBSAMPLING)
    n_tail = n_out * SUBSAMPLING - len(frames) + encoder.lookahead_frames
    tail = np.full((n_tail, features.N_MEL), features.SILENCE)
    x = torch.from_numpy(np.concatenate([frames, tail]).astype(np.float32))[None]
    with torch.inference_mode():
        whole = encoder(x, encoder.initial_state(1))[0][0, encoder.lookahead_frames // SUBSAMPLING :].numpy()
    worst = max(float(np.abs(whole - stream_all(session, frames, chunk)).max()) for chunk in (8, 32, 64))
    if not worst <= TOLERANCE:
        raise ExportError(
            f"need torch and ONNX within {TOLERANCE}, have {worst:.2e}; the exported graph is not the model"
        )
    return worst


def greedy_disagreement(fp32: EncoderSession, int8: EncoderSession, clips: list[str]) -> float:
    """Token error rate in percent of int8's greedy tokens against fp32's: a bound on what quantisation changed."""
    from rapidfuzz.distance import Levenshtein

    wrong = total = 0
    for path in clips:
        frames = features.fbank(load_audio(path))
        tokens = []
        for session in (fp32, int8):
            best = stream_all(session, frames, session.info.chunk_frames).argmax(1)
            best = best[np.insert(best[1:] != best[:-1], 0, True)]
            tokens.append(best[best > 0].tolist())
        wrong += Levenshtein.distance(*tokens)
        total += len(tokens[0])
    return 100 * wrong / max(total, 1)


# --- the command ---------------------------------------------------------------------------------------------------


def calibration_clips(manifest: str, n_clips: int, seed: int = 0) -> list[str]:
    """A fixed random choice of a manifest's clips."""
    clips = read_manifest(manifest)
    chosen = np.random.default_rng(seed).permutation(len(clips))[:n_clips]
    return [clips[i].audio_filepath for i in chosen]


def export(
    checkpoint_path: Path,
    out: Path,
    calibration: str,
    n_clips: int = 160,
    graph: str | None = None,
    exclude: tuple[str, ...] = (),
    max_disagreement: float = 8.0,
) -> dict[str, Any]:
    """Write and verify a model directory; returns what was measured. Raises ExportError, CheckpointError."""
    checkpoint = load_checkpoint(checkpoint_path)
    encoder = load_encoder(checkpoint)
    out.mkdir(parents=True, exist_ok=True)
    tokens = TokenTable(checkpoint["tokens"])
    tokens.save(out / "tokens.txt")
    metadata = metadata_of(encoder, checkpoint, out.name, tokens)
    clips = calibration_clips(calibration, n_clips)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "encoder.onnx"
        export_fp32(encoder, plain)
        model = onnx.load(plain)
        write_metadata(model, metadata)
        onnx.save(model, plain)
        left = export_int8(plain, out / "encoder.int8.onnx", clips, exclude)
        store_as_fp16(model)
        onnx.save(model, out / "encoder.onnx")
    int8 = onnx.load(out / "encoder.int8.onnx")
    spell_out_norms(int8.graph)
    part_streams(int8.graph)
    onnx.checker.check_model(int8)
    write_metadata(int8, metadata | {"fp32_nodes": json.dumps(left)})
    onnx.save(int8, out / "encoder.int8.onnx")

    fp32_session, int8_session = EncoderSession(out / "encoder.onnx"), EncoderSession(out / "encoder.int8.onnx")
    frames = features.fbank(load_audio(clips[0]))
    report = {
        "model": out.name,
        "parameters": sum(p.numel() for n, p in encoder.named_parameters() if not n.startswith("aux_")),
        "fp32_bytes": (out / "encoder.onnx").stat().st_size,
        "int8_bytes": (out / "encoder.int8.onnx").stat().st_size,
        "torch_vs_onnx": verify_fp32(encoder, fp32_session, frames),
        "int8_token_changes_percent": round(greedy_disagreement(fp32_session, int8_session, clips[:40]), 2),
    }
    if report["int8_token_changes_percent"] > max_disagreement:
        raise ExportError(
            f"need int8 to change at most {max_disagreement} % of the tokens, have "
            f"{report['int8_token_changes_percent']} %; name the nodes to keep in fp32 with --exclude"
        )
    config = out / "config.json"
    settings = json.loads(config.read_text()) if config.is_file() else {}
    if graph:
        settings["graph"] = graph
    settings |= {"export": report | {"fp32_nodes": left}, **describe(encoder, checkpoint)}
    config.write_text(json.dumps({"encoder": checkpoint["encoder"], **settings}, indent=2) + "\n")
    seal(out)
    return report


def describe(encoder: torch.nn.Module, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What config.json says of the encoder and its training, for cards and comparisons that load no model."""
    return {
        "encoder_config": checkpoint["encoder_config"],
        "chunk_frames": encoder.chunk_frames,
        "max_chunk_frames": encoder.max_chunk_frames,
        "lookahead_frames": encoder.lookahead_frames,
        "training": training_record(checkpoint),
    }


def main(argv: list[str] | None = None) -> int:
    """Entry of `edge-asr export`; prints the report as JSON."""
    argv = sys.argv[1:] if argv is None else argv
    if sherpa_export.is_asked_for(argv):
        return sherpa_export.main(argv)
    parser = argparse.ArgumentParser(
        "edge-asr export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="final.pt or last.pt of a training run")
    parser.add_argument("out", type=Path, help="model directory to write; its name is the model's")
    parser.add_argument("--calibration", required=True, help="manifest whose audio sets the int8 ranges")
    parser.add_argument("--n-clips", type=int, default=160, help="clips of it to use")
    parser.add_argument("--graph", help="graph directory, relative to the model directory, to name in config.json")
    parser.add_argument("--exclude", nargs="*", default=(), help="parts of names of nodes to keep in fp32")
    parser.add_argument("--max-disagreement", type=float, default=8.0, help="percent of tokens that int8 may change")
    arguments = parser.parse_args(argv)
    print(
        json.dumps(
            export(
                arguments.checkpoint,
                arguments.out,
                arguments.calibration,
                arguments.n_clips,
                arguments.graph,
                tuple(arguments.exclude),
                arguments.max_disagreement,
            )
        )
    )
    return 0
