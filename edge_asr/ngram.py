"""N-gram language models: estimated from text, pruned, mixed, restricted and measured (arpa.py reads and writes them).

One order of a model is four arrays. Row r of order n is the n-gram whose first n−1 words are row `context[r]` of
order n−1 and whose last word is `word[r]`; rows are sorted by (context, word), so that looking many n-grams up is one
binary search, and everything here works on whole arrays. Row = word id in order 1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from edge_asr.errors import LanguageModelError

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
MARKS = (UNK, BOS, EOS)  # word ids 0, 1, 2 of an estimated model
LOG10_ZERO = -99.0  # ARPA's way to write a probability of zero
NO_DISCOUNT_DATA = (0.5, 1.0, 1.5)  # modified Kneser–Ney where a text has too few singletons to estimate it


@dataclass(frozen=True)
class NgramOrder:
    """The n-grams of one order; arrays of equal length N."""

    context: np.ndarray  # int32, row of the first n−1 words in the order below; zeros in order 1
    word: np.ndarray  # int32, id of the last word
    log10_prob: np.ndarray  # float64, of the last word after the others
    log10_backoff: np.ndarray  # float64, weight of this n-gram as a history; 0 where it has no continuation

    def __len__(self) -> int:
        return len(self.word)


class NgramModel:
    """A back-off n-gram model: `vocab` (id → word) and `orders[n − 1]`, the n-grams of length n."""

    def __init__(self, vocab: Sequence[str], orders: Sequence[NgramOrder]) -> None:
        self.vocab = list(vocab)
        self.orders = list(orders)
        self.ids = {word: i for i, word in enumerate(self.vocab)}
        self._keys = [self._key(level.context, level.word) for level in self.orders]

    @property
    def order(self) -> int:
        return len(self.orders)

    def __len__(self) -> int:
        """Number of n-grams of all orders."""
        return sum(len(level) for level in self.orders)

    def words(self, n: int) -> np.ndarray:
        """All n-grams of length n as word ids, (N, n) int32."""
        level = self.orders[n - 1]
        if n == 1:
            return level.word[:, None]
        return np.column_stack([self.words(n - 1)[level.context], level.word])

    def find(self, n: int, context: np.ndarray, word: np.ndarray) -> np.ndarray:
        """Rows in order n > 1 of (row in order n−1, word id) pairs; −1 where there is none, or either is −1."""
        wanted, keys = self._key(context, word), self._keys[n - 1]
        if not len(keys):
            return np.full(len(wanted), -1)
        row = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where((keys[row] == wanted) & (context >= 0) & (word >= 0), row, -1)

    def rows(self, ngrams: np.ndarray) -> np.ndarray:
        """Rows of (N, n) word ids in order n; −1 where the model does not list them."""
        row = ngrams[:, 0]
        for n in range(2, ngrams.shape[1] + 1):
            row = self.find(n, row, ngrams[:, n - 1])
        return row

    def log10_prob(self, ngrams: np.ndarray) -> np.ndarray:
        """log10 probability of the last word after the others, backing off where needed: (N, n) ids → (N,).

        An id of −1 is a word that the model does not know, of probability zero.
        """
        n = ngrams.shape[1]
        if n == 1:
            return np.where(ngrams[:, 0] < 0, LOG10_ZERO, self.orders[0].log10_prob[ngrams[:, 0]])
        context = self.rows(ngrams[:, :-1])
        row = self.find(n, context, ngrams[:, -1])
        listed, backs_off = row >= 0, (row < 0) & (context >= 0)
        log10_prob = np.zeros(len(row))
        log10_prob[~listed] = self.log10_prob(ngrams[~listed, 1:])
        log10_prob[backs_off] += self.orders[n - 2].log10_backoff[context[backs_off]]
        log10_prob[listed] = self.orders[n - 1].log10_prob[row[listed]]
        return log10_prob

    def _key(self, context: np.ndarray, word: np.ndarray) -> np.ndarray:
        return np.asarray(context, np.int64) * len(self.vocab) + word


# ---------------------------------------------------------------------------------------------------- estimation


def estimate(
    sentences: Iterable[str | Sequence[str]],
    order: int = 3,
    smoothing: str = "kneser-ney",
    cutoffs: Sequence[int] = (),
    prune_threshold: float = 0.0,
    vocab: Iterable[str] | None = None,
) -> NgramModel:
    """An interpolated n-gram model of sentences (strings split at white space, or sequences of words).

    smoothing: "kneser-ney" is the modified, interpolated form of Chen and Goodman (1998), for words; "witten-bell" is
        for small symbol sets, whose counts of counts say nothing about discounts.
    cutoffs: least count of an n-gram to be listed, for orders 1, 2, …; the last one holds for all higher orders.
    prune_threshold: of relative-entropy pruning, as in `prune`, with a Witten–Bell model of the histories.
    vocab: words to keep; the rest become `<unk>`.
    """
    if order < 1 or smoothing not in ("kneser-ney", "witten-bell"):
        raise LanguageModelError(
            f"need order ≥ 1 and smoothing kneser-ney or witten-bell, have {order} and {smoothing!r}; change them"
        )
    least = [*cutoffs, *[cutoffs[-1] if cutoffs else 1] * order][:order]
    if any(lower > higher for lower, higher in pairwise(least[1:])):
        raise LanguageModelError(f"need cut-offs that do not fall with the order, have {least}; raise the later ones")
    words, tokens, position = _read_sentences(sentences, vocab)
    counts = _count(tokens, position, order, len(words))
    model = NgramModel(words, _smooth(counts, least, smoothing == "kneser-ney", len(words)))
    if prune_threshold <= 0 or order == 1:
        return model
    history = NgramModel(words, _smooth(counts[:-1], [1] * (order - 1), False, len(words)))
    return prune(model, prune_threshold, history)


@dataclass(frozen=True)
class _Counts:
    context: np.ndarray
    word: np.ndarray
    suffix: np.ndarray  # row in the order below of the n-gram without its first word
    count: np.ndarray  # times seen
    n_before: np.ndarray  # distinct words seen before it; times seen where it begins a sentence


def _read_sentences(
    sentences: Iterable[str | Sequence[str]], vocab: Iterable[str] | None
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """→ words (id → word), token ids of the text with its marks, and each token's position in its sentence."""
    ids = {mark: i for i, mark in enumerate(MARKS)}
    for word in vocab or ():
        ids.setdefault(word, len(ids))
    unknown, bos, eos = range(3)
    chunks, lengths = [], []
    for sentence in sentences:
        words = sentence.split() if isinstance(sentence, str) else sentence
        if vocab is None:
            chunk = [bos, *[ids.setdefault(word, len(ids)) for word in words], eos]
        else:
            chunk = [bos, *[ids.get(word, unknown) for word in words], eos]
        chunks.append(np.array(chunk, np.int32))
        lengths.append(len(chunk))
    if not chunks:
        raise LanguageModelError("need at least one sentence to estimate a language model, have none; check the text")
    length, tokens = np.array(lengths), np.concatenate(chunks)
    if np.count_nonzero((tokens == bos) | (tokens == eos)) != 2 * len(chunks):
        raise LanguageModelError(f"need sentences without {BOS} and {EOS}, have some with them; remove the marks")
    start = np.repeat(np.cumsum(length) - length, length)
    return list(ids), tokens, np.arange(len(start)) - start


