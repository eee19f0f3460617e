"""Phone and word error of grapheme to phoneme on CMUdict words that it was not trained on.

A random twentieth of CMUdict's words is held out; a model is trained on the rest, saved and loaded as the shipped one
is. A pronunciation is compared with the nearest of those that CMUdict lists, without stress.

    python benchmarks/g2p.py [--json] [--words 2000]
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from edge_asr import g2p
from edge_asr.metrics import ErrorCounts, count_errors
from edge_asr.tokens import Pronunciation, read_cmudict

SEED = 1
HELD_OUT_SHARE = 20  # one word in …


def measure(n_words: int | None, order: int, beam: int) -> dict[str, float]:
    entries = read_cmudict()
    words = sorted(entries)
    held_out = random.Random(SEED).sample(words, len(words) // HELD_OUT_SHARE)
    unseen = set(held_out)
    model = g2p.train({word: entries[word] for word in words if word not in unseen}, order)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "g2p_model.npz"
        g2p.save(model, path)
        n_bytes = path.stat().st_size
        decoder = g2p.GraphemeToPhoneme(g2p.load(path))
    tested = held_out[:n_words]
    start = time.perf_counter()
    guesses = [decoder.pronounce(word, beam=beam)[0][0] for word in tested]
    seconds = time.perf_counter() - start
    errors = [nearest(entries[word], guess) for word, guess in zip(tested, guesses)]
    return {
        "words": len(tested),
        "phone_error_rate": sum(errors, ErrorCounts()).percent,
        "word_error_rate": 100 * sum(e.n_errors > 0 for e in errors) / len(errors),
        "ms_per_word": 1000 * seconds / len(tested),
        "order": order,
        "ngrams": len(model),
        "model_bytes": n_bytes,
    }


def nearest(references: list[Pronunciation], guess: Pronunciation) -> ErrorCounts:
    """Errors against the reference that has the fewest."""
    return min((count_errors(reference, guess) for reference in references), key=lambda e: (e.n_errors, e.n_reference))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=int, help="test on the first so many of the held-out words; all by default")
    parser.add_argument("--order", type=int, default=g2p.ORDER)
    parser.add_argument("--beam", type=int, default=g2p.BEAM)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    result = measure(options.words, options.order, options.beam)
    if options.json:
        print(json.dumps(result))
    else:
        print(
            "{words} held-out words: phone error {phone_error_rate:.2f} %, word error {word_error_rate:.2f} %, "
            "{ms_per_word:.1f} ms a word; order {order}, {ngrams:,} n-grams, {model_bytes:,} bytes".format(**result)
        )


if __name__ == "__main__":
    main()
