"""Grammars: the phrases that a device listens for, compiled to a graph in which nothing else is a word.

One phrase on a line; lower case; `#` begins a comment:

    $room = kitchen | (living | dining) room      a rule, used as $room or <room>
    turn (on | off) [the] $room light [please]     alternatives, optional words
    call <digit>+                                  once or more; * none or more; ? as [ ]
    $digit = zero | one | two

It is JSGF's notation (W3C note of 2000) without weights and tags. At every point of a phrase all ways on are equally
likely. The grammar of a repeated phrase is `(…)+`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import kaldifst
import numpy as np

from edge_asr.errors import GrammarError, LexiconError
from edge_asr.graph import EPSILON, OTHER, Graph, compile_graph, spell
from edge_asr.tokens import Lexicon, TokenTable
from edge_asr.transducer import Transducer, from_arcs, from_kaldifst, to_kaldifst

MAX_STATES = 1_000_000  # of the grammar written out; rules within rules can grow without bound

_TOKEN = re.compile(r"\s*(?:(?P<rule>\$[\w-]+|<[\w-]+>)|(?P<word>'?[^\W_][\w'-]*)|(?P<mark>[()\[\]|+*?=;]))")


@dataclass(frozen=True)
class Place:
    line: int
    column: int

    def error(self, problem: str) -> GrammarError:
        return GrammarError(f"grammar line {self.line}, column {self.column}: {problem}")


@dataclass(frozen=True)
class _Token:
    kind: str  # "rule", "word", "mark" or "end"
    text: str
    place: Place


@dataclass(frozen=True)
class _Node:
    """kind: "word" and "rule" have a text; "all" is its parts in a row; "any" is one of them; "many" once or more."""

    kind: str
    place: Place
    text: str = ""
    parts: "tuple[_Node, ...]" = ()


@dataclass
class Grammar:
    """A parsed grammar; `rules` by name without its marks."""

    phrases: list[_Node] = field(default_factory=list)
    rules: dict[str, _Node] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------------------ parsing


def parse_grammar(text: str) -> Grammar:
    """Raises GrammarError with line and column."""
    grammar = Grammar()
    for number, line in enumerate(text.splitlines(), 1):
        tokens = list(_tokens(line.split("#")[0], number))
        if len(tokens) == 1:
            continue
        is_rule = tokens[0].kind == "rule" and tokens[1].text == "="
        parser = _Parser(tokens[2:] if is_rule else tokens)
        node = parser.whole()
        if not is_rule:
            grammar.phrases.append(node)
        elif grammar.rules.setdefault(_name(tokens[0]), node) is not node:
            raise tokens[0].place.error(f"need one definition of {tokens[0].text}, have a second; rename or merge them")
    if not grammar.phrases:
        raise GrammarError("need at least one phrase in the grammar, have none; write one on a line of its own")
    return grammar


def _tokens(line: str, number: int) -> Iterator[_Token]:
    at = 0
    while line[at:].strip():
        match = _TOKEN.match(line, at)
        if match is None:
            column = at + len(line[at:]) - len(line[at:].lstrip()) + 1
            raise Place(number, column).error(f"need a word, $rule or ( ) [ ] | + * ?, have {line[column - 1]!r}")
        kind = str(match.lastgroup)
        yield _Token(kind, match[kind], Place(number, match.start(kind) + 1))
        at = match.end()
    yield _Token("end", "the end of the line", Place(number, len(line.rstrip()) + 1))


def _name(token: _Token) -> str:
    return token.text.strip("$<>")


class _Parser:
    """Recursive descent over the tokens of one line."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def whole(self) -> _Node:
        node = self._alternatives()
        if self._next.text == ";":
            self._at += 1
        if self._next.kind != "end":
            raise self._next.place.error(f"need the end of the line, have {self._next.text!r}; check the brackets")
        return node

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _alternatives(self) -> _Node:
        place = self._next.place
        parts = [self._sequence()]
        while self._next.text == "|":
            self._at += 1
            parts.append(self._sequence())
        return _Node("any", place, parts=tuple(parts))

    def _sequence(self) -> _Node:
        place = self._next.place
        parts = []
        while self._next.kind in ("word", "rule") or self._next.text in ("(", "["):
            parts.append(self._repeated())
        if not parts:
            raise place.error(f"need a word, $rule, ( or [ here, have {self._next.text!r}; [ ] makes words optional")
        return _Node("all", place, parts=tuple(parts))

    def _repeated(self) -> _Node:
        node = self._item()
        while self._next.text in ("+", "*", "?"):
            mark = self._next
            self._at += 1
            if mark.text != "?":
                node = _Node("many", mark.place, parts=(node,))
            if mark.text != "+":
                node = _optional(node)
        return node

    def _item(self) -> _Node:
        token = self._next
        self._at += 1
        if token.kind == "word":
            return _Node("word", token.place, token.text.lower())
        if token.kind == "rule":
            return _Node("rule", token.place, _name(token))
        close = {"(": ")", "[": "]"}[token.text]
        node = self._alternatives()
        if self._next.text != close:
            raise self._next.place.error(
                f"need {close!r} for the {token.text!r} in column {token.place.column}, have {self._next.text!r}"
            )
        self._at += 1
        return _optional(node) if close == "]" else node


def _optional(node: _Node) -> _Node:
    return _Node("any", node.place, parts=(node, _Node("all", node.place)))


# ---------------------------------------------------------------------------------------------------------- compiling


