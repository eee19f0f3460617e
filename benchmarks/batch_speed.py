"""CPU time of batch transcription beside PocketSphinx and sherpa-onnx, and where ours goes.

    pip install pocketsphinx sherpa-onnx && python benchmarks/batch_speed.py dev-clean.jsonl --limit 40

Every recogniser is a process of its own, the whole program with loading and with its bytecode, as pip leaves installed
programs; they take turns so that a noisy machine hits all. CPU time is user + system of the process and its children,
in seconds for each second of audio. `steady` leaves out what each needs before its first clip (imports, model, graph),
which a long batch hardly sees. sherpa-onnx's C++ runtime runs our own model, exported for it, with greedy search. All
read the clips from 16-bit wav files made before, the one format that all three programs take.

ours           the model's own graph, one process
ours-greedy    greedy search, one process
ours-64        greedy search, 64 files, `edge-asr transcribe` with two workers
pocketsphinx   its stock model
sherpa         greedy search, one stream after the other, one thread
sherpa-64      greedy search, 64 streams decoded together, two threads
sherpa-64-1    the same with one thread, whose CPU time no waiting for the other adds to
sherpa-2x32    two processes at once, one thread and 32 streams each
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ENGINES = ("ours", "ours-greedy", "ours-64", "pocketsphinx", "sherpa", "sherpa-64", "sherpa-64-1", "sherpa-2x32")
N_BATCH_FILES = 64
BARS = (  # ours, theirs, at most
    ("ours", "pocketsphinx", 1 / 15),
    ("ours-greedy", "pocketsphinx", 1 / 40),
    ("ours-greedy", "sherpa", 1.0),
    ("ours-64", "sherpa-64", 0.5),
    ("ours-64", "sherpa-64-1", None),
    ("ours-64", "sherpa-2x32", None),
)

# ----------------------------------------------------------------------------------------------------- the recognisers


def run_ours(paths: list[str], options: dict[str, Any], n_workers: int) -> Iterator[tuple[str, str]]:
    from edge_asr.batch import run_workers

    for result in run_workers({"chunk_ms": None, **options}, paths, n_workers):
        yield str(result.source), " ".join(segment.text for segment in result.segments)


def run_pocketsphinx(paths: list[str]) -> Iterator[tuple[str, str]]:
    import numpy as np
    from pocketsphinx import Decoder

    from edge_asr.audio import load_audio

    decoder = Decoder(loglevel="FATAL")
    for path in paths:
        samples = (np.clip(load_audio(path), -1, 1) * 32767).astype(np.int16)
        decoder.start_utt()
        decoder.process_raw(samples.tobytes(), full_utt=True)
        decoder.end_utt()
        yield path, decoder.hyp().hypstr if decoder.hyp() else ""


def run_sherpa(paths: list[str], directory: str, n_streams: int, n_threads: int) -> Iterator[tuple[str, str]]:
    import sherpa_onnx

    recognizer = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
        tokens=f"{directory}/tokens.txt", model=f"{directory}/model.int8.onnx", num_threads=n_threads
    )
    for first in range(0, len(paths), n_streams):
        batch = paths[first : first + n_streams]
        streams = [recognizer.create_stream() for _ in batch]
        for path, stream in zip(batch, streams):
            stream.accept_waveform(*read_wav(path))
            stream.input_finished()
        while ready := [stream for stream in streams if recognizer.is_ready(stream)]:
            recognizer.decode_streams(ready)
        yield from ((path, recognizer.get_result(stream)) for path, stream in zip(batch, streams))


def run_sherpa_twice(paths: list[str], directory: str) -> Iterator[tuple[str, str]]:
    """Half of the clips in a process of its own, at the same time."""
    from multiprocessing import get_context

    half = -(-len(paths) // 2)
    with get_context("fork").Pool(2) as pool:
        jobs = [(part, directory) for part in (paths[:half], paths[half:])]
        for texts in pool.starmap(sherpa_texts, jobs):
            yield from texts.items()


def sherpa_texts(paths: list[str], directory: str) -> dict[str, str]:
    return dict(run_sherpa(paths, directory, N_BATCH_FILES // 2, 1))


def read_wav(path: str) -> tuple[int, Any]:
    """Rate and samples in ±1 of a mono file, in the way that costs least."""
    import wave

    import numpy as np

    with wave.open(path) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        return file.getframerate(), samples.astype(np.float32) / 32768


def run(engine: str, paths: list[str], arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    if engine == "pocketsphinx":
        return run_pocketsphinx(paths)
    if engine == "sherpa":
        return run_sherpa(paths, arguments.sherpa, 1, 1)
    if engine == "sherpa-2x32":
        return run_sherpa_twice(paths, arguments.sherpa)
    if engine.startswith("sherpa-64"):
        return run_sherpa(paths, arguments.sherpa, N_BATCH_FILES, 1 if engine.endswith("-1") else 2)
    greedy = {} if engine == "ours" else {"decoder": "greedy"}
    return run_ours(paths, {**arguments.options, **greedy}, 2 if engine == "ours-64" else 1)


def child(arguments: argparse.Namespace, paths: list[str]) -> None:
    """One engine over the clips, in this process."""
    if arguments.child == "breakdown":
        print(json.dumps(breakdown(paths, arguments.options)))
    else:
        print(json.dumps(dict(run(arguments.child, paths, arguments))))


def command_of(engine: str, arguments: list[str], n_clips: int) -> list[str]:
    """Our batch is the command that people run; all others, and the start of each, are functions of this file."""
    if engine != "ours-64" or not n_clips:
        return [sys.executable, __file__, *arguments, "--limit", str(n_clips), "--child", engine]
    options = json.loads(arguments[arguments.index("--options") + 1])
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    paths = [str(path) for path in sorted(Path(arguments[0]).glob("*.wav"))[:n_clips]]
    command = ["-m", "edge_asr.cli", "transcribe", "--decoder", "greedy", "--workers", "2", "--quiet"]
    return [sys.executable, *command, *flags, *paths]


def measure(engine: str, arguments: list[str], n_clips: int, bytecode: str) -> tuple[float, float, str]:
    """CPU seconds of one child and its children, wall seconds, and what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = bytecode
    before = os.times()
    command = command_of(engine, arguments, n_clips)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu_s, after.elapsed - before.elapsed, done.stdout