def _count(tokens: np.ndarray, position: np.ndarray, order: int, n_words: int) -> list[_Counts]:
    row = tokens.astype(np.int64)  # row of the n-gram that ends at each token, in the order at hand
    count = np.bincount(tokens, minlength=n_words)
    zeros = np.zeros(n_words, np.int32)
    levels = [(zeros, np.arange(n_words, dtype=np.int32), zeros, count)]
    begins = [np.arange(n_words) == 1]  # <s>
    for n in range(2, order + 1):
        end = np.flatnonzero(position >= n - 1)
        key, first, inverse, count = np.unique(
            row[end - 1] * n_words + tokens[end], return_index=True, return_inverse=True, return_counts=True
        )
        context = key // n_words
        levels.append((context.astype(np.int32), (key % n_words).astype(np.int32), row[end[first]], count))
        begins.append(begins[-1][context])
        row[end] = inverse
    result = []
    for n, (context, word, suffix, count) in enumerate(levels, 1):
        n_before = count if n == order else np.bincount(levels[n][2], minlength=len(word))
        result.append(_Counts(context, word, suffix, count, np.where(begins[n - 1], count, n_before)))
    return result


def _smooth(counts: list[_Counts], least: list[int], kneser_ney: bool, n_words: int) -> list[NgramOrder]:
    """Interpolated probabilities, order by order upwards; n-grams below `least` give their mass to the back-off."""
    orders: list[NgramOrder] = []
    lower = np.full(n_words, 1 / (n_words - 1))  # below order 1: uniform over all words but <s>
    kept_before = np.ones(n_words, bool)
    for n, level in enumerate(counts, 1):
        count = (level.n_before if kneser_ney else level.count).astype(float)
        if n == 1:
            count[1] = 0  # <s> is never predicted
        kept = level.count >= least[n - 1] if n > 1 else np.ones(n_words, bool)
        n_contexts = len(lower) if n > 1 else 1
        discounted = np.where(kept, _discounted(count) if kneser_ney else count, 0.0)
        total = np.bincount(level.context, count, n_contexts)
        if not kneser_ney:
            total += np.bincount(level.context, count > 0, n_contexts)
        total = np.where(total > 0, total, 1.0)
        mass = 1 - np.bincount(level.context, discounted, n_contexts) / total
        below = lower if n == 1 else lower[level.suffix]
        probability = discounted / total[level.context] + mass[level.context] * below
        if n == 1:
            probability[1] = 0
        else:
            has_children = np.bincount(level.context[kept], minlength=n_contexts) > 0
            backoff = np.where(has_children, _log10(mass), 0.0)[kept_before]
            orders[-1].log10_backoff[:] = backoff
        new_row = np.cumsum(kept_before) - 1
        context = new_row[level.context[kept]].astype(np.int32) if n > 1 else level.context
        orders.append(NgramOrder(context, level.word[kept], _log10(probability[kept]), np.zeros(kept.sum())))
        lower, kept_before = probability, kept
    return orders


