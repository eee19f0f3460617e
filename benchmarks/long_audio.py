"""Ten hours of sound in flat memory, made while they are read and never stored.

    python benchmarks/long_audio.py [--hours 10] [--recognise-hours 0.5] [--model NAME] [--json]

`pipe`: another process writes speech and pauses as a wav of unknown length into a pipe; `sparse`: a wav file of that
length whose samples are a hole in the file; `flac`, `mp3`, `m4a`: a sentence a minute, in a file that is deleted at the
end. All are decoded and resampled. `recognised`: the pipe again through the recogniser with greedy search, for
`--recognise-hours`. Each runs in a process of its own. Growth is its largest resident set less that after its first
minute of sound; CPU seconds are its own.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile

from edge_asr.audio import SAMPLE_RATE, AudioFile, load_audio
from edge_asr.audio_parts import find_mpeg_frames, mpeg_frame_bytes
from edge_asr.model_files import DEFAULT_MODEL

CLIP = Path(__file__).parent.parent / "samples" / "sentence-river.wav"
MINUTE = 60 * SAMPLE_RATE
RATE_HZ = 44_100


def minutes(hours: float) -> Iterator[np.ndarray]:
    """int16 at 16 kHz, a sentence in each minute."""
    minute = np.zeros(MINUTE, "<i2")
    clip = (load_audio(CLIP) * 32_767).astype("<i2")
    minute[: len(clip)] = clip
    for _ in range(round(hours * 60)):
        yield minute


def wav_header(rate_hz: int, data_bytes: int) -> bytes:
    fmt = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16)
    return b"RIFF\xff\xff\xff\xffWAVE" + fmt + struct.pack("<4sI", b"data", data_bytes)


def write_pipe(descriptor: int, hours: float) -> None:
    with open(descriptor, "wb") as out:
        out.write(wav_header(SAMPLE_RATE, 0xFFFFFFFF))
        for minute in minutes(hours):
            out.write(minute.tobytes())


def write_sparse(path: Path, hours: float) -> None:
    n_bytes = 2 * round(hours * 3600) * RATE_HZ
    with path.open("wb") as file:
        file.write(wav_header(RATE_HZ, n_bytes))
        file.truncate(file.tell() + n_bytes)


def write_flac(path: Path, hours: float) -> None:
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1) as file:
        for minute in minutes(hours):
            file.write(minute)


def write_mp3(path: Path, hours: float) -> None:
    """One minute's frames again and again, without the header that counts them: a recorded broadcast."""
    file = io.BytesIO()
    soundfile.write(file, next(minutes(1)), SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III")
    mp3 = file.getvalue()
    header = find_mpeg_frames(mp3)
    frames = mp3[header + mpeg_frame_bytes(mp3[header : header + 6]) :]
    with path.open("wb") as out:
        for _ in range(round(hours * 60)):
            out.write(frames)


def write_m4a(path: Path, hours: float) -> None:
    """One minute's packets again and again."""
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(next(minutes(1))[None], "s16", "mono")
        frame.sample_rate = SAMPLE_RATE
        packets = [bytes(packet) for packet in (*stream.encode(frame), *stream.encode(None))]
        for number in range(round(hours * 60) * len(packets)):
            packet = av.Packet(packets[number % len(packets)])
            packet.stream, packet.pts, packet.dts = stream, number * 1024, number * 1024
            packet.duration, packet.time_base = 1024, Fraction(1, SAMPLE_RATE)
            out.mux(packet)


WRITERS = {"sparse": write_sparse, "flac": write_flac, "mp3": write_mp3, "m4a": write_m4a}


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def read(kind: str, hours: float, folder: str, model: str, answer: multiprocessing.Queue) -> None:
    writer = None
    if kind in ("pipe", "recognised"):
        reading, writing = os.pipe()
        writer = multiprocessing.get_context("fork").Process(target=write_pipe, args=(writing, hours))
        writer.start()
        os.close(writing)
        source = open(reading, "rb", buffering=0)  # noqa: SIM115 (closed with the process)
    else:
        source = Path(folder) / f"long.{'wav' if kind == 'sparse' else kind}"
        WRITERS[kind](source, hours)
    began_cpu_s, first_mb, most_mb, n_segments = time.process_time(), 0.0, 0.0, 0
    with AudioFile(source) as audio:

        def watched() -> Iterator[np.ndarray]:
            nonlocal first_mb, most_mb
            for block in audio:
                yield block
                if audio.n_samples > MINUTE:
                    now_mb = rss_mb()
                    first_mb = first_mb or now_mb
                    most_mb = max(most_mb, now_mb)

        if kind == "recognised":
            from edge_asr import Recognizer

            n_segments = sum(1 for _ in Recognizer(model, decoder="greedy").stream(watched(), partials=False))
        else:
            for _ in watched():
                pass
    cpu_s = time.process_time() - began_cpu_s
    if writer is not None:
        writer.join()
    answer.put({
        "hours": round(audio.n_samples / SAMPLE_RATE / 3600, 3), "growth_mb": round(most_mb - first_mb, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "cpu_s_per_hour": round(cpu_s / max(hours, 1e-9), 2), "damage": audio.damage, "segments": n_segments,
    })  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=10)
    parser.add_argument("--recognise-hours", type=float, default=0.5)
    parser.add_argument("--kinds", default="pipe,sparse,flac,mp3,m4a,recognised")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    spawn, figures = multiprocessing.get_context("spawn"), {}
    for kind in arguments.kinds.split(","):
        hours = arguments.recognise_hours if kind == "recognised" else arguments.hours
        with tempfile.TemporaryDirectory() as folder:
            answer = spawn.Queue()
            process = spawn.Process(target=read, args=(kind, hours, folder, arguments.model, answer))
            process.start()
            figures[kind] = answer.get()
            process.join()
        if not arguments.json:
            print(kind, figures[kind], flush=True)
    if arguments.json:
        print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
