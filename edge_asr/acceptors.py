"""The parts of a decoding graph as columns: L, the lexicon, and G, a back-off language model."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from edge_asr.errors import LanguageModelError
from edge_asr.ngram import BOS, EOS, LOG10_ZERO, NgramModel, NgramOrder
from edge_asr.transducer import Transducer, from_arcs

LN10 = float(np.log(10.0))

_StateCost = tuple[np.ndarray, np.ndarray]


def lexicon_transducer(
    words: Sequence[str],
    spelled: Mapping[str, Sequence[tuple[int, ...]]],
    n_tokens: int,
    costs: Mapping[tuple[str, tuple[int, ...]], float],
) -> Transducer:
    """L: a loop for each pronunciation, the word at its first label.

    A pronunciation that another word shares, or that begins another, ends with a disambiguation label of its own
    (n_tokens + 2 and up; n_tokens + 1 stands for G's back-off), or L ∘ G could not be determinised.
    """
    n_sharing = Counter(labels for word in words[1:] for labels in spelled[word])
    beginnings = {labels[:i] for labels in n_sharing for i in range(1, len(labels))}
    n_used: Counter[tuple[int, ...]] = Counter()
    arcs = [(0, n_tokens + 1, len(words), 0.0, 0)]
    n_states = 1
    for word_id, word in enumerate(words[1:], 1):
        for labels in spelled[word]:
            path = list(labels)
            if n_sharing[labels] > 1 or labels in beginnings:
                n_used[labels] += 1
                path.append(n_tokens + 1 + n_used[labels])
            source, olabel, cost = 0, word_id, costs.get((word, labels), 0.0)
            for i, label in enumerate(path, 1):
                to = 0 if i == len(path) else n_states
                n_states += to > 0
                arcs.append((source, label, olabel, cost, to))
                source, olabel, cost = to, 0, 0.0
    final = np.full(n_states, np.inf)
    final[0] = 0.0
    return from_arcs(0, final, *map(np.array, zip(*arcs, strict=True)))


def with_end_label(fst: Transducer, end_label: int) -> Transducer:
    """Final states become arcs with the end label and the final cost, into one new state."""
    ends = np.flatnonzero(np.isfinite(fst.final))
    return from_arcs(
        fst.start,
        np.full(fst.n_states + 1, np.inf),
        np.concatenate([fst.source, ends]),
        np.concatenate([fst.ilabel, np.full(len(ends), end_label)]),
        np.concatenate([fst.olabel, np.zeros(len(ends), np.int32)]),
        np.concatenate([fst.weight, fst.final[ends]]),
        np.concatenate([fst.nextstate, np.full(len(ends), fst.n_states)]),
    )


def lm_acceptor(model: NgramModel, word_ids: Mapping[str, int], lm_scale: float = 1.0) -> Transducer:
    """G: a state for each history that has continuations; its back-off arc has the label after the last word's."""
    backoff_label = max(word_ids.values()) + 1
    label = np.array([word_ids.get(word, 0) for word in model.vocab], np.int32)
    bos, eos = (model.ids.get(mark, -1) for mark in (BOS, EOS))
    kept = [_kept_rows(level, label, eos) for level in model.orders]
    state, n_states = [], 1  # state 0 is the empty history
    for level, longer, keep in zip(model.orders, model.orders[1:], kept[1:], strict=False):
        continued = np.zeros(len(level), bool)
        continued[longer.context[keep]] = True
        state.append(np.where(continued, n_states + np.cumsum(continued) - 1, -1))
        n_states += int(continued.sum())
    history, backoff = _destinations(model, state)

    final = np.full(n_states, np.inf)
    arcs = []
    for n, level in enumerate(model.orders, 1):
        source = np.zeros(len(level), np.int64) if n == 1 else state[n - 2][level.context]
        cost = -LN10 * level.log10_prob
        ends = kept[n - 1] & (level.word == eos)
        final[source[ends]] = cost[ends]
        says = kept[n - 1] & (level.word != eos)
        to, more = history[n - 1]
        words = label[level.word[says]]
        arcs.append((source[says], words, words, cost[says] + more[says], to[says]))
        if n < model.order:
            own = state[n - 1] >= 0
            to, more = backoff[n - 1]
            marks, none = np.full(own.sum(), backoff_label), np.zeros(own.sum(), int)
            arcs.append((state[n - 1][own], marks, none, more[own], to[own]))
    columns = [np.concatenate(column) for column in zip(*arcs, strict=True)]
    columns[3] = columns[3] * lm_scale
    start = state[0][bos] if state and bos >= 0 and state[0][bos] >= 0 else 0
    if not np.isfinite(final).any():
        raise LanguageModelError(f"need {EOS} in the language model, for a sentence must end; estimate it with marks")
    return from_arcs(start, final * lm_scale, *columns)


def _kept_rows(level: NgramOrder, label: np.ndarray, eos: int) -> np.ndarray:
    return ((label[level.word] > 0) | (level.word == eos)) & (level.log10_prob > LOG10_ZERO)


def _destinations(model: NgramModel, state: list[np.ndarray]) -> tuple[list[_StateCost], list[_StateCost]]:
    """→ (history, backoff), by order: the state, and the cost of going there, after each n-gram as a history, and after
    backing off from it. A history without continuations has no state of its own and is left by backing off at once.
    """
    history: list[_StateCost] = []
    backoff: list[_StateCost] = []
    for n, level in enumerate(model.orders, 1):
        to, cost = np.zeros(len(level), np.int64), np.zeros(len(level))
        unplaced = np.arange(len(level))
        for n_dropped in range(1, n):  # the longest suffix that the model lists
            row = model.rows(model.words(n)[unplaced, n_dropped:])
            listed = row >= 0
            shorter_to, shorter_cost = history[n - n_dropped - 1]
            to[unplaced[listed]] = shorter_to[row[listed]]
            cost[unplaced[listed]] = shorter_cost[row[listed]]
            unplaced = unplaced[~listed]
        cost = cost - LN10 * level.log10_backoff
        backoff.append((to, cost))
        own = state[n - 1] if n < model.order else np.full(len(level), -1)
        history.append((np.where(own >= 0, own, to), np.where(own >= 0, 0.0, cost)))
    return history, backoff
