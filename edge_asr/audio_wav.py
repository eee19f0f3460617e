"""PCM in wav files, in every state in which recorders, editors and broken pipes leave them, and without a header.

Read by our own code, so that a header may lie about sizes, a stream need not be seekable, and no claim is ever
allocated. Sources: Microsoft RIFF and WAVE_FORMAT_EXTENSIBLE, EBU Tech 3306 (RF64), ITU-R BS.2088 (BW64), Sony's W64.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edge_asr.audio_source import W64, Container, Source
from edge_asr.errors import AudioFormatError, AudioTruncatedError, UsageError

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 768_000  # outside: a damaged header, not a recording
MAX_CHANNELS = 128

_PCM, _FLOAT, _ALAW, _MULAW, _EXTENSIBLE = 1, 3, 6, 7, 0xFFFE
# sizes of this much are written by programs that could not seek back to fill them in (sox, arecord, ffmpeg, gstreamer)
_OPEN_END_BYTES = 0x7FFF0000
_KNOWN_CHUNKS = frozenset(b"fmt |data|fact|LIST|JUNK|junk|PAD |PEAK|bext|cue |id3 |ID3 |iXML|ds64|smpl|inst|FLLR|"
                          b"cart|chna|axml|_PMX|afsp|DISP|wavl|plst|note|labl|SAUR|umid|minf|elm1|regn|acid|LGWV|"
                          b"levl|link|strc|AFAn|aXML|bwf |Fake|XMP |MD5 ".split(b"|"))  # fmt: skip
_RESYNC_BYTES = 1 << 16  # how far the next chunk is looked for where a size leads astray


# --- samples -------------------------------------------------------------------------------------------------------


def _expanded(law: str) -> np.ndarray:
    """ITU-T G.711: the 256 values of a telephone byte, in ±1."""
    code = np.arange(256) ^ (0xFF if law == "mulaw" else 0x55)
    exponent, mantissa = code >> 4 & 7, code & 15
    if law == "mulaw":
        magnitude = ((2 * mantissa + 33) << exponent) - 33
        return np.where(code & 0x80, -magnitude, magnitude).astype(np.float32) / 8192
    magnitude = np.where(exponent == 0, 2 * mantissa + 1, (2 * mantissa + 33) << np.maximum(exponent - 1, 0))
    return np.where(code & 0x80, magnitude, -magnitude).astype(np.float32) / 4096


class Encoding(NamedTuple):
    """How a sample is stored."""

    n_bytes: int
    dtype: str = ""  # of numpy, where it has one
    table: np.ndarray | None = None  # by byte value, otherwise; neither: 24-bit

    is_big: bool = False

    def decode(self, data: bytes, n_channels: int) -> np.ndarray:
        """(n, channels) float32, or integers that as_mono scales."""
        if self.table is not None:
            samples = self.table[np.frombuffer(data, np.uint8)]
        elif self.dtype == "u1":
            samples = (np.frombuffer(data, np.uint8) ^ 0x80).view(np.int8)
        elif self.dtype:
            samples = np.frombuffer(data, self.dtype)
        else:
            samples = np.zeros((len(data) // 3, 4), np.uint8)  # the low byte stays 0
            samples[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)[:, :: -1 if self.is_big else 1]
            samples = samples.view("<i4")[:, 0]
        return samples.reshape(-1, n_channels)


ENCODINGS = {
    "u8": Encoding(1, "u1"),
    "s8": Encoding(1, "i1"),
    "s16le": Encoding(2, "<i2"),
    "s16be": Encoding(2, ">i2"),
    "s24le": Encoding(3),
    "s24be": Encoding(3, is_big=True),
    "s32le": Encoding(4, "<i4"),
    "s32be": Encoding(4, ">i4"),
    "f32le": Encoding(4, "<f4"),
    "f32be": Encoding(4, ">f4"),
    "f64le": Encoding(8, "<f8"),
    "f64be": Encoding(8, ">f8"),
    "mulaw": Encoding(1, table=_expanded("mulaw")),
    "alaw": Encoding(1, table=_expanded("alaw")),
}


@dataclass(frozen=True)
class RawFormat:
    """What samples without a header are; the names of the encodings are ffmpeg's."""

    rate_hz: int = 16_000
    encoding: str = "s16le"
    n_channels: int = 1

    def __post_init__(self) -> None:
        if self.encoding not in ENCODINGS:
            raise UsageError(f"encoding of raw samples must be one of {', '.join(ENCODINGS)}; got {self.encoding!r}")
        if not MIN_RATE_HZ <= self.rate_hz <= MAX_RATE_HZ:
            raise UsageError(f"rate of raw samples must be {MIN_RATE_HZ}…{MAX_RATE_HZ} Hz, got {self.rate_hz}")
        if not 1 <= self.n_channels <= MAX_CHANNELS:
            raise UsageError(f"channels of raw samples must be 1…{MAX_CHANNELS}, got {self.n_channels}")

    @property
    def frame_bytes(self) -> int:
        return ENCODINGS[self.encoding].n_bytes * self.n_channels


