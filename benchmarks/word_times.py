"""How true are word times? Beside forced alignment of known texts, and beside words put where we know.

    python benchmarks/word_times.py dev-clean.jsonl --limit 30

forced  the clips of the manifest: times of the words that the recogniser (int8, its graph) has right, against
        torchaudio's forced alignment of the fp32 encoder's emissions with the phones of the true text
placed  words spoken by espeak-ng one by one, trimmed to their sound and joined with pauses, so that the truth owes
        nothing to any model; ours are those of the true sentence

Milliseconds; late is positive. The median of the absolute difference has a bar of 100.
"""

from __future__ import annotations

import argparse
import difflib
import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

BAR_MS = 100
FRAME_S = 0.04
RATE_HZ = 16_000
SOUND = 0.02  # of a word's loudest 10 ms: where its sound begins and ends
WORDS = (
    "about after animal between children city country different every family father important letter listen little "
    "money morning mother mountain nothing number paper people picture question river school second sentence summer "
    "something table together tomorrow water window winter without yellow young"
).split()

Times = list[tuple[str, float, float]]  # word, start, end


# ------------------------------------------------------------------------------------------------- forced alignment


def emissions(session: Any, samples: np.ndarray) -> np.ndarray:
    from edge_asr.features import fbank
    from edge_asr.runtime import EncoderStream, advance

    stream = EncoderStream(session, 400)
    stream.accept(fbank(samples))
    stream.finish()
    parts = []
    while stream.n_ready_frames:
        parts += advance(session, [stream])
    return np.concatenate(parts)


def forced(log_probs: np.ndarray, words: list[str], said: list[list[int]]) -> Times:
    """Times of words by torchaudio; said: the tokens of each word."""
    import torch
    from torchaudio.functional import forced_align, merge_tokens

    targets = torch.tensor([[token for tokens in said for token in tokens]], dtype=torch.int32)
    path, scores = forced_align(torch.from_numpy(log_probs)[None], targets, blank=0)
    spans, times, first = merge_tokens(path[0], scores[0].exp()), [], 0
    for word, tokens in zip(words, said):
        own = spans[first : first + len(tokens)]
        times.append((word, own[0].start * FRAME_S, own[-1].end * FRAME_S))
        first += len(tokens)
    return times


def forced_pairs(arguments: argparse.Namespace) -> Iterator[tuple[Times, Times]]:
    """→ (truth, ours) of the words that were recognised."""
    from edge_asr.align import align
    from edge_asr.audio import load_audio
    from edge_asr.data import read_manifest
    from edge_asr.errors import EdgeAsrError
    from edge_asr.recognizer import Recognizer, default_lexicon
    from edge_asr.runtime import EncoderSession

    recognizer = Recognizer(chunk_ms=None, **arguments.options)
    model = Path(recognizer.session.path).parent
    session, tokens = EncoderSession(model / "encoder.onnx"), recognizer._tokens
    lexicon = default_lexicon(tokens)
    for clip in read_manifest(arguments.manifest)[: arguments.limit]:
        samples = load_audio(clip.audio_filepath)
        log_probs, words = emissions(session, samples), clip.text.split()
        try:
            said = [list(tokens.ids(phones)) for phones in align(log_probs, clip.text, lexicon, tokens).pronunciations]
        except EdgeAsrError:  # the text has a word that nobody can pronounce
            continue
        truth = forced(log_probs, words, said)
        ours = [(w.text, w.start, w.end) for segment in recognizer.transcribe(samples) for w in segment.words]
        matcher = difflib.SequenceMatcher(None, words, [word for word, _, _ in ours], autojunk=False)
        for block in matcher.get_matching_blocks():
            yield truth[block.a : block.a + block.size], ours[block.b : block.b + block.size]


# --------------------------------------------------------------------------------------------------- words in places


def spoken(word: str) -> np.ndarray:
    """A word by espeak-ng at 16 kHz, from its first sound to its last."""
    import soundfile
    import soxr

    command = ["espeak-ng", "-v", "en-us", "-s", "150", "--stdout", word]
    data = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    samples, rate_hz = soundfile.read(io.BytesIO(data), dtype="float32")
    samples = soxr.resample(samples, rate_hz, RATE_HZ)
    hop = RATE_HZ // 100
    loudness = np.sqrt((samples[: len(samples) // hop * hop].reshape(-1, hop) ** 2).mean(axis=1))
    sounding = np.flatnonzero(loudness > SOUND * loudness.max())
    return samples[sounding[0] * hop : (sounding[-1] + 1) * hop]


def placed_pairs(arguments: argparse.Namespace) -> Iterator[tuple[Times, Times]]:
    """→ (truth, ours) of sentences of eight words."""
    from edge_asr.align import align
    from edge_asr.recognizer import Recognizer, default_lexicon

    recognizer = Recognizer(decoder="greedy", chunk_ms=None, **arguments.options)
    tokens = recognizer._tokens
    lexicon = default_lexicon(tokens)
    rng = np.random.default_rng(0)
    voices = {word: spoken(word) for word in WORDS}
    for _ in range(arguments.sentences):
        words, truth, n_samples = list(rng.choice(WORDS, 8)), [], 0
        parts = []
        for word in words:
            pause = int(RATE_HZ * rng.uniform(0.08, 0.3))
            begin = n_samples + pause
            n_samples = begin + len(voices[word])
            parts += [np.zeros(pause), voices[word]]
            truth.append((word, begin / RATE_HZ, n_samples / RATE_HZ))
        samples = np.concatenate([*parts, np.zeros(RATE_HZ // 2)])
        samples = (samples + 1e-3 * rng.standard_normal(len(samples))).astype(np.float32)
        found = align(emissions(recognizer.session, samples), " ".join(words), lexicon, tokens).words
        yield truth, [(word.text, word.start, word.end) for word in found]


# ------------------------------------------------------------------------------------------------------------ report


def figures(pairs: Iterator[tuple[Times, Times]]) -> dict[str, Any]:
    late = [[b - a for a, b in zip(t[1:], o[1:])] for truth, ours in pairs for t, o in zip(truth, ours)]
    late_ms = 1000 * np.array(late)
    row: dict[str, Any] = {"words": len(late_ms)}
    for edge, column in zip(("start", "end"), late_ms.T):
        row[edge] = {
            "median_abs_ms": round(float(np.median(np.abs(column))), 1),
            "p90_abs_ms": round(float(np.percentile(np.abs(column), 90)), 1),
            "median_late_ms": round(float(np.median(column)), 1),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--limit", type=int, default=30, help="clips")
    parser.add_argument("--sentences", type=int, default=20, help="of placed words")
    parser.add_argument("--options", type=json.loads, default={}, help="JSON keywords for Recognizer")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    report = {"placed": figures(placed_pairs(arguments)), "forced": figures(forced_pairs(arguments))}
    print(f"{'':8}{'words':>7}{'edge':>7}{'median |ms|':>13}{'p90 |ms|':>10}{'median late':>13}")
    for name, row in report.items():
        for edge in ("start", "end"):
            cells = row[edge]["median_abs_ms"], row[edge]["p90_abs_ms"], row[edge]["median_late_ms"]
            print(f"{name:8}{row['words']:7}{edge:>7}{cells[0]:13.0f}{cells[1]:10.0f}{cells[2]:13.0f}")
    print(f"bar: a median of {BAR_MS} ms")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
