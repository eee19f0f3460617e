"""Broken recordings by the thousand: each must give text or a typed error, at once and in little memory.

    python benchmarks/fuzz_audio.py [--files 20000] [--workers 1] [--seed 0] [--model NAME] [--json]
    python benchmarks/fuzz_audio.py --show 4711        # what one file does, and where it is kept

The recordings are speech (espeak-ng where it is installed) in every container that soundfile, PyAV, ffmpeg and sox
write here. Each file is one of them with one or a few things wrong in it (tests/broken_audio.py); every fourth is a wav
that hypothesis made up. Every third is read as a pipe. All go through decoding, resampling and features; every
twentieth through the recogniser with greedy search as well.

A worker is a process of its own. It is killed and counted as hung after `HANG_S` seconds of CPU time over one file (or
sixty times that by the clock, for what waits; the machine may be busy with other things), its death by a signal is a
crash (of a library: Python raises), any exception that is not an EdgeAsrError is untyped, and a file that takes more
than `MAX_FILE_MB` of memory is a bomb. Growth: a worker tries its last `AGAIN` files a second and a third time; its
resident memory after the third less that after the second. The exit code is 1 where anything of that happened.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import queue
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from edge_asr.audio import AudioFile, load_audio
from edge_asr.errors import EdgeAsrError
from edge_asr.model_files import DEFAULT_MODEL

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from broken_audio import any_wav, mutate, recordings

HANG_S = 10.0
WAITS_S = 60 * HANG_S
MAX_FILE_MB = 150.0
MAX_GROWTH_MB = 2.0
MAX_ADDRESS_SPACE = 6 << 30  # so that a claim is refused even where it would never be touched
AGAIN = 300
FILES_PER_WORKER = 2_500
TEXT = "turn the light on"


# --- the files -----------------------------------------------------------------------------------------------------


def speech(folder: Path) -> np.ndarray:
    wav = folder / "speech.wav"
    if shutil.which("espeak-ng"):
        subprocess.run(["espeak-ng", "-s", "220", "-w", wav, TEXT], check=True)
        return load_audio(wav)
    return load_audio(Path(__file__).parent.parent / "samples" / "command-lights.wav")


_FFMPEG = {  # name → arguments between input and output; with a picture where there is one in name
    "video.mp4": "-f lavfi -i color=c=red:s=64x64:d=1 -c:a aac",
    "video.mkv": "-f lavfi -i color=c=red:s=64x64:d=1 -c:a libvorbis",
    "video.webm": "-f lavfi -i color=c=red:s=64x64:d=1 -c:v libvpx -c:a libopus",
    "video.ogv": "-f lavfi -i color=c=red:s=64x64:d=1 -c:v libtheora -c:a libvorbis",
    "video.mpg": "-f lavfi -i color=c=red:s=64x64:d=1",
    "ac3.mkv": "-c:a ac3 -ac 6",
    "flac.mkv": "-c:a flac",
    "alac.m4a": "-c:a alac -ac 2",
    "vbr.mp3": "-c:a libmp3lame -q:a 5 -write_xing 0 -id3v2_version 0",
    "tags.mp3": "-c:a libmp3lame -metadata title=A -metadata artist=B -id3v2_version 4",
    "layer2.mp2": "-c:a mp2",
    "speex.ogg": "-c:a libspeex",
    "flac.ogg": "-c:a flac",
    "v1.wma": "-c:a wmav1",
    "wavpack.wv": "",
    "g726.wav": "-c:a g726 -ar 8000",
    "mp3.wav": "-c:a libmp3lame",
    "live.wav": "-f wav -",
}


def with_ffmpeg(folder: Path) -> dict[str, bytes]:
    """More containers where ffmpeg and sox are installed; what they were built without is left out."""
    files = {}
    for name, arguments in _FFMPEG.items() if shutil.which("ffmpeg") else ():
        out = [] if arguments.endswith("-") else [str(folder / name)]
        command = ["ffmpeg", "-v", "quiet", "-y", "-i", "speech.wav", *arguments.split(), *out]
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
        if done.returncode == 0:
            files[name] = (folder / name).read_bytes() if out else done.stdout
    for name in ("sox.amr-nb", "sox.gsm", "sox.sph", "sox.vox") if shutil.which("sox") else ():
        command = ["sox", "speech.wav", "-r", "8000", name]
        if subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0:
            files[name] = (folder / name).read_bytes()
    return files


def sound_recordings(folder: Path) -> list[tuple[str, bytes]]:
    """(name, content), kept in the folder, so that all workers break the same files."""
    kept = folder / "recordings"
    if not kept.is_dir():
        samples = speech(folder)
        import soundfile

        soundfile.write(folder / "speech.wav", samples, 16_000)
        made = recordings(samples) | with_ffmpeg(folder)
        kept.mkdir()
        for name, content in made.items():
            (kept / name).write_bytes(content)
    return [(path.name, path.read_bytes()) for path in sorted(kept.iterdir())]


def broken_files(folder: Path, seed: int, first: int, n_files: int) -> Iterator[tuple[int, str, bytes]]:
    """(number, what it was, content) of n_files; the same for the same seed and number."""
    sound = sound_recordings(folder)
    made_up = iter(made_up_wavs(seed + first, n_files // 4 + 1))
    for number in range(first, first + n_files):
        if number % 4 == 0 and (wav := next(made_up, None)) is not None:
            yield number, "made-up wav", wav
            continue
        rng = np.random.default_rng([seed, number])
        name, content = sound[rng.integers(len(sound))]
        yield number, name, mutate(content, rng, other=sound[rng.integers(len(sound))][1])


def made_up_wavs(seed: int, n_wavs: int) -> list[bytes]:
    import hypothesis

    found: list[bytes] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=n_wavs, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(any_wav)
    def collect(wav: bytes) -> None:
        found.append(wav)

    collect()
    return found[:n_wavs]


# --- the worker ----------------------------------------------------------------------------------------------------


class Pipe(io.RawIOBase):
    """A stream that gives what it likes and cannot be moved in."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self._file = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        return self._file.readinto(memoryview(buffer)[:4_093])


