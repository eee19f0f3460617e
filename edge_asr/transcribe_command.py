"""edge-asr transcribe: recordings → text, subtitles or JSON.

Each flag is a keyword of `edge_asr.transcribe_files` with the same default; this file only explains them.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path

from edge_asr.audio_wav import ENCODINGS
from edge_asr.cli import add_recognizer_options
from edge_asr.endpoint import EndpointRules
from edge_asr.engines import ENGINES
from edge_asr.transcription import OUTPUT_FORMATS, transcribe, transcribe_files

EXAMPLES = """\
examples:
  edge-asr transcribe talk.mp3                                  text on the terminal, as it is recognised
  edge-asr transcribe --output-format srt talk.mp3 > talk.srt   subtitles
  edge-asr transcribe --output-dir texts --output-format all recordings/
                                                                a folder: txt, srt, vtt, tsv, json, jsonl of each file
  edge-asr transcribe --output-dir texts --resume recordings/   go on after Ctrl-C, a crash or a full disk
  edge-asr transcribe --output-format jsonl 'rec/**/*.wav'      words, times and confidences, a line for each file
  ffmpeg -i URL -f wav - | edge-asr transcribe -                a wav stream
  arecord -f S16_LE -r 16000 | edge-asr transcribe - --raw-rate 16000
                                                                samples without a header

outputs:
  rec/mon/a.wav of the folder rec/ becomes OUTPUT_DIR/mon/a.srt; a.wav and a.mp3 side by side become a.wav.srt and
  a.mp3.srt. Files appear whole or not at all. OUTPUT_DIR/.edge-asr/journal.jsonl says what is done: --resume does
  again what is missing in any format, what changed in size or time, and what was done with other settings.

exit codes:
  0 all done; 2 wrong arguments; 5 an output cannot be written; 7 disk full (stopped; --resume goes on); 6 a package is
  missing; 8 a worker died; 10–15 audio (11 not found, 12 no recordings in a folder, 13 empty, 14 no audio, 15 cut
  short); 20–34 model, graph or grammar; 3 failures of several kinds; 130 interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """`edge-asr transcribe`; returns its exit code. Raises: EdgeAsrError."""
    return transcribe_files(**vars(build_parser().parse_args(argv))).exit_code


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "edge-asr transcribe",
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
    segments = parser.add_argument_group("where a segment ends (Kaldi's rules)")
    for name, text in RULES.items():
        told = f"{text} (default {getattr(EndpointRules, name)})"
        segments.add_argument(f"--{name.replace('_', '-')}", type=float, metavar="S", help=told)
    parser.set_defaults(**keyword_defaults())
    return parser


RULES = {
    "rule1_min_trailing_silence": "after so much silence, though nothing was said",
    "rule2_min_trailing_silence": "after so much silence, once something was said",
    "rule3_min_utterance_length": "after so long a time, whatever is being said",
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
    group.add_argument("--batch-size", type=int, metavar="N", help="files that a worker hears at a time (default 16)")
    group.add_argument("--engine", choices=ENGINES, help="local (default), or a Ray cluster that sees the same files")
    group.add_argument(
        "--ray-address", metavar="ADDRESS", help="of the cluster (default: RAY_ADDRESS, else one on this machine)"
    )


def _add_raw_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--raw-rate", type=int, metavar="HZ", help="the input has no header and this rate")
    group.add_argument("--raw-format", choices=tuple(ENCODINGS), help="of a sample, as ffmpeg calls it (default s16le)")
    group.add_argument("--raw-channels", type=int, metavar="N", help="interleaved (default 1)")
