"""Recordings → text, from Python: one recording as segments, or a batch as files.

    for segment in edge_asr.transcribe("talk.mp3"):                       # lazily, in flat memory
        print(segment.start, segment.text, [word.confidence for word in segment.words])

    summary = edge_asr.transcribe_files(["rec/"], output_dir="texts", output_format="all", resume=True)
    print(summary.n_done, summary.failures)

The keywords are the flags of `edge-asr transcribe`, with the same defaults.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from edge_asr.endpoint import EndpointRules
from edge_asr.engines import Engine, hear
from edge_asr.errors import UsageError
from edge_asr.jobs import Job, Run
from edge_asr.model_files import DEFAULT_MODEL
from edge_asr.progress import Summary
from edge_asr.subtitles import Layout
from edge_asr.writers import WRITERS

if TYPE_CHECKING:
    import numpy as np

    from edge_asr.audio import RawFormat
    from edge_asr.recognizer import Segment

ALL_FORMATS = "all"
OUTPUT_FORMATS = (*WRITERS, ALL_FORMATS)
RAW_OPTIONS = ("raw_rate", "raw_format", "raw_channels")


def transcribe(
    source: str | os.PathLike[str] | BinaryIO | np.ndarray,
    *,
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    precision: Literal["int8", "fp32"] = "int8",
    chunk_ms: int | None = None,
    decoder: Literal["graph", "greedy"] | None = None,
    grammar: str | os.PathLike[str] | None = None,
    graph: str | os.PathLike[str] | None = None,
    beam: float | None = None,
    max_active: int | None = None,
    acoustic_scale: float | None = None,
    word_cost: float | None = None,
    blank_skip: float | None = None,
    n_threads: int = 1,
    features: Literal["numpy", "kaldi"] | None = None,
    rule1_min_trailing_silence: float | None = None,
    rule2_min_trailing_silence: float | None = None,
    rule3_min_utterance_length: float | None = None,
    rule4_min_utterance_length: float | None = None,
    rule4_min_trailing_silence: float | None = None,
    raw_rate: int | None = None,
    raw_format: str = "s16le",
    raw_channels: int = 1,
) -> Iterator[Segment]:
    """Final segments of a recording as they are recognised, each with its words, their times and confidences.

    source: a path, a binary stream (it need not be seekable), or samples (n,) or (n, channels) at `raw_rate` or 16 kHz.
    raw_rate, raw_format, raw_channels: of a stream or file of samples without a header, which a rate says it is.
    rule…: when a segment ends, see `edge_asr.endpoint`. The others: see `Recognizer`; keep one for many recordings, or
    use `transcribe_files`.
    Raises: ModelError, GraphError, LexiconError, UsageError at once; AudioError as the recording is read.
    """
    import numpy as np

    from edge_asr.recognizer import Recognizer

    chosen = {name: value for name, value in locals().items() if name in RECOGNITION_OPTIONS}
    raw = _raw_format(raw_rate, raw_format, raw_channels)
    recognizer = Recognizer(**_recognizer_keywords(chosen))
    if isinstance(source, np.ndarray):
        rate_hz = 16_000 if raw_rate is None else raw_rate
        blocks = np.array_split(source, max(1, len(source) // rate_hz))
        return recognizer.stream(blocks, rate_hz, partials=False)
    return hear(recognizer, source, raw)


RECOGNITION_OPTIONS = tuple(
    name for name in inspect.signature(transcribe).parameters if name != "source" and name not in RAW_OPTIONS
)


def transcribe_files(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    output_format: str = "txt",
    output_dir: str | os.PathLike[str] | None = None,
    with_names: bool = False,
    word_timestamps: bool = False,
    max_line_width: int = Layout.max_line_width,
    max_line_count: int = Layout.max_line_count,
    max_chars_per_second: float = Layout.max_chars_per_second,
    resume: bool = False,
    dry_run: bool = False,
    workers: int | None = None,
    batch_size: int | None = None,
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    quiet: bool = False,
    raw_rate: int | None = None,
    raw_format: str = "s16le",
    raw_channels: int = 1,
    **recognition: Any,
) -> Summary:
    """Transcribe files, folders and patterns, to `output_dir` or else to stdout; what `edge-asr transcribe` does.

    recognition: the keywords of `transcribe`. The others are explained by `edge-asr transcribe --help`.
    A recording that fails is in the summary, and the rest are done. Raises what concerns all of them: UsageError,
    ModelError, GraphError, LexiconError, OutputError, OutputFullError, DependencyError.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    unknown = set(recognition) - set(RECOGNITION_OPTIONS)
    if unknown:
        raise TypeError(f"transcribe_files() got unexpected keyword arguments: {', '.join(sorted(unknown))}")
    if output_format not in OUTPUT_FORMATS:
        raise UsageError(f"output_format must be one of {', '.join(OUTPUT_FORMATS)}; got {output_format!r}")
    job = Job(
        formats=tuple(WRITERS) if output_format == ALL_FORMATS else (output_format,),
        output_dir=None if output_dir is None else Path(output_dir),
        layout=Layout(max_line_width, max_line_count, max_chars_per_second, highlight_words=word_timestamps),
        with_names=with_names,
        resume=resume,
        dry_run=dry_run,
        engine=Engine(engine, workers, batch_size, ray_address),
        quiet=quiet,
        raw=_raw_format(raw_rate, raw_format, raw_channels),
        recognition=_recognizer_keywords(recognition),
    )
    job.check(paths)
    return Run(job).all(paths)


def _recognizer_keywords(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of Recognizer: what was chosen; the rest is left to its defaults, but for the chunks."""
    rules = {field.name for field in fields(EndpointRules)}
    said = {name: value for name, value in chosen.items() if value is not None}
    given = {name: said.pop(name) for name in rules & set(said)}
    defaults = {"model": DEFAULT_MODEL, "precision": "int8", "chunk_ms": None}
    return {**defaults, **said, **({"endpoint": EndpointRules(**given)} if given else {})}


def _raw_format(rate_hz: int | None, encoding: str, n_channels: int) -> RawFormat | None:
    if rate_hz is None:
        return None
    from edge_asr.audio import RawFormat

    return RawFormat(rate_hz, encoding, n_channels)
