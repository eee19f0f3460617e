"""A model directory → a directory that sherpa-onnx loads as a streaming zipformer2-ctc model.

    edge-asr export --target sherpa-onnx models/tcn-small sherpa/tcn-small

sherpa-onnx passes tensors by position and sizes its caches from the metadata. One layer is declared, with caches of one
number where the encoder needs none, and the two convolution caches carry the whole state of our encoder. The exported
encoder itself stays as it is, fp32 or int8: a few nodes in front unpack the state, a few behind pack it again. So
neither torch nor a checkpoint is needed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from edge_asr.decoder import DEFAULT_ACOUSTIC_SCALE, DEFAULT_BEAM, DEFAULT_MAX_ACTIVE
from edge_asr.errors import EdgeAsrError, ExportError, UsageError
from edge_asr.features import N_MEL
from edge_asr.graph import load_graph, with_final_states
from edge_asr.model_files import ModelFiles, Precision, check_graph
from edge_asr.onnx_passes import Constants, part_streams, replace_nodes
from edge_asr.runtime import FRAME_SHIFT_MS, EncoderSession, check_chunk_frames
from edge_asr.sherpa_card import card
from edge_asr.transducer import from_kaldifst, to_kaldifst

FILES: dict[Precision, str] = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
SHERPA_BEAM = 16.0  # of its graph search; no option changes it
SUBSAMPLING = 4  # sherpa-onnx takes a vector to be 40 ms
OTHER_TOKENS = -30.0  # log-probability of all but blank in the vectors before the first frame
TOLERANCE = 1e-4  # log-probabilities, ours against the wrapped file
VERIFY_CHUNKS = 8
SPEECH_LEVEL = -7.0  # log power of a band, about the mean of read speech
LOG_ERRORS_ONLY = 3  # of onnxruntime

EMBED_STATE = (128, 3, 19)  # of zipformer2's convolutional front end; a fixed size in sherpa-onnx
CACHE_DIM = 64  # the convolution caches are (N, CACHE_DIM, width); the width follows from the size of the state
CACHES = ("cached_key_0", "cached_nonlin_attn_0", "cached_val1_0", "cached_val2_0", "cached_conv1_0", "cached_conv2_0")
STATES = (*CACHES, "embed_states", "processed_lens")


def slot_shapes(width: int) -> dict[str, list[int | str]]:
    """Shapes of the states in the order in which sherpa-onnx passes them; N is the number of streams."""
    conv = ["N", CACHE_DIM, width]
    value = [1, "N", 1]
    shapes = (value, [1, "N", 1, 3 * CACHE_DIM // 4], value, value, conv, conv, ["N", *EMBED_STATE], ["N"])
    return dict(zip(STATES, shapes, strict=True))


# --- the encoder in its slot ---------------------------------------------------------------------------------------


def wrap_encoder(model: onnx.ModelProto, chunk_frames: int, emission_scale: float = 1.0) -> onnx.ModelProto:
    """Our encoder as zipformer2-ctc with chunks of `chunk_frames` feature frames.

    emission_scale: multiplies the log-probabilities, so that the fixed beam of sherpa-onnx is the beam wanted.
    """
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    shapes = [[dim.dim_value for dim in state.type.tensor_type.shape.dim[1:]] for state in graph.input[1:]]
    sizes = [int(np.prod(shape)) for shape in shapes]
    n_tokens = graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    width = max(1, -(-sum(sizes) // (2 * CACHE_DIM)))
    spare = 2 * CACHE_DIM * width - sum(sizes)

    build = _Builder()
    before = _unpack(build, shapes, sizes, spare, width)
    after = _pack(build, shapes, sizes, spare, width)
    _rename_output(graph, "log_probs", "slot_encoded")
    part_streams(graph)
    after += _emissions(build, chunk_frames, int(metadata["lookahead_frames"]), n_tokens, emission_scale)

    replace_nodes(graph, [*before, *graph.node, *after])
    graph.initializer.extend(build.tensors)
    states = slot_shapes(width)
    del graph.input[:], graph.output[:]
    graph.input.extend([_value("x", ["N", chunk_frames, N_MEL]), *(_value(n, s) for n, s in states.items())])
    graph.output.append(_value("log_probs", ["N", chunk_frames // SUBSAMPLING, n_tokens]))
    graph.output.extend(_value(f"new_{name}", shape) for name, shape in states.items())
    del graph.value_info[:]  # shapes that tracing wrote for a free time axis

    used = {node.domain for node in _all_nodes(graph)}
    versions = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]  # a quantiser lists domains that nothing uses, and an older runtime may refuse them
    model.opset_import.extend(versions)
    _write_metadata(model, metadata, width, chunk_frames, emission_scale)
    onnx.checker.check_model(model)
    return model


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _all_nodes(attribute.g)


class _Builder(Constants):
    """Constants and reshapes of the added nodes."""

    def __init__(self) -> None:
        super().__init__("slot")

    def reshape(self, source: str, target: str, shape: list[int]) -> onnx.NodeProto:
        return helper.make_node("Reshape", [source, self.add(shape)], [target])


def _unpack(build: _Builder, shapes: list[list[int]], sizes: list[int], spare: int, width: int) -> list[onnx.NodeProto]:
    """cached_conv1_0, cached_conv2_0 → state_0 …; what is left over becomes `slot_spare`, always zero."""
    half = CACHE_DIM * width
    pieces = [f"slot_state_{i}" for i in range(len(sizes))] + (["slot_spare"] if spare else [])
    lengths = build.add(sizes + ([spare] if spare else []))
    return [
        build.reshape("cached_conv1_0", "slot_conv1", [-1, half]),
        build.reshape("cached_conv2_0", "slot_conv2", [-1, half]),
        helper.make_node("Concat", ["slot_conv1", "slot_conv2"], ["slot_packed"], axis=1),
        helper.make_node("Split", ["slot_packed", lengths], pieces, axis=1),
        *(build.reshape(f"slot_state_{i}", f"state_{i}", [-1, *shape]) for i, shape in enumerate(shapes)),
    ]


def _pack(build: _Builder, shapes: list[list[int]], sizes: list[int], spare: int, width: int) -> list[onnx.NodeProto]:
    """next_state_0 … → new_cached_conv1_0, new_cached_conv2_0; the other caches pass through."""
    flat = [f"slot_next_{i}" for i in range(len(sizes))]
    half = build.add([CACHE_DIM * width] * 2)
    return [
        *(build.reshape(f"next_state_{i}", name, [-1, size]) for i, (name, size) in enumerate(zip(flat, sizes))),
        helper.make_node("Concat", flat + (["slot_spare"] if spare else []), ["slot_repacked"], axis=1),
        helper.make_node("Split", ["slot_repacked", half], ["slot_new1", "slot_new2"], axis=1),
        build.reshape("slot_new1", "new_cached_conv1_0", [-1, CACHE_DIM, width]),
        build.reshape("slot_new2", "new_cached_conv2_0", [-1, CACHE_DIM, width]),
        *(helper.make_node("Identity", [name], [f"new_{name}"]) for name in (*CACHES[:4], "embed_states")),
    ]


def _emissions(
    build: _Builder, chunk_frames: int, lookahead_frames: int, n_tokens: int, scale: float
) -> list[onnx.NodeProto]:
    """slot_encoded → log_probs: the vectors before the first frame, which our runtime drops, become blank."""
    frames = build.add(np.arange(0, chunk_frames, SUBSAMPLING).reshape(1, -1, 1))
    silent = np.full(n_tokens, OTHER_TOKENS * scale)
    silent[0] = 0.0
    return [
        helper.make_node("Add", ["processed_lens", build.add([chunk_frames])], ["new_processed_lens"]),
        build.reshape("processed_lens", "slot_fed", [-1, 1, 1]),
        helper.make_node("Add", ["slot_fed", frames], ["slot_frame"]),
        helper.make_node("Less", ["slot_frame", build.add([lookahead_frames])], ["slot_early"]),
        helper.make_node("Mul", ["slot_encoded", build.add(scale, np.float32)], ["slot_scaled"]),
        helper.make_node("Where", ["slot_early", build.add(silent, np.float32), "slot_scaled"], ["log_probs"]),
    ]


def _rename_output(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = new


def _value(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    kind = TensorProto.INT64 if name.endswith("processed_lens") else TensorProto.FLOAT
    return helper.make_tensor_value_info(name, kind, shape)


def _write_metadata(
    model: onnx.ModelProto, metadata: Mapping[str, str], width: int, chunk_frames: int, emission_scale: float
) -> None:
    slot = {
        "model_type": "zipformer2",
        "version": "1",
        "encoder_dims": CACHE_DIM,
        "cnn_module_kernels": 2 * width + 1,  # sherpa-onnx halves it
        "T": chunk_frames,
        "decode_chunk_len": chunk_frames,
        **dict.fromkeys(
            ("query_head_dims", "value_head_dims", "num_heads", "num_encoder_layers", "left_context_len"), 1
        ),
    }
    ours = {key: value for key, value in metadata.items() if key not in ("chunk_frames", "max_chunk_frames")}
    del model.metadata_props[:]
    for key, value in {**ours, **slot, "emission_scale": repr(float(emission_scale))}.items():
        model.metadata_props.add(key=key, value=str(value))


# --- verification --------------------------------------------------------------------------------------------------


def check_order(session: onnxruntime.InferenceSession, path: Path) -> None:
    """Names and shapes of all inputs and outputs, in order: sherpa-onnx passes by position. Raises: ExportError."""
    metadata = session.get_modelmeta().custom_metadata_map
    chunk, width = int(metadata["T"]), int(metadata["cnn_module_kernels"]) // 2
    states = slot_shapes(width)
    n_tokens = session.get_outputs()[0].shape[-1]
    wanted = [
        [("x", ["N", chunk, N_MEL]), *states.items()],
        [("log_probs", ["N", chunk // SUBSAMPLING, n_tokens]), *((f"new_{n}", s) for n, s in states.items())],
    ]
    for kind, values, needed in zip(("inputs", "outputs"), (session.get_inputs(), session.get_outputs()), wanted):
        have = [(value.name, value.shape) for value in values]
        if have != needed:
            raise ExportError(f"{path}: needs the {kind} {needed}, has {have}; export it again with this onnx")


def verify(encoder: EncoderSession, path: Path, chunk_frames: int) -> float:
    """Largest difference of log-probabilities, two streams in a batch against each alone; raises ExportError."""
    session = onnxruntime.InferenceSession(path, _options(), providers=["CPUExecutionProvider"])
    check_order(session, path)
    scale = float(session.get_modelmeta().custom_metadata_map["emission_scale"])
    states = [
        np.zeros([2 if n == "N" else n for n in value.shape], np.int64 if "int64" in value.type else np.float32)
        for value in session.get_inputs()[1:]
    ]
    rng, own_states = np.random.default_rng(0), [encoder.initial_states(), encoder.initial_states()]
    n_early, worst = encoder.info.lookahead_frames // SUBSAMPLING, 0.0
    for _ in range(VERIFY_CHUNKS):
        x = rng.normal(SPEECH_LEVEL, 2.0, (2, chunk_frames, N_MEL)).astype(np.float32)
        names = [value.name for value in session.get_inputs()]
        wrapped, *states = session.run(None, dict(zip(names, [x, *states], strict=True)))
        alone = [encoder.step(x[i : i + 1], own_states[i]) for i in range(2)]
        own, own_states = np.concatenate([log_probs for log_probs, _ in alone]), [after for _, after in alone]
        early, n_early = min(n_early, own.shape[1]), max(0, n_early - own.shape[1])
        if wrapped[:, :early].argmax(2).any():
            raise ExportError(f"{path}: needs blank in the {early} vectors before the first frame; export it again")
        worst = max(worst, float(np.abs(wrapped[:, early:] / scale - own[:, early:]).max(initial=0.0)))
    if not worst <= TOLERANCE:
        raise ExportError(
            f"{path}: needs log-probabilities within {TOLERANCE} of {encoder.path}, has {worst:.2e}; "
            "use one onnxruntime for both"
        )
    return worst


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS_ONLY
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    return options


# --- the directory -------------------------------------------------------------------------------------------------


def write_graph(directory: Path, tokens_sha256: str, out: Path, cost_scale: float, word_cost: float | None) -> int:
    """graph.fst as OpenFst reads it, its costs multiplied, and words.txt; returns the bytes of graph.fst.

    sherpa-onnx reads the whole graph with the CTC topology in it, so the file is larger than our packed one.
    """
    fst = with_final_states(load_graph(directory, tokens_sha256, word_cost))
    if cost_scale != 1.0:
        columns = from_kaldifst(fst)
        columns.weight[:] *= cost_scale
        columns.final[:] *= cost_scale
        fst = to_kaldifst(columns)
    fst.write(str(out / "graph.fst"))
    (out / "words.txt").write_bytes((directory / "words.txt").read_bytes())
    return (out / "graph.fst").stat().st_size


def export_sherpa(
    model: str | Path,
    out: Path,
    chunk_ms: int | None = None,
    graph: str | Path | None = None,
    greedy: bool = False,
) -> dict[str, Any]:
    """Write and verify a directory for sherpa-onnx; returns what was written.

    graph: another graph directory than the model's own; greedy: write none.
    Raises: ModelError, GraphError, UsageError, ExportError.
    """
    files = ModelFiles.open(model)
    if out.resolve() == files.directory.resolve():
        raise UsageError(f"{out}: is the model itself; give another folder to write to")
    search = dict(files.config.get("decoder", {}))
    directory = None if greedy else files.graph if graph is None else check_graph(Path(graph))
    # both searches compare the best path with the others in units of the beam: so ours becomes sherpa's
    widen = SHERPA_BEAM / float(search.get("beam", DEFAULT_BEAM)) if directory else 1.0
    scale = widen * float(search.get("acoustic_scale", DEFAULT_ACOUSTIC_SCALE)) if directory else 1.0
    out.mkdir(parents=True, exist_ok=True)
    files.tokens.save(out / "tokens.txt")
    report: dict[str, Any] = {"model": files.directory.resolve().name, "target": "sherpa-onnx"}
    for precision, name in FILES.items():
        source = files.encoder(precision)
        session = EncoderSession(source)
        files.check_tokens(source, session.info.tokens_sha256)
        chunk = check_chunk_frames(
            session.info, session.info.chunk_frames if chunk_ms is None else chunk_ms // FRAME_SHIFT_MS
        )
        onnx.save(wrap_encoder(onnx.load(source), chunk, scale), out / name)
        report |= {
            f"{precision}_bytes": (out / name).stat().st_size,
            f"{precision}_difference": verify(session, out / name, chunk),
            "chunk_ms": chunk * FRAME_SHIFT_MS,
            "lookahead_ms": session.info.lookahead_frames * FRAME_SHIFT_MS,
        }
    report["tail_ms"] = tail_ms(report["chunk_ms"], report["lookahead_ms"])
    if directory is not None:
        report["graph_bytes"] = write_graph(directory, files.tokens.sha256, out, widen, search.get("word_cost"))
        report["emission_scale"] = scale
        report["max_active"] = int(search.get("max_active", DEFAULT_MAX_ACTIVE))
    (out / "README.md").write_text(card(report), encoding="utf-8")
    return report


def tail_ms(chunk_ms: int, lookahead_ms: int) -> int:
    """Silence that a user of sherpa-onnx appends: what is left of a chunk, the delay, and the edge of the features.

    It decodes a chunk once a frame more than the chunk is there, and never the rest.
    """
    return chunk_ms + lookahead_ms + 2 * FRAME_SHIFT_MS


def is_asked_for(argv: list[str]) -> bool:
    """`--target sherpa-onnx` is among the arguments of `edge-asr export`."""
    return "--target=sherpa-onnx" in argv or ("--target", "sherpa-onnx") in pairwise(argv)


def main(argv: list[str] | None = None) -> int:
    """Entry of `edge-asr export --target sherpa-onnx`; prints the report as JSON."""
    parser = argparse.ArgumentParser(
        "edge-asr export --target sherpa-onnx",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--target", choices=("sherpa-onnx",), help="the runtime to write for")
    parser.add_argument("model", type=Path, help="exported model directory, or the name of an installed model")
    parser.add_argument("out", type=Path, help="directory to write")
    parser.add_argument("--chunk-ms", type=int, help="audio per step, a multiple of 40 (default: the model's own)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--graph", type=Path, help="graph directory to write (default: the model's own)")
    which.add_argument("--greedy", action="store_true", help="write no graph")
    arguments = parser.parse_args(argv)
    report = export_sherpa(arguments.model, arguments.out, arguments.chunk_ms, arguments.graph, arguments.greedy)
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgeAsrError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
