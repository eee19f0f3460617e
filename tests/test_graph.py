"""Decoding graphs against enumeration: every path over every frame, every phrase over every word."""

import itertools
import json
import math
import re
import sys
from io import BytesIO
from pathlib import Path

import kaldifst
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kaldi_decoder import DecodableCtc, FasterDecoder, FasterDecoderOptions

from edge_asr.decoder import GraphDecoder
from edge_asr.errors import GraphError, ModelDamagedError, ModelMismatchError, ModelNotFoundError
from edge_asr.graph import Graph, PackedWords, build_lm_graph, load_graph, save_graph, with_final_states
from edge_asr.ngram import NgramModel, estimate
from edge_asr.tokens import Lexicon, TokenTable
from edge_asr.topology import TOPOLOGIES, add_topology, pack, to_decoding_fst, unpack
from edge_asr.transducer import Transducer, breadth_first, from_arcs, from_kaldifst, to_kaldifst

TOKENS = TokenTable(["<blk>", "A", "B", "C"])
LEXICON = Lexicon(
    {
        "a": [("A",)],
        "aye": [("A",)],  # sounds like "a"
        "ab": [("A", "B")],  # begins with "a"
        "bb": [("B", "B")],  # needs a blank inside
        "ba": [("B", "A")],  # "ba a" needs a blank between
        "ca": [("C", "A"), ("C",)],
    }
)
SENTENCES = ["a ab", "aye ba", "bb a ca", "ca ca a", "ab aye", "ba a", "a a", "bb", "aye", "ca bb ab"]
ALL_FRAMES = FasterDecoderOptions(beam=1e9, max_active=100_000)


def random_log_probs(seed: int, n_frames: int, n_tokens: int = len(TOKENS)) -> np.ndarray:
    x = np.random.default_rng(seed).normal(0, 2, (n_frames, n_tokens))
    return (x - np.log(np.exp(x).sum(axis=1, keepdims=True))).astype(np.float32)


def search(fst: kaldifst.StdConstFst, log_probs: np.ndarray) -> tuple[bool, list[int], float]:
    """→ (reached an end, word ids, cost) of the best path, by kaldi-decoder without pruning."""
    decoder = FasterDecoder(fst, ALL_FRAMES)
    decoder.init_decoding()
    decoder.advance_decoding(DecodableCtc(log_probs))
    _, lattice = decoder.get_best_path()
    _, _, words, weight = kaldifst.get_linear_symbol_sequence(lattice)
    return decoder.reached_final(), words, weight.value1 + weight.value2


def best(graph: Graph, log_probs: np.ndarray) -> tuple[bool, list[int], float]:
    return search(with_final_states(graph), log_probs)


def best_of_all(model: NgramModel, log_probs: np.ndarray) -> dict[tuple[str, ...], float]:
    """The cost of each word sequence: its best path over all token sequences of that many frames, plus its LM cost."""
    acoustic: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        phones = tuple(token for token, _ in itertools.groupby(path) if token)
        cost = -float(log_probs[np.arange(len(path)), path].sum())
        acoustic[phones] = min(cost, acoustic.get(phones, math.inf))
    costs: dict[tuple[str, ...], float] = {}
    for phones, cost in acoustic.items():
        for words in segmentations(phones):
            total = cost + lm_cost(model, words)
            costs[words] = min(total, costs.get(words, math.inf))
    return costs


def segmentations(phones: tuple[int, ...]) -> list[tuple[str, ...]]:
    if not phones:
        return [()]
    found = []
    for word in LEXICON:
        for pronunciation in LEXICON.pronunciations(word):
            ids = tuple(TOKENS.ids(pronunciation))
            if phones[: len(ids)] == ids:
                found += [(word, *rest) for rest in segmentations(phones[len(ids) :])]
    return found


def lm_cost(model: NgramModel, words: tuple[str, ...]) -> float:
    ids = [model.ids[word] for word in ("<s>", *words, "</s>")]
    ends = range(2, len(ids) + 1)
    return -math.log(10) * sum(float(model.log10_prob(np.array([ids[max(0, e - model.order) : e]]))[0]) for e in ends)


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda order: f"order {order}")
def model(request: pytest.FixtureRequest) -> NgramModel:
    return estimate(SENTENCES, request.param, smoothing="witten-bell")


@pytest.fixture(scope="module", params=["exact", "full"])
def graph(request: pytest.FixtureRequest, model: NgramModel) -> Graph:
    return build_lm_graph(LEXICON, model, TOKENS, topology=request.param, weight_step=1e-5)


@pytest.fixture(scope="module")
def trigram() -> NgramModel:
    return estimate(SENTENCES, 3, smoothing="witten-bell")


# ------------------------------------------------------------------------------------------------------ language models


