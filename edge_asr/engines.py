"""Where a batch is worked on: this process, several of this machine, or a Ray cluster. All give `FileResult`s.

Results come as files finish. Whatever the engine, outputs and journal are written by the process that was started, so
they are whole and complete in the same way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from edge_asr.errors import EdgeAsrError, UsageError
from edge_asr.model_files import find_model, own_graph

if TYPE_CHECKING:
    from edge_asr.audio import RawFormat
    from edge_asr.batch import FileResult
    from edge_asr.recognizer import Recognizer, Segment

ENGINES = ("local", "ray")
DEFAULT_BATCH = 4  # more take memory for each and save hardly any time: a chunk of 2.56 s is a batch already


@dataclass(frozen=True)
class Engine:
    """name: of ENGINES; workers: processes, None for one on each core.

    batch_size: files that a worker has open; None for one beside a graph, and four in greedy search.
    """

    name: str = "local"
    workers: int | None = None
    batch_size: int | None = None
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if self.name not in ENGINES:
            raise UsageError(f"engine must be one of {', '.join(ENGINES)}; got {self.name!r}")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"workers must be 1 or more, got {self.workers}; leave it out for one on each core")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"batch_size must be 1 or more files, got {self.batch_size}")
        if self.ray_address is not None and self.name != "ray":
            raise UsageError("ray_address needs engine 'ray'; give both")

    def n_workers(self, n_files: int) -> int:
        """Processes for so many files."""
        return max(1, min(n_files, usable_cores() if self.workers is None else self.workers))

    def start(
        self, options: Mapping[str, Any], paths: Sequence[str], on_heard: Callable[[float], None]
    ) -> Iterator[FileResult]:
        """Load the model (here or by the first results), then the results of all files, in no certain order.

        options: keywords of Recognizer. on_heard: told seconds of audio as they are heard, where the engine can.
        Raises what Recognizer raises, DependencyError, WorkerError.
        """
        batch_size = self.batch_size or files_at_a_time(options)
        if self.name == "ray":
            from edge_asr.ray_engine import transcribe_on_ray

            return transcribe_on_ray(options, paths, self.workers, batch_size, self.ray_address)
        from edge_asr.batch import run_workers

        n_workers = self.n_workers(len(paths))
        share = -(-len(paths) // n_workers)  # no worker takes what another could do at the same time
        return run_workers(options, paths, n_workers, min(batch_size, share), on_heard)


def files_at_a_time(options: Mapping[str, Any]) -> int:
    """Files that a worker has open by default, for keywords of Recognizer.

    In greedy search the encoder is nearly all there is to do, and a batch of files its cheapest form. Beside a graph's
    search it saves one to seven hundredths, and every file open takes memory for its chunk and its paths.
    """
    decoder = options.get("decoder")
    searches = "grammar" in options or "graph" in options or decoder == "graph"
    if decoder is None and not searches:
        searches = own_graph(find_model(options["model"])) is not None
    return 1 if searches else DEFAULT_BATCH


def usable_cores() -> int:
    """Those this process may run on: a container may have fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def hear(recognizer: Recognizer, source: str | os.PathLike[str] | BinaryIO, raw: RawFormat | None) -> Iterator[Segment]:
    """Final segments of one recording, as they are recognised. Raises: AudioError."""
    from edge_asr.audio import AudioFile

    with AudioFile(source, raw=raw) as audio:
        yield from recognizer.stream(audio, partials=False)


def hear_one(
    recognizer: Recognizer,
    source: str | os.PathLike[str] | BinaryIO,
    raw: RawFormat | None,
    on_segment: Callable[[Segment], None],
    on_heard: Callable[[float], None],
) -> FileResult:
    """One recording while others look on: `on_segment` gets its segments, `on_heard` seconds as they are read.

    The result holds no segments: a stream may never end.
    """
    from edge_asr.audio import SAMPLE_RATE, AudioFile
    from edge_asr.batch import FileResult, warnings_of

    duration_s, error, warnings = 0.0, None, []
    try:
        with AudioFile(source, raw=raw) as audio:

            def blocks() -> Iterator[Any]:
                for block in audio:
                    yield block
                    on_heard(len(block) / SAMPLE_RATE)

            try:
                for segment in recognizer.stream(blocks(), partials=False):
                    on_segment(segment)
            finally:
                duration_s, warnings = audio.n_samples / SAMPLE_RATE, warnings_of(audio)
    except EdgeAsrError as failure:
        error = failure
    return FileResult(source, duration_s, [], error, warnings)
