"""Grapheme to phoneme: pronunciations of words that no dictionary lists.

A joint-sequence model after Bisani and Ney (2008): a word and its pronunciation are one sequence of graphones (a letter
with the phones that it makes, none to two), aligned by expectation–maximisation, and an n-gram model over graphones
says how likely a sequence is. Decoding walks the letters with a beam and adds up the alignments of a pronunciation.
"""

import argparse
import heapq
import io
import math
import zipfile
import zlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np

from edge_asr.errors import LexiconError, ModelDamagedError
from edge_asr.ngram import BOS, EOS, MARKS, NgramModel, NgramOrder, estimate
from edge_asr.tokens import Lexicon, Pronunciation, read_cmudict

MODEL_PATH = Path(__file__).with_name("g2p_model.npz")
LETTERS = "'abcdefghijklmnopqrstuvwxyz"
MAX_PHONES = 2  # of a letter: "x:K.S"; graphones of two letters cost half a point of word error and speed
N_ALIGNMENT_ITERATIONS = 12
ORDER = 6  # graphones; 5 and 7 measured 0.2 worse and 0.03 better in phone error
BEAM = 20  # hypotheses kept for each letter; 10 costs 0.1 in phone error, 100 gains nothing
QUANTUM = 1 / 32  # of log10, in the shipped file: 7 % at most between steps, 255 steps down to 1e-8
N_ALTERNATIVES = 2  # pronunciations of a word outside the dictionary …
ALTERNATIVE_RATIO = 0.4  # … where the second is at least this likely, relative to the first


# ----------------------------------------------------------------------------------------------------- alignment


def align(pairs: Iterable[tuple[str, Pronunciation]], n_iterations: int = N_ALIGNMENT_ITERATIONS) -> list[list[str]]:
    """The likeliest graphones "letter:phones" of each (word, pronunciation) pair, by EM over all alignments.

    Pairs with more than two phones for each letter (abbreviations) are left out. Pairs of equal size are one batch: the
    recursions run over cells (letters done, phones done) with an array of words in each.
    """
    pairs = sorted(pairs, key=_size)
    units: dict[tuple[str, Pronunciation], int] = {}
    lattices = [_lattice(list(batch), units) for size, batch in groupby(pairs, key=_size) if _coverable(*size)]
    probability = np.full(len(units), 1 / max(len(units), 1))
    for _ in range(n_iterations):
        expected = sum(_expected_counts(lattice, probability) for lattice in lattices)
        probability = expected / np.sum(expected)
    names = [f"{letter}:{'.'.join(phones)}" for letter, phones in units]
    return [[names[u] for u in path] for lattice in lattices for path in _best_paths(lattice, probability)]


def _size(pair: tuple[str, Pronunciation]) -> tuple[int, int]:
    return len(pair[0]), len(pair[1])


def _coverable(n_letters: int, n_phones: int) -> bool:
    return 0 < n_phones <= MAX_PHONES * n_letters


@dataclass(frozen=True)
class _Lattice:
    """All alignments of N pairs of L letters and P phones. Arc: (cell from, cell to) → unit of each pair, (N,)."""

    end: tuple[int, int]  # (L, P)
    n_pairs: int
    arcs: dict[tuple[tuple[int, int], tuple[int, int]], np.ndarray]  # in the order of letters


def _lattice(batch: list[tuple[str, Pronunciation]], units: dict[tuple[str, Pronunciation], int]) -> _Lattice:
    n_letters, n_phones = _size(batch[0])
    arcs = {}
    for i in range(n_letters):
        for j in range(min(n_phones, MAX_PHONES * i) + 1):
            for k in range(j, min(n_phones, j + MAX_PHONES) + 1):
                if _coverable(n_letters - i - 1, n_phones - k) or k == n_phones:
                    ids = [units.setdefault((word[i], phones[j:k]), len(units)) for word, phones in batch]
                    arcs[(i, j), (i + 1, k)] = np.array(ids, np.int32)
    return _Lattice((n_letters, n_phones), len(batch), arcs)


