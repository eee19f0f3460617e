"""Decoding graphs: T ∘ min(det(L ∘ G)), from a lexicon and a language model or any acceptor of words.

After Mohri, Pereira and Riley (2008), as Kaldi builds them, with kaldifst for the work on the automata: L is the
lexicon with disambiguation symbols, G the language model with back-off arcs, T the CTC topology (topology.py).

Sentences end with an arc of their own, input label n_tokens + 1, not in final states: kaldi-decoder's FasterDecoder
shows the best path to a final state wherever there is one, so it could not tell what a running decode has heard.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kaldifst
import numpy as np

from edge_asr.errors import (
    GraphError,
    LanguageModelError,
    LexiconError,
    ModelDamagedError,
    ModelMismatchError,
    ModelNotFoundError,
)
from edge_asr.ngram import BOS, EOS, LOG10_ZERO, MARKS, NgramModel, NgramOrder, read_arpa, restrict
from edge_asr.tokens import Lexicon, Pronunciation, TokenTable
from edge_asr.topology import CtcGraph, add_topology, pack, to_decoding_fst, unpack
from edge_asr.transducer import Transducer, breadth_first, from_arcs, from_kaldifst, to_kaldifst, without_epsilon_tails

EPSILON = "<eps>"
OTHER = "<other>"  # the word of sounds outside a grammar; a decoder does not show it
WEIGHT_STEP = 1 / 32  # costs become multiples of it: at most 1.6 % in probability, and half the bytes of the weights
LN10 = float(np.log(10.0))

_StateCost = tuple[np.ndarray, np.ndarray]
Spellings = Mapping[int, Sequence[tuple[int, ...]]]  # word id → its pronunciations in labels, token id + 1


@dataclass(frozen=True)
class Graph:
    """A decoding graph, ready for the search; `columns`, which `save_graph` writes, only where it was built here."""

    fst: kaldifst.StdConstFst
    words: Sequence[str]  # id → word; words[0] is <eps>
    spellings: Spellings
    config: Mapping[str, Any]
    columns: CtcGraph | None = None

    @property
    def n_tokens(self) -> int:
        return int(self.config["n_tokens"])

    def pronunciations(self, word_id: int) -> Sequence[tuple[int, ...]]:
        """A word's pronunciations in labels, token id + 1; none for the word of other sounds, which is any label."""
        return self.spellings.get(word_id, ())


# ------------------------------------------------------------------------------------------------- saving and loading


def save_graph(graph: Graph, directory: str | Path) -> None:
    """Writes graph.fst (packed), words.txt and config.json."""
    if graph.columns is None:
        raise GraphError("need a graph that was built here, have a loaded one; copy its directory instead")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "graph.fst").write_bytes(pack(graph.columns, _spelling_columns(graph.spellings)))
    lines = (f"{word} {i}\n" for i, word in enumerate(graph.words))
    (directory / "words.txt").write_text("".join(lines), encoding="utf-8")
    (directory / "config.json").write_text(json.dumps(graph.config, indent=2) + "\n", encoding="utf-8")


def load_graph(directory: str | Path, tokens_sha256: str | None = None, word_cost: float | None = None) -> Graph:
    """Reads what `save_graph` wrote and fills in the CTC topology.

    tokens_sha256: of the model's token table; another one than the graph's is refused.
    word_cost: added for every word, instead of the configuration's `word_cost`; above 0 it makes words fewer.
    Raises ModelNotFoundError, ModelDamagedError, ModelMismatchError; the message names the file.
    """
    directory = Path(directory)
    try:
        config = json.loads(_read(directory / "config.json"))
        n_words, n_tokens, sha256 = int(config["n_words"]), int(config["n_tokens"]), config["tokens_sha256"]
        cost = float(config.get("word_cost", 0.0) if word_cost is None else word_cost)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelDamagedError(f"{directory / 'config.json'}: is no graph's configuration ({error!r})") from None
    if tokens_sha256 is not None and sha256 != tokens_sha256:
        raise ModelMismatchError(
            f"{directory}: the graph was made for the tokens {str(sha256)[:12]}…, the model has {tokens_sha256[:12]}…; "
            "build the graph again with the model's tokens.txt"
        )
    words = _read_words(directory / "words.txt", n_words)
    try:
        columns, spellings = unpack(_read(directory / "graph.fst"))
    except GraphError as error:
        raise ModelDamagedError(f"{directory / 'graph.fst'}: {error}; restore the file or build it again") from None
    if columns.olabel.max(initial=0) >= n_words or columns.pair_label.max(initial=0) > n_tokens + 1:
        raise ModelMismatchError(f"{directory}: graph.fst has words or tokens that words.txt and config.json lack")
    return Graph(to_decoding_fst(columns, cost), words, PackedSpellings(*spellings), config)


