"""Does sherpa-onnx say what we say? Tokens and words of exported models, clip by clip, in both runtimes.

    python -m venv sherpa-1.13.4 && sherpa-1.13.4/bin/pip install numpy sherpa-onnx==1.13.4     # for each release
    python benchmarks/sherpa_agreement.py --manifest dev-clean.jsonl --limit 30 --json agreement.json \\
        --python sherpa-1.13.4/bin/python sherpa-2.0.1/bin/python

exports every shipped model (or those of `--model`) to a temporary folder, runs it in each release of sherpa-onnx,
greedy in int8 and fp32 and with the decoding graph in int8, and prints a table. Ends with 1 where a bar is missed.

same    clips whose tokens (words) are equal when both hear the clip and the silence that sherpa-onnx needs, and both
        take the features of kaldi-native-fbank; with greedy search all must be
alone   the same when ours hears the clip alone, pads by itself and takes its own features, as its users have it
differ  percent of tokens (words) that differ in `same` and in `alone`: edits from ours to sherpa-onnx's
batch   clips whose tokens in sherpa-onnx are the same in batches of eight streams as one by one; all must be
WER     of ours in `same`, in `alone`, and of sherpa-onnx; with the graph the first and the last must lie within 0.5
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

RATE_HZ = 16_000
BATCH = 8
PIECE = RATE_HZ // 10  # samples for each accept_waveform
MODEL_FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
RUNS = {"greedy": ("int8", "fp32"), "graph": ("int8",)}
MOST_WER_APART = 0.5
SHIPPED = Path(__file__).parent.parent / "models"


# --- sherpa-onnx, in an interpreter of its own: needs nothing but sherpa_onnx and numpy -----------------------------


def worker(directory: Path, model: str, max_active: int, audio: Path) -> None:
    """Recognise every .npy of a folder, one by one and in batches; one JSON object on stdout."""
    import sherpa_onnx

    options = {"ctc_graph": str(directory / "graph.fst"), "ctc_max_active": max_active} if max_active else {}
    recognizer = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
        tokens=str(directory / "tokens.txt"), model=str(directory / model), num_threads=1, **options
    )
    clips = [np.load(path) for path in sorted(audio.glob("*.npy"))]
    single = [_recognise(recognizer, [clip])[0] for clip in clips]
    batched = [result for i in range(0, len(clips), BATCH) for result in _recognise(recognizer, clips[i : i + BATCH])]
    version = getattr(sherpa_onnx, "version", None) or sherpa_onnx.__version__
    print(json.dumps({"version": str(version), "single": single, "batched": batched}))


def _recognise(recognizer: Any, clips: list[np.ndarray]) -> list[dict[str, Any]]:
    """Streams fed in small pieces, all that are ready decoded together."""
    streams = [recognizer.create_stream() for _ in clips]
    for first in range(0, max(map(len, clips)), PIECE):
        for stream, clip in zip(streams, clips):
            if first < len(clip):
                stream.accept_waveform(RATE_HZ, clip[first : first + PIECE])
            if len(clip) <= first + PIECE and len(clip) > first:
                stream.input_finished()
        while ready := [stream for stream in streams if recognizer.is_ready(stream)]:
            recognizer.decode_streams(ready)
    results = [recognizer.get_result_all(stream) for stream in streams]
    return [{"tokens": list(result.tokens), "words": list(result.words)} for result in results]


def run_worker(python: str, directory: Path, report: dict[str, Any], precision: str, decoder: str, audio: Path) -> Any:
    max_active = report["max_active"] if decoder == "graph" else 0
    command = [python, __file__, "--worker", str(directory), MODEL_FILES[precision], str(max_active), str(audio)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# --- ours, and the comparison ---------------------------------------------------------------------------------------


def compare_model(model: Path, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each set of clips, search, precision and release."""
    from edge_asr.sherpa_export import export_sherpa

    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        report = export_sherpa(model, directory, graph=arguments.graph, greedy="graph" not in arguments.decoder)
        for manifest in arguments.manifest:
            clips, samples, longer = read_clips(manifest, arguments.limit, report)
            audio = Path(folder) / manifest.stem
            audio.mkdir()
            for i, clip in enumerate(longer):
                np.save(audio / f"{i:06d}.npy", clip)
            for decoder in arguments.decoder:
                for precision in RUNS[decoder]:
                    same, alone = ours(model, precision, decoder, arguments.graph, samples, longer, report)
                    for python in arguments.python:
                        theirs = run_worker(python, directory, report, precision, decoder, audio)
                        row = {"model": model.name, "set": manifest.stem, "search": decoder, "precision": precision}
                        yield row | figures(clips, same, alone, theirs, decoder, directory)


