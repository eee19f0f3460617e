"""Forced alignment: which pronunciation each word of a known text was said with, and when.

    edge-asr align --manifest train.jsonl --out aligned.jsonl

Training takes the first pronunciation of every word, unless a manifest says better: this command adds
`pronunciations`, a string of phones for each word, beside `word_times` (s) and `alignment`, the mean confidence of the
words, which is low where the text is not what was said.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from edge_asr.audio import load_audio
from edge_asr.data import Clip, read_manifest
from edge_asr.decoder import GraphDecoder, Word
from edge_asr.errors import AlignmentError, EdgeAsrError
from edge_asr.features import fbank
from edge_asr.graph import EPSILON, Graph, compile_graph, spell
from edge_asr.model_files import DEFAULT_MODEL, ModelFiles
from edge_asr.runtime import EncoderSession, EncoderStream, advance
from edge_asr.tokens import Lexicon, TokenTable
from edge_asr.transducer import from_arcs
from edge_asr.writers import save

BEAM = 200.0  # the graph is one sentence: nothing needs to be given up
CHUNK_FRAMES = 400


@dataclass(frozen=True)
class Alignment:
    """words[i] was said as the phones pronunciations[i]; score: mean confidence of the words, 0…1."""

    words: tuple[Word, ...]
    pronunciations: tuple[tuple[str, ...], ...]
    score: float


def sentence_graph(words: list[str], lexicon: Lexicon, tokens: TokenTable) -> Graph:
    """A decoding graph of one sentence in all the ways it can be pronounced. Raises LexiconError."""
    names = [EPSILON, *sorted(set(words))]
    ids = np.array([names.index(word) for word in words])
    final = np.full(len(words) + 1, np.inf)
    final[-1] = 0.0
    places = np.arange(len(words) + 1)
    acceptor = from_arcs(0, final, places[:-1], ids, ids, np.zeros(len(words)), places[1:])
    spelled = {word: spell(lexicon, word, tokens) for word in names[1:]}
    return compile_graph(acceptor, names, spelled, tokens, {"kind": "alignment"})


def align(log_probs: np.ndarray, text: str, lexicon: Lexicon, tokens: TokenTable) -> Alignment:
    """The most probable alignment of log-probabilities (U, V) with a text. Raises AlignmentError, LexiconError."""
    words = text.split()
    if not words or not len(log_probs):
        raise AlignmentError(
            f"need words and audio, have {len(words)} words and {len(log_probs)} frames; skip the clip"
        )
    decoder = GraphDecoder(sentence_graph(words, lexicon, tokens), beam=BEAM, max_active=100_000)
    decoder.accept(log_probs)
    found = decoder.finish()
    if [word.text for word in found] != words:
        raise AlignmentError(
            f"need audio of at least {len(words)} words, have {len(log_probs)} frames of 40 ms that hold "
            f"{len(found)} of them; check the text"
        )
    said = decoder.tokens_of_words()
    symbols = tokens.symbols
    pronunciations = tuple(tuple(symbols[token] for token in word) for word in said)
    return Alignment(found, pronunciations, sum(word.confidence for word in found) / len(found))


class Aligner:
    """Aligns clips with one model."""

    def __init__(self, model: str, lexicon: str | None = None) -> None:
        files = ModelFiles.open(model)
        self.session = EncoderSession(files.encoder("int8"))
        self.tokens = files.tokens
        is_spelling = self.tokens == TokenTable.characters()
        self.lexicon = Lexicon.characters() if is_spelling else Lexicon.cmudict()
        if lexicon:
            self.lexicon.update(lexicon)

    def align(self, clip: Clip) -> Alignment:
        stream = EncoderStream(self.session, CHUNK_FRAMES)
        stream.accept(fbank(load_audio(clip.audio_filepath)))
        stream.finish()
        parts = []
        while stream.n_ready_frames:
            parts.extend(advance(self.session, [stream]))
        return align(np.concatenate(parts), clip.text, self.lexicon, self.tokens)


# --- the command -----------------------------------------------------------------------------------------------------


@functools.cache
def _aligner(model: str, lexicon: str | None) -> Aligner:
    """Of a worker process, loaded at its first clip."""
    return Aligner(model, lexicon)


def _align_clip(clip: Clip, model: str, lexicon: str | None) -> Alignment | EdgeAsrError:
    try:
        return _aligner(model, lexicon).align(clip)
    except EdgeAsrError as error:
        return error


def row_of(clip: Clip, alignment: Alignment, beside: Path) -> dict[str, Any]:
    """A line of the manifest that lies in folder `beside`."""
    row = {
        "audio_filepath": os.path.relpath(clip.audio_filepath, beside),
        "duration": clip.duration,
        "text": clip.text,
        "pronunciations": [" ".join(phones) for phones in alignment.pronunciations],
        "word_times": [[round(word.start, 2), round(word.end, 2)] for word in alignment.words],
        "alignment": round(alignment.score, 4),
    }
    return row | {key: value for key in ("speaker", "source") if (value := getattr(clip, key))}


def main(argv: list[str] | None = None) -> int:
    """Entry of `edge-asr align`; a clip that cannot be aligned is reported and left out."""
    from tqdm import tqdm

    parser = argparse.ArgumentParser(
        "edge-asr align", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--manifest", required=True, type=Path, help="JSON lines: audio_filepath, duration, text")
    parser.add_argument("--out", required=True, type=Path, help="manifest to write")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="name of an installed model or path of a model folder")
    parser.add_argument("--lexicon", help="file of `word p1 p2 …` lines that replace CMUdict's")
    parser.add_argument(
        "--drop-below", type=float, default=0.0, metavar="SCORE", help="leave clips out whose `alignment` is lower"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes")
    arguments = parser.parse_args(argv)
    clips = read_manifest(arguments.manifest)
    Aligner(arguments.model, arguments.lexicon)  # an error here is clearer than one in every worker
    rows, failures, n_dropped = [], [], 0
    with ProcessPoolExecutor(arguments.workers, multiprocessing.get_context("spawn")) as pool:
        done = pool.map(_align_clip, clips, repeat(arguments.model), repeat(arguments.lexicon), chunksize=16)
        for clip, result in zip(clips, tqdm(done, total=len(clips), unit="clip")):
            if isinstance(result, Alignment) and result.score < arguments.drop_below:
                n_dropped += 1
            elif isinstance(result, Alignment):
                rows.append(row_of(clip, result, arguments.out.parent))
            else:
                failures.append(result)
                print(f"edge-asr: error: {clip.audio_filepath}: {result}", file=sys.stderr)
    save(arguments.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    print(
        f"edge-asr: aligned {len(rows)} of {len(clips)} clips into {arguments.out}; {n_dropped} were dropped, their "
        f"alignment is below {arguments.drop_below}",
        file=sys.stderr,
    )
    return failures[0].exit_code if failures else 0
