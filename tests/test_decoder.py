"""Greedy and graph search: against references, in any split, over hours."""

import itertools
import math
import resource
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.decoder import GraphDecoder, GreedyDecoder, Word, align_words
from edge_asr.errors import SearchError
from edge_asr.grammar import build_grammar_graph
from edge_asr.graph import Graph, build_lm_graph
from edge_asr.ngram import estimate
from edge_asr.tokens import Lexicon, TokenTable
from edge_asr.transducer import from_arcs, to_kaldifst

PHONES = TokenTable.phones()
LEXICON = Lexicon(
    {
        "good": [("G", "UH", "D")],
        "day": [("D", "EY")],
        "to": [("T", "UW")],
        "two": [("T", "UW")],
        "cats": [("K", "AE", "T", "S")],
        "go": [("G", "OW")],
        "home": [("HH", "OW", "M")],
        "bookkeeper": [("B", "UH", "K", "K", "IY", "P", "ER")],
        "either": [("IY", "DH", "ER"), ("AY", "DH", "ER")],
    }
)
SENTENCES = ["two cats", "go to day", "go home", "good day", "two two cats", "either day", "bookkeeper go home"]
FRAME_S = 0.04


@pytest.fixture(scope="module")
def graph() -> Graph:
    return build_lm_graph(LEXICON, estimate(SENTENCES, 3, smoothing="witten-bell"), PHONES)


def emissions(*tokens: str, sure: float = 0.9) -> np.ndarray:
    """One frame for each token; "-" is blank."""
    ids = PHONES.ids("<blk>" if token == "-" else token for token in tokens)
    x = np.full((len(ids), len(PHONES)), (1 - sure) / (len(PHONES) - 1))
    x[np.arange(len(ids)), ids] = sure
    return np.log(x).astype(np.float32)


def spoken(text: str, sure: float = 0.9) -> np.ndarray:
    """Each phone in one frame with a blank after it."""
    phones = [phone for word in text.split() for phone in LEXICON.pronunciations(word)[0]]
    return emissions("-", *itertools.chain.from_iterable((phone, "-") for phone in phones), sure=sure)


def noise(seed: int, n_frames: int, scale: float = 3.0) -> np.ndarray:
    x = np.random.default_rng(seed).normal(0, scale, (n_frames, len(PHONES)))
    return (x - np.log(np.exp(x).sum(axis=1, keepdims=True))).astype(np.float32)


def texts(words: tuple[Word, ...]) -> str:
    return " ".join(word.text for word in words)


def decode(decoder: GraphDecoder | GreedyDecoder, *log_probs: np.ndarray) -> str:
    for part in log_probs:
        decoder.accept(part)
    return texts(decoder.finish())


def check_words(words: tuple[Word, ...], begin_s: float, end_s: float) -> None:
    edges = [begin_s, *itertools.chain.from_iterable((word.start, word.end) for word in words), end_s]
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(edges))
    assert all(word.start < word.end and 0 <= word.confidence <= 1 for word in words)


# --------------------------------------------------------------------------------------------------------------- greedy


@given(st.integers(0, 10_000), st.integers(0, 40), st.lists(st.integers(0, 40), max_size=4))
def test_greedy_search_is_collapse_in_any_split(seed: int, n_frames: int, cuts: list[int]) -> None:
    log_probs = noise(seed, n_frames)
    log_probs[:, :4] += 8  # few symbols, so that repeats and blanks are common
    reference = [PHONES.symbols[token] for token, _ in itertools.groupby(log_probs.argmax(axis=1)) if token]
    assert decode(GreedyDecoder(PHONES), *np.split(log_probs, sorted(min(c, n_frames) for c in cuts))) == " ".join(
        reference
    )


