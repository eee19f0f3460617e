"""Many recordings through one model: several at a time in one encoder batch, and several processes with one graph.

A file is a lane of the batch; when it ends, the next file takes its place. Every file's text is what the file gives
alone, and what is in memory does not depend on how long or how many the files are.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, BinaryIO

from edge_asr.audio import SAMPLE_RATE, AudioFile
from edge_asr.engines import DEFAULT_BATCH
from edge_asr.errors import EdgeAsrError, WorkerError
from edge_asr.memory import give_back_code, give_back_heap
from edge_asr.recognizer import Recognizer, Segment

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

TELL_S = 0.5  # between two words of a worker about how far it has come
READ_MS = 1_280  # of a file at a time: whole blocks of the filter bank, and a third of Python's work for 0.5 s
_N_AHEAD = 2  # files that a worker has waiting besides those in its lanes, so that it never waits for one

Source = str | os.PathLike[str] | BinaryIO
OnHeard = Callable[[float], None]  # told the seconds of audio read since it was last told, of all files together


@dataclass(frozen=True)
class FileResult:
    """What one file gave: its final segments, and the error that ended it or what was wrong but could be passed."""

    source: Source
    duration_s: float  # of what was read
    segments: list[Segment] = field(default_factory=list)
    error: EdgeAsrError | None = None
    warnings: list[str] = field(default_factory=list)


def warnings_of(audio: AudioFile) -> list[str]:
    """What was wrong with a recording that has been read, but could be passed."""
    warnings = [] if audio.damage is None else [f"{audio.damage}; the text ends there"]
    if audio.n_replaced:
        warnings.append(f"{audio.n_replaced} samples were NaN, infinite or impossible and were taken as silence")
    return warnings


class _Lane:
    """A file on its way through the recognizer."""

    def __init__(self, recognizer: Recognizer, number: int, source: Source) -> None:
        self.number = number
        self.source = source
        self.stream = recognizer.create_stream(whole_file=True)
        self.segments: list[Segment] = []
        self.error: EdgeAsrError | None = None
        self._audio: AudioFile | None = None
        self._n_told = 0
        self._blocks: Iterator[Any] = iter(())

    def fill(self) -> None:
        """Read until the encoder has a chunk or the file is at its end."""
        try:
            if self._audio is None:
                self._audio = AudioFile(self.source, READ_MS)
                self._blocks = iter(self._audio)
            while not self.stream.needs_encoding and not self.stream.is_over:
                block = next(self._blocks, None)
                if block is None:
                    self.stream.input_finished()
                else:
                    self.stream.accept_waveform(SAMPLE_RATE, block)
        except EdgeAsrError as error:
            self.error = error

    def newly_heard_s(self) -> float:
        """Seconds read since this was last asked."""
        n_samples = 0 if self._audio is None else self._audio.n_samples
        n_new, self._n_told = n_samples - self._n_told, n_samples
        return n_new / SAMPLE_RATE

    @property
    def is_done(self) -> bool:
        return self.error is not None or self.stream.is_over

    def close(self) -> FileResult:
        warnings: list[str] = []
        if self._audio is not None:
            self._audio.close()
            warnings = warnings_of(self._audio)
        return FileResult(self.source, self.stream.duration_s, self.segments, self.error, warnings)


def transcribe_files(
    recognizer: Recognizer,
    sources: Iterable[Source],
    n_streams: int = DEFAULT_BATCH,
    on_heard: OnHeard | None = None,
) -> Iterator[FileResult]:
    """Results as files finish, in no certain order; `n_streams` files are open at a time.

    An error of one file is in its result. Raises what concerns all of them: ModelError.
    """
    return (result for _, result in _transcribe(recognizer, enumerate(sources), n_streams, on_heard))


def _transcribe(
    recognizer: Recognizer, numbered: Iterator[tuple[int, Source]], n_streams: int, on_heard: OnHeard | None
) -> Iterator[tuple[int, FileResult]]:
    lanes: list[_Lane] = []
    is_first = True
    try:
        while True:
            while len(lanes) < n_streams and (entry := next(numbered, None)) is not None:
                lanes.append(_Lane(recognizer, *entry))
            if not lanes:
                return
            for lane in lanes:
                lane.fill()
            if on_heard is not None:
                on_heard(sum(lane.newly_heard_s() for lane in lanes))
            recognizer.encode([lane.stream for lane in lanes if not lane.is_done])
            if is_first and recognizer.graph is not None:  # without one, memory is small and time what counts
                give_back_code()  # of loading, and of what onnxruntime does but once
            is_first = False
            for lane in lanes:
                _search(recognizer, lane)
            done = [lane for lane in lanes if lane.is_done]
            lanes = [lane for lane in lanes if not lane.is_done]
            for lane in done:
                yield lane.number, lane.close()
    finally:
        for lane in lanes:
            lane.close()


def _search(recognizer: Recognizer, lane: _Lane) -> None:
    if lane.error is not None:
        return
    n_before = len(lane.segments)
    try:
        lane.segments += recognizer.search(lane.stream)
        if len(lane.segments) > n_before and recognizer.graph is not None:
            give_back_heap()  # of the paths of an utterance, which would lie scattered below those of the next
    except EdgeAsrError as error:
        lane.error = error


# ------------------------------------------------------------------------------------------------------------- workers


def run_workers(
    options: Mapping[str, Any],
    sources: Iterable[Source],
    n_workers: int,
    n_streams: int = DEFAULT_BATCH,
    on_heard: OnHeard | None = None,
) -> Iterator[FileResult]:
    """`transcribe_files` in `n_workers` processes that share model and graph; `options` are those of Recognizer.

    A file that kills its worker is found by trying the worker's files again, one at a time, and has a WorkerError.
    Sources must be paths where there is more than one worker. Raises what Recognizer does.
    """
    if options.get("decoder") != "greedy":  # loading a graph is the peak of memory
        give_back_code()  # of importing
    if n_workers <= 1:
        recognizer = Recognizer(**options)
        give_back_heap()
        return transcribe_files(recognizer, sources, n_streams, on_heard)
    return _Workers(_shared(options), sources, n_workers, n_streams).results(on_heard)


def _shared(options: Mapping[str, Any]) -> Callable[[], Recognizer]:
    """What gives a process forked from this one its recognizer, of memory that all of them share.

    The encoder's session with its threads would not survive the fork, so then only the graph is shared.
    """
    if options.get("n_threads", 1) > 1:
        options = Recognizer.shared_graph(options)
        return lambda: Recognizer(**options)
    recognizer = Recognizer(**options)
    give_back_heap()
    gc.freeze()  # or the collector of every process would write to, and so copy, all that was loaded
    return lambda: recognizer


class _Worker:
    """A forked process, our end of its pipe, and the files that it has."""

    def __init__(self, recognizer: Callable[[], Recognizer], n_streams: int, others: list[Connection]) -> None:
        import multiprocessing  # a megabyte that a single worker does not need

        context = multiprocessing.get_context("fork")  # so that memory is shared
        self.n_streams = n_streams
        self.files: dict[int, Source] = {}
        self.n_wanted = n_streams + (_N_AHEAD if n_streams > 1 else 0)
        self.connection, theirs = context.Pipe()
        inherited = [*others, self.connection]  # while a process holds them, the end of this one is not seen
        self.process = context.Process(target=_work, args=(theirs, recognizer, n_streams, inherited), daemon=True)
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


class _Workers:
    """Hands out files to workers and gathers their results."""

    def __init__(
        self, recognizer: Callable[[], Recognizer], sources: Iterable[Source], n_workers: int, n_streams: int
    ) -> None:
        self._recognizer = recognizer
        self._fresh = enumerate(sources)
        self._suspects: deque[tuple[int, Source]] = deque()  # were in a worker that died
        self._workers: list[_Worker] = []
        for _ in range(n_workers):
            self._start(n_streams)

    def results(self, on_heard: OnHeard | None) -> Iterator[FileResult]:
        from multiprocessing.connection import wait

        try:
            for worker in list(self._workers):
                self._hand_out(worker)
            while self._workers:
                for connection in wait([worker.connection for worker in self._workers]):
                    worker = next(w for w in self._workers if w.connection is connection)
                    try:
                        number, result = worker.connection.recv()
                    except (EOFError, OSError):
                        yield from self._bury(worker)
                        continue
                    if isinstance(result, float):
                        if on_heard is not None:
                            on_heard(result)
                        continue
                    if number is None:
                        raise result
                    yield replace(result, source=worker.files.pop(number))
                    self._hand_out(worker)
        finally:
            for worker in self._workers:
                worker.stop()

    def _start(self, n_streams: int) -> _Worker:
        worker = _Worker(self._recognizer, n_streams, [w.connection for w in self._workers])
        self._workers.append(worker)
        return worker

    def _hand_out(self, worker: _Worker) -> None:
        """Files until the worker has what it wants; without files it is dismissed."""
        while len(worker.files) < worker.n_wanted:
            alone = worker.n_streams == 1 and self._suspects
            entry = self._suspects.popleft() if alone else next(self._fresh, None)
            if entry is not None:
                worker.files[entry[0]] = entry[1]
            elif not worker.files:
                return self._dismiss(worker)
            with suppress(OSError):  # it died, which the next wait will tell
                worker.connection.send(entry)
            if entry is None:
                return None
        return None

    def _dismiss(self, worker: _Worker) -> None:
        worker.stop()
        self._workers.remove(worker)

    def _bury(self, worker: _Worker) -> Iterator[FileResult]:
        """A worker died: of several files any may be to blame, so each is tried again alone."""
        self._dismiss(worker)
        if len(worker.files) == 1 and worker.n_streams == 1:
            (source,) = worker.files.values()
            yield FileResult(source, 0.0, error=WorkerError(_death(source, worker.process.exitcode)))
        else:
            self._suspects.extend(worker.files.items())
        self._hand_out(self._start(1))


def _death(source: Source, exit_code: int | None) -> str:
    reason = signal.strsignal(-exit_code) if exit_code and exit_code < 0 else f"exit code {exit_code}"
    return (
        f"{source}: the process that transcribed it died twice ({reason}); free memory, or convert the file, "
        "for example: ffmpeg -i INPUT -ar 16000 -ac 1 out.wav"
    )


def _work(
    connection: Connection, recognizer: Callable[[], Recognizer], n_streams: int, inherited: list[Connection]
) -> None:
    """A worker's life: files come through the pipe, results go back, the end of the pipe is the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle, who then ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for other in inherited:
        other.close()
    heard_s, told = 0.0, time.monotonic()

    def tell(seconds: float) -> None:
        nonlocal heard_s, told
        heard_s += seconds
        if time.monotonic() - told > TELL_S:
            connection.send((None, heard_s))
            heard_s, told = 0.0, time.monotonic()

    try:
        files = iter(connection.recv, None)
        for number, result in _transcribe(recognizer(), files, n_streams, tell):
            connection.send((number, replace(result, source="")))
    except EdgeAsrError as error:
        connection.send((None, error))
    except (EOFError, OSError):  # the parent is gone
        return