def _expected_counts(lattice: _Lattice, probability: np.ndarray) -> np.ndarray:
    """Forward–backward: expected number of uses of each unit, (n_units,)."""
    zero, one = np.zeros(lattice.n_pairs), np.ones(lattice.n_pairs)
    weights = {arc: probability[unit] for arc, unit in lattice.arcs.items()}
    forward, backward = defaultdict(lambda: zero, {(0, 0): one}), defaultdict(lambda: zero, {lattice.end: one})
    for (source, to), weight in weights.items():
        forward[to] = forward[to] + forward[source] * weight
    for (source, to), weight in reversed(weights.items()):
        backward[source] = backward[source] + backward[to] * weight
    total = np.maximum(forward[lattice.end], np.finfo(float).tiny)
    posterior = [forward[source] * weight * backward[to] / total for (source, to), weight in weights.items()]
    return np.bincount(np.concatenate(list(lattice.arcs.values())), np.concatenate(posterior), len(probability))


def _best_paths(lattice: _Lattice, probability: np.ndarray) -> list[list[int]]:
    """Viterbi: the units of the likeliest alignment of each pair."""
    log_probability = np.log(np.maximum(probability, np.finfo(float).tiny))
    best = defaultdict(lambda: np.full(lattice.n_pairs, -np.inf), {(0, 0): np.zeros(lattice.n_pairs)})
    into = defaultdict(lambda: np.full(lattice.n_pairs, -1))  # index of the best arc into a cell
    arcs = list(lattice.arcs.items())
    for k, ((source, to), unit) in enumerate(arcs):
        score = best[source] + log_probability[unit]
        into[to] = np.where(score > best[to], k, into[to])
        best[to] = np.maximum(score, best[to])
    paths = []
    for pair in range(lattice.n_pairs):
        cell, path = lattice.end, []
        while cell != (0, 0):
            (cell, _), unit = arcs[into[cell][pair]]
            path.append(int(unit[pair]))
        paths.append(path[::-1])
    return paths


# ------------------------------------------------------------------------------------------------------ training


def train(entries: Mapping[str, Iterable[Pronunciation]], order: int = ORDER) -> NgramModel:
    """A graphone n-gram model (Kneser–Ney) of a dictionary: words of a–z and apostrophe → pronunciations."""
    unspellable = next((word for word in entries if not word or set(word) - set(LETTERS)), None)
    if unspellable is not None:
        raise LexiconError(f"need words of a–z and apostrophe to train on, have {unspellable!r}; leave it out")
    sequences = align((word, phones) for word, alternatives in entries.items() for phones in alternatives)
    # sorted by letter: the graphones of one letter are a range of ids
    graphones = sorted({graphone for sequence in sequences for graphone in sequence}, key=lambda g: g.split(":"))
    return estimate(sequences, order, "kneser-ney", vocab=graphones)


def save(model: NgramModel, path: str | Path) -> None:
    """Writes a graphone model compactly: counts of children, unit ids, and 8-bit log10 probabilities and back-offs."""
    arrays = {"order": np.array(model.order), "vocab": np.frombuffer("\n".join(model.vocab).encode(), np.uint8)}
    for n, level in enumerate(model.orders, 1):
        if n > 1:
            n_children = np.bincount(level.context, minlength=len(model.orders[n - 2]))
            arrays |= {f"n_children_{n}": n_children.astype(np.uint16), f"unit_{n}": level.word.astype(np.uint16)}
        arrays[f"log10_prob_{n}"] = _quantised(level.log10_prob)
        arrays[f"log10_backoff_{n}"] = _quantised(level.log10_backoff)
    np.savez_compressed(path, **arrays)


def load(path: str | Path = MODEL_PATH) -> NgramModel:
    """Reads what `save` wrote. Raises ModelDamagedError."""
    try:
        with np.load(io.BytesIO(Path(path).read_bytes())) as file:
            return _unpacked(dict(file))
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        message = f"need a grapheme-to-phoneme model, have {path}: {error!r}; install the package again"
        raise ModelDamagedError(message) from error


