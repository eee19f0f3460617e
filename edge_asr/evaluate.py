"""Word error rate, real-time factor and chunk latency of a model on a manifest, streamed as a device would.

Every clip is fed in chunks of the chosen length. A chunk's latency is the time from having its audio to having its
words: features, encoder and search.
"""

from __future__ import annotations

import functools
import json
import math
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from edge_asr.audio import SAMPLE_RATE, load_audio
from edge_asr.data import Clip, read_manifest
from edge_asr.errors import EdgeAsrError
from edge_asr.metrics import ErrorCounts, word_errors
from edge_asr.recognizer import Recognizer
from edge_asr.writers import save

LATENCY_PERCENTILES = (50, 99)


@dataclass(frozen=True)
class ClipResult:
    """One clip, recognised or failed (then every word of it counts as deleted)."""

    clip: Clip
    text: str
    errors: ErrorCounts
    audio_s: float
    compute_s: float
    latencies_s: list[float]
    failure: EdgeAsrError | None = None


@dataclass
class Totals:
    """Sums over clips; `row` gives the figures that are printed."""

    n_clips: int = 0
    audio_s: float = 0.0
    compute_s: float = 0.0
    errors: ErrorCounts = field(default_factory=ErrorCounts)

    def add(self, result: ClipResult) -> None:
        self.n_clips += 1
        self.audio_s += result.audio_s
        self.compute_s += result.compute_s
        self.errors += result.errors

    def row(self) -> dict[str, Any]:
        return {
            "clips": self.n_clips,
            "audio_s": round(self.audio_s, 2),
            "words": self.errors.n_reference,
            "wer": _finite(self.errors.percent, 3),
            "substitutions": self.errors.n_substitutions,
            "insertions": self.errors.n_insertions,
            "deletions": self.errors.n_deletions,
            "rtf": _finite(self.compute_s / self.audio_s if self.audio_s else math.nan, 5),
        }


def recognise(recognizer: Recognizer, clip: Clip, path: Path) -> ClipResult:
    """Stream one clip in chunks and compare; an unreadable clip is a failed result, not an exception."""
    try:
        samples = load_audio(path)
    except EdgeAsrError as error:
        return ClipResult(clip, "", word_errors(clip.text, ""), 0.0, 0.0, [], error)
    chunk = recognizer.chunk_ms * SAMPLE_RATE // 1000
    stream, texts, latencies = recognizer.create_stream(), [], []
    for first in range(0, len(samples), chunk):
        began = time.perf_counter()
        stream.accept_waveform(SAMPLE_RATE, samples[first : first + chunk])
        if first + chunk >= len(samples):
            stream.input_finished()
        texts += [segment.text for segment in recognizer.finals(stream)]
        latencies.append(time.perf_counter() - began)
    text = " ".join(texts)
    return ClipResult(clip, text, word_errors(clip.text, text), len(samples) / SAMPLE_RATE, sum(latencies), latencies)


def evaluate(
    manifest: str | Path, options: dict[str, Any], limit: int | None = None, workers: int = 1
) -> tuple[dict[str, Any], list[ClipResult]]:
    """(the report, every clip's result). `options` are keyword arguments of Recognizer.

    Raises: ManifestError, ModelError, GraphError, UsageError.
    """
    clips = read_manifest(manifest)[:limit]
    recognizer = Recognizer(**options)  # also with many workers: an error here is clearer than a dead worker
    results = list(tqdm(_run(clips, recognizer, options, workers), total=len(clips), unit="clip", disable=None))
    return report(results, recognizer, Path(manifest)), results


def report(results: list[ClipResult], recognizer: Recognizer, manifest: Path) -> dict[str, Any]:
    """The object that `--json` prints: the whole set, then one row for each source of the manifest."""
    total, sources = Totals(), {}
    for result in results:
        total.add(result)
        sources.setdefault(result.clip.source or "all", Totals()).add(result)
    latencies_ms = [1000 * latency for result in results for latency in result.latencies_s]
    percentiles = np.percentile(latencies_ms, LATENCY_PERCENTILES) if latencies_ms else [math.nan, math.nan]
    return {
        "model": recognizer.name,
        "precision": recognizer.precision,
        "decoder": recognizer.decoder_kind,
        "chunk_ms": recognizer.chunk_ms,
        "manifest": manifest.name,
        **total.row(),
        "chunk_latency_ms": {f"p{p}": _finite(value, 3) for p, value in zip(LATENCY_PERCENTILES, percentiles)},
        "failed": [{"audio_filepath": r.clip.audio_filepath, "error": str(r.failure)} for r in results if r.failure],
        "sources": {name: totals.row() for name, totals in sorted(sources.items())},
    }


def table(figures: dict[str, Any]) -> str:
    """The report for people."""
    columns = ("clips", "words", "wer", "substitutions", "insertions", "deletions", "rtf")
    width = max(len("all"), *(len(name) for name in figures["sources"]))
    lines = [f"{'source':{width}}" + "".join(f"{name[:5] if len(name) > 6 else name:>9}" for name in columns)]
    for name, row in [*figures["sources"].items(), ("all", figures)]:
        lines.append(f"{name:{width}}" + "".join(f"{_cell(row[column]):>9}" for column in columns))
    latency = figures["chunk_latency_ms"]
    lines.append(
        f"model {figures['model']} {figures['precision']}, {figures['decoder']} search, chunks of "
        f"{figures['chunk_ms']} ms: WER {_cell(figures['wer'])} %, RTF {_cell(figures['rtf'])}, "
        f"chunk latency p50 {_cell(latency['p50'])} ms, p99 {_cell(latency['p99'])} ms"
    )
    return "\n".join(lines)


def save_hypotheses(path: str | Path, results: list[ClipResult]) -> None:
    """JSON lines with `audio_filepath`, `text` and `pred_text`, as NeMo writes them."""
    rows = (
        {"audio_filepath": r.clip.audio_filepath, "text": r.clip.text, "pred_text": r.text, "source": r.clip.source}
        for r in results
    )
    save(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _run(clips: list[Clip], recognizer: Recognizer, options: dict[str, Any], workers: int) -> Iterator[ClipResult]:
    if workers <= 1:
        for clip in clips:
            yield recognise(recognizer, clip, Path(clip.audio_filepath))
        return
    # spawn, not fork: a forked onnxruntime may wait for threads that were not copied
    context = multiprocessing.get_context("spawn")
    frozen = tuple(sorted(options.items()))
    per_task = max(1, min(16, len(clips) // (4 * workers)))
    with ProcessPoolExecutor(workers, context) as pool:
        yield from pool.map(_recognise_in_worker, repeat(frozen), clips, chunksize=per_task)


@functools.cache
def _recognizer(options: tuple[tuple[str, Any], ...]) -> Recognizer:
    """The recognizer of a worker process, loaded at its first clip."""
    return Recognizer(**dict(options))


def _recognise_in_worker(options: tuple[tuple[str, Any], ...], clip: Clip) -> ClipResult:
    return recognise(_recognizer(options), clip, Path(clip.audio_filepath))


def _finite(value: float, digits: int) -> float | None:
    return round(float(value), digits) if math.isfinite(value) else None  # NaN is not JSON


def _cell(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.4f}" if value < 0.1 else f"{value:.2f}"