def test_characters_make_words_at_their_mark() -> None:
    tokens = TokenTable.characters()
    spelled = tokens.ids(["<blk>" if c == "-" else c for c in "-▁hhee-l-lo▁i-▁"])
    log_probs = np.log(np.full((len(spelled), len(tokens)), 0.2 / (len(tokens) - 1), np.float32))
    log_probs[np.arange(len(spelled)), spelled] = math.log(0.8)
    decoder = GreedyDecoder(tokens)
    decoder.accept(log_probs)
    words = decoder.finish()
    assert texts(words) == "hello i"
    assert [edge for word in words for edge in (word.start, word.end)] == pytest.approx([0.0, 0.44, 0.44, 0.52])
    assert [word.confidence for word in words] == pytest.approx([0.8, 0.8])


# ---------------------------------------------------------------------------------------------------------------- graph


@settings(deadline=None)
@given(st.integers(0, 10_000), st.lists(st.integers(0, 60), max_size=6), st.sampled_from([0.5, 3.0]))
def test_graph_search_gives_the_same_words_in_any_split(graph: Graph, seed: int, cuts: list[int], scale: float) -> None:
    log_probs = noise(seed, 60, scale)
    whole, split = GraphDecoder(graph), GraphDecoder(graph)
    whole.accept(log_probs)
    for part in np.split(log_probs, sorted(cuts)):
        split.accept(part)
        check_words(split.partial(), 0, split.n_frames * FRAME_S)
    assert split.finish() == whole.finish()
    check_words(whole.finish(), 0, 60 * FRAME_S)


@pytest.mark.parametrize("text", SENTENCES)
def test_clear_speech_is_understood(graph: Graph, text: str) -> None:
    assert decode(GraphDecoder(graph), spoken(text)) == text


@pytest.mark.parametrize(("text", "other"), [("two cats", "to cats"), ("go to day", "go two day")])
def test_the_language_model_decides_between_words_that_sound_alike(graph: Graph, text: str, other: str) -> None:
    np.testing.assert_array_equal(spoken(text), spoken(other))
    assert decode(GraphDecoder(graph), spoken(other)) == text


def test_one_held_phone_at_a_word_boundary_is_two_only_after_a_blank(graph: Graph) -> None:
    held = emissions("-", "G", "UH", "D", "D", "EY", "-")
    parted = emissions("-", "G", "UH", "D", "-", "D", "EY", "-")
    exact = GraphDecoder(graph, beam=50)
    exact.accept(parted)
    assert [(w.text, round(w.start, 2), round(w.end, 2)) for w in exact.finish()] == [
        ("good", 0.0, 0.16),
        ("day", 0.16, 0.28),
    ]
    model = estimate(["good day", "good ay"], 2, smoothing="witten-bell")
    lexicon = Lexicon({**LEXICON.entries, "ay": [("EY",)]})
    decoders = {
        kind: GraphDecoder(build_lm_graph(lexicon, model, PHONES, topology=kind), beam=50)
        for kind in ("exact", "compact")
    }
    assert decode(decoders["exact"], held) == "good ay"
    assert decode(decoders["compact"], held) in ("good ay", "good day")
    check_words(decoders["compact"].finish(), 0, len(held) * FRAME_S)


def test_words_last_from_the_frame_before_their_first_phone_to_the_one_after_their_last(graph: Graph) -> None:
    decoder = GraphDecoder(graph)
    decoder.accept(emissions("-", "-", "G", "-", "OW", "OW", "-", "-", "HH", "OW", "M", "M", "-"))
    go, home = decoder.finish()
    assert (go.start, go.end, home.start, home.end) == pytest.approx((0.04, 0.24, 0.28, 0.48))
    assert decoder.n_trailing_blank == 1


def test_the_bound_of_trailing_blanks_forgives_a_few_stray_tokens(graph: Graph) -> None:
    decoder, greedy = GraphDecoder(graph), GreedyDecoder(PHONES)
    stray = emissions(*["-", "-", "B"] * 6)
    for one in (decoder, greedy):
        one.accept(np.concatenate([spoken("go home"), stray, emissions("-", "-")]))
    assert decoder.most_trailing_blank == len(stray) + 3
    assert greedy.most_trailing_blank == greedy.n_trailing_blank == 2


