"""Decoding graphs: T ∘ min(det(L ∘ G)), from a lexicon and a language model or any acceptor of words.

After Mohri, Pereira and Riley (2008), as Kaldi builds them, with kaldifst for the work on the automata: L is the
lexicon with disambiguation symbols, G the language model with back-off arcs, T the CTC topology (topology.py).

Sentences end with an arc of their own, input label n_tokens + 1, not in final states: kaldi-decoder's FasterDecoder
shows the best path to a final state wherever there is one, so it could not tell what a running decode has heard.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, overload

import kaldifst
import numpy as np

from edge_asr.errors import (
    GraphError,
    LexiconError,
    ModelDamagedError,
    ModelMismatchError,
    ModelNotFoundError,
)
from edge_asr.memory import give_back_code, give_back_heap, map_large_arrays
from edge_asr.topology import CtcGraph, add_topology, pack, to_decoding_fst, unpack
from edge_asr.transducer import (
    Transducer,
    breadth_first,
    from_arcs,
    from_kaldifst,
    n_bytes,
    to_kaldifst,
    without_epsilon_tails,
)

if TYPE_CHECKING:
    from edge_asr.ngram import NgramModel
    from edge_asr.tokens import Lexicon, Pronunciation, TokenTable

EPSILON = "<eps>"
OTHER = "<other>"  # the word of sounds outside a grammar; a decoder does not show it
WEIGHT_STEP = 1 / 32  # costs become multiples of it: at most 1.6 % in probability, and half the bytes of the weights

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
    map_large_arrays()
    words = _read_words(directory / "words.txt", n_words)
    try:
        with _opened(directory / "graph.fst") as file:
            columns, spellings = unpack(file)
    except GraphError as error:
        raise ModelDamagedError(f"{directory / 'graph.fst'}: {error}; restore the file or build it again") from None
    if columns.olabel.max(initial=0) >= n_words or columns.pair_label.max(initial=0) > n_tokens + 1:
        raise ModelMismatchError(f"{directory}: graph.fst has words or tokens that words.txt and config.json lack")
    fst = to_decoding_fst(columns, cost)
    del columns
    give_back_heap()
    give_back_code()
    return Graph(fst, words, PackedSpellings(*spellings), config)


class PackedWords(Sequence[str]):
    """Words in one string: 100,000 objects would take ten times its memory."""

    def __init__(self, words: Iterable[str]) -> None:
        encoded, ends = bytearray(), array("I", [0])
        for word in words:
            encoded += word.encode()
            ends.append(len(encoded))
        self._bytes, self._first = bytes(encoded), np.array(ends, np.uint32)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"word {index} of {len(self)}")
        first, last = self._first[index % len(self) :][:2]
        return self._bytes[first:last].decode()

    def __len__(self) -> int:
        return len(self._first) - 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None


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


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise ModelNotFoundError(f"{path}: is missing; restore the file or build the graph again") from None
    except OSError as error:
        raise ModelDamagedError(f"{path}: cannot be read ({error}); restore the file") from None


def _read(path: Path) -> bytes:
    with _opened(path) as file:
        return file.read()


def _read_words(path: Path, n_words: int) -> PackedWords:
    lines = enumerate(map(bytes.split, BytesIO(_read(path))))
    try:
        words = PackedWords(line[0].decode() for number, line in lines if line[1:] == [b"%d" % number])
    except UnicodeDecodeError as error:
        raise ModelDamagedError(f"{path}: is not UTF-8 ({error}); restore the file") from None
    if len(words) != n_words or words[:1] != [EPSILON]:
        raise ModelDamagedError(
            f"{path}: needs {n_words} lines 'word id' from '{EPSILON} 0' on, has {len(words)}; restore the file"
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
    from edge_asr.acceptors import lm_acceptor  # what only building needs would be 2 MB more of every transcription
    from edge_asr.arpa import read_arpa
    from edge_asr.ngram import MARKS, NgramModel, restrict

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
    from edge_asr.acceptors import lexicon_transducer, with_end_label

    n_tokens = len(tokens)
    lexicon = kaldifst.StdVectorFst(to_kaldifst(lexicon_transducer(words, spelled, n_tokens, costs or {})))
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
    phones = with_end_label(without_epsilon_tails(phones), n_tokens + 1)
    columns = add_topology(breadth_first(phones), topology)
    fst = to_decoding_fst(columns)
    config = {
        **config,
        "topology": topology,
        "n_words": len(words),
        "n_states": columns.n_states,
        "n_arcs": columns.n_arcs,
        "search_bytes": n_bytes(fst),
        "n_tokens": n_tokens,
        "tokens_sha256": tokens.sha256,
        "word_cost": 0.0,
    }
    spellings = {i: [tuple(p) for p in spelled[word]] for i, word in enumerate(words) if i and word != OTHER}
    return Graph(fst, words, spellings, config, columns)


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
    from edge_asr.ngram import MARKS

    spelled = {}
    for word in words:
        if word not in MARKS:
            with suppress(LexiconError):
                spelled[word] = spell(lexicon, word, tokens)
    return spelled
