"""Grammars against regular expressions: a graph accepts what its grammar says, and an error has its place."""

import itertools
import re

import kaldifst
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_asr.errors import GrammarError
from edge_asr.grammar import build_grammar_graph
from edge_asr.graph import Graph, with_final_states
from edge_asr.tokens import Lexicon, TokenTable

TOKENS = TokenTable(["<blk>", "A", "B", "C"])
WORDS = "xyz"
GRAMMAR_LEXICON = Lexicon({"x": [("A",)], "y": [("B", "A")], "z": [("B",)]})  # "z x" sounds like "y"


@st.composite
def grammars(draw: st.DrawFn, depth: int = 3) -> tuple[str, str]:
    """→ (grammar, the regular expression that it means)."""
    if depth == 0 or draw(st.booleans()):
        word = draw(st.sampled_from(WORDS))
        return word, word
    parts = draw(st.lists(grammars(depth=depth - 1), min_size=1, max_size=3))
    ours, theirs = [part[0] for part in parts], [part[1] for part in parts]
    shape = draw(st.sampled_from(["row", "any", "optional", "+", "*", "?"]))
    if shape == "row":
        return f"({' '.join(ours)})", f"(?:{''.join(theirs)})"
    if shape == "any":
        return f"({' | '.join(ours)})", f"(?:{'|'.join(theirs)})"
    if shape == "optional":
        return f"[{' '.join(ours)}]", f"(?:{''.join(theirs)})?"
    return f"({' '.join(ours)}){shape}", f"(?:(?:{''.join(theirs)}){shape})"


def accepted(graph: Graph, words: str) -> bool:
    """Whether a path of the decoding graph puts out these words, by kaldifst's composition."""
    phones = [label for word in words for label in TOKENS.ids(GRAMMAR_LEXICON.pronunciations(word)[0])]
    frames = [1, *itertools.chain.from_iterable((phone + 1, 1) for phone in phones)]
    said = kaldifst.StdVectorFst(kaldifst.compose(kaldifst.make_linear_acceptor(frames), with_final_states(graph)))
    if said.start < 0:
        return False
    kaldifst.arcsort(said, "olabel")
    wanted = kaldifst.make_linear_acceptor([list(graph.words).index(word) for word in words])
    return kaldifst.compose(said, wanted).start >= 0


@settings(deadline=None, max_examples=60)
@given(grammars())
def test_a_grammar_accepts_exactly_its_language(grammar: tuple[str, str]) -> None:
    ours, theirs = grammar
    graph = build_grammar_graph(ours, GRAMMAR_LEXICON, TOKENS)
    known = [word for word in WORDS if word in graph.words]
    for n in range(4):
        for words in map("".join, itertools.product(known, repeat=n)):
            assert accepted(graph, words) == bool(re.fullmatch(theirs, words)), (ours, words)


def test_rules_comments_and_lines_make_one_language() -> None:
    text = """
    # the second name of a rule is as good as the first
    $first = x | <second>   # used before it is defined
    <second> = z z;

    y $first
    z
    """
    graph = build_grammar_graph(text, GRAMMAR_LEXICON, TOKENS)
    language = {"".join(w) for n in range(4) for w in itertools.product(WORDS, repeat=n) if accepted(graph, "".join(w))}
    assert language == {"yx", "yzz", "z"}


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("x (y | z", r"line 1, column 9: need '\)' for the '\(' in column 3"),
        ("x\n y ) z", r"line 2, column 4: need the end of the line, have '\)'"),
        ("x | | y", r"line 1, column 5"),
        ("[ ]", r"line 1, column 3"),
        ("x $no", r"line 1, column 3: need a rule \$no, have none; define it"),
        ("$a = x $b\n$b = [$a] y\n$a", r"line 2, column 7: the rule \$a uses itself"),
        ("$a = x\n$a = y\nx", r"line 2, column 1: need one definition"),
        ("$a = \nx", r"line 1, column 5"),
        ("x\ny §", r"line 2, column 3: .*'§'"),
        ("x\nturn it", r"line 2, column 1: .*'turn'"),
        ("$unused = w\nx", r"line 1, column 11: .*'w'"),
        ("# nothing\n\n", "at least one phrase"),
        ("+ x", "line 1, column 1"),
    ],
)
def test_an_error_in_a_grammar_has_its_place(text: str, place: str) -> None:
    with pytest.raises(GrammarError, match=place):
        build_grammar_graph(text, GRAMMAR_LEXICON, TOKENS)


def test_words_may_have_apostrophes() -> None:
    lexicon = Lexicon({"'bout": [("A",)], "o'clock": [("B",)]})
    graph = build_grammar_graph("'bout o'clock", lexicon, TOKENS)
    assert set(graph.words) == {"<eps>", "'bout", "o'clock"}


def test_a_grammar_that_grows_without_bound_is_refused() -> None:
    rules = "\n".join(f"$r{i} = " + f"$r{i + 1} " * 10 for i in range(8))
    with pytest.raises(GrammarError, match="states"):
        build_grammar_graph(f"$r0\n{rules}\n$r8 = x", GRAMMAR_LEXICON, TOKENS)
