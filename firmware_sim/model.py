"""A streaming model as work per chunk: front end, encoder, search.

A chunk is `chunk_frames` feature frames of 10 ms; each chunk is one job with the chunk's length as its period.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_asr.errors import ModelDamagedError
from edge_asr.model_files import ENCODER_FILES, find_model, read_config
from edge_asr.zipformer import choose_file, is_sherpa_folder, under_our_names
from firmware_sim.cost import OpCost, cost_graph, shape_cost
from firmware_sim.errors import BudgetError, OnnxFileError, ShapeError
from firmware_sim.graph import Graph, load_graph, metadata_int, read_model

SAMPLE_RATE = 16000
HOP_MS = 10
N_MEL = 80
SUBSAMPLING = 4
MAX_CHUNK_MS = 60_000

# One frame of the front end: window and pre-emphasis 1,200, a real transform of 512 points 12,500, power and
# mel sums 1,500 element operations, 80 logarithms. Tables: window, twiddles, mel weights. Working memory: two frames.
FRONTEND_ELEMENTS = 15_200
FRONTEND_TABLE_BYTES = 400 * 4 + 512 * 4 + 2 * 257 * 4
FRONTEND_RAM_BYTES = 16 * 1024

DEFAULT_MAX_ACTIVE = 7000  # Kaldi's
ARCS_PER_TOKEN = 3.0  # assumed where the graph does not say: arcs walked per active token and vector
FST_STATE_BYTES = 20  # OpenFst's ConstFst: final weight, first arc, counts of arcs and epsilons
FST_ARC_BYTES = 16  # labels, weight, next state
TYPICAL_ACTIVE = (0.05, 0.25)  # assumed: quiet and usual share of max_active
TOKEN_BYTES = 96  # a token, its hash entry and its part of the trace back
TRACE_VECTORS = 8  # assumed: live traces per active token


@dataclass(frozen=True)
class Search:
    """The graph search: files it needs, and its limits."""

    graph_bytes: int = 0  # stored
    symbol_bytes: int = 0
    max_active: int = 0
    n_states: int = 0  # 0: unknown
    n_arcs: int = 0

    @property
    def loaded_bytes(self) -> int:
        """The graph unpacked for the search; as stored where its size in states and arcs is unknown."""
        return self.n_states * FST_STATE_BYTES + self.n_arcs * FST_ARC_BYTES or self.graph_bytes

    @property
    def arcs_per_token(self) -> float:
        return self.n_arcs / self.n_states if self.n_states else ARCS_PER_TOKEN

    @property
    def token_bytes(self) -> int:
        return self.max_active * TOKEN_BYTES * TRACE_VECTORS


@dataclass(frozen=True)
class Model:
    """What the simulator knows of a model at one chunk size."""

    name: str
    precision: str
    directory: Path | None
    graph: Graph
    ops: tuple[OpCost, ...]  # the encoder's
    shapes: OpCost
    frontend: OpCost
    search_op: OpCost
    search: Search
    chunk_frames: int
    lookahead_frames: int

    @property
    def period_s(self) -> float:
        return self.chunk_frames * HOP_MS / 1000

    def job(self, runs_shapes: bool) -> tuple[OpCost, ...]:
        """All work of one chunk, with or without the nodes that a compiler removes."""
        shapes = (self.shapes,) if runs_shapes and self.shapes.nodes else ()
        return (self.frontend, *self.ops, *shapes, self.search_op)

    @property
    def macs(self) -> int:
        return sum(op.macs for op in self.ops)

    @property
    def macs_per_second(self) -> float:
        return self.macs / self.period_s

    @property
    def weight_bytes(self) -> int:
        """Distinct constants that the encoder reads."""
        return sum(op.weight_bytes for op in self.ops)

    @property
    def state_bytes(self) -> int:
        return sum(self.graph.values[name].n_bytes for name, _ in self.graph.states())

    @property
    def encoder_kind(self) -> str:
        return self.graph.metadata.get("encoder", "unknown")


def load_model(
    model: str | Path, precision: str = "int8", chunk_ms: int | None = None, dims: Mapping[str, int] | None = None
) -> Model:
    """A model directory (ours, or a zipformer2-ctc of sherpa-onnx), an installed model's name, or one .onnx file.

    Raises the errors of `load_graph`; ModelNotFoundError where nothing of that name exists; BudgetError for a chunk
    that is no positive multiple of 40 ms."""
    path, directory = encoder_path(Path(model), precision)
    foreign = is_sherpa_folder(Path(model))
    config = read_config(directory) if directory and not foreign else {}
    frames = chunk_frames_of(chunk_ms)
    graph = load_graph(path, frames, dims, under_our_names(read_model(path), path) if foreign else None)
    if foreign and frames not in (None, metadata_int(graph.metadata, "chunk_frames")):
        own_ms = int(graph.metadata["chunk_frames"]) * HOP_MS
        raise BudgetError(f"{path}: need the chunk of {own_ms} ms that the model was exported with, have {chunk_ms} ms")
    frames = frames or metadata_int(graph.metadata, "chunk_frames")
    if not frames:
        raise ShapeError(
            f"{path}: need the audio time of one run, have no chunk_frames in the metadata; give --chunk-ms"
        )
    limit = metadata_int(graph.metadata, "max_chunk_frames") or 0
    if limit and frames > limit:
        raise BudgetError(f"{path}: need a chunk of at most {limit * HOP_MS} ms, have {frames * HOP_MS} ms")
    search = read_search(directory, config)
    return Model(
        name=graph.metadata.get("model_name") or path.parent.name
        if directory
        else graph.metadata.get("model_name", path.stem),
        precision=precision if directory else ("int8" if is_integer(graph) else "fp32"),
        directory=directory,
        graph=graph,
        ops=tuple(cost_graph(graph)),
        shapes=shape_cost(graph),
        frontend=frontend_cost(frames),
        search_op=search_cost(frames // SUBSAMPLING, search),
        search=search,
        chunk_frames=frames,
        lookahead_frames=metadata_int(graph.metadata, "lookahead_frames") or 0,
    )


def encoder_path(model: Path, precision: str) -> tuple[Path, Path | None]:
    """(encoder file, model directory or None). A path that ends like a file is taken as one."""
    if model.is_file() or model.suffix == ".onnx":
        return model, None
    if is_sherpa_folder(model):
        return choose_file(model, precision), model
    directory = find_model(model)
    path = directory / ENCODER_FILES.get(precision, precision)
    if not path.is_file():
        have = ", ".join(p.name for p in directory.glob("*.onnx")) or "no .onnx file"
        raise OnnxFileError(f"{directory}: need {path.name} for --precision {precision}, have {have}")
    return path, directory


def chunk_frames_of(chunk_ms: int | None) -> int | None:
    """Feature frames of a chunk. Raises BudgetError unless it is a positive multiple of 40 ms."""
    if chunk_ms is None:
        return None
    if chunk_ms <= 0 or chunk_ms % (SUBSAMPLING * HOP_MS):
        raise BudgetError(f"need a chunk that is a positive multiple of {SUBSAMPLING * HOP_MS} ms, have {chunk_ms} ms")
    if chunk_ms > MAX_CHUNK_MS:
        raise BudgetError(f"need a chunk of at most {MAX_CHUNK_MS} ms, have {chunk_ms} ms")
    return chunk_ms // HOP_MS


def is_integer(graph: Graph) -> bool:
    return any(node.op_type in ("DequantizeLinear", "DynamicQuantizeLSTM", "MatMulInteger") for node in graph.nodes)


def read_search(directory: Path | None, config: Mapping) -> Search:
    """Size of the decoding graph and limits of the search; greedy where the model names no graph."""
    symbols = sum(p.stat().st_size for p in directory.glob("tokens.txt")) if directory else 0
    if directory is None or not config.get("graph"):
        return Search(symbol_bytes=symbols)
    folder = (directory / str(config["graph"])).resolve()
    files = [p for p in folder.glob("*") if p.is_file()]
    graph_bytes = sum(p.stat().st_size for p in files if ".fst" in p.name)
    symbols += sum(p.stat().st_size for p in files if p.suffix == ".txt")
    if not graph_bytes:
        raise OnnxFileError(
            f"{folder}: need the decoding graph that {directory.name} names, have no .fst file; build it again"
        )
    settings = config.get("decoder", {})
    max_active = settings.get("max_active", DEFAULT_MAX_ACTIVE) if isinstance(settings, dict) else DEFAULT_MAX_ACTIVE
    if isinstance(max_active, bool) or not isinstance(max_active, int) or max_active < 1:
        raise ModelDamagedError(
            f"{directory / 'config.json'}: max_active must be a whole number above 0, is {max_active!r}"
        )
    details = read_config(folder) if (folder / "config.json").is_file() else {}
    n_states, n_arcs = (details.get(key, 0) for key in ("n_states", "n_arcs"))
    return Search(graph_bytes, symbols, max_active, int(n_states), int(n_arcs))


def frontend_cost(n_frames: int) -> OpCost:
    """Filter bank of a chunk, in float."""
    return OpCost(
        name="front end",
        op_type="Fbank",
        kind="frontend",
        precision="fp32",
        elements=n_frames * FRONTEND_ELEMENTS,
        transcendentals=n_frames * N_MEL,
        weight_bytes=FRONTEND_TABLE_BYTES,
        read_bytes=n_frames * HOP_MS * SAMPLE_RATE // 1000 * 4,
        write_bytes=n_frames * N_MEL * 4,
    )


def search_cost(n_vectors: int, search: Search) -> OpCost:
    """Token passing for a chunk: every arc costs cycles, and one line of the graph from RAM (its order is random)."""
    tokens = search.max_active * TYPICAL_ACTIVE[1]
    arcs = int(n_vectors * tokens * search.arcs_per_token)
    spread = (TYPICAL_ACTIVE[0] / TYPICAL_ACTIVE[1], 1 / TYPICAL_ACTIVE[1]) if arcs else (1.0, 1.0)
    return OpCost(
        name="search",
        op_type="GraphSearch" if arcs else "Greedy",
        kind="search",
        precision="fp32",
        elements=n_vectors * 40,
        read_bytes=n_vectors * 40 * 4,
        arcs=arcs,
        random_reads=int(n_vectors * tokens),
        spread=spread,
    )


def metadata_json(model: Model, key: str) -> object:
    """A metadata entry parsed as JSON, None where absent."""
    try:
        return json.loads(model.graph.metadata[key])
    except (KeyError, ValueError):
        return None
