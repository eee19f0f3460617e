"""From what a person names (files, folders, patterns) to the recordings meant, and where the text of each will go.

A recording's `key` is the path of its outputs below the output folder, without the suffix of a format:

    talk.wav                        talk            →  talk.srt
    rec/  (holds mon/a.wav)         mon/a           →  mon/a.srt
    a.wav and a.mp3 in one folder   a.wav, a.mp3    →  a.wav.srt, a.mp3.srt
    x/a.wav and y/a.wav             x/a.wav, y/a.wav

so that no two recordings of a run ever write to one file, and the same arguments give the same names again.
"""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_asr.errors import AudioDirectoryError, AudioError, AudioNotFoundError, EdgeAsrError

STANDARD_INPUT = "-"

# what is looked for in folders and by patterns; a file that is named itself may have any suffix
AUDIO_SUFFIXES = frozenset(
    ".wav .wave .w64 .rf64 .bwf .flac .ogg .oga .opus .spx .mp3 .mp2 .aif .aiff .aifc .au .snd .caf .sph .voc "
    ".m4a .m4b .aac .mp4 .m4v .mov .3gp .webm .mkv .mka .wma .wmv .asf .avi .flv .amr .wv .ape .ts .mpg .mpeg".split()
)


@dataclass(frozen=True)
class Recording:
    """A file to transcribe. `n_bytes` and `mtime_ns` are those it had when it was found."""

    path: str
    key: str
    n_bytes: int
    mtime_ns: int

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.path)[1].lower()


@dataclass(frozen=True)
class Failure:
    """A path or recording that gave no text, and why."""

    path: str
    error: EdgeAsrError

    @property
    def exit_code(self) -> int:
        return self.error.exit_code


@dataclass(frozen=True)
class _Found:
    path: str
    below: str  # the path below the folder or pattern that led here; a file that was named: its name


def find_recordings(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[Recording], list[Failure]]:
    """The recordings that `paths` mean, each once, in the order of `paths` and sorted below each; what is missing.

    A name that exists is meant as it stands, brackets and stars included; only otherwise is it a pattern.
    """
    found: dict[str, _Found] = {}
    failures: list[Failure] = []
    for path in map(os.fspath, paths):
        try:
            for each in _expand(path, failures):
                found.setdefault(os.path.abspath(each.path), each)
        except AudioError as error:
            failures.append(Failure(path, error))
    keys = _keys(found)
    recordings = []
    for absolute, each in found.items():
        try:
            status = os.stat(each.path)
        except OSError as error:
            failures.append(Failure(each.path, _not_found(each.path, error)))
            continue
        recordings.append(Recording(each.path, keys[absolute], status.st_size, status.st_mtime_ns))
    return recordings, failures


def shown(text: str) -> str:
    """A file name on one line of a terminal, whatever bytes it holds: a line break as \\n, a stray byte as \\xff."""
    return "".join(c if c.isprintable() or c == "\u200d" else _escaped(c) for c in text)


def portable(path: str) -> str:
    """A path as it stands in JSON, which is UTF-8: bytes that are not become \\xff."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python carries a byte of a name that is not UTF-8
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


# --- files, folders and patterns ------------------------------------------------------------------------------------


def _expand(path: str, failures: list[Failure]) -> Iterator[_Found]:
    if os.path.isdir(path):
        yield from _in_folder(path, failures)
    elif os.path.lexists(path):
        yield _Found(path, os.path.basename(path))
    elif glob.has_magic(path):
        yield from _matches(path, failures)
    else:
        try:
            os.stat(path)
        except (OSError, ValueError) as error:  # ValueError: a null byte in the name
            raise _not_found(path, error) from error


def _in_folder(folder: str, failures: list[Failure]) -> Iterator[_Found]:
    files = sorted(_walk(folder, failures), key=lambda file: os.path.relpath(file, folder).split(os.sep))
    if not files:
        raise AudioDirectoryError(
            f"{folder}: needs recordings, the folder and those in it hold no file with an audio suffix "
            "(.wav, .flac, .mp3, .ogg, .m4a …); name another folder, or the files themselves"
        )
    for file in files:
        yield _Found(file, os.path.relpath(file, folder))


def _walk(folder: str, failures: list[Failure]) -> Iterator[str]:
    """Audio files below a folder. Links are followed after all real folders, and each folder is entered once."""
    folders, links, entered = [folder], [], set()
    while folders or links:
        here = folders.pop() if folders else links.pop(0)
        try:
            status = os.stat(here)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as error:
            failures.append(Failure(here, _not_found(here, error)))
            continue
        for entry in entries:
            if entry.name.startswith("."):  # hidden, such as the ._talk.wav that macOS leaves on other disks
                continue
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append(entry.path)
            elif _is_audio(entry.name) and _is_file(entry):
                yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """A file, or a link that leads nowhere, which is worth an error; no pipe, which would be waited for."""
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return True


def _matches(pattern: str, failures: list[Failure]) -> Iterator[_Found]:
    """What a pattern that the shell has left alone means. `**` reaches into folders, else a folder means all in it."""
    root = pattern
    while glob.has_magic(root):
        root = os.path.dirname(root)
    suffix = os.path.splitext(pattern)[1]
    any_suffix = bool(suffix) and not glob.has_magic(suffix)  # said outright, as in '*.dat'
    matches = sorted(glob.glob(pattern, recursive=True))
    n_found = 0
    for match in matches:
        if os.path.isdir(match):
            files = [] if "**" in pattern else sorted(_walk(match, failures))
        else:
            files = [match] if any_suffix or _is_audio(match) else []
        n_found += len(files)
        for file in files:
            yield _Found(file, os.path.relpath(file, root or os.curdir))
    if n_found == 0:
        raise AudioNotFoundError(
            f"{pattern}: needs a file or a pattern that matches recordings, matches {len(matches) or 'nothing'}"
            f"{' others' if matches else ''}; check it, or name the folder to take all that is in it"
        )


def _is_audio(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES


def _not_found(path: str, error: OSError | ValueError) -> AudioNotFoundError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return AudioNotFoundError(f"{path}: cannot be opened ({reason}); check the name and the permissions")


# --- names of outputs -----------------------------------------------------------------------------------------------


def _keys(found: dict[str, _Found]) -> dict[str, str]:
    """A key for each absolute path, no two alike: as short as can be, longer only for those that would collide."""
    depth = _common_depth(found)
    names = {absolute: _names(absolute, each.below, depth) for absolute, each in found.items()}
    level = dict.fromkeys(names, 0)
    while True:
        keys = {absolute: names[absolute][level[absolute]] for absolute in names}
        taken = Counter(keys.values())
        longer = [absolute for absolute, key in keys.items() if taken[key] > 1 and level[absolute] < 2]
        if not longer:
            return keys
        for absolute in longer:
            level[absolute] += 1


def _names(absolute: str, below: str, depth: int) -> tuple[str, str, str]:
    return os.path.splitext(below)[0], below, os.path.join(*Path(absolute).parts[depth:])


def _common_depth(found: dict[str, _Found]) -> int:
    """How many folders all paths have in common; at least the root, which is no part of a key."""
    folders = [Path(absolute).parts[:-1] for absolute in found]
    n = 0
    while all(len(folder) > n and folder[n] == folders[0][n] for folder in folders) and folders:
        n += 1
    return max(1, n)
