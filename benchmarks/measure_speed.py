"""CPU seconds and chunk latency of several models on the same clips in the same run.

The models take turns clip by clip, so that a busy machine slows all of them alike; ratios between them, and to
PocketSphinx where it is installed (`pip install pocketsphinx`), are worth more than the figures themselves.
CPU time is what the process used; wall time includes waiting for other programs.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from edge_asr.audio import SAMPLE_RATE, load_audio
from edge_asr.data import Clip
from edge_asr.features import fbank
from edge_asr.recognizer import Recognizer
from edge_asr.runtime import advance

ROUNDS = 2


class Runner:
    """One model and what it took so far: CPU seconds and latencies by chunk."""

    def __init__(self, model: Path, chunks_ms: tuple[int, ...]) -> None:
        own = Recognizer(model)
        # one graph for all: it is most of what a recogniser takes
        self.recognizers = {ms: Recognizer(model, chunk_ms=ms, graph=own.graph) for ms in chunks_ms}
        self.cpu_s: dict[int, float] = {}
        self.encoder_cpu_s: dict[int, float] = {}
        self.latencies: dict[int, list[tuple[float, float]]] = {}  # CPU and wall seconds of each chunk

    def stream(self, samples: np.ndarray, chunk_ms: int) -> None:
        """One clip as a device would hear it: features, encoder and search of each chunk."""
        recognizer, n = self.recognizers[chunk_ms], chunk_ms * SAMPLE_RATE // 1000
        stream = recognizer.create_stream()
        for first in range(0, len(samples), n):
            cpu, wall = time.process_time(), time.perf_counter()
            stream.accept_waveform(SAMPLE_RATE, samples[first : first + n])
            if first + n >= len(samples):
                stream.input_finished()
            for _ in recognizer.finals(stream):
                pass
            spent = time.process_time() - cpu
            self.latencies.setdefault(chunk_ms, []).append((spent, time.perf_counter() - wall))
            self.cpu_s[chunk_ms] = self.cpu_s.get(chunk_ms, 0.0) + spent

    def encode(self, frames: np.ndarray, chunk_ms: int) -> None:
        """The encoder alone on the features of a clip."""
        session = self.recognizers[chunk_ms].session
        stream = session.create_stream(chunk_ms // 10)
        stream.accept(frames)
        stream.finish()
        began = time.process_time()
        while stream.n_ready_frames:
            advance(session, [stream])
        self.encoder_cpu_s[chunk_ms] = self.encoder_cpu_s.get(chunk_ms, 0.0) + time.process_time() - began


def measure_speed(models: list[Path], clips: list[Clip], chunks_ms: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Name of the model -> its figures by chunk, with the ratios to its peers in this run."""
    runners = {model.name: Runner(model, chunks_ms) for model in models}
    peer = pocketsphinx_decoder()
    peer_s, audio_s = 0.0, 0.0
    for clip in clips:
        samples = load_audio(clip.audio_filepath)
        frames = fbank(samples)
        for _ in range(ROUNDS):
            audio_s += len(samples) / SAMPLE_RATE
            for chunk_ms in chunks_ms:
                for runner in runners.values():
                    runner.stream(samples, chunk_ms)
                    runner.encode(frames, chunk_ms)
            if peer is not None:
                peer_s += pocketsphinx_cpu_s(peer, samples)
    least = {ms: min(runner.cpu_s[ms] for runner in runners.values()) for ms in chunks_ms}
    out = {}
    for name, runner in runners.items():
        by_chunk = {}
        for ms in chunks_ms:
            cpu_ms, wall_ms = (1000 * np.array(column) for column in zip(*runner.latencies[ms]))
            by_chunk[str(ms)] = {
                "rtf_cpu": round(runner.cpu_s[ms] / audio_s, 5),
                "encoder_rtf_cpu": round(runner.encoder_cpu_s[ms] / audio_s, 5),
                "ratio_to_fastest": round(runner.cpu_s[ms] / least[ms], 3),
                "ratio_to_pocketsphinx": round(runner.cpu_s[ms] / peer_s, 4) if peer_s else None,
                "chunk_cpu_ms": percentiles(cpu_ms),
                "chunk_wall_ms": percentiles(wall_ms),
            }
        out[name] = {
            "chunks": by_chunk,
            "clips": len(clips),
            "audio_s": round(audio_s, 1),
            "peers": sorted(set(runners) - {name}) + (["pocketsphinx"] if peer_s else []),
        }
    return out


def percentiles(values: np.ndarray) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 3) for p in (50, 99)}


def pocketsphinx_decoder() -> Any:
    """PocketSphinx with its stock model, or None where it is not installed."""
    try:
        from pocketsphinx import Decoder
    except ImportError:
        return None
    return Decoder(loglevel="FATAL")


def pocketsphinx_cpu_s(decoder: Any, samples: np.ndarray) -> float:
    """CPU seconds for one clip."""
    audio = (np.clip(samples, -1, 1) * 32767).astype(np.int16).tobytes()
    began = time.process_time()
    decoder.start_utt()
    decoder.process_raw(audio, full_utt=True)
    decoder.end_utt()
    return time.process_time() - began
