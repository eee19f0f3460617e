"""The exported encoder under onnxruntime: state in, state out; many streams in one batch.

The encoder is causal and its output is late by `lookahead_frames`. `EncoderStream` hides that: it drops the first
outputs, fills up the last group of four frames at the end and feeds the padding that brings the last outputs out. So a
stream of T feature frames gives exactly ceil(T / 4) vectors, whatever the chunk, and nobody else pads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from edge_asr.errors import ModelDamagedError, ModelNotFoundError, StreamError, UsageError
from edge_asr.features import N_MEL, SILENCE

FRAME_SHIFT_MS = 10  # of the features
REQUIRED_METADATA = (
    "model_name", "encoder", "sample_rate", "subsampling", "chunk_frames", "max_chunk_frames", "lookahead_frames",
    "tokens_sha256",
)  # fmt: skip
ORT_ERRORS = (
    ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.InvalidGraph, ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile, ort_errors.NotImplemented, ort_errors.RuntimeException,
)  # fmt: skip
MAX_STEP_FRAMES = 1_024  # of all streams of a step: more leave the cache, take memory and save no time
_LOG_ERRORS_ONLY = 3

States = list[np.ndarray]


@dataclass(frozen=True)
class EncoderInfo:
    """What an encoder file says about itself. Frames are feature frames of 10 ms."""

    model_name: str
    encoder: str
    sample_rate: int
    subsampling: int  # feature frames for each output vector
    chunk_frames: int  # default chunk
    max_chunk_frames: int  # 0: no limit
    lookahead_frames: int
    tokens_sha256: str
    metadata: Mapping[str, str]

    @property
    def vector_s(self) -> float:
        """Seconds from one output vector to the next."""
        return self.subsampling * FRAME_SHIFT_MS / 1000


class EncoderSession:
    """An encoder file, loaded once and shared by all streams.

    `n_threads` is 1 by default: a streaming chunk is too small to be worth waking a second thread for.
    `arena`: the memory of a step is kept for the next, a few percent of its time for some megabytes.
    Raises: ModelNotFoundError, ModelDamagedError.
    """

    fixed_chunk_frames: int | None = None  # our encoders take any chunk

    def __init__(self, path: str | Path, n_threads: int = 1, arena: bool = True) -> None:
        self.path = Path(path)
        self._session = load_onnx(self.path, n_threads, arena)
        self.info = _read_info(self.path, self._session.get_modelmeta().custom_metadata_map)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        n_states = len(inputs) - 1
        wanted_inputs = ["x", *(f"state_{i}" for i in range(n_states))]
        wanted_outputs = ["log_probs", *(f"next_state_{i}" for i in range(n_states))]
        if [i.name for i in inputs] != wanted_inputs or [o.name for o in outputs] != wanted_outputs:
            raise ModelDamagedError(
                f"{self.path}: needs inputs {wanted_inputs} and outputs {wanted_outputs}, "
                f"has {[i.name for i in inputs]} and {[o.name for o in outputs]}; export the model again"
            )
        self._input_names, self._output_names = wanted_inputs, wanted_outputs
        self._state_shapes = [tuple(state.shape[1:]) for state in inputs[1:]]
        self.n_tokens = outputs[0].shape[-1]
        if not all(isinstance(n, int) for shape in self._state_shapes for n in shape):
            raise ModelDamagedError(
                f"{self.path}: states must have fixed sizes behind the batch axis, have {self._state_shapes}; "
                "export the model again"
            )

    @property
    def state_bytes(self) -> int:
        """Memory that one stream's state takes."""
        return sum(4 * int(np.prod(shape)) for shape in self._state_shapes)

    def create_stream(self, chunk_frames: int | None = None) -> EncoderStream:
        """A stream from the zero state; None takes the model's default chunk."""
        return EncoderStream(self, chunk_frames)

    def initial_states(self, n_batch: int = 1) -> States:
        return [np.zeros((n_batch, *shape), np.float32) for shape in self._state_shapes]

    def step(self, x: np.ndarray, states: States) -> tuple[np.ndarray, States]:
        """x: (N, T, 80), T a positive multiple of 4 → log_probs (N, T/4, V), late by the look-ahead, and the states."""
        try:
            log_probs, *states = self._session.run(
                self._output_names, dict(zip(self._input_names, [x, *states], strict=True))
            )
        except ORT_ERRORS as error:
            raise ModelDamagedError(
                f"{self.path}: failed on a chunk of shape {x.shape}: {error}; export the model again"
            ) from error
        return log_probs, states