def _discounted(count: np.ndarray) -> np.ndarray:
    """Modified Kneser–Ney: counts less a discount for 1, 2 and 3 or more (Chen and Goodman 1998, equation 26)."""
    n1, n2, n3, n4 = (np.count_nonzero(count == c) for c in (1, 2, 3, 4))
    discounts = NO_DISCOUNT_DATA
    if n1 and n2 and n3:
        y = n1 / (n1 + 2 * n2)
        estimated = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        if all(0 <= d <= c for c, d in enumerate(estimated, 1)):
            discounts = estimated
    return count - np.array([0.0, *discounts])[np.minimum(count, 3).astype(int)]


def _log10(x: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(x, 10.0**LOG10_ZERO))


# --------------------------------------------------------------------------- pruning, mixing, choosing a vocabulary


def prune(model: NgramModel, threshold: float, history: NgramModel | None = None) -> NgramModel:
    """Drops n-grams without which the model's perplexity rises by less than `threshold`, relative (Stolcke 1998).

    Each n-gram is weighed alone, from the highest order down; one that begins a longer n-gram stays.
    history: model that says how often a history is met, the model itself by default. Give a Witten–Bell one, an order
        shorter, for a Kneser–Ney model: its short n-grams count contexts, not occurrences (Chelba et al. 2010).
    """
    keep = [np.ones(len(level), bool) for level in model.orders]
    history_prob = _history_probs(model, history or model)
    for n in range(model.order, 1, -1):
        level, n_contexts = model.orders[n - 1], len(model.orders[n - 2])
        p, q = 10**level.log10_prob, 10 ** model.log10_prob(model.words(n)[:, 1:])
        left = np.maximum(1 - np.bincount(level.context, p, n_contexts), 1e-12)[level.context]
        left_below = np.maximum(1 - np.bincount(level.context, q, n_contexts), 1e-12)[level.context]
        log_backoff, log_new_backoff = np.log(left / left_below), np.log((left + p) / (left_below + q))
        entropy_rise = history_prob[n - 2][level.context] * (
            p * (np.log(p) - np.log(q) - log_new_backoff) + left * (log_backoff - log_new_backoff)
        )
        keep[n - 1] = np.expm1(entropy_rise) >= threshold
        if n < model.order:
            keep[n - 1][model.orders[n].context[keep[n]]] = True
    return NgramModel(model.vocab, _with_backoffs(model.vocab, _kept(model.orders, keep)))


