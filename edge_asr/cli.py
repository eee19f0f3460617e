"""edge-asr: transcribe | listen | devices | evaluate | models | g2p | graph | train | export | compare.

stdout is the transcript (or the report), stderr is status. Exit codes are those of edge_asr.errors; a file that fails
is reported and the rest are still transcribed.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_asr import __version__
from edge_asr.errors import INTERRUPTED_EXIT_CODE, MIXED_FAILURES_EXIT_CODE, DependencyError, EdgeAsrError

BROKEN_PIPE_EXIT_CODE = 141  # 128 + SIGPIPE, as shells report it

RECOGNIZER_OPTIONS = (
    "model", "precision", "decoder", "grammar", "graph", "beam", "max_active", "acoustic_scale",
    "word_cost", "blank_skip", "n_threads", "features",
)  # fmt: skip

COMMAND_MODULES = {  # commands that read their own arguments: their module (or module:function) and what they do
    "transcribe": ("edge_asr.transcribe_command", "recordings → text, subtitles or JSON"),
    "listen": ("edge_asr.listen", "live transcription of a microphone"),
    "devices": ("edge_asr.listen:devices_main", "list the microphones"),
    "graph": ("edge_asr.graph_command", "lexicon and ARPA, text or a grammar → a decoding graph"),
    "align": ("edge_asr.align", "which pronunciation was said when, for a manifest whose texts are known"),
    "train": ("edge_asr.train", "train an encoder"),
    "export": ("edge_asr.export", "a checkpoint → ONNX fp32 and int8, verified"),
    "compare": ("edge_asr.compare", "all measured models in one table, and a page of plots"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the `edge-asr` command; returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv and argv[0] in COMMAND_MODULES:
            return _run_module(COMMAND_MODULES[argv[0]][0], argv[1:])
        arguments = build_parser().parse_args(argv)
        return arguments.run(arguments)
    except EdgeAsrError as error:
        _say(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE_EXIT_CODE
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED_EXIT_CODE


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("edge-asr", description="Streaming English speech recognition for small devices.")
    parser.add_argument("--version", action="version", version=f"edge-asr {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    evaluate = commands.add_parser("evaluate", help="word error rate, real-time factor and latency on a manifest")
    evaluate.add_argument("--manifest", required=True, type=Path, help="JSON lines: audio_filepath, duration, text")
    evaluate.add_argument("--limit", type=int, help="only the first so many clips")
    evaluate.add_argument("--workers", type=int, default=1, help="processes; latencies are truest with 1")
    evaluate.add_argument("--hypotheses", type=Path, help="write what was recognised to this JSON-lines file")
    evaluate.add_argument("--json", action="store_true", help="one JSON object on stdout instead of a table")
    add_recognizer_options(evaluate, 320, "320")
    evaluate.set_defaults(run=_evaluate)

    models = commands.add_parser("models", help="list the installed models")
    models.set_defaults(run=_models)

    g2p = commands.add_parser("g2p", help="pronunciations of words, by CMUdict or by rule")
    g2p.add_argument("words", nargs="+", metavar="WORD")
    g2p.set_defaults(run=_g2p)

    for name, (_, help_text) in COMMAND_MODULES.items():
        commands.add_parser(name, help=help_text, add_help=False)
    return parser


def add_recognizer_options(parser: argparse.ArgumentParser, chunk_ms: int | None, said: str) -> None:
    """Flags named as the keyword arguments of Recognizer."""
    parser.add_argument("--model", default=None, help="name of an installed model or path of a model folder")
    parser.add_argument("--precision", choices=("int8", "fp32"), default="int8")
    parser.add_argument("--chunk-ms", type=int, default=chunk_ms, help=f"audio per encoder step (default: {said})")
    parser.add_argument("--decoder", choices=("graph", "greedy"), help="default: the graph, where the model has one")
    parser.add_argument("--grammar", type=Path, help="file of phrases to listen for instead of the model's graph")
    parser.add_argument("--graph", type=Path, help="folder of another graph, made by edge-asr graph")
    search = parser.add_argument_group("graph search (defaults: the model's own)")
    search.add_argument("--beam", type=float, help="how much worse than the best a path may be; more is slower")
    search.add_argument("--max-active", type=int, help="paths kept")
    search.add_argument("--acoustic-scale", type=float, help="weight of the encoder against the graph")
    search.add_argument("--word-cost", type=float, help="added for every word; above 0 gives fewer words")
    search.add_argument("--blank-skip", type=float, help="skip vectors whose blank is likelier than this; 1: none")
    parser.add_argument("--n-threads", type=int, default=1, help="of the encoder (default 1)")
    parser.add_argument(
        "--features",
        choices=("numpy", "kaldi"),
        default="numpy",
        help="kaldi: by kaldi-native-fbank, slower, its last bits those of sherpa-onnx (default: numpy)",
    )


def recognizer_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What was said on the command line; the rest is left to the defaults of Recognizer."""
    said = {name: value for name in RECOGNIZER_OPTIONS if (value := getattr(arguments, name)) is not None}
    return {"chunk_ms": arguments.chunk_ms, **said}


class Failures:
    """Exit codes of the files that failed; the command leaves with theirs, or with one for mixed kinds."""

    def __init__(self) -> None:
        self.codes: list[int] = []

    def add(self, error: EdgeAsrError) -> None:
        self.codes.append(error.exit_code)
        _say(f"error: {error}")

    @property
    def exit_code(self) -> int:
        kinds = set(self.codes)
        return 0 if not kinds else kinds.pop() if len(kinds) == 1 else MIXED_FAILURES_EXIT_CODE


# --- evaluate, models ----------------------------------------------------------------------------------------------


def _evaluate(arguments: argparse.Namespace) -> int:
    from edge_asr.evaluate import evaluate, save_hypotheses, table

    figures, results = evaluate(arguments.manifest, recognizer_options(arguments), arguments.limit, arguments.workers)
    if arguments.hypotheses is not None:
        save_hypotheses(arguments.hypotheses, results)
    print(json.dumps(figures) if arguments.json else table(figures))
    failures = Failures()
    for result in results:
        if result.failure is not None:
            failures.add(result.failure)
    return failures.exit_code


def _models(arguments: argparse.Namespace) -> int:
    from edge_asr.model_files import DEFAULT_MODEL, installed_models, read_config

    for name, directory in installed_models().items():
        mark = "  (default)" if name == DEFAULT_MODEL else ""
        print(f"{name}\t{read_config(directory).get('graph', 'greedy only')}\t{directory}{mark}")
    return 0


def _g2p(arguments: argparse.Namespace) -> int:
    from edge_asr.tokens import Lexicon

    lexicon = Lexicon.cmudict()
    failures = Failures()
    for word in arguments.words:
        try:
            for phones in lexicon.pronunciations(word.lower()):
                print(f"{word.lower()} {' '.join(phones)}")
        except EdgeAsrError as error:
            failures.add(error)
    return failures.exit_code


# --- commands that live elsewhere ----------------------------------------------------------------------------------


def _run_module(module: str, argv: list[str]) -> int:
    """`main(argv)` of a module; what it needs may not be installed on a device."""
    module, _, function = module.partition(":")
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "edge_asr":
            raise
        raise DependencyError(
            f"this command needs the package {error.name}, which is not installed: pip install 'edge-asr[train]'"
        ) from error
    return getattr(loaded, function or "main")(argv) or 0


def _say(message: str) -> None:
    from edge_asr.progress import say

    say(message)


if __name__ == "__main__":
    sys.exit(main())