class EncoderStream:
    """Features in, log-probabilities out, for one stream: pending frames, states and the delay still to drop.

    `chunk_frames`: feature frames for each step, a multiple of 4; None takes the model's default.
    """

    def __init__(self, session: EncoderSession, chunk_frames: int | None = None) -> None:
        info = session.info
        self.chunk_frames = check_chunk_frames(info, info.chunk_frames if chunk_frames is None else chunk_frames)
        self.states = session.initial_states()
        self._info = info
        self._pending: list[np.ndarray] = []
        self._n_pending = 0
        self._n_accepted = 0
        self._n_to_drop = info.lookahead_frames // info.subsampling
        self._finished = False

    def accept(self, features: np.ndarray) -> None:
        """(T, 80) float32; any T."""
        if self._finished:
            raise StreamError("the encoder stream was finished and takes no more features; make a new one")
        self._append(features)
        self._n_accepted += len(features)

    def finish(self) -> None:
        """No more features will come: silence follows, so that the vectors still inside come out."""
        if self._finished:
            return
        self._finished = True
        if self._n_accepted:
            n_pad = -self._n_accepted % self._info.subsampling + self._info.lookahead_frames
            self._append(np.full((n_pad, N_MEL), SILENCE, np.float32))

    @property
    def n_ready_frames(self) -> int:
        """Frames that the next step would take; 0: wait for more."""
        if self._n_pending >= self.chunk_frames:
            return self.chunk_frames
        return self._n_pending if self._finished else 0

    def take(self) -> np.ndarray:
        """(1, T, 80): the next chunk."""
        frames = np.concatenate(self._pending) if len(self._pending) != 1 else self._pending[0]
        n = self.n_ready_frames
        self._pending = [frames[n:]]
        self._n_pending -= n
        return frames[None, :n]

    def give(self, log_probs: np.ndarray, states: States) -> np.ndarray:
        """Keep the new states; (U, V) without the vectors that only filled the delay."""
        self.states = states
        n_dropped = min(self._n_to_drop, len(log_probs))
        self._n_to_drop -= n_dropped
        return log_probs[n_dropped:]

    def _append(self, features: np.ndarray) -> None:
        if len(features):
            self._pending.append(features)
            self._n_pending += len(features)


def advance(session: EncoderSession, streams: Sequence[EncoderStream]) -> list[np.ndarray]:
    """One step of every stream that is ready, those of equal chunk in batches → (U, V) for each, maybe U = 0."""
    emissions = [np.zeros((0, session.n_tokens), np.float32) for _ in streams]
    for members in _batches([stream.n_ready_frames for stream in streams]):
        if len(members) == 1:
            stream = streams[members[0]]
            log_probs, states = session.step(stream.take(), stream.states)
            emissions[members[0]] = stream.give(log_probs[0], states)
            continue
        x = np.concatenate([streams[i].take() for i in members])
        batched = [np.concatenate(parts) for parts in zip(*(streams[i].states for i in members), strict=True)]
        log_probs, states = session.step(x, batched)
        for row, i in enumerate(members):
            emissions[i] = streams[i].give(log_probs[row], [state[row : row + 1] for state in states])
    return emissions


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Positions of equal lengths above 0, together at most MAX_STEP_FRAMES long."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, length in enumerate(lengths):
        if length:
            by_length[length].append(i)
    for length, members in by_length.items():
        n = max(1, MAX_STEP_FRAMES // length)
        yield from (members[first : first + n] for first in range(0, len(members), n))


def check_chunk_frames(info: EncoderInfo, chunk_frames: int) -> int:
    """`chunk_frames` if the model can take it. Raises: UsageError."""
    if chunk_frames <= 0 or chunk_frames % info.subsampling:
        step_ms = info.subsampling * FRAME_SHIFT_MS
        raise UsageError(
            f"a chunk must be a positive multiple of {step_ms} ms, got {chunk_frames * FRAME_SHIFT_MS} ms; "
            f"the model's own is {info.chunk_frames * FRAME_SHIFT_MS} ms"
        )
    if 0 < info.max_chunk_frames < chunk_frames:
        raise UsageError(
            f"model {info.model_name} takes chunks of at most {info.max_chunk_frames * FRAME_SHIFT_MS} ms, "
            f"got {chunk_frames * FRAME_SHIFT_MS} ms; choose a smaller chunk"
        )
    return chunk_frames


def load_onnx(path: Path, n_threads: int, arena: bool = True) -> onnxruntime.InferenceSession:
    """A session for small chunks on one core. Raises: ModelNotFoundError, ModelDamagedError."""
    if not path.is_file():
        raise ModelNotFoundError(f"{path}: the encoder file is missing; export it or restore the model folder")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = arena
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.add_session_config_entry("session.set_denormal_as_zero", "1")  # decaying states would cost 100 × in silence
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # an idle stream burns no power
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        reason = str(error).splitlines()[0]
        raise ModelDamagedError(
            f"{path}: is not an encoder that onnxruntime can load ({reason}); restore the file or export it again"
        ) from error


def _read_info(path: Path, metadata: Mapping[str, str]) -> EncoderInfo:
    missing = [key for key in REQUIRED_METADATA if key not in metadata]
    if missing:
        raise ModelDamagedError(f"{path}: lacks the metadata {', '.join(missing)}; export the model again")
    try:
        return EncoderInfo(
            model_name=metadata["model_name"],
            encoder=metadata["encoder"],
            sample_rate=int(metadata["sample_rate"]),
            subsampling=int(metadata["subsampling"]),
            chunk_frames=int(metadata["chunk_frames"]),
            max_chunk_frames=int(metadata["max_chunk_frames"]),
            lookahead_frames=int(metadata["lookahead_frames"]),
            tokens_sha256=metadata["tokens_sha256"],
            metadata=dict(metadata),
        )
    except (ValueError, TypeError) as error:
        raise ModelDamagedError(f"{path}: its metadata cannot be read ({error}); export the model again") from error
