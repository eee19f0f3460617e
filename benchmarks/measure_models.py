"""Measure the shipped models: word errors, cost, memory, speed -> models/NAME/results.json, and the cards.

    python benchmarks/measure_models.py SPEECH_DIR [--models tcn-small …] [--quick]

SPEECH_DIR holds dev-clean.jsonl, dev-accent.jsonl, dev-commands.jsonl and dev-digits.jsonl. What was measured before
with the same encoder, graph, settings and clips is kept, so a killed run goes on where it stopped; `--again` measures
all anew. `--quick` takes every fourth clip where chunk sizes and long recordings are compared. Every figure carries
the date, the machine, its load and the command. `edge-asr compare` shows them.

A clip whose emissions are the same bits in two settings has the same text in both, so it is searched once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import model_card
import numpy as np
import onnx
from measure_cost import cost_of, influence_of
from measure_speed import measure_speed
from measure_training import measure_training
from rapidfuzz.distance import Levenshtein
from tqdm import tqdm

from edge_asr.audio import load_audio
from edge_asr.data import Clip, read_manifest
from edge_asr.features import fbank
from edge_asr.machine import stamp
from edge_asr.measured import identity
from edge_asr.metrics import ErrorCounts, normalise, word_errors
from edge_asr.model_files import ENCODER_FILES, fingerprint, read_config, seal
from edge_asr.recognizer import Recognizer
from edge_asr.runtime import EncoderSession, EncoderStream, advance

ROOT = Path(__file__).parent.parent
SCHEMA = 1
CHUNKS_MS = (80, 160, 320, 640)
QUICK_EVERY = 4
N_WORST_WORDS = 12
GROUP = 4  # feature frames of one vector


@dataclass(frozen=True)
class Row:
    """One set under one setting; `every` takes each so many-th clip, `joined` keeps the encoder's state over the clips
    of a speaker, as in one long recording, while the search still begins anew with each clip."""

    dev_set: str
    chunk_ms: int = 320
    precision: str = "int8"
    graph: str = ""  # a folder beside the model's own
    grammar: str = ""  # a file of samples/grammars
    joined: bool = False
    every: int = 1


ROWS = {
    "dev-clean": Row("dev-clean"),
    "dev-clean fp32": Row("dev-clean", precision="fp32"),
    **{f"dev-clean {ms} ms": Row("dev-clean", chunk_ms=ms) for ms in CHUNKS_MS if ms != 320},
    "dev-clean long recordings": Row("dev-clean", joined=True),
    "dev-accent": Row("dev-accent"),
    "dev-commands": Row("dev-commands"),
    "dev-digits": Row("dev-digits"),
    "dev-clean device graph": Row("dev-clean", graph="device"),
    "dev-commands with grammar": Row("dev-commands", grammar="commands"),
    "dev-digits with grammar": Row("dev-digits", grammar="digits"),
}  # rows of one graph stand together: it is loaded once
COMPARED = [name for name, row in ROWS.items() if row.joined or row.chunk_ms != 320]  # thinned by --quick


class Measured:
    """The results of one model: kept on disk after every figure, and never measured twice under the same key."""

    def __init__(self, model: Path, command: str, again: bool) -> None:
        self.path = model / "results.json"
        self.again, self.stamp = again, stamp(command)
        found = json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}
        self.data: dict[str, Any] = found if found.get("schema") == SCHEMA else {"schema": SCHEMA, "model": model.name}

    def keep(self, section: str, name: str, keys: list[dict[str, Any]], measure: Callable[[], dict[str, Any]]) -> None:
        """Measure `name` of a section under the first key, unless that was done under one of the keys."""
        digests = [hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16] for key in keys]
        rows = self.data.setdefault(section, {})
        if not self.again and rows.get(name, {}).get("key") in digests:
            return
        rows[name] = {**measure(), "key": digests[0], "measured": self.stamp}
        self.save()

    def save(self) -> None:
        self.path.write_text(dump(self.data), encoding="utf-8")


def dump(data: dict[str, Any]) -> str:
    """JSON for people and for diffs: one line for each row, not one for each number."""
    parts = []
    for name, section in data.items():
        if isinstance(section, dict):
            rows = ",\n".join(f"  {json.dumps(key)}: {json.dumps(row)}" for key, row in section.items())
            parts.append(f" {json.dumps(name)}: {{\n{rows}\n }}")
        else:
            parts.append(f" {json.dumps(name)}: {json.dumps(section)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


class Bench:
    """Clips, emissions and texts of one model; each is computed when first asked for."""

    def __init__(self, model: Path, speech: Path) -> None:
        self.model, self.speech = model, speech
        self.config = read_config(model)
        self.sessions: dict[str, EncoderSession] = {}
        self.clips: dict[str, list[Clip]] = {}
        self.frames: dict[str, list[np.ndarray]] = {}
        self.emissions: dict[Row, list[np.ndarray]] = {}
        self.texts: dict[tuple[str, ...], str] = {}
        self.recognizers: dict[tuple[str, ...], Recognizer] = {}

    def key(self, row: Row) -> dict[str, Any]:
        """All that the figures of a row depend on."""
        grammar = ROOT / "samples" / "grammars" / f"{row.grammar}.txt"
        return {
            "row": asdict(row),
            "encoder": encoder_digest(self.model / ENCODER_FILES[row.precision]),
            "graph": fingerprint(grammar) if row.grammar else fingerprint(self.graph(row) / "graph.fst"),
            "decoder": self.config.get("decoder", {}),
            "manifest": fingerprint(self.speech / f"{row.dev_set}.jsonl"),
        }

    def graph(self, row: Row) -> Path:
        own = self.model / self.config["graph"]
        return own.parent / row.graph if row.graph else own

    def session(self, precision: str) -> EncoderSession:
        if precision not in self.sessions:
            self.sessions[precision] = EncoderSession(self.model / ENCODER_FILES[precision])
        return self.sessions[precision]

    def load(self, dev_set: str) -> tuple[list[Clip], list[np.ndarray]]:
        """Clips and features of a set."""
        if dev_set not in self.clips:
            self.clips[dev_set] = read_manifest(self.speech / f"{dev_set}.jsonl")
            self.frames[dev_set] = [fbank(load_audio(clip.audio_filepath)) for clip in self.clips[dev_set]]
        return self.clips[dev_set], self.frames[dev_set]

    def encode(self, row: Row) -> list[np.ndarray]:
        """Emissions (U, V) of the chosen clips, streamed in the row's chunks."""
        same = Row(row.dev_set, row.chunk_ms, row.precision, joined=row.joined, every=row.every)
        if same not in self.emissions:
            clips, frames = self.load(row.dev_set)
            session, chunk = self.session(row.precision), row.chunk_ms // 10
            if row.joined:
                self.emissions[same] = joined_emissions(session, clips, frames, chunk)[:: row.every]
            else:
                self.emissions[same] = [emissions_of(session, f, chunk) for f in frames[:: row.every]]
        return self.emissions[same]

    def figures(self, row: Row) -> dict[str, Any]:
        """Word errors of a row, by clip and by speaker, and what was misheard most."""
        emissions, clips = self.encode(row), self.load(row.dev_set)[0][:: row.every]
        base = self.encode(Row(row.dev_set, precision=row.precision, every=row.every))
        recognizer = self.recognizer(row)
        setting = (row.dev_set, row.graph, row.grammar)
        texts = [self.text(recognizer, setting, e) for e in tqdm(emissions, unit="clip", disable=None, leave=False)]
        counts = [word_errors(clip.text, text) for clip, text in zip(clips, texts, strict=True)]
        total = sum(counts, ErrorCounts())
        return {
            **asdict(row),
            "clips": len(clips),
            "words": total.n_reference,
            "wer": round(total.percent, 3),
            "substitutions": total.n_substitutions,
            "insertions": total.n_insertions,
            "deletions": total.n_deletions,
            "exact_percent": round(100 * sum(c.n_errors == 0 for c in counts) / len(clips), 2),
            "measured_with": identity(self.model, self.config, row.graph, row.grammar),
            "same_emissions_as_320_ms": sum(np.array_equal(a, b) for a, b in zip(emissions, base, strict=True)),
            "speakers": by_speaker(clips, counts),
            "worst_words": worst_words(clips, texts),
            "clip_errors": [c.n_errors for c in counts],
            "clip_words": [c.n_reference for c in counts],
            "clip_s": [round(clip.duration, 2) for clip in clips],
            "clip_begins_s": begins_s(self.load(row.dev_set)[0])[:: row.every],
        }

    def recognizer(self, row: Row) -> Recognizer:
        """For its search alone, so that one serves both precisions; the last one is kept, for a graph takes memory."""
        key = (row.graph, row.grammar)
        if key not in self.recognizers:
            self.recognizers = {
                key: Recognizer(
                    self.model,
                    graph=self.graph(row) if row.graph else None,
                    grammar=ROOT / "samples" / "grammars" / f"{row.grammar}.txt" if row.grammar else None,
                )
            }
        return self.recognizers[key]

    def text(self, recognizer: Recognizer, setting: tuple[str, ...], emissions: np.ndarray) -> str:
        """What the recognizer makes of emissions, with its endpoints; the same bits are searched once."""
        key = (*setting, hashlib.sha256(emissions.tobytes()).hexdigest())
        if key not in self.texts:
            stream = recognizer.create_stream()
            stream.give(emissions)
            stream.input_finished()
            self.texts[key] = " ".join(segment.text for segment in recognizer.finals(stream))
        return self.texts[key]