# ------------------------------------------------------------------------------------------------------ where ours goes


class Clock:
    """CPU seconds by stage; a stage inside another counts for itself only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside_s = [0.0]

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            began = time.process_time()
            self._inside_s.append(0.0)
            try:
                return function(*arguments, **keywords)
            finally:
                took = time.process_time() - began
                self.seconds[stage] += took - self._inside_s.pop()
                self._inside_s[-1] += took

        return call

    def watch(self, owner: Any, name: str, stage: str) -> None:
        setattr(owner, name, self.timed(stage, getattr(owner, name)))


def breakdown(paths: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds of each stage over the clips, and what the encoder's session needs alone for the same shapes."""
    began = time.process_time()
    from edge_asr import batch
    from edge_asr.decoder import GraphDecoder, GreedyDecoder
    from edge_asr.features import FbankStream
    from edge_asr.recognizer import Recognizer
    from edge_asr.runtime import EncoderSession

    clock, shapes = Clock(), []

    class Read(batch.AudioFile):
        def __init__(self, *arguments: Any) -> None:
            clock.timed("input", super().__init__)(*arguments)

        def __iter__(self) -> Iterator[Any]:
            blocks = super().__iter__()
            following = clock.timed("input", lambda: next(blocks, None))
            while (block := following()) is not None:
                yield block

    batch.AudioFile = Read
    recognizer = Recognizer(**{"chunk_ms": None, **options})
    start_s = time.process_time() - began
    step = recognizer.session.step
    recognizer.session.step = lambda x, states: (shapes.append(x.shape), step(x, states))[1]
    clock.watch(recognizer, "encode", "encoder")
    for name in ("accept", "flush"):
        clock.watch(FbankStream, name, "features")
    for decoder in (GraphDecoder, GreedyDecoder):
        for name in ("accept", "finish"):
            clock.watch(decoder, name, "search")
    began = time.process_time()
    audio_s = sum(result.duration_s for result in batch.transcribe_files(recognizer, paths))
    total_s = time.process_time() - began
    stages = {stage: clock.seconds[stage] for stage in ("input", "features", "encoder", "search")}
    stages["other Python"] = total_s - sum(stages.values())
    alone_s = session_alone(EncoderSession(recognizer.session.path), shapes)
    return {"audio_s": audio_s, "start_s": start_s, "stages_s": stages, "session_alone_s": alone_s}


def session_alone(session: Any, shapes: list[tuple[int, ...]]) -> float:
    """CPU seconds of onnxruntime for chunks of these shapes, inputs and outputs bound before."""
    import numpy as np

    total_s = 0.0
    for shape in sorted(set(shapes)):
        binding = session._session.io_binding()
        arrays = [np.random.default_rng(0).normal(-8, 3, shape).astype(np.float32), *session.initial_states(shape[0])]
        for name, array in zip(session._input_names, arrays):
            binding.bind_cpu_input(name, array)
        for name in session._output_names:
            binding.bind_output(name)
        session._session.run_with_iobinding(binding)
        n_runs = max(3, shapes.count(shape))
        began = time.process_time()
        for _ in range(n_runs):
            session._session.run_with_iobinding(binding)
        total_s += (time.process_time() - began) * shapes.count(shape) / n_runs
    return total_s


def show_breakdown(found: dict[str, Any]) -> None:
    stages, audio_s = found["stages_s"], found["audio_s"]
    total_s = sum(stages.values())
    print(f"\nwhere ours goes, after {found['start_s']:.2f} s to start   ms for each s of audio      %")
    for stage, seconds in stages.items():
        print(f"  {stage:44}{1000 * seconds / audio_s:20.2f}{100 * seconds / total_s:11.1f}")
    share = (stages["encoder"] + stages["search"]) / total_s
    print(f"encoder and search: {100 * share:.0f} % of CPU time (bar: 80)")
    ratio = stages["encoder"] / found["session_alone_s"]
    print(f"encoder with Python around it: {ratio:.2f} × its session alone (bar: 2)")


