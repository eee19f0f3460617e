"""What an encoder computes and moves per second of audio, and how far back it remembers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edge_asr.data import Clip
from edge_asr.runtime import EncoderSession, EncoderStream, advance
from firmware_sim.model import load_model

DISTANCES_S = (0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 20.0, 40.0)  # edges of the bins of `influence_of`
DISTURBED_S = (5.0, 7.0, 9.0)  # where a recording is disturbed
DISTURBANCE_FRAMES = 32  # 320 ms
VECTOR_S = 0.04
RECORDING_S = 50.0


def cost_of(model: Path, precision: str, chunk_ms: int) -> dict[str, Any]:
    """Multiply-adds and bytes per second of audio, counted over the operators of the ONNX file.

    Weights: every operator reads its own once a chunk, and a recurrence reads its recurrent ones again at each step.
    State: read and written once a chunk. Activations: what operators read and write besides.
    """
    loaded = load_model(model, precision, chunk_ms)
    graph, period_s = loaded.graph, loaded.period_s
    states = {name for pair in graph.states() for name in pair}
    touched = sum(
        graph.values[name].n_bytes for op in loaded.ops for name in (*op.inputs, *op.outputs) if name in states
    )
    recurrent = sum(op.step_weight_bytes * (op.steps - 1) for op in loaded.ops)
    moved = sum(op.read_bytes + op.write_bytes for op in loaded.ops)
    return {
        "precision": precision,
        "chunk_ms": chunk_ms,
        "macs_per_s": round(loaded.macs / period_s),
        "weight_bytes": loaded.weight_bytes,
        "state_bytes": loaded.state_bytes,
        "weight_bytes_per_s": round((loaded.weight_bytes + recurrent) / period_s),
        "reread_bytes_per_s": round(recurrent / period_s),
        "state_bytes_per_s": round(2 * loaded.state_bytes / period_s),
        "activation_bytes_per_s": round(max(moved - touched, 0) / period_s),
    }


def influence_of(session: EncoderSession, clips: list[Clip], frames: list[np.ndarray]) -> dict[str, Any]:
    """How much 320 ms of other sound change the emissions that come later: mean divergence by the time since then.

    For each speaker the first clips are streamed as one recording, once as it is and once with 320 ms exchanged.
    """
    sums, counts = np.zeros(len(DISTANCES_S)), np.zeros(len(DISTANCES_S), int)
    n_frames = int(100 * RECORDING_S)
    for speaker in dict.fromkeys(clip.speaker for clip in clips):
        parts = [f for clip, f in zip(clips, frames, strict=True) if clip.speaker == speaker]
        recording = np.concatenate(parts)[:n_frames]
        plain = stream(session, recording)
        for at_s in DISTURBED_S:
            first = int(100 * at_s)
            if first + 2 * DISTURBANCE_FRAMES > len(recording):
                continue
            other = recording.copy()
            other[first : first + DISTURBANCE_FRAMES] = recording[-DISTURBANCE_FRAMES:]
            changed = stream(session, other)
            divergence = (np.exp(plain) * (plain - changed)).sum(axis=1)[(first + DISTURBANCE_FRAMES) // 4 :]
            bins = np.searchsorted(DISTANCES_S, VECTOR_S * np.arange(len(divergence)), side="right") - 1
            np.add.at(sums, bins, np.maximum(divergence, 0))
            np.add.at(counts, bins, 1)
    means = [float(f"{s / n:.4g}") if n else None for s, n in zip(sums, counts)]
    return {"from_s": list(DISTANCES_S), "divergence_nats": means, "vectors": counts.tolist(), "precision": "fp32"}


def stream(session: EncoderSession, frames: np.ndarray) -> np.ndarray:
    """Log-probabilities (U, V) in float64 of one recording in chunks of 320 ms."""
    encoder, out = EncoderStream(session, 32), []
    encoder.accept(frames)
    encoder.finish()
    while encoder.n_ready_frames:
        out += advance(session, [encoder])
    return np.concatenate(out).astype(np.float64)
