"""edge-asr graph: build the graph that a model is searched with.

    edge-asr graph --text books.txt.xz --order 3 --prune 1e-8 --output graphs/books     n-grams estimated from text
    edge-asr graph --arpa lm.arpa.xz --lexicon names.txt --output graphs/general         an n-gram model made elsewhere
    edge-asr graph --grammar lights.txt --output graphs/lights                           phrases, for a command device

Words are pronounced by CMUdict, those it lacks by the grapheme-to-phoneme model; --lexicon adds to both or overrides.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from edge_asr.arpa import read_arpa, read_text, write_arpa
from edge_asr.errors import OutputError
from edge_asr.grammar import build_grammar_graph
from edge_asr.graph import Graph, build_lm_graph, save_graph
from edge_asr.model_files import seal
from edge_asr.ngram import estimate, prune, restrict
from edge_asr.recognizer import default_lexicon
from edge_asr.tokens import Lexicon, TokenTable
from edge_asr.topology import TOPOLOGIES


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "edge-asr graph", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--text", nargs="+", type=Path, help="files of one normalised sentence a line (also .gz, .xz)")
    source.add_argument("--arpa", type=Path, help="an n-gram model (also .gz, .xz)")
    source.add_argument("--grammar", type=Path, help="phrases with (a | b), [optional], repeated+ and $rules")
    parser.add_argument("--output", required=True, type=Path, help="folder to write: graph.fst, words.txt, config.json")
    parser.add_argument("--tokens", type=Path, help="the model's tokens.txt (default: the 39 phones)")
    parser.add_argument("--lexicon", type=Path, help="'word p1 p2 …' lines")
    parser.add_argument("--words", type=Path, help="file of words to keep, the rest of the language model is dropped")
    parser.add_argument("--order", type=int, default=3, help="of n-grams estimated from text (%(default)s)")
    parser.add_argument("--cutoffs", type=int, nargs="*", default=(), help="least counts of 1-, 2-, 3-grams … of text")
    parser.add_argument("--prune", type=float, default=0.0, help="relative-entropy threshold, such as 1e-8")
    parser.add_argument("--save-arpa", type=Path, help="also write the n-gram model, as it went into the graph")
    parser.add_argument("--lm-scale", type=float, default=1.0, help="weight of the language model (%(default)s)")
    parser.add_argument("--other-cost", type=float, help="grammar: let other sounds pass as no word, at this cost each")
    parser.add_argument("--topology", choices=TOPOLOGIES, default=TOPOLOGIES[0], help="of CTC (%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Raises: LexiconError, LanguageModelError, GrammarError, GraphError, OutputError."""
    arguments = build_parser().parse_args(argv)
    began = time.perf_counter()
    tokens = TokenTable.load(arguments.tokens) if arguments.tokens else TokenTable.phones()
    lexicon = default_lexicon(tokens)
    if arguments.lexicon:
        lexicon.update(arguments.lexicon)
        lexicon.check(tokens)
    if arguments.grammar:
        text = read_text(arguments.grammar)
        graph = build_grammar_graph(text, lexicon, tokens, arguments.other_cost, arguments.topology)
    else:
        graph = _language_model_graph(arguments, lexicon, tokens)
    try:
        save_graph(graph, arguments.output)
        seal(arguments.output)
    except OSError as error:
        raise OutputError(f"{arguments.output}: cannot be written ({error.strerror}); choose another folder") from error
    n_bytes = sum(path.stat().st_size for path in arguments.output.iterdir())
    _say(
        f"{arguments.output}: {len(graph.words) - 1} words, {graph.config['n_states']} states, "
        f"{graph.config['n_arcs']} arcs, {n_bytes / 1e6:.1f} MB, {time.perf_counter() - began:.1f} s"
    )
    return 0


def _language_model_graph(arguments: argparse.Namespace, lexicon: Lexicon, tokens: TokenTable) -> Graph:
    words = set(read_text(arguments.words).split()) if arguments.words else None
    if arguments.arpa:
        model = read_arpa(arguments.arpa)
        model = restrict(model, words) if words is not None else model
        model = prune(model, arguments.prune) if arguments.prune > 0 else model
    else:
        sentences = _sentences(arguments.text)
        model = estimate(
            sentences, arguments.order, cutoffs=arguments.cutoffs, prune_threshold=arguments.prune, vocab=words
        )
    if arguments.save_arpa:
        write_arpa(model, arguments.save_arpa)
    _say(f"{len(model.vocab)} words, n-grams: {', '.join(str(len(level)) for level in model.orders)}")
    return build_lm_graph(lexicon, model, tokens, arguments.lm_scale, arguments.topology)


def _sentences(paths: Sequence[Path]) -> Iterator[str]:
    for path in paths:
        yield from read_text(path).splitlines()


def _say(message: str) -> None:
    print(f"edge-asr graph: {message}", file=sys.stderr)