def _unpacked(arrays: Mapping[str, np.ndarray]) -> NgramModel:
    vocab = arrays["vocab"].tobytes().decode().split("\n")
    unit, context = np.arange(len(vocab), dtype=np.int32), np.zeros(len(vocab), np.int32)
    orders: list[NgramOrder] = []
    for n in range(1, int(arrays["order"]) + 1):
        if n > 1:
            unit = arrays[f"unit_{n}"].astype(np.int32)
            context = np.repeat(np.arange(len(orders[-1]), dtype=np.int32), arrays[f"n_children_{n}"])
        log10_prob, log10_backoff = arrays[f"log10_prob_{n}"] * -QUANTUM, arrays[f"log10_backoff_{n}"] * -QUANTUM
        if not len(unit) == len(context) == len(log10_prob) == len(log10_backoff):
            raise ValueError(f"arrays of unequal length for order {n}")
        orders.append(NgramOrder(context, unit, log10_prob, log10_backoff))
    return NgramModel(vocab, orders)


def _quantised(log10: np.ndarray) -> np.ndarray:
    return np.round(np.clip(-log10 / QUANTUM, 0, 255)).astype(np.uint8)


# ------------------------------------------------------------------------------------------------------ decoding


class GraphemeToPhoneme:
    """Decoder over a graphone model. A state is an n-gram of the model as history; state 0 is the empty one."""

    def __init__(self, model: NgramModel) -> None:
        names = [("", "") if word in MARKS else tuple(word.split(":")) for word in model.vocab]
        self._phones = [tuple(phones.split(".")) if phones else () for _, phones in names]
        self._units: dict[str, tuple[int, int]] = {}  # letter → range of graphone ids
        for letter, group in groupby(range(len(MARKS), len(names)), key=lambda u: names[u][0]):
            ids = list(group)
            self._units[letter] = (ids[0], ids[-1] + 1)
        self._build_states(model)

    def _build_states(self, model: NgramModel) -> None:
        # every list below runs over the n-grams of all orders, one after the other, from 1 on; 0 is the empty history
        base = np.cumsum([1, *[len(level) for level in model.orders]])
        unit, log_prob, backoff = [np.array([-1])], [np.zeros(1)], [np.zeros(1)]
        suffix, parent = [np.array([0])], [np.array([-1])]
        for n, level in enumerate(model.orders, 1):
            unit.append(level.word)
            log_prob.append(level.log10_prob * math.log(10))
            backoff.append(level.log10_backoff * math.log(10))
            words = model.words(n)
            suffix.append(_longest_listed_suffix(model, words, base))
            parent.append(level.context + base[n - 2] if n > 1 else np.zeros(len(level), int))
        parents = np.concatenate(parent)
        n_states = len(parents)
        # children of a state are consecutive, for rows of an order are sorted by context
        children = np.searchsorted(parents[1:], np.arange(n_states + 1)) + 1
        has_children = children[1:] > children[:-1]
        suffixes = np.concatenate(suffix)
        after = np.arange(n_states)  # a state without continuations is its suffix: equal futures share one state
        for _ in range(model.order):
            after = np.where(has_children[after], after, suffixes[after])
        self._unit, self._log_prob = np.concatenate(unit).tolist(), np.concatenate(log_prob).tolist()
        self._backoff, self._suffix = np.concatenate(backoff).tolist(), suffixes.tolist()
        self._after, self._children = after.tolist(), children.tolist()
        self._start = self._after[1 + model.ids[BOS]]
        self._end_unit = model.ids[EOS]

    def pronounce(self, word: str, n_best: int = 1, beam: int = BEAM) -> list[tuple[Pronunciation, float]]:
        """The likeliest pronunciations of a word of a–z and apostrophe, with their share of the beam's probability.

        Raises LexiconError where the word has other characters, or letters that make no sound at all.
        """
        if not word or set(word) - set(LETTERS):
            raise LexiconError(f"need a word of a–z and apostrophe, have {word!r}; spell out numbers and symbols")
        hypotheses: dict[tuple[int, Pronunciation], float] = {(self._start, ()): 0.0}
        for letter in word:
            best = heapq.nlargest(beam, hypotheses.items(), key=lambda item: item[1])
            hypotheses = {}
            for (state, phones), score in best:
                for unit, log_prob, to in self._arcs(state, *self._units.get(letter, (0, 0))):
                    _log_add(hypotheses, (to, phones + self._phones[unit]), score + log_prob)
        ended: dict[Pronunciation, float] = {}
        for (state, phones), score in hypotheses.items():
            if phones:
                [(_, log_prob, _)] = self._arcs(state, self._end_unit, self._end_unit + 1)
                _log_add(ended, phones, score + log_prob)
        if not ended:
            raise LexiconError(f"need letters that make a sound, have {word!r}; add a 'word p1 p2 …' line")
        best = heapq.nlargest(n_best, ended.items(), key=lambda item: item[1])
        top = best[0][1]
        total = sum(math.exp(score - top) for score in ended.values())
        return [(phones, math.exp(score - top) / total) for phones, score in best]

    def _arcs(self, state: int, first: int, end: int) -> list[tuple[int, float, int]]:
        """(graphone, log probability, next state) of every graphone id in first … end − 1, backing off as needed."""
        arcs, seen, weight = [], set(), 0.0
        unit, children = self._unit, self._children
        while True:
            stop = children[state + 1]
            child = bisect_left(unit, first, children[state], stop)
            while child < stop and unit[child] < end:
                if unit[child] not in seen:
                    seen.add(unit[child])
                    arcs.append((unit[child], weight + self._log_prob[child], self._after[child]))
                child += 1
            if state == 0:
                return arcs
            weight += self._backoff[state]
            state = self._suffix[state]