def emissions_of(session: EncoderSession, frames: np.ndarray, chunk_frames: int) -> np.ndarray:
    """(U, V) of one clip, streamed from the zero state."""
    stream, out = EncoderStream(session, chunk_frames), [np.zeros((0, session.n_tokens), np.float32)]
    stream.accept(frames)
    stream.finish()
    while stream.n_ready_frames:
        out += advance(session, [stream])
    return np.concatenate(out)


def joined_emissions(
    session: EncoderSession, clips: list[Clip], frames: list[np.ndarray], chunk_frames: int
) -> list[np.ndarray]:
    """Emissions of each clip, all clips of a speaker streamed as one recording without a reset in between."""
    out: list[np.ndarray] = [np.empty(0)] * len(clips)
    for speaker in dict.fromkeys(clip.speaker for clip in clips):
        mine = [i for i, clip in enumerate(clips) if clip.speaker == speaker]
        whole = [np.pad(frames[i], ((0, -len(frames[i]) % GROUP), (0, 0)), mode="edge") for i in mine]
        emissions = emissions_of(session, np.concatenate(whole), chunk_frames)
        ends = np.cumsum([len(f) // GROUP for f in whole])
        for i, part in zip(mine, np.split(emissions, ends[:-1]), strict=True):
            out[i] = part
    return out


def begins_s(clips: list[Clip]) -> list[float]:
    """Where each clip would begin in a recording of all its speaker's clips."""
    ends: dict[str, float] = {}
    begins = []
    for clip in clips:
        begins.append(round(ends.get(clip.speaker, 0.0), 1))
        ends[clip.speaker] = ends.get(clip.speaker, 0.0) + clip.duration
    return begins


def by_speaker(clips: list[Clip], counts: list[ErrorCounts]) -> dict[str, list[int]]:
    """Speaker -> [clips, words, errors]."""
    rows: dict[str, list[int]] = {}
    for clip, count in zip(clips, counts, strict=True):
        row = rows.setdefault(clip.speaker, [0, 0, 0])
        row[0], row[1], row[2] = row[0] + 1, row[1] + count.n_reference, row[2] + count.n_errors
    return rows


def worst_words(clips: list[Clip], texts: list[str]) -> list[list[Any]]:
    """[word, times said, times misheard] of the words that were misheard most often."""
    said: dict[str, int] = {}
    missed: dict[str, int] = {}
    for clip, text in zip(clips, texts, strict=True):
        reference, heard = normalise(clip.text).split(), normalise(text).split()
        for word in reference:
            said[word] = said.get(word, 0) + 1
        for edit in Levenshtein.editops(reference, heard):
            if edit.tag != "insert":
                missed[reference[edit.src_pos]] = missed.get(reference[edit.src_pos], 0) + 1
    worst = sorted(missed, key=lambda word: (-missed[word], word))[:N_WORST_WORDS]
    return [[word, said[word], missed[word]] for word in worst]


def encoder_digest(path: Path) -> str:
    """Of the network alone: the error rates written into the file's metadata change nothing that is measured."""
    return hashlib.sha256(onnx.load(path).graph.SerializeToString(deterministic=True)).hexdigest()[:16]


def measure(model: Path, speech: Path, results: Measured, quick: bool) -> None:
    """All figures of one model but its speed, which is measured beside its peers."""
    bench = Bench(model, speech)
    for name, row in ROWS.items():
        if not bench.graph(row).is_dir():
            continue
        thinned = replace(row, every=QUICK_EVERY) if quick and name in COMPARED else row
        results.keep("rows", name, [bench.key(thinned), bench.key(row)], lambda row=thinned: bench.figures(row))
        done = results.data["rows"][name]
        print(f"{model.name}  {name}: {done['wer']:.2f} % of {done['words']} words", flush=True)
    for precision in ENCODER_FILES:
        digest = encoder_digest(model / ENCODER_FILES[precision])
        for chunk_ms in CHUNKS_MS:
            key = {"encoder": digest, "chunk_ms": chunk_ms}
            results.keep(
                "cost", f"{precision} {chunk_ms} ms", [key], lambda p=precision, c=chunk_ms: cost_of(model, p, c)
            )
    key = {
        "encoder": encoder_digest(model / ENCODER_FILES["fp32"]),
        "manifest": bench.key(Row("dev-clean"))["manifest"],
    }
    results.keep("memory", "influence", [key], lambda: influence_of(bench.session("fp32"), *bench.load("dev-clean")))


def write_wer(model: Path, results: dict[str, Any]) -> None:
    """Put the measured error rates into both encoder files, so that each says on its own what it can do."""
    for name in ENCODER_FILES.values():
        encoder = onnx.load(model / name)
        for entry in encoder.metadata_props:
            if entry.key == "wer":
                entry.value = json.dumps({k: row["wer"] for k, row in results["rows"].items()})
        onnx.save(encoder, model / name)
    seal(model)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path, help="folder with the dev manifests")
    parser.add_argument("--folder", type=Path, default=ROOT / "models")
    parser.add_argument("--models", nargs="+", help="default: all of the folder")
    parser.add_argument("--quick", action="store_true", help="every fourth clip for chunk sizes and long recordings")
    parser.add_argument("--again", action="store_true", help="measure also what is known")
    parser.add_argument("--speed-clips", type=int, default=12, help="of dev-clean, for the speeds; 0: no speeds")
    arguments = parser.parse_args(argv)
    given = (("--models", *arguments.models) if arguments.models else ()) + (("--quick",) if arguments.quick else ())
    command = " ".join(("python benchmarks/measure_models.py SPEECH_DIR", *given))
    names = arguments.models or sorted(f.parent.name for f in arguments.folder.glob("*/encoder.int8.onnx"))
    all_results = {name: Measured(arguments.folder / name, command, arguments.again) for name in names}
    for name, results in all_results.items():
        measure(arguments.folder / name, arguments.speech, results, arguments.quick)
    if arguments.speed_clips:
        clips = read_manifest(arguments.speech / "dev-clean.jsonl")[:: max(1, 268 // arguments.speed_clips)]
        speeds = measure_speed([arguments.folder / n for n in names], clips[: arguments.speed_clips], CHUNKS_MS)
        trainings = measure_training([arguments.folder / n for n in names])
        for name, results in all_results.items():
            taken = {"run": speeds[name], "training": trainings.get(name)}
            results.data["speed"] = {part: {**t, "measured": results.stamp} for part, t in taken.items() if t}
            results.save()
    for name, results in all_results.items():
        write_wer(arguments.folder / name, results.data)
        model_card.write(arguments.folder / name)


if __name__ == "__main__":
    sys.exit(main())