class PackedSpellings(Mapping[int, Sequence[tuple[int, ...]]]):
    """Pronunciations in three arrays: a tuple for each of 100,000 would take longer to make than the graph to load."""

    def __init__(self, word: np.ndarray, length: np.ndarray, labels: np.ndarray) -> None:
        self._word = word  # (N,) ids, sorted
        self._first = np.append(0, np.cumsum(length, dtype=np.int64))
        self._labels = labels

    def __getitem__(self, word_id: int) -> Sequence[tuple[int, ...]]:
        low, high = np.searchsorted(self._word, (word_id, word_id + 1))
        if low == high:
            raise KeyError(word_id)
        return [tuple(self._labels[self._first[i] : self._first[i + 1]].tolist()) for i in range(low, high)]

    def __iter__(self) -> Iterator[int]:
        return iter(np.unique(self._word).tolist())

    def __len__(self) -> int:
        return len(np.unique(self._word))


def _spelling_columns(spellings: Spellings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = [(word, labels) for word in sorted(spellings) for labels in spellings[word]]
    flat = [label for _, labels in rows for label in labels]
    return tuple(np.array(column, np.int32) for column in ([w for w, _ in rows], [len(p) for _, p in rows], flat))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path}: is missing; restore the file or build the graph again") from None
    except OSError as error:
        raise ModelDamagedError(f"{path}: cannot be read ({error}); restore the file") from None


def _read_words(path: Path, n_words: int) -> list[str]:
    try:
        fields = _read(path).decode().split()
    except UnicodeDecodeError as error:
        raise ModelDamagedError(f"{path}: is not UTF-8 ({error}); restore the file") from None
    words, ids = fields[::2], fields[1::2]
    if len(words) != n_words or words[:1] != [EPSILON] or ids != list(map(str, range(n_words))):
        raise ModelDamagedError(
            f"{path}: needs {n_words} lines 'word id' from '{EPSILON} 0' on, has {len(words)} words; restore the file"
        )
    return words


# ------------------------------------------------------------------------------------------------------- language model


def build_lm_graph(
    lexicon: Lexicon,
    model: NgramModel | str | Path,
    tokens: TokenTable,
    lm_scale: float = 1.0,
    topology: str = "exact",
    pronunciation_probs: Mapping[tuple[str, Pronunciation], float] | None = None,
    weight_step: float = WEIGHT_STEP,
) -> Graph:
    """A graph over all words of an n-gram model (or ARPA file) that the lexicon pronounces.

    lm_scale: multiplies the model's costs. pronunciation_probs: 1 where a pronunciation is not listed.
    weight_step: costs become multiples of it; a small graph has room for a smaller one.
    """
    if not isinstance(model, NgramModel):
        model = read_arpa(model)
    spelled = _spell_all(lexicon, model.vocab, tokens)
    if not spelled:
        raise GraphError(f"need words that the lexicon pronounces, have none of {len(model.vocab)}; check both files")
    if len(spelled) < len(set(model.vocab) - set(MARKS)):
        model = restrict(model, spelled)
    words = [EPSILON, *sorted(spelled)]
    costs = {
        (word, tuple(tokens.id(phone) + 1 for phone in phones)): -math.log(probability)
        for (word, phones), probability in (pronunciation_probs or {}).items()
    }
    config = {
        "kind": "ngram",
        "order": model.order,
        "n_grams": [len(level) for level in model.orders],
        "lm_scale": lm_scale,
    }
    acceptor = lm_acceptor(model, {word: i for i, word in enumerate(words)}, lm_scale)
    return compile_graph(acceptor, words, spelled, tokens, config, topology, costs, weight_step)


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


