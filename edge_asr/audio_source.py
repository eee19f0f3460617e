"""Where a recording's bytes come from: a file, a pipe or an open stream, and which container they are.

The container is told by the first bytes, never by the name: people rename files, and phones mislabel them.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import BinaryIO, NamedTuple

from edge_asr.audio_parts import find_mpeg_frames
from edge_asr.errors import (
    AudioDirectoryError,
    AudioEmptyError,
    AudioError,
    AudioFormatError,
    AudioNotFoundError,
    StreamError,
)

READ_BYTES = 1 << 20  # at most this much is held at once while bytes are skipped or copied
HEAD_BYTES = 1 << 16  # enough to find the first frames of an mp3 that begins with something else
PIPE_WAIT_S = 10.0  # a named pipe that no program opens for writing within this time is given up


class Source:
    """A recording's bytes, read forward; `failure` says why reading stopped early (a disk or network that went away).

    `n_bytes` is None where only the end of the stream tells. A stream that was passed in is not closed.
    """

    def __init__(self, stream: BinaryIO, name: str, n_bytes: int | None, is_own: bool) -> None:
        self.name = name
        self.n_bytes = n_bytes
        self.position = 0
        self.failure: str | None = None
        self._stream = stream
        self._is_own = is_own
        self._is_file = n_bytes is not None
        self._ahead = b""

    def read(self, n_bytes: int) -> bytes:
        """The next n_bytes, fewer only at the end."""
        data = self.peek(n_bytes)[:n_bytes]
        self._ahead = self._ahead[len(data) :]
        self.position += len(data)
        return data

    def peek(self, n_bytes: int) -> bytes:
        """At least n_bytes where there are so many, without moving on."""
        if len(self._ahead) < n_bytes:
            parts, n_held = [self._ahead], len(self._ahead)
            while n_held < n_bytes and (data := self._read_some(n_bytes - n_held)):
                parts.append(data)
                n_held += len(data)
            self._ahead = b"".join(parts)
        return self._ahead

    def skip(self, n_bytes: int) -> int:
        """Move on; how many bytes there were to skip."""
        n_left = n_bytes
        if self._is_file and n_bytes > len(self._ahead):
            n_left = min(n_bytes, max(0, (self.n_bytes or 0) - self.position))
            self.position += n_left
            self._ahead = b""
            self._stream.seek(self.position)
            return n_left
        while n_left and (data := self.read(min(n_left, READ_BYTES))):
            n_left -= len(data)
        return n_bytes - n_left

    def as_file(self) -> BinaryIO:
        """The whole recording as an open file with a descriptor, at its beginning; a stream is first copied to disk.

        The copy has no name and goes away with this source. Raises: AudioError where it has no room.
        """
        if not self._is_file:
            if self.position:
                raise AudioFormatError(
                    f"{self.name}: is compressed in a way that cannot be read from a pipe; save it to a file first"
                )
            self._spool()
        self._stream.seek(0)
        self._ahead, self.position = b"", 0
        return self._stream

    def close(self) -> None:
        if self._is_own:
            self._stream.close()

    def __del__(self) -> None:
        self.close()

    def _read_some(self, n_bytes: int) -> bytes:
        try:
            data = self._stream.read(n_bytes)
            while data is None:  # a non-blocking stream that has nothing yet
                time.sleep(0.01)
                data = self._stream.read(n_bytes)
        except (OSError, ValueError) as error:  # ValueError: the stream was closed by its owner
            self.failure = f"reading stopped: {_reason(error)}"
            return b""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise StreamError(f"{self.name}: needs a binary stream, reads {type(data).__name__}; pass its .buffer")
        return bytes(data)

    def _spool(self) -> None:
        import tempfile  # rarely needed, and not small

        try:
            # unbuffered: libsndfile reads the descriptor itself
            spool = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed with this source)
            while data := self.read(READ_BYTES):
                while data:
                    data = data[spool.write(data) :]
        except OSError as error:
            raise AudioError(
                f"{self.name}: a compressed stream is copied to a temporary file first, which failed "
                f"({_reason(error)}); set TMPDIR to a folder with room, or decode to wav before the pipe"
            ) from error
        self.n_bytes = spool.tell()
        self._stream, self._is_own, self._is_file = spool, True, True


def open_source(source: str | os.PathLike[str] | BinaryIO) -> Source:
    """A file, a named pipe or an open binary stream, which holds at least one byte.

    Raises: AudioNotFoundError, AudioDirectoryError, AudioEmptyError, AudioFormatError (a device), StreamError.
    """
    if isinstance(source, str | bytes | os.PathLike):
        opened = _open_path(Path(os.fsdecode(source)))
    elif hasattr(source, "read"):
        name = getattr(source, "name", None)
        opened = Source(source, name if isinstance(name, str) else "standard input", None, is_own=False)
    else:
        raise StreamError(f"needs a path or a binary stream, got {type(source).__name__}; arrays go to the recognizer")
    if not opened.peek(1):
        name, failure = opened.name, opened.failure
        opened.close()
        if failure is not None:
            raise AudioNotFoundError(f"{name}: {failure}; nothing could be read, copy the file again")
        raise AudioEmptyError(f"{name}: is 0 bytes long; nothing to transcribe, copy or record it again")
    return opened


def _open_path(path: Path) -> Source:
    name = os.fspath(path)
    try:
        # not to block where a named pipe has no writer; without effect on files
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        if path_is_folder(path):  # Windows does not open folders
            raise _folder(name) from error
        raise AudioNotFoundError(
            f"{name}: cannot be opened ({_reason(error)}); check the name and the permissions"
        ) from error
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode):
        return Source(open(descriptor, "rb", buffering=0), name, status.st_size, is_own=True)
    if stat.S_ISFIFO(status.st_mode):
        return _open_pipe(descriptor, name)
    os.close(descriptor)
    if stat.S_ISDIR(status.st_mode):
        raise _folder(name)
    raise AudioFormatError(f"{name}: needs a recording, is a device or socket; pipe its samples to standard input")


def path_is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _folder(name: str) -> AudioDirectoryError:
    return AudioDirectoryError(f"{name}: is a folder; name the recordings in it, for example {name}/*.wav")


def _open_pipe(descriptor: int, name: str) -> Source:
    """A named pipe, once a program has it open for writing (a read is then either data or 'not yet')."""
    stream = open(descriptor, "rb", buffering=0)  # noqa: SIM115 (closed with its source)
    deadline_s = time.monotonic() + PIPE_WAIT_S
    while (first := stream.read(1)) == b"":
        if time.monotonic() > deadline_s:
            stream.close()
            raise AudioNotFoundError(
                f"{name}: is a named pipe that no program writes to; start the program that writes first"
            )
        time.sleep(0.01)
    os.set_blocking(descriptor, True)
    source = Source(stream, name, None, is_own=True)
    source._ahead = first or b""
    return source


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


# --- containers ----------------------------------------------------------------------------------------------------


class Container(NamedTuple):
    """How a kind of file is read: by our own reader of wav, by libsndfile, or by PyAV's demuxer of that name."""

    name: str
    sndfile: bool = False
    av: str | None = None


