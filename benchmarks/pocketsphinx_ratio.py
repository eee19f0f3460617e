"""CPU time and word error rate beside PocketSphinx's stock model, on the same clips in the same run.

    pip install pocketsphinx && python benchmarks/pocketsphinx_ratio.py dev-clean.jsonl --limit 60

Each recogniser is a process of its own, whole program with loading; they take turns so that a noisy machine hits both.
CPU time is user + system of the finished process. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

OURS, THEIRS = "edge_asr", "pocketsphinx"


def transcribe(engine: str, manifest: Path, limit: int, options: dict[str, str]) -> None:
    """The child: recognise the clips and print one hypothesis a line."""
    from edge_asr.data import read_manifest

    clips = read_manifest(manifest)[:limit]
    if engine == OURS:
        from edge_asr import Recognizer

        recognizer = Recognizer(**options)
        for clip in clips:
            print(" ".join(segment.text for segment in recognizer.transcribe(clip.audio_filepath)))
        return
    import numpy as np
    from pocketsphinx import Decoder

    from edge_asr.audio import load_audio

    decoder = Decoder(loglevel="FATAL")
    for clip in clips:
        samples = (np.clip(load_audio(clip.audio_filepath), -1, 1) * 32767).astype(np.int16)
        decoder.start_utt()
        decoder.process_raw(samples.tobytes(), full_utt=True)
        decoder.end_utt()
        print(decoder.hyp().hypstr if decoder.hyp() else "")


def measure(engine: str, arguments: list[str]) -> tuple[float, list[str]]:
    """CPU seconds of one child and its hypotheses."""
    before = os.times()
    command = [sys.executable, __file__, *arguments, "--child", engine]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    after = os.times()
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return cpu_s, done.stdout.split("\n")[:-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--limit", type=int, default=60, help="clips")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--options", type=json.loads, default={}, help="JSON keywords for Recognizer")
    parser.add_argument("--child", choices=(OURS, THEIRS))
    arguments = parser.parse_args()
    if arguments.child:
        transcribe(arguments.child, arguments.manifest, arguments.limit, arguments.options)
        return

    from edge_asr.data import read_manifest
    from edge_asr.metrics import ErrorCounts, word_errors

    clips = read_manifest(arguments.manifest)[: arguments.limit]
    audio_s = sum(clip.duration for clip in clips)
    cpu = {OURS: [], THEIRS: []}
    report = {"manifest": arguments.manifest.name, "clips": len(clips), "audio_s": round(audio_s, 1)}
    for _ in range(arguments.rounds):
        for engine in cpu:
            seconds, hypotheses = measure(engine, sys.argv[1:])
            cpu[engine].append(seconds)
            errors = sum((word_errors(c.text, h) for c, h in zip(clips, hypotheses, strict=True)), ErrorCounts())
            report[engine] = {"wer": round(errors.percent, 2)}
    for engine, seconds in cpu.items():
        report[engine]["cpu_s_per_audio_s"] = round(statistics.median(seconds) / audio_s, 5)
    report["cpu_ratio"] = round(statistics.median(a / b for a, b in zip(cpu[OURS], cpu[THEIRS])), 4)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
