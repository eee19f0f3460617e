"""Build the shipped decoding graphs: python models/build_graphs.py SPEECH_DIR [general device …]

SPEECH_DIR holds train.jsonl, text/*.txt.xz and text/general-3gram.arpa.xz. The language model is a mixture: a general
trigram, and trigrams of books with LibriSpeech transcripts, of what people say to assistants, and of the training
transcripts. Weights and thresholds were chosen on the dev sets (benchmarks/EXPERIMENTS.md).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from edge_asr.arpa import read_arpa, read_text
from edge_asr.graph import build_lm_graph, save_graph
from edge_asr.model_files import seal
from edge_asr.ngram import BOS, EOS, NgramModel, estimate, interpolate, perplexity, prune, restrict
from edge_asr.tokens import Lexicon, TokenTable

WEIGHTS = {"general": 0.8, "books": 0.1, "assistant": 0.05, "train": 0.05}
PRUNE = {"general": 5e-8, "device": 3e-7}  # relative entropy that one dropped n-gram may cost
DEVICE_WORDS = 32_000  # the most probable ones; the general graph has all


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
    spoken = {word for name in ("assistant", "train") for line in texts[name] for word in line.split()}
    known = set(general.vocab) | spoken
    vocab = sorted(known - {BOS, EOS, "<unk>"})
    models = [general, *(estimate(texts[name], 3, vocab=vocab) for name in texts)]
    model = interpolate(models, [WEIGHTS[name] for name in ("general", *texts)])
    return model, estimate(texts["books"], 2, "witten-bell", vocab=model.vocab)


def most_probable_words(model: NgramModel, n_words: int) -> list[str]:
    """Words by unigram probability."""
    order = (-model.orders[0].log10_prob).argsort()
    return [model.vocab[i] for i in order if not model.vocab[i].startswith("<")][:n_words]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path, help="folder with train.jsonl and text/")
    parser.add_argument("names", nargs="*", default=list(PRUNE), help=f"of {', '.join(PRUNE)}")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "graphs")
    parser.add_argument("--prune", type=float, help="another threshold")
    arguments = parser.parse_args()
    began = time.monotonic()
    model, history = mixture(arguments.speech)
    lexicon, tokens = Lexicon.cmudict(), TokenTable.phones()
    dev = [json.loads(line)["text"] for line in (arguments.speech / "dev-clean.jsonl").read_text().splitlines()]
    for name in arguments.names:
        chosen = restrict(model, most_probable_words(model, DEVICE_WORDS)) if name == "device" else model
        judge = restrict(history, chosen.vocab) if name == "device" else history
        pruned = prune(chosen, arguments.prune or PRUNE[name], judge)
        graph = build_lm_graph(lexicon, pruned, tokens)
        save_graph(graph, arguments.out / name)
        seal(arguments.out / name)
        size = sum(f.stat().st_size for f in (arguments.out / name).iterdir())
        counts, found = [len(level) for level in pruned.orders], perplexity(pruned, dev)
        print(f"{name}: {counts} n-grams, dev-clean {found}, {size / 1e6:.1f} MB, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