def test_time_keeps_running_over_resets(graph: Graph) -> None:
    once, again = spoken("go home"), spoken("two cats")
    for decoder in (GraphDecoder(graph), GreedyDecoder(PHONES)):
        decoder.accept(once)
        first = decoder.finish()
        decoder.reset()
        assert decoder.n_frames == 0
        assert decoder.partial() == ()
        decoder.accept(again)
        second = decoder.finish()
        check_words(first, 0, len(once) * FRAME_S)
        check_words(second, len(once) * FRAME_S, (len(once) + len(again)) * FRAME_S)
        assert second[0].start == pytest.approx(len(once) * FRAME_S)


def test_a_word_heard_clearly_is_surer_than_one_mumbled(graph: Graph) -> None:
    clear, mumbled = GraphDecoder(graph), GraphDecoder(graph)
    clear.accept(spoken("go home", sure=0.95))
    mumbled.accept(spoken("go home", sure=0.4))
    for a, b in zip(clear.finish(), mumbled.finish(), strict=True):
        assert a.confidence == pytest.approx(0.95, abs=1e-3)
        assert b.confidence == pytest.approx(0.4, abs=1e-3)


def test_a_partial_shows_the_word_on_its_way_and_finish_ends_where_the_graph_may(graph: Graph) -> None:
    decoder = GraphDecoder(graph)
    decoder.accept(spoken("bookkeeper")[:7])
    assert texts(decoder.partial()) == "bookkeeper"
    decoder.accept(spoken("bookkeeper")[7:])
    decoder.accept(spoken("go")[:-2])
    assert texts(decoder.partial()) == "bookkeeper go"
    assert texts(decoder.finish()) == "bookkeeper"  # no sentence ends with G


def test_either_pronunciation_is_found_and_placed(graph: Graph) -> None:
    decoder = GraphDecoder(graph)
    decoder.accept(emissions("-", "AY", "DH", "ER", "D", "EY", "-"))
    assert [(w.text, round(w.start, 2)) for w in decoder.finish()] == [("either", 0.0), ("day", 0.16)]


@pytest.mark.parametrize("n_frames", [0, 1, 500])
def test_silence_yields_no_words(graph: Graph, n_frames: int) -> None:
    for decoder in (GraphDecoder(graph), GreedyDecoder(PHONES)):
        assert decode(decoder, emissions(*["-"] * n_frames)) == ""
        assert decoder.n_trailing_blank == n_frames


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([0.9, 0.99]))
def test_leaving_out_certain_blanks_changes_no_word(graph: Graph, seed: int, blank_skip: float) -> None:
    rng = np.random.default_rng(seed)
    pauses = [emissions(*["-"] * rng.integers(1, 30), sure=0.999) for _ in range(4)]
    said = [spoken(rng.choice(SENTENCES)) for _ in range(3)]
    log_probs = np.concatenate(
        [part for pair in itertools.zip_longest(pauses, said) for part in pair if part is not None]
    )
    every, skipping = GraphDecoder(graph), GraphDecoder(graph, blank_skip=blank_skip)
    every.accept(log_probs)
    for part in np.array_split(log_probs, 5):
        skipping.accept(part)
    assert skipping.finish() == every.finish()
    assert skipping.n_trailing_blank == every.n_trailing_blank


def test_other_sounds_yield_nothing_where_the_grammar_has_a_way_for_them() -> None:
    strict = build_grammar_graph("go home", LEXICON, PHONES)
    open_ = build_grammar_graph("go home", LEXICON, PHONES, other_cost=1.0)
    assert decode(GraphDecoder(open_), spoken("two cats")) == ""
    assert decode(GraphDecoder(open_), spoken("two cats go home either")) == "go home"
    for grammar in (strict, open_):
        assert decode(GraphDecoder(grammar), spoken("go home")) == "go home"