def read_clips(manifest: Path, limit: int | None, report: dict[str, Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Clips, their samples, and the samples with the silence that sherpa-onnx needs."""
    from edge_asr.audio import load_audio
    from edge_asr.data import read_manifest

    clips = read_manifest(manifest)[:limit]
    samples = [load_audio(clip.audio_filepath) for clip in clips]
    silence = np.zeros(report["tail_ms"] * RATE_HZ // 1000, np.float32)
    return clips, samples, [np.concatenate([clip, silence]) for clip in samples]


def ours(
    model: Path,
    precision: Any,
    decoder: Any,
    graph: Path | None,
    samples: list[np.ndarray],
    longer: list[np.ndarray],
    report: dict[str, Any],
) -> tuple[list[list[str]], list[list[str]]]:
    """Tokens or words of each clip with the silence and alone, without endpoints: sherpa-onnx has none by default.

    With the silence, tokens after the last vector that sherpa-onnx decodes, which lie in the silence, are left out.
    """
    from edge_asr.endpoint import EndpointRules
    from edge_asr.recognizer import Recognizer

    never = EndpointRules.never()
    options: dict[str, Any] = {"precision": precision, "decoder": decoder, "endpoint": never}
    if graph is not None and decoder == "graph":
        options["graph"] = graph
    recognizer = Recognizer(model, features="kaldi", **options)
    same = []
    for clip in longer:
        n_chunks = (round(len(clip) / 160) - 1) // (report["chunk_ms"] // 10)
        end_s = (n_chunks * report["chunk_ms"] - report["lookahead_ms"]) / 1000 - 1e-6
        same.append([w.text for segment in recognizer.transcribe(clip) for w in segment.words if w.start < end_s])
    recognizer = Recognizer(model, **options | ({"graph": recognizer.graph} if decoder == "graph" else {}))
    alone = [[w.text for segment in recognizer.transcribe(clip) for w in segment.words] for clip in samples]
    return same, alone


def figures(
    clips: list[Any], same: list[list[str]], alone: list[list[str]], theirs: Any, decoder: str, directory: Path
) -> dict[str, Any]:
    from edge_asr.metrics import ErrorCounts, count_errors, word_errors

    single, batched = theirs["single"], theirs["batched"]
    if decoder == "graph":
        words = [line.split()[0] for line in (directory / "words.txt").read_text(encoding="utf-8").splitlines()]
        heard = [[words[i] for i in result["words"]] for result in single]
    else:
        heard = [result["tokens"] for result in single]
    apart, apart_alone = (
        sum((count_errors(a, b) for a, b in zip(own, heard)), ErrorCounts()).percent for own in (same, alone)
    )
    n_batch = sum(a == b for a, b in zip(single, batched))
    row: dict[str, Any] = {
        "sherpa_onnx": theirs["version"],
        "clips": len(clips),
        "same": sum(a == b for a, b in zip(same, heard)),
        "alone": sum(a == b for a, b in zip(alone, heard)),
        "difference": round(apart, 3),
        "difference_alone": round(apart_alone, 3),
        "batch": n_batch,
        "differing": [Path(c.audio_filepath).name for c, a, b in zip(clips, same, heard) if a != b],
    }
    holds = row["batch"] == row["clips"]
    if decoder == "graph":
        for name, texts in (("wer_same", same), ("wer_alone", alone), ("wer_sherpa_onnx", heard)):
            errors = sum((word_errors(c.text, " ".join(text)) for c, text in zip(clips, texts)), ErrorCounts())
            row[name] = round(errors.percent, 3)
        return row | {"holds": holds and abs(row["wer_same"] - row["wer_sherpa_onnx"]) <= MOST_WER_APART}
    return row | {"holds": holds and row["same"] == row["clips"]}


# --- the command ----------------------------------------------------------------------------------------------------

HEADER = "| model | set | search | precision | sherpa-onnx | clips | same | alone | differ % | batch | WER | bar |"


def table_line(row: dict[str, Any]) -> str:
    wer = " / ".join(f"{row[key]:.2f}" for key in ("wer_same", "wer_alone", "wer_sherpa_onnx") if key in row)
    cells = [*(row[key] for key in ("model", "set", "search", "precision", "sherpa_onnx", "clips", "same", "alone"))]
    cells += [
        f"{row['difference']:.3f} / {row['difference_alone']:.3f}",
        row["batch"],
        wer,
        "holds" if row["holds"] else "missed",
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> int:
    if sys.argv[1:2] == ["--worker"]:
        directory, model, max_active, audio = sys.argv[2:]
        worker(Path(directory), model, int(max_active), Path(audio))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", type=Path, help="model directories (default: all that are shipped)")
    parser.add_argument("--manifest", nargs="+", type=Path, required=True, help="sets of clips")
    parser.add_argument("--limit", type=int, help="only the first so many clips of each set")
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters with releases to compare")
    parser.add_argument("--decoder", nargs="+", choices=tuple(RUNS), default=list(RUNS), help="searches to compare")
    parser.add_argument("--graph", type=Path, help="another decoding graph than the models' own, in both runtimes")
    parser.add_argument("--json", type=Path, help="file for the rows, with the names of clips that differ")
    arguments = parser.parse_args()
    rows = []
    print(HEADER + "\n" + "|---" * HEADER.count(" | ") + "|---|")
    for model in arguments.model or sorted(path.parent for path in SHIPPED.glob("*/encoder.onnx")):
        for row in compare_model(model, arguments):
            print(table_line(row), flush=True)
            rows.append(row)
            if arguments.json:
                arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["holds"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