def build_grammar_graph(
    grammar: str,
    lexicon: Lexicon,
    tokens: TokenTable,
    other_cost: float | None = None,
    topology: str = "exact",
) -> Graph:
    """grammar: its text. other_cost: where given, sounds before, after or instead of a phrase are taken for no word, at
    this cost (−ln) for each phone; so speech outside the grammar yields nothing. Raises GrammarError, with its place.
    """
    writer = _Writer(parse_grammar(grammar), lexicon, tokens)
    words = [EPSILON, *writer.spelled]
    acceptor = _equally_likely(writer.acceptor())
    spelled = dict(writer.spelled)
    if other_cost is not None:
        acceptor = _with_other(acceptor, len(words), other_cost)
        words.append(OTHER)
        spelled[OTHER] = [(token + 1,) for token in range(1, len(tokens))]
    config = {"kind": "grammar", "other_cost": other_cost}
    return compile_graph(acceptor, words, spelled, tokens, config, topology)


class _Writer:
    """Writes a grammar out as arcs (source, word id, destination), 0 for none; rules are copied where they are used."""

    def __init__(self, grammar: Grammar, lexicon: Lexicon, tokens: TokenTable) -> None:
        self._grammar = grammar
        self._lexicon = lexicon
        self._tokens = tokens
        self._open: list[str] = []  # rules being written
        self._arcs: list[tuple[int, int, int]] = []
        self._n_states = 2
        self._ids: dict[str, int] = {}
        self.spelled: dict[str, list[tuple[int, ...]]] = {}
        for phrase in grammar.phrases:
            self._write(phrase, 0, 1)
        for name, rule in grammar.rules.items():  # an error in a rule that nobody uses is still an error
            self._open = [name]
            self._check(rule)

    def acceptor(self) -> Transducer:
        source, label, destination = np.array(self._arcs).T
        final = np.full(self._n_states, np.inf)
        final[1] = 0.0
        return from_arcs(0, final, source, label, label, np.zeros(len(source)), destination)

    def _write(self, node: _Node, source: int, destination: int) -> None:
        if node.kind == "word":
            self._arcs.append((source, self._word_id(node), destination))
        elif node.kind == "rule":
            rule = self._rule(node)
            self._open.append(node.text)
            self._write(rule, source, destination)
            self._open.pop()
        elif node.kind == "any":
            for part in node.parts:
                self._write(part, source, destination)
        elif node.kind == "many":
            begin, end = self._new_state(node), self._new_state(node)
            self._arcs += [(source, 0, begin), (end, 0, begin), (end, 0, destination)]
            self._write(node.parts[0], begin, end)
        else:
            for part in node.parts:
                after = self._new_state(node)
                self._write(part, source, after)
                source = after
            self._arcs.append((source, 0, destination))

    def _check(self, node: _Node) -> None:
        if node.kind == "rule":
            self._rule(node)
        elif node.kind == "word" and node.text not in self.spelled:
            self._spelling(node)
        for part in node.parts:
            self._check(part)

    def _rule(self, node: _Node) -> _Node:
        rule = self._grammar.rules.get(node.text)
        if rule is None:
            known = ", ".join(f"${name}" for name in self._grammar.rules) or "none"
            raise node.place.error(f"need a rule ${node.text}, have {known}; define it on a line '${node.text} = …'")
        if node.text in self._open:
            raise node.place.error(f"the rule ${node.text} uses itself, which would never end; use + to repeat")
        return rule

    def _word_id(self, node: _Node) -> int:
        if node.text not in self.spelled:
            self.spelled[node.text] = self._spelling(node)
            self._ids[node.text] = len(self.spelled)
        return self._ids[node.text]

    def _spelling(self, node: _Node) -> list[tuple[int, ...]]:
        try:
            return spell(self._lexicon, node.text, self._tokens)
        except LexiconError as error:
            raise node.place.error(str(error)) from None

    def _new_state(self, node: _Node) -> int:
        if self._n_states >= MAX_STATES:
            raise node.place.error(f"the grammar written out has more than {MAX_STATES} states; simplify its rules")
        self._n_states += 1
        return self._n_states - 1


def _equally_likely(acceptor: Transducer) -> Transducer:
    """The smallest deterministic acceptor of the same phrases; all ways out of a state, ending too, cost the same.

    Determinised without weights it always exists, and means the same however the grammar was written.
    """
    fst = kaldifst.StdVectorFst(to_kaldifst(acceptor))
    kaldifst.determinize_star(fst)
    kaldifst.minimize(fst)
    least = from_kaldifst(fst)
    ends = np.isfinite(least.final)
    cost = np.log(np.maximum(np.diff(least.first) + ends, 1)).astype(np.float32)
    final = np.where(ends, cost, np.inf)
    labels = least.ilabel
    return Transducer(least.start, final, least.first, labels, labels, cost[least.source], least.nextstate)


def _with_other(acceptor: Transducer, other: int, other_cost: float) -> Transducer:
    """Any number of other sounds, label `other`, before and after each phrase, or alone."""
    begin, end = acceptor.n_states, acceptor.n_states + 1
    opening = np.arange(acceptor.first[acceptor.start], acceptor.first[acceptor.start + 1])
    ends = np.flatnonzero(np.isfinite(acceptor.final))
    final = np.append(acceptor.final, [0.0, 0.0])
    loops = np.array([begin, end])
    source = np.concatenate([acceptor.source, np.full(len(opening), begin), ends, loops])
    n_other = len(ends) + 2
    labels = np.concatenate([acceptor.ilabel, acceptor.ilabel[opening], np.full(n_other, other)])
    cost = np.concatenate([
        acceptor.weight, acceptor.weight[opening], other_cost + acceptor.final[ends], [other_cost, other_cost]
    ])  # fmt: skip
    to = np.concatenate([acceptor.nextstate, acceptor.nextstate[opening], np.full(len(ends), end), loops])
    return from_arcs(begin, final, source, labels, labels, cost, to)
