"""Small recordings of every container, and ways to break them; the fuzz run in benchmarks/ uses the same."""

from __future__ import annotations

import io
import struct

import numpy as np
import soundfile
from hypothesis import strategies as st

RATE_HZ = 16_000

# numbers that headers lie with: nothing, the largest of each width, one beyond, a tebibyte
LIES = (0, 1, 2, 3, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, 2**64 - 1)


def hum(seconds: float = 0.7) -> np.ndarray:
    """Something with pitch and pauses, at RATE_HZ."""
    t = np.arange(int(RATE_HZ * seconds)) / RATE_HZ
    return (0.3 * np.sin(2 * np.pi * 200 * t) * (np.sin(2 * np.pi * 3 * t) > 0)).astype(np.float32)


def wav_bytes(
    samples: bytes,
    rate_hz: int = RATE_HZ,
    n_channels: int = 1,
    bits: int = 16,
    tag: int = 1,
    *,
    magic: bytes = b"RIFF",
    riff_size: int | None = None,
    data_size: int | None = None,
    before: bytes = b"",
    after: bytes = b"",
    align: int | None = None,
    extensible: bool = False,
) -> bytes:
    """A wav file with any lie in it. `before` and `after` are whole chunks (see `chunk`)."""
    align = n_channels * bits // 8 if align is None else align
    order = ">" if magic == b"RIFX" else "<"
    fields = (0xFFFE if extensible else tag, n_channels, rate_hz, (rate_hz * align) & 0xFFFFFFFF, align & 0xFFFF, bits)
    fmt = struct.pack(f"{order}HHIIHH", *fields)
    if extensible:
        fmt += struct.pack("<HHIH", 22, bits, 0, tag) + b"\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    data = b"data" + struct.pack(f"{order}I", len(samples) if data_size is None else data_size) + samples
    body = b"WAVE" + chunk(b"fmt ", fmt, order) + before + data + after
    return magic + struct.pack(f"{order}I", len(body) if riff_size is None else riff_size) + body


def chunk(name: bytes, content: bytes, order: str = "<", padded: bool = True) -> bytes:
    return name + struct.pack(f"{order}I", len(content)) + content + b"\0" * (padded and len(content) % 2)


def recordings(samples: np.ndarray | None = None) -> dict[str, bytes]:
    """name → file, of all that soundfile and PyAV can write. samples: (n,) float32 at RATE_HZ."""
    samples = hum() if samples is None else samples
    files = {
        f"{container}-{subtype}".lower(): _with_soundfile(samples, container, subtype)
        for container, subtypes in _SUBTYPES.items()
        for subtype in subtypes.split()
    }
    files["flac-stereo"] = _with_soundfile(np.stack([samples, samples], axis=1), "FLAC", "PCM_16")
    files["mp3-id3"] = b"ID3\x03\0\0\0\0\x01\x00" + bytes(128) + files["mp3-mpeg_layer_iii"]
    for name, (container, codec, rate_hz) in _WITH_PYAV.items():
        files[name] = _with_pyav(samples, container, codec, rate_hz)
    return files


_SUBTYPES = {
    "WAV": "PCM_16 PCM_U8 PCM_24 FLOAT ULAW IMA_ADPCM MS_ADPCM GSM610",
    "WAVEX": "PCM_24",
    "RF64": "PCM_16",
    "W64": "PCM_16",
    "FLAC": "PCM_16 PCM_24",
    "OGG": "VORBIS OPUS",
    "MP3": "MPEG_LAYER_III",
    "AIFF": "PCM_16 FLOAT IMA_ADPCM",
    "AU": "PCM_16 ULAW",
    "CAF": "PCM_16 ALAC_16",
    "NIST": "PCM_16",
    "VOC": "PCM_16",
}

_WITH_PYAV = {  # name → container, codec, rate
    "m4a-aac": ("ipod", "aac", RATE_HZ),
    "m4a-alac": ("ipod", "alac", RATE_HZ),
    "mp4-fragmented": ("mp4", "aac", RATE_HZ),
    "webm-opus": ("webm", "libopus", 48_000),
    "mkv-mp3": ("matroska", "libmp3lame", RATE_HZ),
    "aac": ("adts", "aac", RATE_HZ),
    "wma": ("asf", "wmav2", RATE_HZ),
    "3gp": ("3gp", "aac", RATE_HZ),
    "amr": ("amr", "libopencore_amrnb", 8_000),
    "mpegts": ("mpegts", "mp2", RATE_HZ),
    "mov-pcm": ("mov", "pcm_s16le", RATE_HZ),
    "avi": ("avi", "pcm_s16le", RATE_HZ),
    "flv": ("flv", "aac", 44_100),
}


def _with_soundfile(samples: np.ndarray, container: str, subtype: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE_HZ, format=container, subtype=subtype)
    return file.getvalue()