def interpolate(models: Sequence[NgramModel], weights: Sequence[float]) -> NgramModel:
    """One back-off model of a linear mixture: exact for every n-gram that a model lists, normalised for the rest.

    A word unknown to a model has probability zero in it. The weights must add up to 1.
    """
    if not models or len(models) != len(weights) or min(weights) < 0 or abs(sum(weights) - 1) > 1e-6:
        raise LanguageModelError(
            f"need one weight for each model, adding up to 1, have {len(models)} models, weights {list(weights)}"
        )
    vocab = list(dict.fromkeys(word for model in models for word in model.vocab))
    ids = {word: i for i, word in enumerate(vocab)}
    to_union = [np.array([ids[word] for word in model.vocab]) for model in models]
    to_model = [np.array([model.ids.get(word, -1) for word in vocab]) for model in models]
    rows = to_union  # of each model's n-grams of the order at hand in the mixture
    context, word = np.zeros(len(vocab), np.int64), np.arange(len(vocab))
    words = word[:, None]
    orders: list[NgramOrder] = []
    for n in range(1, max(model.order for model in models) + 1):
        if n > 1:
            keys = [_union_keys(*item, n, len(vocab)) for item in zip(models, to_union, rows)]
            union = np.unique(np.concatenate(keys))
            rows = [np.searchsorted(union, key) for key in keys]
            context, word = np.divmod(union, len(vocab))
            words = np.column_stack([words[context], word])
        probability = sum(
            weight * 10 ** model.log10_prob(known[words[:, -model.order :]])
            for model, known, weight in zip(models, to_model, weights)
        )
        level = context.astype(np.int32), word.astype(np.int32), _log10(probability), np.zeros(len(word))
        orders.append(NgramOrder(*level))
    return NgramModel(vocab, _with_backoffs(vocab, orders))


def _union_keys(model: NgramModel, to_union: np.ndarray, rows: np.ndarray, n: int, n_words: int) -> np.ndarray:
    """Sort keys in the mixture of a model's n-grams of length n; `rows`: where its n−1-grams are in the mixture."""
    if n > model.order:
        return np.zeros(0, np.int64)
    level = model.orders[n - 1]
    return rows[level.context].astype(np.int64) * n_words + to_union[level.word]


def restrict(model: NgramModel, words: Iterable[str]) -> NgramModel:
    """The model over fewer words: n-grams with other words go, and what they held is shared among the rest."""
    chosen = {*words, *MARKS}
    keep_word = np.array([word in chosen for word in model.vocab])
    keep = [keep_word]
    for level in model.orders[1:]:
        keep.append(keep[-1][level.context] & keep_word[level.word])
    unigrams, *longer = _kept(model.orders, keep)
    new_id = (np.cumsum(keep_word) - 1).astype(np.int32)
    log10_prob = unigrams.log10_prob - np.log10(np.sum(10**unigrams.log10_prob))
    log10_prob = np.where(unigrams.log10_prob <= LOG10_ZERO, LOG10_ZERO, log10_prob)
    orders = [NgramOrder(unigrams.context, new_id[unigrams.word], log10_prob, unigrams.log10_backoff)]
    orders += [NgramOrder(o.context, new_id[o.word], o.log10_prob, o.log10_backoff) for o in longer]
    vocab = [word for word in model.vocab if word in chosen]
    return NgramModel(vocab, _with_backoffs(vocab, orders))