def memory_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    return 0.0


def try_file(source: Path | Pipe, recognizer: object | None) -> dict[str, object]:
    """What became of a file: the name of the typed error, or 'text'; anything else that is raised is 'untyped'."""
    from edge_asr.features import fbank

    result: dict[str, object] = {"outcome": "text", "seconds_of_audio": 0.0}
    try:
        with AudioFile(source) as audio:
            if recognizer is not None:
                for _ in recognizer.stream(audio, partials=False):
                    pass
            else:
                for block in audio:
                    fbank(block)
        result |= {"seconds_of_audio": audio.n_samples / 16_000, "damaged": audio.damage is not None}
    except EdgeAsrError as error:
        result |= {"outcome": type(error).__name__, "message": str(error)}
    except Exception as error:  # noqa: BLE001 (what is looked for)
        import traceback

        result |= {"outcome": "untyped", "message": repr(error), "traceback": traceback.format_exc()}
    return result


def work(arguments: argparse.Namespace) -> None:
    """A worker: a line before and a line after each file, so that whoever reads knows which one killed it."""
    from edge_asr import Recognizer

    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE, MAX_ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    recognizer = Recognizer(arguments.model, decoder="greedy")
    path = arguments.folder / f"broken-{os.getpid()}"
    out = os.fdopen(os.dup(1), "w", buffering=1)
    last: collections.deque[tuple[int, bytes]] = collections.deque(maxlen=AGAIN)
    for number, name, content in broken_files(arguments.folder, arguments.seed, *arguments.worker):
        if number < arguments.resume_at:
            continue
        out.write(json.dumps({"number": number, "name": name}) + "\n")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before_mb, began_s = memory_mb("VmRSS"), time.process_time()
        result = try_file(_source(number, content, path), recognizer if number % 20 == 7 else None)
        seconds = time.process_time() - began_s
        taken_mb = memory_mb("VmHWM") - before_mb
        result |= {"number": number, "seconds": seconds, "file_mb": taken_mb, "rss_mb": memory_mb("VmRSS")}
        out.write(json.dumps(result) + "\n")
        last.append((number, content))
    resident_mb = []
    for _ in range(2):
        for number, content in last:
            try_file(_source(number, content, path), recognizer if number % 20 == 7 else None)
        resident_mb.append(memory_mb("VmRSS"))
    out.write(json.dumps({"growth_mb": resident_mb[1] - resident_mb[0]}) + "\n")
    path.unlink(missing_ok=True)


def _source(number: int, content: bytes, path: Path) -> Path | Pipe:
    path.write_bytes(content)
    return Pipe(content) if number % 3 == 0 else path


# --- the watch -----------------------------------------------------------------------------------------------------


class Watch:
    """Runs one worker after the other over a range of files and notes what happened."""

    def __init__(self, arguments: argparse.Namespace, bar: tqdm) -> None:
        self._arguments, self._bar = arguments, bar
        self.results: list[dict[str, object]] = []
        self.growth_mb: list[float] = []

    def run(self, first: int, n_files: int) -> None:
        resume_at = first
        while resume_at is not None and resume_at < first + n_files:
            resume_at = self._run_worker(first, n_files, resume_at)

    def _run_worker(self, first: int, n_files: int, resume_at: int) -> int | None:
        """None when the worker came to its end, else the file to go on with."""
        command = [
            sys.executable, __file__, "--worker", str(first), str(n_files), "--resume-at", str(resume_at),
            "--folder", str(self._arguments.folder), "--seed", str(self._arguments.seed),
            "--model", self._arguments.model,
        ]  # fmt: skip
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_forward, args=(worker.stdout, lines), daemon=True).start()
        running: dict[str, object] | None = None
        hung = False
        try:
            while (line := _next_line(lines, worker.pid, has_file=running is not None)) is not None:
                if not line.startswith("{"):  # a library's own words
                    continue
                told = json.loads(line)
                if "growth_mb" in told:
                    self.growth_mb.append(told["growth_mb"])
                    continue
                if "outcome" not in told:
                    running = told
                    continue
                self._note((running or {}) | told)
                running = None
        except TimeoutError:
            hung = True
            worker.kill()
        worker.wait()
        if running is None and worker.returncode == 0:
            return None
        if running is None:
            raise RuntimeError(f"a worker left with {worker.returncode} between two files; run --worker by hand")
        outcome = "hang" if hung else f"crash (signal {-worker.returncode})"
        self._note(running | {"outcome": outcome, "seconds": HANG_S if hung else 0.0, "file_mb": 0.0})
        return running["number"] + 1

    def _note(self, result: dict[str, object]) -> None:
        if is_wrong(result):
            tqdm.write(json.dumps(result), file=sys.stderr)
        self.results.append(result)
        self._bar.update()