# ------------------------------------------------------------------------------------------------------------- hardship


def test_impossible_emissions_leave_a_path(graph: Graph) -> None:
    decoder = GraphDecoder(graph, beam=1, max_active=2)
    log_probs = noise(0, 50)
    log_probs[10:20] = -np.inf
    log_probs[30:40, 1:] = -np.inf
    decoder.accept(log_probs)
    check_words(decoder.finish(), 0, 2.0)
    assert decoder.n_recoveries == 0


def test_a_search_with_no_path_left_begins_anew_and_is_counted(graph: Graph) -> None:
    one_frame = from_arcs(
        0, np.array([np.inf, 0]), np.array([0]), np.array([1]), np.array([0]), np.array([0]), np.array([1])
    )
    decoder = GraphDecoder(replace(graph, fst=to_kaldifst(one_frame)))
    decoder.accept(noise(0, 5))
    assert decoder.partial() == ()
    assert decoder.n_recoveries == 1
    decoder.accept(noise(0, 1))
    assert decoder.partial() == ()
    assert decoder.n_frames == 6
    assert decoder.n_recoveries == 1  # one frame is what that graph accepts
    assert decoder.finish() == ()
    assert decoder.n_recoveries == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_emissions_that_are_no_numbers_are_refused(graph: Graph, bad: float) -> None:
    log_probs = noise(0, 3)
    log_probs[1, 7] = bad
    for decoder in (GraphDecoder(graph), GreedyDecoder(PHONES)):
        with pytest.raises(SearchError, match="NaN"):
            decoder.accept(log_probs)


def test_emissions_of_another_model_are_refused(graph: Graph) -> None:
    for decoder in (GraphDecoder(graph), GreedyDecoder(PHONES)):
        with pytest.raises(SearchError, match=r"need log-probabilities \(frames, 40\), have shape \(3, 41\)"):
            decoder.accept(np.zeros((3, 41), np.float32))


@pytest.mark.parametrize("setting", [{"beam": 0}, {"acoustic_scale": -1}, {"max_active": 1}, {"blank_skip": 1.5}])
def test_settings_that_make_no_sense_are_refused(graph: Graph, setting: dict) -> None:
    with pytest.raises(SearchError, match=str(next(iter(setting.values())))):
        GraphDecoder(graph, **setting)


def test_hours_of_utterances_need_no_more_memory_than_minutes(graph: Graph) -> None:
    decoder = GraphDecoder(graph, max_active=200)
    log_probs = np.concatenate([noise(0, 100), spoken("go home")])

    def utterances(n: int) -> int:
        for _ in range(n):
            decoder.accept(log_probs)
            decoder.finish()
            decoder.reset()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before_kib = utterances(50)
    assert utterances(1500) < before_kib + 4096  # 1500 utterances of 4 s


# ------------------------------------------------------------------------------------------------------------ alignment


@given(st.lists(st.sampled_from(sorted(LEXICON)), max_size=6), st.data())
def test_alignment_gives_each_word_its_phones(graph: Graph, words: list[str], data: st.DataObject) -> None:
    ids = [list(graph.words).index(word) for word in words]
    chosen = [data.draw(st.sampled_from(list(graph.pronunciations(i)))) for i in ids]
    labels = list(itertools.chain.from_iterable(chosen))
    places = align_words(labels, ids, graph)
    assert [tuple(labels[low:high]) for low, high in places] == chosen


def test_alignment_lets_the_last_word_be_cut_off(graph: Graph) -> None:
    ids = [list(graph.words).index(word) for word in ("go", "bookkeeper")]
    labels = [label for i in ids for label in graph.pronunciations(i)[0]]
    assert align_words(labels[:4], ids, graph) == [(0, 2), (2, 4)]
    assert align_words(labels[:4], ids[:1], graph) == [(0, 2)]