def _with_pyav(samples: np.ndarray, container: str, codec: str, rate_hz: int) -> bytes:
    import av

    file = io.BytesIO()
    options = {"movflags": "frag_keyframe+empty_moov"} if container == "mp4" else {}
    with av.open(file, "w", format=container, container_options=options) as out:
        stream = out.add_stream(codec, rate=rate_hz, layout="mono")
        if codec == "wmav2":  # has no default
            stream.bit_rate = 32_000
        frame = av.AudioFrame.from_ndarray((samples * 32767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate = RATE_HZ
        for packet in stream.encode(frame):
            out.mux(packet)
        out.mux(stream.encode(None))
    return file.getvalue()


# --- mutations -----------------------------------------------------------------------------------------------------


def mutate(content: bytes, rng: np.random.Generator, other: bytes = b"") -> bytes:
    """The file with one or a few things wrong, half of them in its first 300 bytes, where the headers are."""
    data = bytearray(content)
    for _ in range(rng.geometric(0.5)):
        if data:
            _MUTATIONS[rng.integers(len(_MUTATIONS))](data, rng, other)
    return bytes(data)


def _place(data: bytearray, rng: np.random.Generator) -> int:
    return int(rng.integers(min(len(data), 300) if rng.random() < 0.5 else len(data)))


def _flip(data: bytearray, rng: np.random.Generator, other: bytes) -> None:
    for _ in range(rng.integers(1, 9)):
        data[_place(data, rng)] ^= 1 << int(rng.integers(8))


def _lie(data: bytearray, rng: np.random.Generator, other: bytes) -> None:
    width = int(rng.choice([1, 2, 4, 8]))
    at = _place(data, rng) // 2 * 2
    value = LIES[rng.integers(len(LIES))] & ((1 << 8 * width) - 1)
    data[at : at + width] = value.to_bytes(width, "little" if rng.random() < 0.5 else "big")


def _cut(data: bytearray, rng: np.random.Generator, other: bytes) -> None:
    del data[_place(data, rng) + 1 :]


def _remove(data: bytearray, rng: np.random.Generator, other: bytes) -> None:
    at = _place(data, rng)
    del data[at : at + int(rng.integers(1, 2_000))]


def _insert(data: bytearray, rng: np.random.Generator, other: bytes) -> None:
    at = _place(data, rng)
    data[at:at] = rng.bytes(int(rng.integers(1, 2_000)))


def _overwrite(data: bytearray, rng: np.random.Generator, other: bytes) -> None:
    at, n_bytes = _place(data, rng), int(rng.integers(1, 500))
    data[at : at + n_bytes] = bytes(n_bytes) if rng.random() < 0.5 else rng.bytes(n_bytes)


def _repeat(data: bytearray, rng: np.random.Generator, other: bytes) -> None:
    at = _place(data, rng)
    data[at:at] = data[at : at + int(rng.integers(1, 3_000))] * int(rng.integers(1, 5))


def _splice(data: bytearray, rng: np.random.Generator, other: bytes) -> None:
    at = _place(data, rng)
    data[at:] = other[int(rng.integers(len(other) + 1)) :]


def _append(data: bytearray, rng: np.random.Generator, other: bytes) -> None:
    data += rng.bytes(int(rng.integers(1, 5_000)))


_MUTATIONS = (_flip, _flip, _lie, _lie, _lie, _cut, _remove, _insert, _overwrite, _repeat, _splice, _append)

_number = st.sampled_from(LIES) | st.integers(0, 2**32 - 1)
_chunks = st.lists(
    st.builds(
        chunk,
        st.sampled_from([b"LIST", b"fact", b"JUNK", b"data", b"fmt ", b"bext", b"ds64", b"\0\1\2\3", b"zzzz"]),
        st.binary(max_size=60),
        padded=st.booleans(),
    ),
    max_size=3,
).map(b"".join)

any_wav = st.builds(
    wav_bytes,
    st.binary(max_size=3_000),
    rate_hz=st.sampled_from([8_000, 44_100]) | st.integers(1_000, 768_000) | _number.map(lambda n: n & 0xFFFFFFFF),
    n_channels=st.integers(1, 8) | _number.map(lambda n: n & 0xFFFF),
    bits=st.sampled_from([8, 12, 16, 20, 24, 32])
    | st.sampled_from([8, 16, 24, 32, 64])
    | _number.map(lambda n: n & 0xFFFF),
    tag=st.sampled_from([1, 3, 6, 7, 2, 0x11, 0x31, 0x55]) | st.integers(0, 0xFFFF),
    magic=st.sampled_from([b"RIFF", b"RIFX", b"RF64", b"BW64"]),
    riff_size=st.none() | _number.map(lambda n: n & 0xFFFFFFFF),
    data_size=st.none() | _number.map(lambda n: n & 0xFFFFFFFF),
    before=_chunks,
    after=_chunks | st.binary(max_size=50),
    align=st.none() | _number.map(lambda n: n & 0xFFFF),
    extensible=st.booleans(),
)
