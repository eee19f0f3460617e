"""A batch from its arguments to its outputs: find the recordings, leave out those that are done, run the engine, write.

One recording that fails is told and the rest go on; what concerns all of them (no room for outputs) stops the batch.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_asr.engines import Engine, hear_one
from edge_asr.errors import OutputError, OutputFullError, UsageError
from edge_asr.model_files import find_model, own_graph
from edge_asr.outputs import OutputFolder, settings_id
from edge_asr.progress import Progress, Summary, above_bar, say
from edge_asr.sources import STANDARD_INPUT, Failure, Recording, find_recordings, shown
from edge_asr.subtitles import Layout
from edge_asr.writers import WRITERS, Transcript

if TYPE_CHECKING:
    from edge_asr.audio import RawFormat
    from edge_asr.batch import FileResult
    from edge_asr.recognizer import Recognizer, Segment

ONE_FILE_FORMATS = ("srt", "vtt", "tsv")  # several of these in a row are no valid file
SPEED_OPTIONS = {"n_threads"}  # change no text, so what was done with others is done


@dataclass(frozen=True)
class Job:
    """The arguments of `transcribe_files`, as what they mean."""

    formats: tuple[str, ...]
    output_dir: Path | None
    layout: Layout
    with_names: bool
    resume: bool
    dry_run: bool
    engine: Engine
    quiet: bool
    raw: RawFormat | None
    recognition: Mapping[str, Any]

    def check(self, paths: list[str | os.PathLike[str]]) -> None:
        """Raises: UsageError where the arguments do not go together."""
        if not paths:
            raise UsageError("needs a file, a folder, a pattern or - for standard input, got nothing")
        if self.output_dir is None and len(self.formats) > 1:
            raise UsageError("all formats need a folder to go to, have none; give --output-dir")
        if self.output_dir is None and self.resume:
            raise UsageError("--resume needs the folder of the run that it continues, have none; give --output-dir")
        if STANDARD_INPUT in map(os.fspath, paths):
            if len(paths) > 1 or self.resume or self.engine.name != "local":
                raise UsageError("- (standard input) must be the only path, without --resume and --engine ray")
        elif self.raw is not None:
            raise UsageError("raw samples are read from standard input: edge-asr transcribe - --raw-rate HZ < FILE")

    def settings(self) -> str:
        """What the journal holds against later runs."""
        options = {name: value for name, value in self.recognition.items() if name not in SPEED_OPTIONS}
        model = find_model(options.pop("model"))
        grammar, graph = options.pop("grammar", None), options.pop("graph", None)
        folders = [model, *(folder for folder in [Path(graph) if graph else own_graph(model)] if folder is not None)]
        folders = [folder for folder in folders if folder.is_dir()]  # what is missing is told when it is loaded
        return settings_id(options, folders, [Path(grammar)] if grammar else [], self.layout)

    def described(self, n_files: int) -> str:
        """The model and how it is used, for people."""
        options = self.recognition
        parts = [f"model {find_model(options['model']).resolve().name} {options['precision']}"]
        if options.get("decoder") == "greedy":
            parts.append("greedy search")
        parts += [f"{name} {options[name]}" for name in ("grammar", "graph", "beam") if name in options]
        n = self.engine.n_workers(n_files)
        if n > 1:
            parts.append(f"{n} workers")
        return ", ".join([*parts, "on Ray"] if self.engine.name == "ray" else parts)


class Run:
    """A batch on its way: what was found, what is done, and where text goes."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._summary = Summary("", can_resume=job.output_dir is not None)
        self._model = find_model(job.recognition["model"]).resolve().name
        self._folder: OutputFolder | None = None
        if job.output_dir is not None:
            self._folder = OutputFolder(job.output_dir, job.formats, job.layout, job.settings())

    def all(self, paths: list[str | os.PathLike[str]]) -> Summary:
        """Do it, and tell on stderr what came of it, also where it is cut short."""
        recordings = self._find(paths)
        self._summary.model = self._job.described(len(recordings))
        if self._job.dry_run:
            self._show_plan(recordings)
            return self._summary
        with self._folder or nullcontext():
            todo = [recording for recording in recordings if not self._is_done(recording)]
            try:
                if todo:
                    self._transcribe(todo)
            finally:
                if not self._job.quiet:
                    for line in self._summary.table():
                        say(line)
        return self._summary

    def _find(self, paths: list[str | os.PathLike[str]]) -> list[Recording]:
        if STANDARD_INPUT in map(os.fspath, paths):
            if sys.stdin.isatty():
                raise UsageError("- needs a recording on standard input, have a terminal: edge-asr transcribe - < FILE")
            self._summary.n_files = 1
            return [Recording(STANDARD_INPUT, "stdin", 0, 0)]
        recordings, failures = find_recordings(paths)
        self._summary.n_files = len(recordings) + len(failures)
        for failure in failures:
            self._failed(failure)
        if self._folder is None and len(recordings) > 1 and self._job.formats[0] in ONE_FILE_FORMATS:
            raise UsageError(
                f"{self._job.formats[0]} on standard output needs one recording, have {len(recordings)}: one after "
                "another they are no valid file; give --output-dir"
            )
        return recordings

    def _is_done(self, recording: Recording) -> bool:
        done_s = self._folder.done_s(recording) if self._folder is not None and self._job.resume else None
        if done_s is not None:
            self._summary.n_skipped += 1
            self._summary.skipped_s += done_s
        return done_s is not None

    def _show_plan(self, recordings: list[Recording]) -> None:
        for recording in recordings:
            if self._is_done(recording):
                print_out(f"done\t{shown(recording.path)}\n")
            elif self._folder is None:
                print_out(f"todo\t{shown(recording.path)}\n")
            else:
                outputs = [shown(str(self._folder.path(recording, name))) for name in self._job.formats]
                print_out(f"todo\t{shown(recording.path)}\t{' '.join(outputs)}\n")

    def _transcribe(self, todo: list[Recording]) -> None:
        began = time.perf_counter()
        try:
            self._work(todo, began)
        finally:
            self._summary.wall_s = time.perf_counter() - began - self._summary.load_s

    def _work(self, todo: list[Recording], began: float) -> None:
        engine, options = self._job.engine, self._job.recognition
        if len(todo) == 1 and engine.name == "local":
            from edge_asr.recognizer import Recognizer

            recognizer = Recognizer(**options)
            self._summary.load_s = time.perf_counter() - began
            with Progress(todo, self._job.quiet) as progress:
                self._live(recognizer, todo[0], progress)
        else:
            if self._folder is not None:
                todo = sorted(todo, key=lambda recording: -recording.n_bytes)  # or the longest would run on alone
            with Progress(todo, self._job.quiet) as progress:
                results = engine.start(options, [recording.path for recording in todo], progress.heard)
                self._summary.load_s = time.perf_counter() - began
                with closing(results):
                    self._gather(todo, results, progress)

    def _live(self, recognizer: Recognizer, recording: Recording, progress: Progress) -> None:
        """One recording: plain text on stdout goes out segment by segment, all else when it is complete."""
        is_live = self._folder is None and self._job.formats == ("txt",)
        segments: list[Segment] = []
        n_words = 0

        def on_segment(segment: Segment) -> None:
            nonlocal n_words
            n_words += len(segment.words)
            if is_live:
                print_out(f"{self._label(recording)}{segment.text}\n")
            else:
                segments.append(segment)

        source = sys.stdin.buffer if recording.path == STANDARD_INPUT else recording.path
        result = hear_one(recognizer, source, self._job.raw, on_segment, progress.heard)
        progress.finished(recording, result.duration_s, result.error is not None)
        if is_live and n_words == 0 and result.error is None:
            print_out(f"{self._label(recording)}\n")
        self._summary.n_words += n_words
        self._finish(recording, replace(result, segments=segments), written=is_live)

    def _gather(self, todo: list[Recording], results: Iterator[FileResult], progress: Progress) -> None:
        """Results as they come; on stdout in the order of the arguments."""
        recordings = {recording.path: recording for recording in todo}
        waiting: dict[str, FileResult] = {}
        turn = iter(todo)
        following = next(turn, None)
        for result in results:
            recording = recordings[os.fspath(result.source)]
            progress.finished(recording, result.duration_s, result.error is not None)
            self._summary.n_words += sum(len(segment.words) for segment in result.segments)
            if self._folder is not None:
                self._finish(recording, result)
                continue
            waiting[recording.path] = result
            while following is not None and following.path in waiting:
                self._finish(following, waiting.pop(following.path))
                following = next(turn, None)

    def _finish(self, recording: Recording, result: FileResult, written: bool = False) -> None:
        """Write what came of a recording, or tell why nothing did."""
        for warning in result.warnings:
            say(f"warning: {recording.path}: {warning}")
        if result.error is not None:
            self._failed(Failure(recording.path, result.error))
            return
        if not written:
            transcript = Transcript(recording.path, result.duration_s, result.segments, self._model)
            try:
                self._write(recording, transcript)
            except OutputFullError:
                raise
            except OutputError as error:
                self._failed(Failure(recording.path, error))
                return
        self._summary.n_done += 1
        self._summary.audio_s += result.duration_s

    def _write(self, recording: Recording, transcript: Transcript) -> None:
        if self._folder is not None:
            self._folder.save(recording, transcript)
            return
        text = WRITERS[self._job.formats[0]](transcript, self._job.layout)
        if self._job.formats == ("txt",):  # every recording has its line, also one in which nothing was said
            label = self._label(recording)
            text = "".join(f"{label}{line}\n" for line in text.splitlines() or [""])
        print_out(text)

    def _label(self, recording: Recording) -> str:
        return f"{shown(recording.path)}: " if self._job.with_names else ""

    def _failed(self, failure: Failure) -> None:
        self._summary.failures.append(failure)
        say(f"error: {failure.error}")


def print_out(text: str) -> None:
    """To stdout, at once. Raises: OutputFullError, and BrokenPipeError where the reader has enough."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        with above_bar(sys.stdout):
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left would fail again on the way out
        raise OutputFullError(
            f"standard output: needs {len(text)} bytes more, takes no more ({error.strerror}); make room for it"
        ) from error
