"""Build the shipped decoding graphs: python models/build_graphs.py SPEECH_DIR [general device …] --aligned ALIGNED

SPEECH_DIR holds train.jsonl, text/*.txt.xz and text/general-3gram.arpa.xz. The language model is a mixture: a general
trigram, and trigrams of books with LibriSpeech transcripts, of what people say to assistants, and of the training
transcripts. ALIGNED is what `edge-asr align` makes of train.jsonl: how often each pronunciation of a word is said.
Weights and thresholds were chosen on the dev sets (benchmarks/EXPERIMENTS.md).
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from edge_asr.arpa import read_arpa, read_text
from edge_asr.errors import LexiconError
from edge_asr.graph import build_lm_graph, save_graph
from edge_asr.model_files import seal
from edge_asr.ngram import BOS, EOS, MARKS, NgramModel, estimate, interpolate, perplexity, prune, restrict
from edge_asr.tokens import Lexicon, Pronunciation, TokenTable

WEIGHTS = {"general": 0.8, "books": 0.1, "assistant": 0.05, "train": 0.05}
PRUNE = {"general": 5e-8, "device": 5.2e-7}  # relative entropy that one dropped n-gram may cost
PRIOR_COUNT = 3.0  # occurrences that the prior of a word's pronunciations weighs as much as
MAX_PRONUNCIATIONS = 8
LEAST_COUNT = 2  # in the books, of words that the general model lacks
WORD = re.compile(r"[a-z']{3,}")
DEVICE_WORDS = 50_000  # the most probable ones; the general graph has all


def sentences(speech: Path, name: str) -> list[str]:
    """Lines of one text, or of the training transcripts."""
    if name == "train":
        return [json.loads(line)["text"] for line in (speech / "train.jsonl").read_text().splitlines()]
    files = {"books": ("books", "librispeech-train-clean-100"), "assistant": ("assistant",)}[name]
    return [line for f in files for line in read_text(speech / "text" / f"{f}.txt.xz").splitlines()]


def mixture(speech: Path) -> tuple[NgramModel, NgramModel]:
    """The trigram mixture, and a bigram that tells how often a history is met, for pruning."""
    texts = {name: sentences(speech, name) for name in WEIGHTS if name != "general"}
    general = read_arpa(speech / "text" / "general-3gram.arpa.xz")
    known = set(general.vocab) | words_beyond(texts)
    vocab = sorted(known - {BOS, EOS, "<unk>"})
    models = [general, *(estimate(texts[name], 3, vocab=vocab) for name in texts)]
    model = interpolate(models, [WEIGHTS[name] for name in ("general", *texts)])
    return model, estimate(texts["books"], 2, "witten-bell", vocab=model.vocab)


def words_beyond(texts: Mapping[str, Iterable[str]]) -> set[str]:
    """Words to be heard that the general model may lack: all that assistants are told and that was read in training,
    those that books have twice, and CMUdict's, of three letters and more. They cost a graph next to nothing.
    """
    counts = {name: Counter(word for line in texts[name] for word in line.split()) for name in texts}
    rare = {word for word, n in counts["books"].items() if n >= LEAST_COUNT} | set(Lexicon.cmudict().entries)
    return set(counts["assistant"]) | set(counts["train"]) | {word for word in rare if WORD.fullmatch(word)}


def pronunciation_probs(
    aligned: Path, lexicon: Lexicon, words: Iterable[str]
) -> dict[tuple[str, Pronunciation], float]:
    """How probable each pronunciation is beside the most probable of its word, which has 1.

    Counts in an aligned manifest, and PRIOR_COUNT more, spread as the order in the lexicon has it over all words: its
    first pronunciation is the most usual.
    """
    counts: Counter[tuple[str, Pronunciation]] = Counter()
    for line in aligned.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        counts.update((word, tuple(p.split())) for word, p in zip(row["text"].split(), row["pronunciations"]))
    by_rank = np.ones(MAX_PRONUNCIATIONS)
    variants = {word: known for word in words if word not in MARKS and len(known := said_as(lexicon, word)) > 1}
    for word, known in variants.items():
        for rank, pronunciation in enumerate(known[:MAX_PRONUNCIATIONS]):
            by_rank[rank] += counts[word, pronunciation]
    probs = {}
    for word, known in variants.items():
        prior = by_rank[: len(known)] / by_rank[: len(known)].sum()
        total = [counts[word, p] + PRIOR_COUNT * share for p, share in zip(known, prior)]
        probs |= {(word, p): count / max(total) for p, count in zip(known, total)}
    return probs


def said_as(lexicon: Lexicon, word: str) -> list[Pronunciation]:
    """Pronunciations of a word, none where the lexicon has none."""
    try:
        return lexicon.pronunciations(word)[:MAX_PRONUNCIATIONS]
    except LexiconError:
        return []


def most_probable_words(model: NgramModel, n_words: int) -> list[str]:
    """Words by unigram probability."""
    order = (-model.orders[0].log10_prob).argsort()
    return [model.vocab[i] for i in order if not model.vocab[i].startswith("<")][:n_words]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path, help="folder with train.jsonl and text/")
    parser.add_argument("names", nargs="*", default=list(PRUNE), help=f"of {', '.join(PRUNE)}")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "graphs")
    parser.add_argument("--aligned", type=Path, required=True, help="aligned training manifest, by edge-asr align")
    parser.add_argument("--prune", type=float, help="another threshold")
    arguments = parser.parse_args()
    began = time.monotonic()
    model, history = mixture(arguments.speech)
    lexicon, tokens = Lexicon.cmudict(), TokenTable.phones()
    probs = pronunciation_probs(arguments.aligned, lexicon, model.vocab)
    dev = [json.loads(line)["text"] for line in (arguments.speech / "dev-clean.jsonl").read_text().splitlines()]
    for name in arguments.names:
        chosen = restrict(model, most_probable_words(model, DEVICE_WORDS)) if name == "device" else model
        judge = restrict(history, chosen.vocab) if name == "device" else history
        pruned = prune(chosen, arguments.prune or PRUNE[name], judge)
        graph = build_lm_graph(lexicon, pruned, tokens, topology="compact", pronunciation_probs=probs)
        save_graph(graph, arguments.out / name)
        seal(arguments.out / name)
        size = sum(f.stat().st_size for f in (arguments.out / name).iterdir())
        counts, found = [len(level) for level in pruned.orders], perplexity(pruned, dev)
        print(f"{name}: {counts} n-grams, dev-clean {found}, {size / 1e6:.1f} MB, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
