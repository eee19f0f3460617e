"""Files that are several recordings one behind the other, and where the sound of an mp3 really lies.

Joined by `cat`, cut out of broadcasts, or saved from a radio: libsndfile reads the first recording of such a file and
says nothing of the rest, and takes the length of an mp3 from a guess where it has no header. So the pages (ogg, RFC
3533) and frames (mp3, ISO 11172-3 and 13818-3) are counted here first, which takes some 10 µs for a second of sound.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_READ_BYTES = 1 << 20
_AHEAD_BYTES = 16_384  # always seen of an mp3, more than three frames
_N_FRAMES_IN_A_ROW = 3  # that make sure that a sync word is one
_MAX_JUNK_BYTES = 512  # between two frames; mpg123 gives up after 1024
_SLACK_FRAMES = 16  # that mpg123 may find beyond those that were counted


class Part(NamedTuple):
    """A recording within a file: bytes [start, end), with `prefix` put before them."""

    start: int
    end: int
    prefix: bytes = b""
    duration_s: float | None = None  # by its frames, where they were counted
    is_complete: bool = True


class PartFile(io.RawIOBase):
    """One part as a file; reading never raises, since it is called from C: `failure` says what went wrong."""

    def __init__(self, file: BinaryIO, part: Part) -> None:
        super().__init__()
        self._file, self._part, self._position = file, part, 0
        self._n_bytes = len(part.prefix) + part.end - part.start
        self.failure: str | None = None

    def readinto(self, buffer: memoryview) -> int:
        n_prefix = len(self._part.prefix)
        if self._position < n_prefix:
            data = self._part.prefix[self._position : self._position + len(buffer)]
        else:
            try:
                self._file.seek(self._part.start + self._position - n_prefix)
                data = self._file.read(min(len(buffer), max(0, self._n_bytes - self._position))) or b""
            except (OSError, ValueError) as error:
                self.failure = f"reading stopped: {getattr(error, 'strerror', None) or error}"
                data = b""
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._n_bytes}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


# --- ogg -----------------------------------------------------------------------------------------------------------

_OGG_HEAD = struct.Struct("<4sBBqIIIB")
_OGG_FIRST, _OGG_LAST = 2, 4


def ogg_parts(file: BinaryIO) -> list[Part]:
    """The links of an ogg chain: each begins with the first pages of its streams."""
    starts, ended, flags = [0], [], _OGG_FIRST
    for at, page_flags in _ogg_pages(file):
        if page_flags & _OGG_FIRST and not flags & _OGG_FIRST:
            starts.append(at)
            ended.append(bool(flags & _OGG_LAST))
        flags = page_flags
    ended.append(bool(flags & _OGG_LAST))
    ends = [*starts[1:], file.seek(0, os.SEEK_END)]
    return [Part(start, end, is_complete=whole) for start, end, whole in zip(starts, ends, ended)]


def _ogg_pages(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """(position, flags) of each page that is all there."""
    at, n_bytes = 0, file.seek(0, os.SEEK_END)
    while at + _OGG_HEAD.size <= n_bytes:
        file.seek(at)
        head = file.read(_OGG_HEAD.size + 255)
        if not head.startswith(b"OggS"):  # damage, or something that is no ogg behind the last page
            file.seek(at)
            found = file.read(_READ_BYTES).find(b"OggS", 1)
            if found < 0:
                return
            at += found
            continue
        if len(head) < _OGG_HEAD.size:
            return
        _, _, flags, _, _, _, _, n_segments = _OGG_HEAD.unpack_from(head)
        end = at + _OGG_HEAD.size + n_segments + sum(head[_OGG_HEAD.size : _OGG_HEAD.size + n_segments])
        if end > n_bytes:
            return
        yield at, flags
        at = end


# --- mp3 -----------------------------------------------------------------------------------------------------------

_BITRATES_KBPS = {  # (version 1?, layer) → by index 1…14, ISO 11172-3 and 13818-3
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 1): tuple(range(32, 449, 32)),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
}


def mpeg_frame_bytes(head: bytes) -> int:
    """Length of the MPEG audio frame (layers I–III, or AAC in ADTS) whose first six bytes these are; 0: no frame."""
    first = struct.unpack(">I", head[:4])[0] if len(head) >= 6 else 0
    if first >> 21 != 0x7FF:
        return 0
    version, layer = first >> 19 & 3, 4 - (first >> 17 & 3)
    if layer == 4:  # ADTS: twelve sync bits, length in 13 bits from bit 30
        n_bytes = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
        return n_bytes if first >> 20 == 0xFFF and first >> 10 & 15 < 13 and n_bytes > 7 else 0
    bitrate_index, rate_index = first >> 12 & 15, first >> 10 & 3
    if version == 1 or bitrate_index in (0, 15) or rate_index == 3:
        return 0
    bitrate = 1000 * _BITRATES_KBPS[version == 3, layer][bitrate_index - 1]
    rate_hz = (44_100, 48_000, 32_000)[rate_index] >> {3: 0, 2: 1, 0: 2}[version]
    padding = first >> 9 & 1
    if layer == 1:
        return 4 * (12 * bitrate // rate_hz + padding)
    return (72 if layer == 3 and version != 3 else 144) * bitrate // rate_hz + padding


def _frame_s(head: bytes) -> float:
    """Seconds of sound in a frame."""
    version, layer, rate_index = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3), head[2] >> 2 & 3
    rate_hz = (44_100, 48_000, 32_000)[rate_index] >> {3: 0, 2: 1, 0: 2}[version]
    return (384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152) / rate_hz


def find_mpeg_frames(data: bytes, first: int = 0) -> int:
    """Where the first frames in a row of one kind are, mp3 or AAC; −1: nowhere. At the end of data fewer will do."""
    for candidate in _SYNC.finditer(data, first):
        at = end = candidate.start()
        kind, n_frames = _kind(data[at : at + 3]), 0
        while n_frames < _N_FRAMES_IN_A_ROW and _kind(data[end : end + 3]) == kind:
            n_bytes = mpeg_frame_bytes(data[end : end + 6])
            if n_bytes == 0:
                break
            end, n_frames = end + n_bytes, n_frames + 1
        if n_frames == _N_FRAMES_IN_A_ROW or (end > len(data) - 6 and n_frames > (at != first)):
            return at
    return -1


# 0xFF and a second and third byte that a frame may have: a search at the speed of C
_SYNC = re.compile(
    rb"\xff(?:[\xe2-\xe7\xf2-\xf7\xfa-\xff](?=[" + b"".join(b"\\x%x0-\\x%xb" % (n, n) for n in range(1, 15)) + rb"])"
    rb"|[\xf0\xf1\xf8\xf9])"
)


def _kind(head: bytes) -> tuple[int, int] | None:
    """What all frames of a recording have in common: version, layer and rate."""
    return (head[1] & 0xFE, head[2] & 0x0C) if len(head) == 3 and head[0] == 0xFF else None


def mp3_parts(file: BinaryIO) -> list[Part]:
    """The recordings in an mp3 file, without what lies between them; empty where there are no frames.

    A part without a header that counts its frames gets one: libsndfile stops where its guess of the length ends.
    """
    return [_mp3_part(file, *run) for run in _mp3_runs(file)]


def _mp3_runs(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """(start, end, frames) of frames of one kind in a row, up to the next recording's header."""
    start = end = n_frames = 0
    kind: tuple[int, int] | None = None
    for at, n_bytes, its_kind, counts in _mp3_frames(file):
        if n_frames and (its_kind != kind or counts or at - end > _MAX_JUNK_BYTES):
            yield start, end, n_frames
            n_frames = 0
        if n_frames == 0:
            start, kind = at, its_kind
        n_frames += 1
        end = at + n_bytes
    if n_frames:
        yield start, min(end, file.seek(0, os.SEEK_END)), n_frames


