"""edge-asr transcribe: recordings → text, subtitles or JSON.

Each flag is a keyword of `edge_asr.transcribe_files` with the same default; this file only explains them.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_asr.audio_wav import ENCODINGS
from edge_asr.cli import add_recognizer_options
from edge_asr.endpoint import EndpointRules
from edge_asr.engines import ENGINES
from edge_asr.transcription import OUTPUT_FORMATS, transcribe, transcribe_files

EXAMPLES = """\
examples:
  edge-asr transcribe talk.mp3                                  text, as it is recognised
  edge-asr transcribe --output-format srt talk.mp3 > talk.srt   subtitles
  edge-asr transcribe --output-format jsonl 'rec/**/*.wav'      words, times and confidences
  edge-asr transcribe --output-dir out --output-format all rec  every format of each file in a folder
  edge-asr transcribe --output-dir out --resume rec             after Ctrl-C, a crash or a full disk
  ffmpeg -i URL -f wav - | edge-asr transcribe -                a wav stream
  sox -d -t raw -r 16000 -e signed -b 16 -c 1 - | edge-asr transcribe - --raw-rate 16000

outputs:
  rec/mon/a.wav of the folder rec becomes DIR/mon/a.srt; a.wav and a.mp3 side by side become
  a.wav.srt and a.mp3.srt. Files appear whole or not at all. DIR/.edge-asr/journal.jsonl says what
  is done: --resume does again what is missing in any format, recordings whose size or time has
  changed, and what was done with another model or other settings. Edited outputs are left alone.

exit codes:
  0 all done · 2 wrong arguments · 3 failures of several kinds · 5 an output cannot be written
  6 a package is missing · 7 disk full, stopped (--resume goes on) · 8 a worker died
  11 file not found · 12 no recordings in a folder · 13 empty · 14 no audio · 15 cut short
  20–34 model, graph or grammar · 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """`edge-asr transcribe`; returns its exit code. Raises: EdgeAsrError."""
    words = _dashed(sys.argv[2:] if argv is None else argv)
    return transcribe_files(**vars(build_parser().parse_args(words))).exit_code


def _dashed(words: Sequence[str]) -> list[str]:
    """--output_dir, as users of whisper write it, is --output-dir; after -- come paths."""
    n_flags = words.index("--") if "--" in words else len(words)
    parts = [word.partition("=") if word.startswith("--") else ("", "", word) for word in words[:n_flags]]
    return [name.replace("_", "-") + equals + value for name, equals, value in parts] + list(words[n_flags:])


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "edge-asr transcribe",
        usage="edge-asr transcribe [options] PATH ...",
        description="Recordings → text, subtitles or JSON. Text goes to stdout or to files, status to stderr; one bad "
        "file never stops the rest.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH",
        help="file (any audio or video), folder (with all folders in it), pattern, or - for standard input",
    )  # fmt: skip
    _add_output_options(parser.add_argument_group("output"))
    _add_subtitle_options(parser.add_argument_group("subtitles (srt, vtt)"))
    _add_work_options(parser.add_argument_group("work"))
    _add_raw_options(parser.add_argument_group("raw samples on standard input"))
    add_recognizer_options(parser, None, "as large as the model takes, up to 2560")
    segments = parser.add_argument_group("where a segment ends (Kaldi's rules, and rule 4)")
    for name, text in RULES.items():
        told = f"{text} (default {getattr(EndpointRules, name)})"
        segments.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="S", help=told)
    parser.set_defaults(**keyword_defaults())
    return parser


RULES = {
    "rule1_min_trailing_silence": "after so much silence, though nothing was said",
    "rule2_min_trailing_silence": "after so much silence, once something was said",
    "rule3_min_utterance_length": "after so long a time, whatever is being said",
    "rule4_min_utterance_length": "after so long a time, at a pause",
    "rule4_min_trailing_silence": "such a pause",
}


def keyword_defaults() -> dict[str, object]:
    """What the functions take when a keyword is left out, so that both are the same."""
    parameters = {**inspect.signature(transcribe).parameters, **inspect.signature(transcribe_files).parameters}
    return {name: p.default for name, p in parameters.items() if p.default is not p.empty}


def _add_output_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--output-format", choices=OUTPUT_FORMATS, help="txt (default): a line for each segment; all: every format"
    )
    group.add_argument("--output-dir", type=Path, metavar="DIR", help="write files here instead of to stdout")
    group.add_argument("--with-names", action="store_true", help="txt on stdout: put the file's name before its text")
    group.add_argument(
        "--word-timestamps", action="store_true",
        help="srt, vtt: underline each word while it is said; tsv: a row for each word (json has all words anyway)",
    )  # fmt: skip
    group.add_argument("--quiet", action="store_true", help="no bar and no table on stderr, only warnings and errors")


def _add_subtitle_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-line-width", type=int, metavar="N",
        help="characters in a line, words stay whole (default 42; 0: a segment stays one line)",
    )  # fmt: skip
    group.add_argument("--max-line-count", type=int, metavar="N", help="lines in a subtitle (default 2; 0: any)")
    group.add_argument(
        "--max-chars-per-second", type=float, metavar="N",
        help="a subtitle that was spoken faster stays longer, if the next leaves it time (default 20; 0: never)",
    )  # fmt: skip


def _add_work_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--resume", action="store_true", help="leave out what an earlier run into the same --output-dir has done"
    )
    group.add_argument("--dry-run", action="store_true", help="only list what would be read and written")
    group.add_argument("--workers", type=int, metavar="N", help="processes (default: one for each core)")
    group.add_argument(
        "--batch-size", type=int, metavar="N", help="files that a worker hears at a time (default 1; greedy 4)"
    )
    group.add_argument("--engine", choices=ENGINES, help="local (default), or a Ray cluster that sees the same files")
    group.add_argument(
        "--ray-address", metavar="ADDRESS", help="of the cluster (default: RAY_ADDRESS, else one on this machine)"
    )


RAW_FORMAT_HELP = f"of a sample, as ffmpeg calls it (default s16le): {', '.join(ENCODINGS)}"


def _add_raw_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--raw-rate", type=int, metavar="HZ", help="the input has no header and this rate")
    group.add_argument("--raw-format", choices=tuple(ENCODINGS), metavar="FORMAT", help=RAW_FORMAT_HELP)
    group.add_argument("--raw-channels", type=int, metavar="N", help="interleaved (default 1)")