def _longest_listed_suffix(model: NgramModel, words: np.ndarray, base: np.ndarray) -> np.ndarray:
    """State of the longest proper suffix of each n-gram that the model lists, (N,); 0 is the empty history."""
    state = np.zeros(len(words), np.int64)
    for n in range(1, words.shape[1]):  # longer suffixes overwrite shorter ones
        row = model.rows(words[:, -n:])
        state = np.where(row >= 0, base[n - 1] + row, state)
    return state


def _log_add(scores: dict, key: object, score: float) -> None:
    old = scores.get(key)
    if old is None:
        scores[key] = score
    else:
        high, low = (old, score) if old > score else (score, old)
        scores[key] = high + math.log1p(math.exp(low - high))


@cache
def _shipped() -> GraphemeToPhoneme:
    return GraphemeToPhoneme(load())


def pronounce(word: str) -> list[Pronunciation]:
    """One pronunciation of a word by the shipped model, or two where the second is nearly as likely."""
    best = _shipped().pronounce(word, N_ALTERNATIVES)
    return [phones for phones, share in best if share >= ALTERNATIVE_RATIO * best[0][1]]


def main(arguments: list[str] | None = None) -> None:
    """`python -m edge_asr.g2p train`: writes the shipped model again, from CMUdict or from a lexicon file."""
    parser = argparse.ArgumentParser(prog="python -m edge_asr.g2p", description="Grapheme to phoneme.")
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train a model")
    training.add_argument("--lexicon", type=Path, help="'word p1 p2 …' lines; CMUdict where left out")
    training.add_argument("--output", type=Path, default=MODEL_PATH, help="the model file (%(default)s)")
    training.add_argument("--order", type=int, default=ORDER, help="graphones in an n-gram (%(default)s)")
    saying = commands.add_parser("pronounce", help="print pronunciations and their probabilities")
    saying.add_argument("words", nargs="+")
    saying.add_argument("--n-best", type=int, default=3)
    options = parser.parse_args(arguments)
    if options.command == "train":
        entries = Lexicon.load(options.lexicon).entries if options.lexicon else read_cmudict()
        save(train(entries, options.order), options.output)
    else:
        for word in options.words:
            for phones, share in _shipped().pronounce(word, options.n_best):
                print(f"{word}\t{share:.3f}\t{' '.join(phones)}")


if __name__ == "__main__":
    main()
