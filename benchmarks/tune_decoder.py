"""Word error rate over a grid of search settings: every clip is encoded once, then searched with each setting.

    python benchmarks/tune_decoder.py MODEL_DIR dev-clean.jsonl --acoustic-scale 0.8 1.0 1.2 --beam 12 15
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np

from edge_asr.audio import load_audio
from edge_asr.data import read_manifest
from edge_asr.decoder import GraphDecoder
from edge_asr.features import fbank
from edge_asr.graph import load_graph
from edge_asr.metrics import ErrorCounts, word_errors
from edge_asr.model_files import ModelFiles
from edge_asr.runtime import EncoderSession, EncoderStream, advance


def encode(session: EncoderSession, path: str) -> np.ndarray:
    """Log-probabilities (U, V) of a clip, streamed."""
    stream = EncoderStream(session)
    stream.accept(fbank(load_audio(path)))
    stream.finish()
    vectors = []
    while stream.n_ready_frames:
        vectors += advance(session, [stream])
    return np.concatenate(vectors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--graph", type=Path, nargs="*", help="default: the model's own")
    parser.add_argument("--precision", choices=("int8", "fp32"), default="int8")
    parser.add_argument("--acoustic-scale", type=float, nargs="+", default=[1.0])
    parser.add_argument("--beam", type=float, nargs="+", default=[13.0])
    parser.add_argument("--max-active", type=int, nargs="+", default=[3000])
    parser.add_argument("--word-cost", type=float, nargs="+", default=[0.0])
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    files = ModelFiles.open(arguments.model)
    session = EncoderSession(files.encoder(arguments.precision))
    clips = read_manifest(arguments.manifest)[: arguments.limit]
    emissions = [encode(session, clip.audio_filepath) for clip in clips]
    audio_s = sum(clip.duration for clip in clips)
    for directory, word_cost in itertools.product(arguments.graph or [files.graph], arguments.word_cost):
        graph = load_graph(directory, files.tokens.sha256, word_cost)
        grid = itertools.product(arguments.acoustic_scale, arguments.beam, arguments.max_active)
        for scale, beam, max_active in grid:
            began, errors = time.process_time(), ErrorCounts()
            for clip, log_probs in zip(clips, emissions, strict=True):
                decoder = GraphDecoder(graph, acoustic_scale=scale, beam=beam, max_active=max_active)
                decoder.accept(log_probs)
                errors += word_errors(clip.text, " ".join(word.text for word in decoder.finish()))
            row = {
                "graph": directory.name, "word_cost": word_cost, "acoustic_scale": scale, "beam": beam,
                "max_active": max_active, "wer": round(errors.percent, 2), "sub": errors.n_substitutions,
                "ins": errors.n_insertions, "del": errors.n_deletions,
                "search_cpu_s_per_s": round((time.process_time() - began) / audio_s, 5),
            }  # fmt: skip
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
