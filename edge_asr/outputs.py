"""The output folder of a batch: whole files or none, and a journal by which an interrupted run goes on.

    OUTPUT_DIR/mon/a.srt …                    what was asked for
    OUTPUT_DIR/.edge-asr/journal.jsonl        a line for each recording whose outputs are all there
    OUTPUT_DIR/.edge-asr/HOST-PID-….partial   an output that is being written, renamed when it is complete

A recording is done when the journal says so for the same input (size and time of change), the same settings (model,
graph, search, layout) and all formats that are asked for, and the files are still there. Anything else is done again:
too much is safe, too little is not. A journal line is one write at the end of a file, and a line that a kill or a full
disk has torn does not parse and counts for nothing. Outputs that were edited by hand are left alone while the input
stays the same. The journal may be deleted at any time; the next --resume then begins anew.
"""

from __future__ import annotations

import errno
import json
import os
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edge_asr.digest import sha256
from edge_asr.errors import OutputError, OutputFullError
from edge_asr.sources import Recording
from edge_asr.subtitles import Layout
from edge_asr.writers import WRITERS, Transcript

PRIVATE = ".edge-asr"
JOURNAL = "journal.jsonl"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}  # the next output would fare no better


@dataclass
class _Done:
    """What the journal knows of a recording."""

    identity: tuple[int, int, str]  # size and time of change of the input, settings
    n_bytes: dict[str, int]  # of the output in each format
    duration_s: float


class OutputFolder:
    """Where the outputs of a batch go; `with` makes it ready for writing. Raises: OutputError."""

    def __init__(self, directory: Path, formats: Sequence[str], layout: Layout, settings: str) -> None:
        self.directory = directory
        self._formats = tuple(formats)
        self._layout = layout
        self._settings = settings
        self._private = self.directory / PRIVATE
        self._host = platform.node() or "host"
        self._mine = f"{self._host}-{os.getpid()}-{os.urandom(4).hex()}"  # containers may share names and numbers
        self._n_written = 0
        self._journal = -1
        self._done = _read_journal(self._private / JOURNAL)

    def __enter__(self) -> Self:
        try:
            self._private.mkdir(parents=True, exist_ok=True)
            self._journal = os.open(self._private / JOURNAL, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            if os.fstat(self._journal).st_size:
                os.lseek(self._journal, -1, os.SEEK_END)
                if os.read(self._journal, 1) != b"\n":  # torn: what follows is a line of its own
                    os.write(self._journal, b"\n")
        except OSError as error:
            raise _output_error(self.directory, error) from error
        self._remove_leftovers()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._journal)

    def path(self, recording: Recording, name: str) -> Path:
        """The output of a recording in the format `name`."""
        return self.directory / f"{recording.key}.{name}"

    def done_s(self, recording: Recording) -> float | None:
        """Length of a recording that needs no more work; None where it does."""
        done = self._done.get(recording.key)
        if done is None or done.identity != self._identity(recording):
            return None
        if not all(self._is_whole(recording, name, done) for name in self._formats):
            return None
        return done.duration_s

    def save(self, recording: Recording, transcript: Transcript) -> None:
        """All formats, then the line in the journal. Raises: OutputError, OutputFullError."""
        n_bytes = {}
        for name in self._formats:
            data = WRITERS[name](transcript, self._layout).encode("utf-8", "backslashreplace")
            self._write(self.path(recording, name), data)
            n_bytes[name] = len(data)
        self._note(recording, _Done(self._identity(recording), n_bytes, transcript.duration))

    def _identity(self, recording: Recording) -> tuple[int, int, str]:
        return recording.n_bytes, recording.mtime_ns, self._settings

    def _is_whole(self, recording: Recording, name: str, done: _Done) -> bool:
        """There, and not emptied by a crash of the machine, which may come between a rename and its content."""
        if name not in done.n_bytes:
            return False
        try:
            n_bytes = self.path(recording, name).stat().st_size
        except OSError:
            return False
        return n_bytes > 0 or done.n_bytes[name] == 0

    def _write(self, path: Path, data: bytes) -> None:
        self._n_written += 1
        partial = self._private / f"{self._mine}-{self._n_written}.partial"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            partial.replace(path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise _output_error(path, error, len(data)) from error

    def _note(self, recording: Recording, done: _Done) -> None:
        line = json.dumps(
            {"key": recording.key, "input": done.identity[:2], "settings": self._settings, "outputs": done.n_bytes,
             "duration": round(done.duration_s, 3)}
        )  # fmt: skip
        data = f"{line}\n".encode("ascii")  # names that are not UTF-8 are escaped by JSON and come back as they were
        try:
            if os.write(self._journal, data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise _output_error(self._private / JOURNAL, error, len(data)) from error

    def _remove_leftovers(self) -> None:
        """Partial outputs of processes of this machine that were killed."""
        for partial in self._private.glob(f"{self._host}-*.partial"):
            pid = partial.name[len(self._host) + 1 :].partition("-")[0]
            if pid.isdecimal() and not _is_alive(int(pid)):
                with suppress(OSError):
                    partial.unlink()


def _read_journal(path: Path) -> dict[str, _Done]:
    """What is known of each key; of two lines the later counts, and adds its formats to an earlier one of the same."""
    known: dict[str, _Done] = {}
    try:
        file = path.open(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return known
    except OSError as error:
        raise _output_error(path, error) from error
    with file:
        for line in file:
            with suppress(ValueError, KeyError, TypeError):  # a torn line
                row = json.loads(line)
                size, mtime_ns = row["input"]
                identity = (int(size), int(mtime_ns), str(row["settings"]))
                outputs = {str(name): int(n_bytes) for name, n_bytes in dict(row["outputs"]).items()}
                before = known.get(row["key"])
                if before is not None and before.identity == identity:
                    outputs = {**before.n_bytes, **outputs}
                known[row["key"]] = _Done(identity, outputs, float(row["duration"]))
    return known


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False  # an earlier process of the same number; this one has written nothing yet
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _output_error(path: Path, error: OSError, n_bytes: int = 0) -> OutputError:
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        return OutputFullError(
            f"{path}: needs {n_bytes} bytes, the disk takes no more ({reason}); make room or choose another "
            "--output-dir, then go on with --resume: nothing that is complete is lost or done again"
        )
    return OutputError(f"{path}: cannot be written ({reason}); choose another --output-dir, or change its permissions")


# --- settings -------------------------------------------------------------------------------------------------------


def settings_id(options: Mapping[str, Any], directories: Sequence[Path], files: Sequence[Path], layout: Layout) -> str:
    """One word that changes with whatever changes the outputs: options, model and graph folders, grammar, layout."""
    parts = {
        "options": {name: str(value) for name, value in sorted(options.items())},
        "directories": [_contents(directory) for directory in directories],
        "files": [sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()],
        "layout": repr(layout),
    }
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _contents(directory: Path) -> Any:
    """What tells one model or graph from another: the fingerprints in a sealed configuration, or sizes and times."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        config = json.loads((directory / "config.json").read_bytes())
        if config["files"]:
            return config
    return sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in directory.iterdir())
