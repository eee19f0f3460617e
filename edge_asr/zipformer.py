"""Streaming zipformer2-ctc models of sherpa-onnx in our recogniser, with the verbs of `runtime`.

    Recognizer("sherpa-onnx-streaming-zipformer-ctc-small-2024-03-18", precision="int8")

Such a folder holds `tokens.txt` and one ONNX file for each precision, and no config.json. The file takes T frames for
every `decode_chunk_len` by which it advances, so frames overlap; six caches for each layer, the state of the front end
and a count go in and out by position. The chunk is the model's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_asr.errors import LexiconError, ModelDamagedError, ModelNotFoundError, StreamError, UsageError
from edge_asr.features import N_MEL, SAMPLE_RATE, SILENCE
from edge_asr.model_files import DEFAULT_MODEL, ModelFiles, Precision, is_sherpa_folder
from edge_asr.runtime import ORT_ERRORS, EncoderInfo, EncoderSession, States, load_onnx
from edge_asr.tokens import BLANK, WORD_START, TokenTable

if TYPE_CHECKING:
    import onnx  # only tools that read graphs have it

SUBSAMPLING = 4
LISTS = (
    "encoder_dims", "query_head_dims", "value_head_dims", "num_heads", "num_encoder_layers", "cnn_module_kernels",
    "left_context_len",
)  # fmt: skip
NUMBERS = ("T", "decode_chunk_len")
BLANKS = (BLANK, "<eps>", "<blank>")
EMBED_STATE = (128, 3, 19)
CACHES = ("cached_key", "cached_nonlin_attn", "cached_val1", "cached_val2", "cached_conv1", "cached_conv2")
TAIL_FRAMES = 66  # silence at the end of a stream, as sherpa-onnx's examples append it: these models speak late
ONLY = "of sherpa-onnx's models only the streaming zipformer2-ctc layout is supported"


@dataclass(frozen=True)
class StateSpec:
    """One state: its name in icefall's exports, its shape with 1 for the batch, and which axis is the batch."""

    name: str
    shape: tuple[int, ...]
    batch_axis: int
    dtype: type = np.float32


@dataclass(frozen=True)
class Layout:
    """What the metadata say. Frames are feature frames of 10 ms."""

    window_frames: int  # T: fed for each step
    chunk_frames: int  # by which the window advances
    states: tuple[StateSpec, ...]


def read_layout(path: Path, metadata: Mapping[str, str]) -> Layout:
    """Raises: ModelDamagedError, naming what is missing or wrong."""
    missing = [key for key in (*LISTS, *NUMBERS) if key not in metadata]
    if missing:
        raise ModelDamagedError(f"{path}: lacks the metadata {', '.join(missing)}; {ONLY}")
    try:
        columns = {key: [int(n) for n in metadata[key].split(",")] for key in LISTS}
        window, chunk = (int(metadata[key]) for key in NUMBERS)
    except ValueError as error:
        raise ModelDamagedError(f"{path}: its metadata cannot be read ({error}); restore the file") from error
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) != 1 or min(map(min, columns.values())) < 1:
        raise ModelDamagedError(f"{path}: needs lists of equal length of numbers above 0, has {columns}; {ONLY}")
    if chunk < SUBSAMPLING or chunk % SUBSAMPLING or window < chunk:
        raise ModelDamagedError(
            f"{path}: needs decode_chunk_len, a multiple of {SUBSAMPLING}, up to T, has {chunk} and {window}; {ONLY}"
        )
    return Layout(window, chunk, tuple(_state_specs(columns)))