@pytest.mark.parametrize("seed", range(12))
def test_search_finds_the_best_of_all_paths(model: NgramModel, graph: Graph, seed: int) -> None:
    log_probs = random_log_probs(seed, n_frames=seed % 6 + 1)
    expected = best_of_all(model, log_probs)
    reached, words, cost = best(graph, log_probs)
    assert reached
    assert cost == pytest.approx(min(expected.values()), abs=2e-3)
    assert expected[tuple(graph.words[i] for i in words)] == pytest.approx(cost, abs=2e-3)
    decoder = GraphDecoder(graph, beam=1000, max_active=100_000)
    decoder.accept(log_probs)
    found = tuple(word.text for word in decoder.finish())
    assert expected[found] == pytest.approx(cost, abs=2e-3)


def test_a_compact_topology_only_adds_paths(trigram: NgramModel) -> None:
    exact, compact = (
        build_lm_graph(LEXICON, trigram, TOKENS, topology=kind, weight_step=1e-5) for kind in ("exact", "compact")
    )
    for seed in range(12):
        log_probs = random_log_probs(seed, 7)
        assert best(compact, log_probs)[2] <= best(exact, log_probs)[2] + 1e-3


def test_the_language_model_scale_multiplies_its_costs(trigram: NgramModel) -> None:
    graph = build_lm_graph(LEXICON, trigram, TOKENS, lm_scale=0.5, weight_step=1e-5)
    log_probs = random_log_probs(3, 4)
    paths = best_of_all(trigram, log_probs)
    expected = min(cost - 0.5 * lm_cost(trigram, words) for words, cost in paths.items())
    assert best(graph, log_probs)[2] == pytest.approx(expected, abs=2e-3)


def test_a_pronunciation_costs_its_probability(trigram: NgramModel) -> None:
    rare = {("ca", ("C",)): 0.01}
    plain, weighted = (
        build_lm_graph(LEXICON, trigram, TOKENS, pronunciation_probs=probs, weight_step=1e-5) for probs in (None, rare)
    )
    says_c = np.log(np.array([[1e-5, 1e-5, 1e-5, 1 - 3e-5]], np.float32))
    difference = best(weighted, says_c)[2] - best(plain, says_c)[2]
    assert difference == pytest.approx(-math.log(0.01), abs=2e-3)


def test_words_that_nothing_pronounces_are_left_out() -> None:
    graph = build_lm_graph(LEXICON, estimate(["a zebra ab", "ba 42"]), TOKENS)
    assert set(graph.words) == {"<eps>", "a", "ab", "ba"}


def test_a_model_of_unknown_words_makes_no_graph() -> None:
    with pytest.raises(GraphError, match="lexicon"):
        build_lm_graph(Lexicon(), estimate(["a zebra"]), TOKENS)


# ------------------------------------------------------------------------------------------------------------- topology


@st.composite
def transducers(draw: st.DrawFn) -> Transducer:
    n_states = draw(st.integers(1, 6))
    state = st.integers(0, n_states - 1)
    # epsilons only go up: a loop of them would let the reference below run on
    arcs = draw(
        st.lists(st.tuples(state, st.integers(0, 3), st.integers(0, 300), st.integers(0, 9), state), max_size=15)
    )
    arcs = [arc for arc in arcs if arc[1] or arc[0] < arc[4]]
    source, ilabel, olabel, weight, nextstate = np.array(arcs, int).reshape(-1, 5).T
    final = np.array(draw(st.lists(st.sampled_from([0.0, 1.5, math.inf]), min_size=n_states, max_size=n_states)))
    ilabel = np.where(ilabel > 0, ilabel + 1, 0)  # 1 is blank
    return from_arcs(draw(state), final, source, ilabel, olabel, weight, nextstate)


def cheapest(fst: Transducer, log_probs: np.ndarray) -> float:
    """Cost of the best final path over frames through a graph of phones, by dynamic programming."""
    costs = {(fst.start, 0): 0.0}  # (state, token of the last frame)
    arcs = list(zip(fst.source, fst.ilabel, fst.weight, fst.nextstate, strict=True))

    def closed(costs: dict[tuple[int, int], float]) -> dict[tuple[int, int], float]:
        for _ in range(fst.n_states):
            for source, ilabel, weight, to in arcs:
                for (state, last), cost in list(costs.items()):
                    if ilabel == 0 and state == source:
                        costs[to, last] = min(costs.get((to, last), math.inf), cost + weight)
        return costs

    for frame in log_probs:
        before, costs = closed(costs), {}

        def reach(state: int, token: int, cost: float, costs: dict = costs, frame: np.ndarray = frame) -> None:
            costs[state, token] = min(costs.get((state, token), math.inf), cost - float(frame[token]))

        for (state, last), cost in before.items():
            reach(state, 0, cost)
            if last:
                reach(state, last, cost)
            for source, ilabel, weight, to in arcs:
                if source == state and ilabel and ilabel - 1 != last:
                    reach(to, int(ilabel) - 1, cost + weight)
    return min((cost + float(fst.final[state]) for (state, _), cost in closed(costs).items()), default=math.inf)


