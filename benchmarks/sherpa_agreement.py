"""Does sherpa-onnx say what we say? Tokens and words of an exported model, clip by clip, in both runtimes.

    edge-asr export --target sherpa-onnx models/tcn-small sherpa/tcn-small
    python benchmarks/sherpa_agreement.py models/tcn-small sherpa/tcn-small --manifest dev-clean.jsonl \\
        [--python /other/venv/bin/python …] [--decoder greedy graph] [--precision fp32 int8] [--limit 50]

Each `--python` is an interpreter with another release of sherpa-onnx (and numpy). Figures, one JSON line for each
release, precision and search:

same_audio   clips whose tokens (words) are equal when both hear the clip and the silence that sherpa-onnx needs
clip_only    the same when ours hears the clip alone and pads by itself, as its users have it
batch        clips whose tokens in sherpa-onnx are the same in batches of streams as one by one
wer, token_difference   percent of words wrong in each runtime; of ours, edits from one's tokens (words) to the other's
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

RATE_HZ = 16_000
BATCH = 8
PIECE = RATE_HZ // 10  # samples for each accept_waveform
MODEL_FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}


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


# --- ours, and the comparison ---------------------------------------------------------------------------------------


def compare(arguments: argparse.Namespace) -> None:
    from edge_asr.audio import load_audio
    from edge_asr.data import read_manifest

    clips = read_manifest(arguments.manifest)[: arguments.limit]
    samples = [load_audio(clip.audio_filepath) for clip in clips]
    silence = np.zeros(tail_samples(arguments.sherpa), np.float32)
    longer = [np.concatenate([clip, silence]) for clip in samples]
    with tempfile.TemporaryDirectory() as folder:
        for i, clip in enumerate(longer):
            np.save(Path(folder) / f"{i:06d}.npy", clip)
        for decoder in arguments.decoder:
            for precision in arguments.precision:
                options = {"model": arguments.model, "precision": precision, "decoder": decoder}
                if decoder == "graph":
                    options["graph"] = arguments.graph
                same, alone = ours(options, longer, arguments.sherpa), ours(options, samples)
                for python in arguments.python or [sys.executable]:
                    theirs = run_worker(python, arguments.sherpa, precision, decoder, Path(folder))
                    row = {"model": Path(arguments.model).name, "decoder": decoder, "precision": precision}
                    print(json.dumps(row | figures(clips, same, alone, theirs, decoder, arguments.sherpa)), flush=True)


def chunk_and_lookahead(directory: Path) -> tuple[int, int]:
    """In frames of 10 ms."""
    import onnxruntime

    session = onnxruntime.InferenceSession(directory / MODEL_FILES["int8"], providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    return int(metadata["T"]), int(metadata["lookahead_frames"])


def tail_samples(directory: Path) -> int:
    from edge_asr.sherpa_export import tail_ms

    return tail_ms(*(10 * frames for frames in chunk_and_lookahead(directory))) * RATE_HZ // 1000


def ours(options: dict[str, Any], audio: list[np.ndarray], like: Path | None = None) -> list[list[str]]:
    """Tokens or words of each clip, without endpoints, for sherpa-onnx has none by default.

    like: its directory; tokens after the last vector that sherpa-onnx decodes, which lie in the silence, are left out.
    """
    from edge_asr.endpoint import EndpointRules
    from edge_asr.recognizer import Recognizer

    never = EndpointRules(float("inf"), float("inf"), float("inf"))
    recognizer = Recognizer(**options, endpoint=never)
    heard = []
    for clip in audio:
        end_s = float("inf")
        if like is not None:
            chunk, lookahead = chunk_and_lookahead(like)
            n_frames = round(len(clip) / 160)
            end_s = ((n_frames - 1) // chunk * chunk - lookahead) / 100 - 1e-6
        heard.append([word.text for s in recognizer.transcribe(clip) for word in s.words if word.start < end_s])
    return heard


def run_worker(python: str, directory: Path, precision: str, decoder: str, audio: Path) -> dict[str, Any]:
    max_active = 0
    if decoder == "graph":
        card = (directory / "README.md").read_text(encoding="utf-8")
        max_active = int(card.split("--ctc-max-active=")[1].split()[0])
    command = [python, __file__, "--worker", str(directory), MODEL_FILES[precision], str(max_active), str(audio)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def figures(
    clips: list[Any], same: list[list[str]], alone: list[list[str]], theirs: dict[str, Any], decoder: str, sherpa: Path
) -> dict[str, Any]:
    from edge_asr.metrics import ErrorCounts, count_errors, word_errors

    single, batched = theirs["single"], theirs["batched"]
    if decoder == "graph":
        words = [line.split()[0] for line in (sherpa / "words.txt").read_text(encoding="utf-8").splitlines()]
        heard = [[words[i] for i in result["words"]] for result in single]
    else:
        heard = [result["tokens"] for result in single]
    row: dict[str, Any] = {"sherpa_onnx": theirs["version"], "clips": len(clips)}
    for name, own in (("same_audio", same), ("clip_only", alone)):
        difference = sum((count_errors(a, b) for a, b in zip(own, heard)), ErrorCounts())
        row[name] = sum(a == b for a, b in zip(own, heard))
        row[f"{name}_difference"] = round(difference.percent, 3)
    row["batch"] = sum(a == b for a, b in zip(single, batched))
    if decoder == "graph":
        for name, texts in (("wer_ours", alone), ("wer_sherpa_onnx", heard)):
            errors = sum((word_errors(c.text, " ".join(text)) for c, text in zip(clips, texts)), ErrorCounts())
            row[name] = round(errors.percent, 3)
    return row


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        directory, model, max_active, audio = sys.argv[2:]
        worker(Path(directory), model, int(max_active), Path(audio))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="our model directory or an installed model's name")
    parser.add_argument("sherpa", type=Path, help="what `edge-asr export --target sherpa-onnx` made of it")
    parser.add_argument("--manifest", required=True)
    parser.add_argument("--python", nargs="*", help="interpreters with the releases of sherpa-onnx to compare")
    parser.add_argument("--decoder", nargs="+", choices=("greedy", "graph"), default=["greedy"])
    parser.add_argument("--graph", help="of our search, where the export was given one (default: the model's own)")
    parser.add_argument("--precision", nargs="+", choices=tuple(MODEL_FILES), default=list(MODEL_FILES))
    parser.add_argument("--limit", type=int, help="only the first so many clips")
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