def _state_specs(columns: Mapping[str, Sequence[int]]) -> list[StateSpec]:
    specs: list[StateSpec] = []
    for dim, query, value, heads, layers, kernel, left in zip(*(columns[key] for key in LISTS), strict=True):
        values = (left, 1, value * heads)
        convolved = (1, dim, kernel // 2)
        shapes = ((left, 1, query * heads), (1, 1, left, 3 * dim // 4), values, values, convolved, convolved)
        for _ in range(layers):
            number = len(specs) // len(CACHES)
            specs += [
                StateSpec(f"{name}_{number}", shape, 0 if shape is convolved else 1)
                for name, shape in zip(CACHES, shapes, strict=True)
            ]
    return [*specs, StateSpec("embed_states", (1, *EMBED_STATE), 0), StateSpec("processed_lens", (1,), 0, np.int64)]


# --- session and stream --------------------------------------------------------------------------------------------


class ZipformerSession:
    """A zipformer2-ctc file under onnxruntime. States are kept with the batch first, whatever axis the file wants.

    Raises: ModelNotFoundError, ModelDamagedError.
    """

    def __init__(self, path: str | Path, tokens: TokenTable, n_threads: int = 1) -> None:
        self.path = Path(path)
        self._session = load_onnx(self.path, n_threads)
        metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        self.layout = read_layout(self.path, metadata)
        self._input_names = [value.name for value in self._session.get_inputs()]
        self._output_names = [value.name for value in self._session.get_outputs()]
        self._check_inputs()
        # files that edge_asr exported: their log-probabilities are scaled for a fixed beam, and late
        self._scale = float(metadata.get("emission_scale", 1.0))
        self.delay_frames = int(metadata.get("lookahead_frames", 0))
        self.n_tokens = self._check_step(len(tokens))
        self.info = EncoderInfo(
            model_name=metadata.get("model_name", self.path.resolve().parent.name),
            encoder=metadata.get("encoder", "zipformer2-ctc"),
            sample_rate=SAMPLE_RATE,
            subsampling=SUBSAMPLING,
            chunk_frames=self.layout.chunk_frames,
            max_chunk_frames=self.layout.chunk_frames,
            lookahead_frames=self.layout.window_frames - self.layout.chunk_frames + self.delay_frames,
            tokens_sha256=tokens.sha256,
            metadata=metadata,
        )

    @property
    def fixed_chunk_frames(self) -> int:
        return self.layout.chunk_frames

    @property
    def state_bytes(self) -> int:
        """Memory that one stream's state takes."""
        return sum(int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize for spec in self.layout.states)

    def initial_states(self, n_batch: int = 1) -> States:
        zeros = (np.moveaxis(np.zeros(spec.shape, spec.dtype), spec.batch_axis, 0) for spec in self.layout.states)
        return [np.repeat(state, n_batch, axis=0) for state in zeros]

    def create_stream(self, chunk_frames: int | None = None) -> ZipformerStream:
        """`chunk_frames` can only be the model's own."""
        return ZipformerStream(self)

    def step(self, x: np.ndarray, states: States) -> tuple[np.ndarray, States]:
        """x: (N, T, 80) → log_probs (N, U, V) and the states, all with the batch first."""
        axes = [spec.batch_axis for spec in self.layout.states]
        moved = [np.ascontiguousarray(np.moveaxis(s, 0, axis)) for s, axis in zip(states, axes, strict=True)]
        log_probs, *states = self._run([x, *moved])
        scores = log_probs / self._scale
        scores -= scores.max(axis=2, keepdims=True)
        scores -= np.log(np.exp(scores).sum(axis=2, keepdims=True))  # logits will do in this layout
        return scores, [np.moveaxis(s, axis, 0) for s, axis in zip(states, axes, strict=True)]

    def _run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        try:
            return self._session.run(self._output_names, dict(zip(self._input_names, inputs, strict=True)))
        except ORT_ERRORS as error:
            reason = str(error).splitlines()[0]
            raise ModelDamagedError(f"{self.path}: failed on a chunk of shape {inputs[0].shape}: {reason}") from error

    def _check_inputs(self) -> None:
        """Tensors pass by position: their number, types and fixed sizes have to be those that the metadata promise."""
        wanted = [StateSpec("x", (1, self.layout.window_frames, N_MEL), 0), *self.layout.states]
        for kind, first, values in (
            ("inputs", "x", self._session.get_inputs()),
            ("outputs", "log_probs", self._session.get_outputs()),
        ):
            have = [value.name.removeprefix("new_") for value in values]
            need = [first, *(spec.name for spec in self.layout.states)]
            absent = [name for name in need if name not in have]
            if len(have) < len(need):  # files may name them otherwise; then only the last can be said to be missing
                named = absent if len(absent) == len(need) - len(have) else need[len(have) :]
                raise ModelDamagedError(f"{self.path}: has {len(have)} {kind} and lacks {', '.join(named)}; {ONLY}")
            if len(have) > len(need):
                raise ModelDamagedError(
                    f"{self.path}: needs {len(need)} {kind} for {len(need) // len(CACHES)} layers, has {len(have)}, "
                    f"{values[len(need)].name} and on too many; {ONLY}"
                )
        for position, (spec, value) in enumerate(zip(wanted, self._session.get_inputs(), strict=True)):
            kind = "tensor(int64)" if spec.dtype is np.int64 else "tensor(float)"
            sizes = list(value.shape)
            fits = value.type == kind and len(sizes) == len(spec.shape)
            for axis, (have, need) in enumerate(zip(sizes, spec.shape, strict=False)):
                fits &= not isinstance(have, int) or have == need or (axis == spec.batch_axis and have == -1)
            if not fits:
                raise ModelDamagedError(
                    f"{self.path}: needs {spec.name} {spec.shape} {kind} as input {position}, has {value.name} "
                    f"{tuple(sizes)} {value.type}; {ONLY}"
                )

    def _check_step(self, n_tokens: int) -> int:
        """Run one silent chunk: what no declaration promises is seen here. Returns V."""
        states = [np.zeros(spec.shape, spec.dtype) for spec in self.layout.states]
        x = np.full((1, self.layout.window_frames, N_MEL), SILENCE, np.float32)
        log_probs, *after = self._run([x, *states])
        needed = (1, self.layout.chunk_frames // SUBSAMPLING, n_tokens)
        if log_probs.shape != needed:
            raise ModelDamagedError(
                f"{self.path}: needs log-probabilities {needed}, a vector for 40 ms and a number for each line of "
                f"tokens.txt, has {log_probs.shape}; {ONLY}"
            )
        for spec, state in zip(self.layout.states, after, strict=True):
            if state.shape != spec.shape or state.dtype != spec.dtype:
                raise ModelDamagedError(
                    f"{self.path}: needs {spec.name} {spec.shape} {spec.dtype.__name__} among its outputs, has "
                    f"{state.shape} {state.dtype}; {ONLY}"
                )
        return n_tokens


class ZipformerStream:
    """Features in, log-probabilities out, for one stream, as `runtime.EncoderStream` does it for our encoders.

    At the end silence follows, so that words spoken late come out: there are vectors beyond the last frame.
    """

    def __init__(self, session: ZipformerSession) -> None:
        self.chunk_frames = session.layout.chunk_frames
        self.states = session.initial_states()
        self._window_frames = session.layout.window_frames
        self._delay_frames = session.delay_frames
        self._n_to_drop = session.delay_frames // SUBSAMPLING
        self._pending = np.zeros((0, N_MEL), np.float32)
        self._n_accepted = 0
        self._finished = False

    def accept(self, features: np.ndarray) -> None:
        """(T, 80) float32; any T."""
        if self._finished:
            raise StreamError("the encoder stream was finished and takes no more features; make a new one")
        self._pending = np.concatenate([self._pending, features])
        self._n_accepted += len(features)

    def finish(self) -> None:
        """No more features will come: append silence up to a whole window."""
        if self._finished:
            return
        self._finished = True
        if self._n_accepted:
            n_wanted = self._n_accepted + TAIL_FRAMES + self._delay_frames
            n_steps = -(-n_wanted // self.chunk_frames)
            n_pad = (n_steps - 1) * self.chunk_frames + self._window_frames - self._n_accepted
            silence = np.full((n_pad, N_MEL), SILENCE, np.float32)
            self._pending = np.concatenate([self._pending, silence])

    @property
    def n_ready_frames(self) -> int:
        """Frames that the next step would take; 0: wait for more, or all is done."""
        return self._window_frames if len(self._pending) >= self._window_frames else 0

    def take(self) -> np.ndarray:
        """(1, T, 80): the next window; the next but one begins `chunk_frames` later."""
        window = self._pending[None, : self._window_frames]
        self._pending = self._pending[self.chunk_frames :]
        return window

    def give(self, log_probs: np.ndarray, states: States) -> np.ndarray:
        """Keep the states of a step and return its vectors (U, V), less those before the first frame."""
        self.states = states
        n_dropped = min(self._n_to_drop, len(log_probs))
        self._n_to_drop -= n_dropped
        return log_probs[n_dropped:]


# --- the folder ----------------------------------------------------------------------------------------------------


class SherpaFiles(ModelFiles):
    """A folder of sherpa-onnx: no config.json, file names of their own, greedy search."""

    def encoder(self, precision: Precision) -> Path:
        """The file of a precision: of int8 files the name says so."""
        if precision not in ("int8", "fp32"):
            raise UsageError(f"precision must be int8 or fp32, got {precision!r}")
        return choose_file(self.directory, precision)


def choose_file(directory: Path, precision: str) -> Path:
    """The ONNX file of a precision in a folder of sherpa-onnx. Raises: ModelNotFoundError, ModelDamagedError."""
    files = sorted(directory.glob("*.onnx"))
    parts = [path.name for path in files if any(part in path.name for part in ("joiner", "decoder"))]
    if parts:
        raise ModelDamagedError(f"{directory}: is a transducer or has parts ({', '.join(parts)}); {ONLY}")
    fitting = [path for path in files if ("int8" in path.name) == (precision == "int8")]
    have = ", ".join(path.name for path in files) or "no .onnx file"
    if not fitting:
        raise ModelNotFoundError(
            f"{directory}: lacks an ONNX file of precision {precision}, has {have}; choose another precision"
        )
    if len(fitting) > 1:
        raise ModelNotFoundError(
            f"{directory}: needs one ONNX file of precision {precision}, has {have}; move the rest"
        )
    return fitting[0]


def open_model(model: str | Path = DEFAULT_MODEL) -> ModelFiles:
    """A model folder, ours by name or path or sherpa-onnx's by path. Raises: ModelNotFoundError, ModelDamagedError."""
    directory = Path(model)
    if is_sherpa_folder(directory):
        return SherpaFiles(directory, {}, read_tokens(directory / "tokens.txt"))
    return ModelFiles.open(model)


def under_our_names(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The file for tools that read graphs: x, state_0 … → log_probs, next_state_0 …, a batch of one, and our metadata.

    x keeps its T frames, of which `chunk_frames` are new in each step. Raises: ModelDamagedError.
    """
    renamed = type(model).FromString(model.SerializeToString())
    metadata = {entry.key: entry.value for entry in renamed.metadata_props}
    layout = read_layout(path, metadata)
    inputs, outputs, n_states = renamed.graph.input, renamed.graph.output, len(layout.states)
    if len(inputs) != n_states + 1 or len(outputs) != n_states + 1:
        raise ModelDamagedError(
            f"{path}: needs {n_states + 1} inputs and outputs, has {len(inputs)} and {len(outputs)}; {ONLY}"
        )
    names = {inputs[0].name: "x", outputs[0].name: "log_probs"}
    for i, (before, after) in enumerate(zip(inputs[1:], outputs[1:], strict=True)):
        names |= {before.name: f"state_{i}", after.name: f"next_state_{i}"}
    for name in set(names.values()) - set(names):  # the file's own use of a name that is now taken
        names[name] = f"inner_{name}"
    for value in (*inputs, *outputs, *renamed.graph.initializer):
        value.name = names.get(value.name, value.name)
    _rename(renamed.graph, names)
    shapes = [(1, layout.window_frames, N_MEL), *(spec.shape for spec in layout.states)]
    for value, shape in zip(inputs, shapes, strict=True):
        for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=False):
            dim.dim_value = size
    added = {
        "model_name": path.resolve().parent.name,
        "encoder": "zipformer2-ctc",
        "chunk_frames": str(layout.chunk_frames),
        "max_chunk_frames": str(layout.chunk_frames),
        "lookahead_frames": str(layout.window_frames - layout.chunk_frames + int(metadata.get("lookahead_frames", 0))),
    }
    del renamed.metadata_props[:]
    for key, value in {**added, **metadata, "lookahead_frames": added["lookahead_frames"]}.items():
        renamed.metadata_props.add(key=key, value=value)
    return renamed


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Values as all nodes see them, those of inner graphs included, in place."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, names)
                for value in attribute.g.output:
                    value.name = names.get(value.name, value.name)


def read_tokens(path: Path) -> TokenTable:
    """sherpa-onnx's table: `symbol id` lines in any order, one of <blk> <eps> <blank>; a lone id stands for a space."""
    if not path.is_file():
        raise ModelNotFoundError(f"{path}: is missing; restore the file from the model's release")
    symbols: dict[int, str] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.strip():
                *symbol, token = line.split()
                symbols[int(token)] = symbol[0] if symbol else WORD_START
    except ValueError as error:
        raise ModelDamagedError(f"{path}: needs 'symbol id' lines in UTF-8 ({error}); restore the file") from error
    missing = set(range(len(symbols))) - set(symbols)
    if missing or not symbols:
        raise ModelDamagedError(f"{path}: lacks the id {min(missing, default=0)} of {len(symbols)}; restore the file")
    blank = next((name for name in BLANKS if name in symbols.values()), None)
    if blank is None or symbols[0] != blank:
        have = f"{blank} elsewhere" if blank else f"none of {', '.join(BLANKS)}"
        raise ModelDamagedError(f"{path}: needs blank as id 0, has {have}; {ONLY}")
    try:
        return TokenTable([BLANK, *(symbols[i] for i in range(1, len(symbols)))])
    except LexiconError as error:
        raise ModelDamagedError(f"{path}: {error}") from error


def open_session(
    files: ModelFiles, precision: Precision, n_threads: int = 1, arena: bool = True
) -> EncoderSession | ZipformerSession:
    """The encoder of a model folder, ours or sherpa-onnx's. `arena`: see EncoderSession; ours only."""
    path = files.encoder(precision)
    if isinstance(files, SherpaFiles):
        return ZipformerSession(path, files.tokens, n_threads)
    session = EncoderSession(path, n_threads, arena)
    files.check_tokens(path, session.info.tokens_sha256)
    return session