def _forward(pipe: io.TextIOBase, lines: queue.Queue[str | None]) -> None:
    for line in pipe:
        lines.put(line)
    lines.put(None)


def _next_line(lines: queue.Queue[str | None], process_id: int, has_file: bool) -> str | None:
    """What the worker says next, None at its end. Raises: TimeoutError when a file takes it too long."""
    began_s, began_cpu_s = time.monotonic(), _cpu_seconds(process_id)
    while True:
        with contextlib.suppress(queue.Empty):
            return lines.get(timeout=0.5)
        cpu_s, waited_s = _cpu_seconds(process_id) - began_cpu_s, time.monotonic() - began_s
        if has_file and (cpu_s > HANG_S or waited_s > WAITS_S):
            raise TimeoutError


def _cpu_seconds(process_id: int) -> float:
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fuzz(arguments: argparse.Namespace) -> dict[str, object]:
    sound = sound_recordings(arguments.folder)
    jobs: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    for first in range(0, arguments.files, FILES_PER_WORKER):
        jobs.put((first, min(FILES_PER_WORKER, arguments.files - first)))
    with tqdm(total=arguments.files, unit=" files", mininterval=5) as bar:
        watches = [Watch(arguments, bar) for _ in range(arguments.workers)]
        threads = [threading.Thread(target=_drain, args=(watch, jobs)) for watch in watches]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    results = [result for watch in watches for result in watch.results]
    if len(results) < arguments.files:
        raise RuntimeError(f"{arguments.files - len(results)} files were not tried; see the error above")
    growth_mb = [growth for watch in watches for growth in watch.growth_mb]
    return {
        "files": len(results),
        "recordings": len(sound),
        "outcomes": dict(collections.Counter(str(result["outcome"]) for result in results).most_common()),
        "texts_with_damage": sum(bool(result.get("damaged")) for result in results),
        "wrong": sum(map(is_wrong, results)),
        "slowest_s": round(max(float(result["seconds"]) for result in results), 2),
        "largest_file_mb": round(max(float(result["file_mb"]) for result in results), 1),
        "growth_mb": [round(growth, 2) for growth in growth_mb],
        "hours_of_audio": round(sum(float(result.get("seconds_of_audio", 0)) for result in results) / 3600, 2),
    }


def _drain(watch: Watch, jobs: queue.SimpleQueue[tuple[int, int]]) -> None:
    while True:
        try:
            first, n_files = jobs.get_nowait()
        except queue.Empty:
            return
        watch.run(first, n_files)


def is_wrong(result: dict[str, object]) -> bool:
    outcome = str(result["outcome"])
    return (
        outcome in ("untyped", "hang")
        or outcome.startswith("crash")
        or float(result["seconds"]) > HANG_S
        or float(result["file_mb"]) > MAX_FILE_MB
    )


def show(arguments: argparse.Namespace) -> None:
    from edge_asr import Recognizer

    first = arguments.show // FILES_PER_WORKER * FILES_PER_WORKER
    n_files = min(FILES_PER_WORKER, arguments.files - first)
    for number, name, content in broken_files(arguments.folder, arguments.seed, first, n_files):
        if number == arguments.show:
            path = arguments.folder / f"shown-{number}"
            path.write_bytes(content)
            print(f"{path}: {len(content)} bytes, was {name}", flush=True)
            print(json.dumps(try_file(Pipe(content) if number % 3 == 0 else path, None), indent=1))
            print(json.dumps(try_file(path, Recognizer(arguments.model, decoder="greedy")), indent=1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--folder", type=Path, help="where files are kept; default: a temporary folder")
    parser.add_argument("--show", type=int, metavar="NUMBER")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--resume-at", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        work(arguments)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        if arguments.folder is None:
            arguments.folder = Path(folder)
        arguments.folder.mkdir(parents=True, exist_ok=True)
        if arguments.show is not None:
            arguments.folder = Path(tempfile.mkdtemp()) if str(arguments.folder) == folder else arguments.folder
            show(arguments)
            return 0
        figures = fuzz(arguments)
    print(json.dumps(figures) if arguments.json else "\n".join(f"{key:18} {value}" for key, value in figures.items()))
    too_much = any(growth > MAX_GROWTH_MB for growth in figures["growth_mb"])
    return int(figures["wrong"] > 0 or too_much)


if __name__ == "__main__":
    sys.exit(main())