# ----------------------------------------------------------------------------------------------------------- the report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--limit", type=int, default=40, help="clips")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--options", type=json.loads, default={}, help="JSON keywords for Recognizer")
    parser.add_argument("--skip", nargs="*", default=[], help="engines to leave out")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--sherpa", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    from edge_asr.data import read_manifest

    if arguments.child:
        paths = sorted(arguments.manifest.glob("*.wav"))[: arguments.limit]
        child(arguments, [str(path) for path in paths])
        return
    clips = read_manifest(arguments.manifest)[: max(arguments.limit, N_BATCH_FILES)]
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as bytecode:
        as_wav(clips, Path(folder))
        passed = [folder, "--options", json.dumps(arguments.options)]
        if any(engine.startswith("sherpa") for engine in ENGINES if engine not in arguments.skip):
            export(arguments.options.get("model"), folder)
            passed += ["--sherpa", folder]
        compare(arguments, clips, passed, bytecode)


def as_wav(clips: list[Any], directory: Path) -> None:
    """Clip n as n.wav, in the order of their names."""
    import soundfile

    from edge_asr.audio import SAMPLE_RATE, load_audio

    for number, clip in enumerate(clips):
        soundfile.write(directory / f"{number:06}.wav", load_audio(clip.audio_filepath), SAMPLE_RATE, "PCM_16")


def export(model: str | None, directory: str) -> None:
    from edge_asr.model_files import DEFAULT_MODEL, find_model

    source = find_model(DEFAULT_MODEL if model is None else model)
    command = [sys.executable, "-m", "edge_asr.cli", "export", "--target", "sherpa-onnx", str(source), directory]
    subprocess.run(command, check=True, stdout=sys.stderr)


def compare(arguments: argparse.Namespace, clips: list[Any], passed: list[str], bytecode: str) -> None:
    engines = [engine for engine in ENGINES if engine not in arguments.skip]
    clips_of = {engine: clips[: N_BATCH_FILES if "-64" in engine or "x32" in engine else arguments.limit]
                for engine in engines}  # fmt: skip
    audio_s = {engine: sum(clip.duration for clip in heard) for engine, heard in clips_of.items()}
    whole, steady, wall, report = defaultdict(list), defaultdict(list), defaultdict(list), {}
    for engine in engines:  # compiles what it imports
        measure(engine, passed, 1, bytecode)
    for _ in range(arguments.rounds):
        for engine, heard in clips_of.items():
            start_s, _, _ = measure(engine, passed, 0, bytecode)
            cpu_s, wall_s, printed = measure(engine, passed, len(heard), bytecode)
            whole[engine].append(cpu_s / audio_s[engine])
            steady[engine].append((cpu_s - start_s) / audio_s[engine])
            wall[engine].append(wall_s)
            report[engine] = {"clips": len(heard), "audio_s": round(audio_s[engine], 1)}
            if engine in ("ours", "pocketsphinx"):  # greedy search gives phones
                report[engine]["wer"] = wer(heard, json.loads(printed.splitlines()[-1]))
    print(f"{'engine':14}{'clips':>7}{'CPU ms/s':>11}{'steady':>9}{'wall s':>9}{'WER':>8}")
    for engine, row in report.items():
        row["cpu_s_per_s"] = round(statistics.median(whole[engine]), 6)
        row["steady_cpu_s_per_s"] = round(statistics.median(steady[engine]), 6)
        row["wall_s"] = round(statistics.median(wall[engine]), 3)
        cells = 1000 * row["cpu_s_per_s"], 1000 * row["steady_cpu_s_per_s"], row["wall_s"], str(row.get("wer", ""))
        print(f"{engine:14}{row['clips']:7}{cells[0]:11.2f}{cells[1]:9.2f}{cells[2]:9.2f}{cells[3]:>8}")
    ratios = {}
    for ours, theirs, bar in BARS:
        if ours in report and theirs in report:
            pairs = [
                statistics.median(a / b for a, b in zip(s[ours], s[theirs], strict=True)) for s in (whole, steady, wall)
            ]
            told = "" if bar is None else f" (bar: {bar:.3f})"
            ratios[f"{ours} / {theirs}"] = {**dict(zip(("whole", "steady", "wall"), pairs)), "bar": bar}
            print(f"{ours} / {theirs}: {pairs[0]:.3f} whole, {pairs[1]:.3f} steady, {pairs[2]:.3f} wall time{told}")
    found = json.loads(measure("breakdown", passed, arguments.limit, bytecode)[2].splitlines()[-1])
    show_breakdown(found)
    if arguments.json:
        report = {"manifest": arguments.manifest.name, "engines": report, "ratios": ratios, "breakdown": found}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def wer(clips: list[Any], texts: dict[str, str]) -> float:
    """texts: by path, whose order is that of the clips."""
    from edge_asr.metrics import ErrorCounts, word_errors

    said = [text for _, text in sorted(texts.items())]
    return round(sum((word_errors(c.text, text) for c, text in zip(clips, said)), ErrorCounts()).percent, 2)


if __name__ == "__main__":
    main()