@settings(deadline=None)
@given(transducers(), st.integers(0, 100), st.integers(1, 5))
def test_exact_and_full_topologies_accept_what_ctc_allows(fst: Transducer, seed: int, n_frames: int) -> None:
    log_probs = random_log_probs(seed, n_frames)
    expected = cheapest(fst, log_probs)
    for topology in ("exact", "full"):
        reached, _, cost = search(to_decoding_fst(add_topology(fst, topology)), log_probs)
        assert reached == math.isfinite(expected)
        if reached:
            assert cost == pytest.approx(expected, abs=1e-3)


@settings(deadline=None)
@given(transducers(), st.sampled_from(TOPOLOGIES))
def test_packing_keeps_every_number(fst: Transducer, topology: str) -> None:
    graph = add_topology(fst, topology)
    back, extra = unpack(BytesIO(pack(graph, [np.array([3, 70_000, 0]), np.zeros(0, int)])))
    assert [column.tolist() for column in extra] == [[3, 70_000, 0], []]
    for name, value in vars(graph).items():
        np.testing.assert_array_equal(getattr(back, name), value)


@settings(deadline=None)
@given(transducers())
def test_kaldifst_gives_back_what_it_was_given(fst: Transducer) -> None:
    back = from_kaldifst(to_kaldifst(fst))
    for name, value in vars(fst).items():
        np.testing.assert_array_equal(getattr(back, name), value)


@settings(deadline=None)
@given(transducers(), st.integers(0, 100))
def test_renumbering_changes_no_path(fst: Transducer, seed: int) -> None:
    log_probs = random_log_probs(seed, 3)
    assert cheapest(breadth_first(fst), log_probs) == pytest.approx(cheapest(fst, log_probs))


def test_an_unknown_topology_is_refused(trigram: NgramModel) -> None:
    with pytest.raises(GraphError, match="exact, compact, full, have 'tiny'"):
        build_lm_graph(LEXICON, trigram, TOKENS, topology="tiny")


# --------------------------------------------------------------------------------------------------- saving and loading


@pytest.fixture
def saved(trigram: NgramModel, tmp_path: Path) -> Path:
    save_graph(build_lm_graph(LEXICON, trigram, TOKENS), tmp_path / "graph")
    return tmp_path / "graph"


def test_a_loaded_graph_decodes_as_the_built_one(trigram: NgramModel, saved: Path) -> None:
    built, loaded = build_lm_graph(LEXICON, trigram, TOKENS), load_graph(saved, TOKENS.sha256)
    assert loaded.words == built.words
    assert dict(loaded.spellings) == dict(built.spellings)
    for seed in range(5):
        log_probs = random_log_probs(seed, 9)
        assert best(loaded, log_probs) == best(built, log_probs)


def test_a_word_cost_is_added_for_every_word(saved: Path) -> None:
    plain, dear = load_graph(saved), load_graph(saved, word_cost=0.25)
    log_probs = random_log_probs(1, 6)
    _, words, cost = best(dear, log_probs)
    _, plain_words, plain_cost = best(plain, log_probs)
    assert plain_words == words
    assert cost == pytest.approx(plain_cost + 0.25 * len(words), abs=1e-3)


def test_a_graph_for_other_tokens_is_refused(saved: Path) -> None:
    with pytest.raises(ModelMismatchError, match="tokens"):
        load_graph(saved, TokenTable.phones().sha256)


@pytest.mark.parametrize("name", ["graph.fst", "words.txt", "config.json"])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ModelNotFoundError, match=re.escape(name)):
        load_graph(saved)


@pytest.mark.parametrize("name", ["graph.fst", "words.txt", "config.json"])
@pytest.mark.parametrize("damage", [lambda b: b[:-40], lambda b: b"", lambda b: b"\xff" + b[1:], lambda b: b[::-1]])
def test_a_damaged_file_is_named(saved: Path, name: str, damage) -> None:
    (saved / name).write_bytes(damage((saved / name).read_bytes()))
    with pytest.raises(ModelDamagedError, match=re.escape(name)):
        load_graph(saved)


def test_files_of_two_graphs_do_not_go_together(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "n_words": 2}))
    (saved / "words.txt").write_text("<eps> 0\na 1\n")
    with pytest.raises(ModelMismatchError, match=r"words\.txt"):
        load_graph(saved)


def test_words_of_a_loaded_graph_are_a_sequence_of_strings() -> None:
    words = ["<eps>", "a", "b'c", "señor", "z"]
    packed = PackedWords(words)
    assert packed == words
    assert packed != words[1:]
    assert (packed[3], packed[-1], packed[1:3], len(packed)) == ("señor", "z", ["a", "b'c"], 5)
    assert packed.index("b'c") == 2
    assert "señor" in packed
    for index in (5, -6):
        with pytest.raises(IndexError):
            packed[index]


def test_processes_forked_later_share_the_memory_of_a_graph(saved: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("needs /proc")
    graph = load_graph(saved)
    assert graph.fst.start >= 0
    assert any("memfd:graph" in line and " r--s " in line for line in Path("/proc/self/maps").read_text().splitlines())