# --------------------------------------------------------------------------------------------------------- composition


def compile_graph(
    acceptor: Transducer,
    words: Sequence[str],
    spelled: Mapping[str, Sequence[tuple[int, ...]]],
    tokens: TokenTable,
    config: Mapping[str, Any],
    topology: str = "exact",
    costs: Mapping[tuple[str, tuple[int, ...]], float] | None = None,
    weight_step: float = WEIGHT_STEP,
) -> Graph:
    """T ∘ min(det(L ∘ G)): the acceptor's labels are word ids, and one more than the last id for backing off.

    spelled: pronunciations of the words in labels, token id + 1. costs: of single (word, pronunciation) pairs.
    """
    n_tokens = len(tokens)
    lexicon = kaldifst.StdVectorFst(to_kaldifst(_lexicon_transducer(words, spelled, n_tokens, costs or {})))
    grammar = kaldifst.StdVectorFst(to_kaldifst(acceptor))
    kaldifst.arcsort(lexicon, "olabel")
    kaldifst.arcsort(grammar, "ilabel")
    graph = kaldifst.compose(lexicon, grammar)
    del lexicon, grammar
    kaldifst.determinize_star(graph, use_log=True)
    kaldifst.minimize_encoded(graph, weight_step)
    phones = from_kaldifst(graph)
    del graph
    phones.ilabel[phones.ilabel > n_tokens] = 0  # disambiguation and back-off have done their work
    phones = _with_end_label(without_epsilon_tails(phones), n_tokens + 1)
    columns = add_topology(breadth_first(phones), topology)
    config = {
        **config,
        "topology": topology,
        "n_words": len(words),
        "n_states": columns.n_states,
        "n_arcs": columns.n_arcs,
        "n_tokens": n_tokens,
        "tokens_sha256": tokens.sha256,
        "word_cost": 0.0,
    }
    spellings = {i: [tuple(p) for p in spelled[word]] for i, word in enumerate(words) if i and word != OTHER}
    return Graph(to_decoding_fst(columns), words, spellings, config, columns)


def _lexicon_transducer(
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


def _with_end_label(fst: Transducer, end_label: int) -> Transducer:
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


def with_final_states(graph: Graph) -> kaldifst.StdConstFst:
    """The graph as other programs want it (sherpa-onnx's `ctc_graph`, Kaldi): final states instead of end arcs."""
    fst = from_kaldifst(graph.fst)
    source, is_end = fst.source, fst.ilabel == graph.n_tokens + 1
    leaves = is_end & (fst.nextstate != source)
    final = np.full(fst.n_states, np.inf, np.float32)
    final[source[leaves]] = fst.weight[leaves]
    kept = ~is_end
    columns = (column[kept] for column in (source, fst.ilabel, fst.olabel, fst.weight, fst.nextstate))
    plain = kaldifst.StdVectorFst(to_kaldifst(from_arcs(fst.start, final, *columns)))
    kaldifst.connect(plain)
    return kaldifst.StdConstFst(plain)


def spell(lexicon: Lexicon, word: str, tokens: TokenTable) -> list[tuple[int, ...]]:
    """A word's pronunciations in labels, token id + 1. Raises LexiconError."""
    return [tuple(i + 1 for i in tokens.ids(phones)) for phones in lexicon.pronunciations(word)]


def _spell_all(lexicon: Lexicon, words: Iterable[str], tokens: TokenTable) -> dict[str, list[tuple[int, ...]]]:
    """Pronunciations of the words that have one; marks, numbers and the like have none."""
    spelled = {}
    for word in words:
        if word not in MARKS:
            with suppress(LexiconError):
                spelled[word] = spell(lexicon, word, tokens)
    return spelled
