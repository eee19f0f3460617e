"""The same batch on a Ray cluster: each worker is an actor with a recognizer, files are handed out one at a time.

    pip install 'edge-asr[ray]'
    edge-asr transcribe --engine ray --output-dir /shared/texts /shared/recordings

The machines must see the recordings under the same paths (a shared disk) and have edge-asr with the model. Results are
small and go to the process that was started, which alone writes outputs and journal. A worker that dies, with its
machine or by a file, loses nothing: what it had is tried again, one file at a time, by a new one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_asr.batch import FileResult, transcribe_files
from edge_asr.errors import DependencyError, EdgeAsrError, UsageError, WorkerError
from edge_asr.model_files import MODELS_VARIABLE
from edge_asr.progress import say
from edge_asr.recognizer import Recognizer

CONNECT_S = 10.0
PATIENCE_S = 30.0  # until it is said that the cluster has no CPU to give
_PATH_OPTIONS = ("model", "grammar", "graph")  # a worker has another current folder

try:
    import ray
except ImportError as error:
    raise DependencyError(
        "engine ray needs the package ray, which is not installed: pip install 'edge-asr[ray]'"
    ) from error


def transcribe_on_ray(
    options: Mapping[str, Any], paths: Sequence[str], workers: int | None, batch_size: int, address: str | None
) -> Iterator[FileResult]:
    """Results as files finish. workers: None for one on each CPU of the cluster; address: None for RAY_ADDRESS, a
    cluster that runs on this machine, or else one that is started for this batch and stopped after it.

    Raises: what Recognizer raises, WorkerError where the cluster cannot be reached.
    """
    is_ours = not ray.is_initialized()
    if is_ours:
        _check_address(address)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster started here reports to nobody
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise WorkerError(f"needs a Ray cluster {address or ''}, cannot reach it ({error}); start it") from error
    n_cpus = int(ray.cluster_resources().get("CPU", 1))
    n_workers = max(1, min(len(paths), n_cpus if workers is None else workers))
    return _results(_absolute(options), paths, n_workers, min(batch_size, -(-len(paths) // n_workers)), is_ours)


def _check_address(address: str | None) -> None:
    """Ray itself tries for minutes to reach what is not there."""
    host, _, port = (address or "").rpartition(":")
    if "://" in host:
        raise UsageError(f"needs HOST:PORT of a cluster that this machine is part of, got {address}; or ray job submit")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        except OSError as error:
            raise WorkerError(f"needs a Ray cluster at {address}, cannot reach it ({error}); start one") from error


def _results(
    options: Mapping[str, Any], paths: Sequence[str], n_workers: int, batch_size: int, is_ours: bool
) -> Iterator[FileResult]:
    names = {os.path.abspath(path): path for path in paths}
    try:
        for result in _Cluster(options, list(names), n_workers, batch_size).results():
            yield replace(result, source=names[str(result.source)])
    finally:
        if is_ours:
            ray.shutdown()


def _absolute(options: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: options[name] for name in _PATH_OPTIONS if name in options}
    return {**options, **{name: str(Path(p).resolve()) if Path(p).exists() else p for name, p in given.items()}}


class _Files:
    """An actor that hands out files, and knows who has had which."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._left = iter(paths)
        self._taken: dict[int, list[str]] = {}

    def take(self, worker: int) -> str | None:
        path = next(self._left, None)
        if path is not None:
            self._taken.setdefault(worker, []).append(path)
        return path

    def taken(self, worker: int) -> list[str]:
        return self._taken.get(worker, [])


class _Worker:
    """An actor with a recognizer."""

    def __init__(self, models: str | None) -> None:
        if models is not None:
            os.environ[MODELS_VARIABLE] = models

    def hear(self, options: Mapping[str, Any], files: Any, number: int, batch_size: int) -> Iterator[Any]:
        """FileResults; or the error that concerns all files."""
        try:
            sources = iter(lambda: ray.get(files.take.remote(number)), None)
            yield from transcribe_files(Recognizer(**options), sources, batch_size)
        except EdgeAsrError as error:
            yield error


class _Cluster:
    """Workers at work, and what becomes of the files of those that die."""

    def __init__(self, options: Mapping[str, Any], paths: list[str], n_workers: int, batch_size: int) -> None:
        self._options = options
        self._waiting = set(paths)
        self._files = ray.remote(_Files).options(num_cpus=0).remote(paths)
        self._streams: dict[Any, tuple[int, Any]] = {}  # results of a worker → its number and itself
        self._suspects: list[str] = []  # files of workers that died
        self._alone: dict[int, str] = {}  # worker → the suspect it was made for
        self._n_made = 0
        for _ in range(n_workers):
            self._make(self._files, batch_size)

    def _make(self, files: Any, batch_size: int) -> int:
        self._n_made += 1
        worker = ray.remote(_Worker).options(num_cpus=1).remote(os.environ.get(MODELS_VARIABLE))
        hear = worker.hear.options(num_returns="streaming")
        self._streams[hear.remote(self._options, files, self._n_made, batch_size)] = (self._n_made, worker)
        return self._n_made

    def results(self) -> Iterator[FileResult]:
        began = told = False
        while self._streams:
            ready, _ = ray.wait(list(self._streams), timeout=None if began else PATIENCE_S)
            if not ready:
                if not told:
                    say("waiting for the Ray cluster: no worker has heard anything; it may have no CPU free")
                told = True
                continue
            for stream in ready:
                began = True
                try:
                    result = ray.get(next(stream))
                except StopIteration:
                    self._streams.pop(stream)
                    self._retry()
                    continue
                except ray.exceptions.RayError as error:
                    yield from self._bury(stream, error)
                    continue
                if isinstance(result, EdgeAsrError):
                    raise result
                self._waiting.discard(result.source)
                yield result
        for path in sorted(self._waiting):
            yield FileResult(path, 0.0, error=WorkerError(f"{path}: no worker of the cluster returned it; --resume"))

    def _bury(self, stream: Any, error: Exception) -> Iterator[FileResult]:
        """A worker died: any of its files may be to blame, so each is tried again alone."""
        number, _ = self._streams.pop(stream)
        path = self._alone.get(number)
        if path is not None and path in self._waiting:
            self._waiting.discard(path)
            yield FileResult(path, 0.0, error=WorkerError(
                f"{path}: the worker that transcribed it died twice ({type(error).__name__}); give the workers more "
                "memory, or convert the file, for example: ffmpeg -i INPUT -ar 16000 -ac 1 out.wav"
            ))  # fmt: skip
        elif path is None:
            self._suspects += [p for p in ray.get(self._files.taken.remote(number)) if p in self._waiting]
        self._retry()

    def _retry(self) -> None:
        """A worker has left: its place goes to a suspect."""
        while self._suspects:
            path = self._suspects.pop()
            if path in self._waiting:
                files = ray.remote(_Files).options(num_cpus=0).remote([path])
                self._alone[self._make(files, 1)] = path
                return