def _mp3_frames(file: BinaryIO) -> Iterator[tuple[int, int, tuple[int, int] | None, bool]]:
    """(position, bytes, kind, whether it is a header that counts the others) of each frame."""
    kinds: dict[bytes, tuple[int, tuple[int, int] | None]] = {}  # by the first three bytes of a frame
    window, base, at = b"", 0, 0
    kind: tuple[int, int] | None = None  # of the frame before; None: not in step
    while True:
        if base + len(window) - at < _AHEAD_BYTES:
            file.seek(at)
            window, base = file.read(_READ_BYTES) or b"", at
        first = at - base
        head = window[first : first + 3]
        if head not in kinds:
            n_bytes = mpeg_frame_bytes(window[first : first + 6])
            kinds[head] = (n_bytes if n_bytes and head[1] & 0x06 else 0, _kind(head))
        n_bytes, its_kind = kinds[head]
        if n_bytes and its_kind == kind:
            yield at, n_bytes, kind, _counts(window[first : first + 40])
            at += n_bytes
            continue
        found = find_mpeg_frames(window, first)
        if found >= 0:  # not to be found again: the next round yields it
            at, kind = base + found, _kind(window[found : found + 3])
            if not window[found + 1] & 0x06:  # AAC in an mp3
                at, kind = at + 1, None
        elif len(window) < _READ_BYTES:
            return
        else:
            at = base + len(window) - _AHEAD_BYTES // 2


def _counts(frame: bytes) -> bool:
    return b"Xing" in frame or b"Info" in frame or b"VBRI" in frame


def _mp3_part(file: BinaryIO, start: int, end: int, n_frames: int) -> Part:
    file.seek(start)
    head = (file.read(200) or b"").ljust(200, b"\0")  # the file may end in it
    frame_s = _frame_s(head)
    if head[1] & 0x06 != 0x02:  # layers I and II know no such header, nor variable rates that would need it
        return Part(start, end, duration_s=n_frames * frame_s)
    if _counts(head[:40]):
        n_frames -= 1
        n_claimed = _claimed_frames(head)
        if n_claimed is not None and n_claimed >= n_frames - _SLACK_FRAMES:
            is_complete = n_claimed <= n_frames + _SLACK_FRAMES
            return Part(start, end, b"", n_frames * frame_s, is_complete)
        start += mpeg_frame_bytes(head)
    return Part(start, end, _counting_frame(head, n_frames + _SLACK_FRAMES), n_frames * frame_s)


def _side_info_bytes(head: bytes) -> int:
    is_mono, is_version_1 = head[3] >> 6 == 3, head[1] >> 3 & 3 == 3
    return (17 if is_mono else 32) if is_version_1 else (9 if is_mono else 17)


def _claimed_frames(head: bytes) -> int | None:
    at = 4 + _side_info_bytes(head)
    if head[at : at + 4] in (b"Xing", b"Info"):
        flags, n_frames = struct.unpack_from(">II", head, at + 4)
        return n_frames if flags & 1 else None
    return None


def _counting_frame(head: bytes, n_frames: int) -> bytes:
    """A silent frame of the same kind with Xing's header in it, which says how many follow."""
    frame = bytearray((0xFF, head[1] | 1, 0x80 | head[2] & 0x0C, head[3]))  # bitrate 8: room enough in all kinds
    frame += bytes(mpeg_frame_bytes(bytes(frame) + b"\0\0") - 4)
    struct.pack_into(">4sII", frame, 4 + _side_info_bytes(head), b"Info", 1, n_frames)
    return bytes(frame)