class PcmReader:
    """Samples as they lie in a source, from where it stands to `n_bytes` further or the end."""

    def __init__(self, source: Source, raw: RawFormat, n_bytes: int | None = None, container: str = "raw") -> None:
        self.rate_hz, self.n_channels = raw.rate_hz, raw.n_channels
        self.format = f"{container} {raw.encoding}"
        self.damage: str | None = None
        self._source, self._raw, self._claimed = source, raw, n_bytes
        self._first = source.position
        present = None if source.n_bytes is None else source.n_bytes - source.position
        if n_bytes is not None and present is not None and n_bytes > present:
            self.damage = f"is cut short: its header promises {n_bytes} bytes of samples, the file holds {present}"
        self._n_bytes = min((n for n in (n_bytes, present) if n is not None), default=None)

    @property
    def duration_s(self) -> float | None:
        return None if self._n_bytes is None else self._n_bytes // self._raw.frame_bytes / self.rate_hz

    def frames(self, block_frames: int) -> Iterator[np.ndarray]:
        frame_bytes, encoding = self._raw.frame_bytes, ENCODINGS[self._raw.encoding]
        n_left = self._claimed  # not what the file held when it was opened: it may still grow
        while n_left is None or n_left >= frame_bytes:
            n_asked = frame_bytes * (block_frames if n_left is None else min(block_frames, n_left // frame_bytes))
            data = self._source.read(n_asked)
            n_whole = len(data) // frame_bytes * frame_bytes
            if n_whole:
                yield encoding.decode(data[:n_whole], self.n_channels)
            n_left = None if n_left is None else n_left - len(data)
            if len(data) < n_asked:
                break
        n_read = self._source.position - self._first
        if self._source.failure is not None:
            self.damage = self._source.failure
        elif self._claimed is not None and n_read < self._claimed - self._claimed % frame_bytes:
            self.damage = f"is cut short: its header promises {self._claimed} bytes of samples, the file holds {n_read}"
        else:
            self.damage = None  # what was missing when the file was opened has come since

    def close(self) -> None:
        pass


# --- headers -------------------------------------------------------------------------------------------------------


def open_wav(source: Source, container: Container) -> PcmReader | None:
    """The samples of a wav file; None where they are compressed in a way that other libraries know.

    Raises: AudioFormatError, AudioTruncatedError.
    """
    is_w64 = container is W64
    magic = source.read(40 if is_w64 else 12)[:4]
    chunks = _w64_chunks(source) if is_w64 else _riff_chunks(source, ">" if magic == b"RIFX" else "<")
    order = ">" if magic == b"RIFX" else "<"
    fmt, ds64 = None, None
    for name, n_bytes in chunks:
        if name == b"fmt ":
            fmt = source.peek(min(n_bytes, 40))[: min(n_bytes, 40)]
        elif name == b"ds64" and len(head := source.peek(16)) >= 16:
            ds64 = struct.unpack_from("<Q", head, 8)[0]
        elif name == b"data":
            if fmt is None or len(fmt) < 14:
                raise AudioFormatError(f"{source.name}: needs a 'fmt ' chunk before its samples, has none; convert it")
            raw = _read_format(source.name, fmt, order)
            if raw is None:
                return None
            is_long = is_w64 or (n_bytes == 0xFFFFFFFF and bool(ds64))
            claim = _claim(source, n_bytes if is_w64 or not is_long else ds64 or 0, is_long)
            return PcmReader(source, raw, claim, container.name)
    raise AudioTruncatedError(f"{source.name}: ends before its samples begin; nothing could be read, copy it again")


def _claim(source: Source, n_bytes: int, is_long: bool) -> int | None:
    """The size that the header gives, or None where it was never filled in. The source stands at the first sample."""
    if n_bytes >= (1 << 62 if is_long else _OPEN_END_BYTES) and (
        source.n_bytes is None or n_bytes > source.n_bytes - source.position
    ):
        return None
    if n_bytes == 0:
        return 0 if source.peek(4)[:4] in _KNOWN_CHUNKS else None
    while not is_long and source.n_bytes is not None and n_bytes + (1 << 32) <= source.n_bytes - source.position:
        n_bytes += 1 << 32  # recorders that run past 4 GB let the 32 bits wrap
    return n_bytes


def _riff_chunks(source: Source, order: str) -> Iterator[tuple[bytes, int]]:
    """(name, size) of each chunk, the source standing at its content; odd and wrong sizes are seen through."""
    while len(head := source.peek(9)) >= 8:
        name, n_bytes = struct.unpack_from(f"{order}4sI", head)
        if not _is_name(name):
            if not _resync(source):
                return
            continue
        source.read(8)
        end = source.position + n_bytes
        if name != b"data" and source.n_bytes is not None and end > source.n_bytes:  # a size that leads out of the file
            if not _resync(source):
                return
            continue
        yield name, n_bytes
        if source.skip(end - source.position) and n_bytes % 2:
            follower = source.peek(5)
            if follower[:4] not in _KNOWN_CHUNKS:  # some writers leave the padding out
                source.read(1)


def _is_name(name: bytes) -> bool:
    return name in _KNOWN_CHUNKS or all(32 <= byte < 127 for byte in name)


def _resync(source: Source) -> bool:
    """Move to the next chunk that matters, within reach."""
    ahead = source.peek(_RESYNC_BYTES)[:_RESYNC_BYTES]
    found = [at for at in (ahead.find(b"fmt "), ahead.find(b"data")) if at >= 0]
    if not found:
        return False
    source.skip(min(found))
    return True


def _w64_chunks(source: Source) -> Iterator[tuple[bytes, int]]:
    """The same of W64: names are GUIDs that begin with the RIFF name, sizes count the 24 bytes before the content."""
    while len(head := source.read(24)) == 24:
        name, n_bytes = head[:4], struct.unpack_from("<Q", head, 16)[0] - 24
        if n_bytes < 0:
            n_bytes = 0
        end = source.position + n_bytes
        yield name, n_bytes
        source.skip(min(end - source.position + -n_bytes % 8, 1 << 62))


def _read_format(name: str, fmt: bytes, order: str) -> RawFormat | None:
    tag, n_channels, rate_hz, _, align = struct.unpack_from(f"{order}HHIIH", fmt)
    bits = struct.unpack_from(f"{order}H", fmt, 14)[0] if len(fmt) >= 16 else 0
    if tag == _EXTENSIBLE:
        tag = struct.unpack_from(f"{order}H", fmt, 24)[0] if len(fmt) >= 26 else _PCM
    if tag not in (_PCM, _FLOAT, _ALAW, _MULAW):
        return None
    check_claims(name, rate_hz, n_channels)
    # the container of a sample is what counts: 20 valid bits lie at the top of three bytes
    n_bytes, rest = divmod(align, n_channels)
    if rest or n_bytes not in (1, 2, 3, 4, 8):
        n_bytes = -(-bits // 8)
    end = "be" if order == ">" else "le"
    encoding = {
        _ALAW: "alaw", _MULAW: "mulaw", _FLOAT: f"f{8 * n_bytes}{end}",
        _PCM: "u8" if n_bytes == 1 else f"s{8 * n_bytes}{end}",
    }[tag]  # fmt: skip
    if encoding not in ENCODINGS:
        raise AudioFormatError(
            f"{name}: needs samples of 8, 16, 24, 32 bits or floats, its header says {bits} bits in {align} bytes; "
            "the header is damaged or wrong"
        )
    return RawFormat(rate_hz, encoding, n_channels)


def check_claims(name: str, rate_hz: int, n_channels: int) -> None:
    """Raises: AudioFormatError for a rate or a number of channels that no recorder writes."""
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ:
        raise AudioFormatError(
            f"{name}: sample rate {rate_hz} Hz is outside {MIN_RATE_HZ}…{MAX_RATE_HZ} Hz; "
            "the header is damaged or wrong"
        )
    if not 1 <= n_channels <= MAX_CHANNELS:
        raise AudioFormatError(
            f"{name}: needs 1…{MAX_CHANNELS} channels, its header says {n_channels}; the header is damaged or wrong"
        )