def _history_probs(model: NgramModel, judge: NgramModel) -> list[np.ndarray]:
    """Probability of each n-gram as a history, by `judge`; that of `<s>` is the probability of an end of sentence."""
    judges_id = np.array([judge.ids.get(EOS if word == BOS else word, -1) for word in model.vocab])
    result = [10 ** judge.log10_prob(judges_id[:, None])]
    judges_id[model.ids[BOS]] = judge.ids[BOS]
    for n in range(2, model.order):
        words = judges_id[model.words(n)[:, -judge.order :]]
        result.append(result[-1][model.orders[n - 1].context] * 10 ** judge.log10_prob(words))
    return result


def _kept(orders: Sequence[NgramOrder], keep: Sequence[np.ndarray]) -> list[NgramOrder]:
    result, new_row = [], np.zeros(1, np.int32)
    for n, (level, kept) in enumerate(zip(orders, keep), 1):
        context = level.context[kept] if n == 1 else new_row[level.context[kept]]
        result.append(NgramOrder(context, level.word[kept], level.log10_prob[kept], level.log10_backoff[kept]))
        new_row = (np.cumsum(kept) - 1).astype(np.int32)
    return result


def _with_backoffs(vocab: Sequence[str], orders: Sequence[NgramOrder]) -> list[NgramOrder]:
    """The same probabilities with back-off weights that make every history's add up to one."""
    result = [NgramOrder(o.context, o.word, o.log10_prob, np.zeros(len(o))) for o in orders]
    for n in range(2, len(result) + 1):  # upwards: the weights of shorter histories are needed
        level, n_contexts = result[n - 1], len(result[n - 2])
        lower = NgramModel(vocab, result[: n - 1])
        below = 10 ** lower.log10_prob(NgramModel(vocab, result[:n]).words(n)[:, 1:])
        left = 1 - np.bincount(level.context, 10**level.log10_prob, n_contexts)
        left_below = 1 - np.bincount(level.context, below, n_contexts)
        # a history that lists every word has nothing left on either side; its weight is never used
        exhausted = (left < 1e-9) & (left_below < 1e-9)
        ratio = np.maximum(left, 1e-12) / np.maximum(left_below, 1e-12)
        result[n - 2].log10_backoff[:] = np.where(exhausted, 0.0, np.log10(ratio))
    return result


# ------------------------------------------------------------------------------------------------------ perplexity


@dataclass(frozen=True)
class Perplexity:
    """Of a text: words outside the vocabulary are counted in `n_unknown` and left out of the rest."""

    log10_prob: float
    n_sentences: int
    n_words: int
    n_unknown: int

    @property
    def perplexity(self) -> float:
        """Per word, ends of sentences included, unknown words not (as SRILM's "ppl")."""
        return 10 ** (-self.log10_prob / (self.n_sentences + self.n_words - self.n_unknown))


def perplexity(model: NgramModel, sentences: Iterable[str | Sequence[str]]) -> Perplexity:
    """How well the model foretells sentences (strings split at white space, or sequences of words)."""
    words, tokens, position = _read_sentences(sentences, None)
    unknown_id = model.ids.get(UNK, -1)
    tokens = np.array([model.ids.get(word, unknown_id) for word in words])[tokens]
    unknown = (tokens == unknown_id) & (position > 0)
    total = 0.0
    for n in range(2 if model.order > 1 else 1, model.order + 1):
        longest = position >= n - 1 if n == model.order else position == n - 1
        end = np.flatnonzero(longest & (position > 0) & ~unknown)
        total += float(np.sum(model.log10_prob(tokens[end[:, None] - np.arange(n - 1, -1, -1)])))
    n_sentences = int(np.count_nonzero(position == 0))
    return Perplexity(total, n_sentences, len(tokens) - 2 * n_sentences, int(np.count_nonzero(unknown)))