WAV = Container("wav", sndfile=True, av="wav")
W64 = Container("w64", sndfile=True, av="w64")
FLAC = Container("flac", sndfile=True, av="flac")
OGG = Container("ogg", sndfile=True, av="ogg")
MP3 = Container("mp3", sndfile=True, av="mp3")
AAC = Container("aac", av="aac")
MPEG4 = Container("mp4/m4a", av="mov")

_W64_RIFF = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
_MAGICS: list[tuple[int, bytes, Container]] = [  # (offset, bytes there, container); the first that fits counts
    (8, b"WAVE", WAV),  # after RIFF, RIFX, RF64, BW64 and a size
    (0, _W64_RIFF, W64),
    (0, b"fLaC", FLAC),
    (0, b"OggS", OGG),
    (0, b"FORM", Container("aiff", sndfile=True, av="aiff")),
    (0, b".snd", Container("au", sndfile=True, av="au")),
    (0, b"caff", Container("caf", sndfile=True, av="caf")),
    (0, b"NIST_1A", Container("sphere", sndfile=True)),
    (0, b"Creative Voice File", Container("voc", sndfile=True, av="voc")),
    (0, b"\x1a\x45\xdf\xa3", Container("webm/mkv", av="matroska")),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Container("wma", av="asf")),
    (0, b"#!AMR", Container("amr", av="amr")),
    (0, b"FLV\x01", Container("flv", av="flv")),
    (8, b"AVI ", Container("avi", av="avi")),
    (0, b"wvpk", Container("wavpack", av="wv")),
    (0, b"MAC ", Container("ape", av="ape")),
    (0, b"\0\0\x01\xba", Container("mpeg", av="mpeg")),
    *((4, box, MPEG4) for box in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"pnot")),
]
_MAGIC_BYTES = 32
_TS_PACKET_BYTES = 188


def find_container(source: Source) -> Container | None:
    """What a recording's first bytes say it is; None: nothing that we know."""
    head = source.peek(_MAGIC_BYTES)  # no more, so that a pipe is heard from its first words on
    if (container := _by_magic(head)) is not None:
        return container
    head = source.peek(HEAD_BYTES)
    if head.startswith(b"ID3"):  # mp3, or a tag that somebody put before another format
        file = source.as_file()
        _skip_id3_tags(file)
        behind = file.read(HEAD_BYTES)
        source.as_file()
        return _container_of(behind) or MP3
    return _container_of(head)


def _by_magic(head: bytes) -> Container | None:
    for offset, magic, container in _MAGICS:
        if head.startswith(magic, offset):
            return container
    return None


def _container_of(head: bytes) -> Container | None:
    container = _by_magic(head)
    if container is not None:
        return container
    if any(head[at : at + 5 * _TS_PACKET_BYTES : _TS_PACKET_BYTES] == b"\x47" * 5 for at in range(_TS_PACKET_BYTES)):
        return Container("mpeg-ts", av="mpegts")  # recordings of broadcasts begin anywhere
    if head.startswith(b"\x0b\x77"):
        return Container("ac3", av="eac3" if len(head) > 5 and head[5] >> 3 > 10 else "ac3")
    at = find_mpeg_frames(head)
    return None if at < 0 else MP3 if head[at + 1] & 0x06 else AAC


def _skip_id3_tags(file: BinaryIO) -> None:
    """ID3v2 §3.1: 'ID3', version, flags, size in four bytes of seven bits. Some programs write several."""
    while len(tag := file.read(10)) == 10 and tag.startswith(b"ID3"):
        size = 0
        for byte in tag[6:]:
            size = size << 7 | byte & 0x7F
        footer = 10 if tag[5] & 0x10 else 0
        file.seek(size + footer, os.SEEK_CUR)
    file.seek(-len(tag), os.SEEK_CUR)
