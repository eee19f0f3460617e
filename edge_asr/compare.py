"""The shipped models side by side, from what was measured: a table, the articles' claims, and one page of plots.

    edge-asr compare                       # a table on the terminal
    edge-asr compare --format markdown     # or json
    edge-asr compare --out docs/comparison # README.md, comparison.json, index.html, overview.svg
    edge-asr compare --readme README.md    # the short table between <!-- models --> and <!-- /models -->

Reads models/NAME/config.json (written by export) and results.json (written by benchmarks/measure_models.py), loads no
model and measures nothing: a figure that nobody measured is a dash.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_asr.claims import claims, notes, stale_notes, training_note
from edge_asr.errors import DependencyError, OutputError
from edge_asr.measured import CHUNKS_MS, Model, ancestors, load_models, stamps

MISSING = "–"
FORMATS = ("table", "markdown", "json")
MARKS = ("<!-- models -->", "<!-- /models -->")


@dataclass(frozen=True)
class Figure:
    """A line of the table; `of` gives a number, a text or None, `beside` what a reader must know of the number."""

    group: str
    label: str
    of: Callable[[Model], float | str | None]
    digits: int = 1
    beside: Callable[[Model], str] = lambda model: ""


def _in(scale: float, value: float | None) -> float | None:
    return None if value is None else value / scale


def _rate(name: str, key: str = "wer") -> Callable[[Model], float | None]:
    return lambda model: model.row(name).get(key)


def _on_same_clips(name: str) -> Callable[[Model], str]:
    """For a row of fewer clips: the usual setting's rate on just these, the only one it may be compared with."""

    def beside(model: Model) -> str:
        row, usual = model.row(name), model.row("dev-clean")
        if row.get("every", 1) == 1 or "clip_errors" not in usual:
            return ""
        errors, words = (sum(usual[f"clip_{key}"][:: row["every"]]) for key in ("errors", "words"))
        return f" (of {100 * errors / words:.1f})" if words else ""

    return beside


def _started_from(model: Model) -> str | None:
    if not model.training:
        return None
    runs = list(ancestors(model.training))
    return " ← ".join(f"{run['run']} ({run.get('encoder', 'unknown')})" for run in runs) or "new weights"


WORDS, WORK, SPEED, TRAINING = (
    "words, int8, 320 ms, the model's graph, unless said otherwise",
    "size, and work per second of audio (int8, 320 ms)",
    "speed of the whole recogniser on one core, in CPU time",
    "training",
)
FIGURES = (
    Figure(WORDS, "dev-clean WER %", _rate("dev-clean")),
    Figure(WORDS, "… device graph", _rate("dev-clean device graph")),
    Figure(WORDS, "… fp32", _rate("dev-clean fp32")),
    *(
        Figure(WORDS, f"… chunks of {ms} ms", _rate(f"dev-clean {ms} ms"), 1, _on_same_clips(f"dev-clean {ms} ms"))
        for ms in CHUNKS_MS
        if ms != 320
    ),
    Figure(
        WORDS,
        "… a speaker's clips as one recording",
        _rate("dev-clean long recordings"),
        1,
        _on_same_clips("dev-clean long recordings"),
    ),
    Figure(WORDS, "dev-accent WER %", _rate("dev-accent")),
    Figure(WORDS, "commands right %", _rate("dev-commands", "exact_percent")),
    Figure(WORDS, "commands, grammar, right %", _rate("dev-commands with grammar", "exact_percent")),
    Figure(WORDS, "digits right %", _rate("dev-digits", "exact_percent")),
    Figure(WORDS, "digits, grammar, right %", _rate("dev-digits with grammar", "exact_percent")),
    Figure(WORK, "parameters, M", lambda m: _in(1e6, m.parameters), 2),
    Figure(WORK, "int8 file, MB", lambda m: m.int8_mb, 2),
    Figure(WORK, "state of a stream, kB", lambda m: _in(1e3, m.cost().get("state_bytes"))),
    Figure(WORK, "multiply-adds, M/s", lambda m: _in(1e6, m.cost().get("macs_per_s"))),
    Figure(WORK, "bytes moved, MB/s", lambda m: _in(1e6, m.bytes_per_s())),
    Figure(WORK, "… weights", lambda m: _in(1e6, m.cost().get("weight_bytes_per_s"))),
    Figure(WORK, "… state", lambda m: _in(1e6, m.cost().get("state_bytes_per_s")), 2),
    Figure(WORK, "… activations", lambda m: _in(1e6, m.cost().get("activation_bytes_per_s"))),
    Figure(WORK, "bytes per multiply-add", lambda m: m.bytes_per_mac(), 3),
    Figure(SPEED, "real-time factor", lambda m: m.speed().get("rtf_cpu"), 4),
    Figure(SPEED, "… of the encoder alone", lambda m: m.speed().get("encoder_rtf_cpu"), 4),
    Figure(SPEED, "… against the fastest here", lambda m: m.speed().get("ratio_to_fastest"), 2),
    Figure(SPEED, "… against PocketSphinx", lambda m: m.speed().get("ratio_to_pocketsphinx"), 3),
    *(
        Figure(SPEED, f"p99 of a chunk of {ms} ms, ms", lambda m, ms=ms: m.speed(ms).get("chunk_cpu_ms", {}).get("p99"))
        for ms in CHUNKS_MS
    ),
    Figure(TRAINING, "hours heard in the last run", lambda m: m.training.get("heard_h")),
    Figure(TRAINING, "hours heard in all", lambda m: m.training.get("heard_h_in_all")),
    Figure(TRAINING, "passes over the data", lambda m: m.training.get("schedule", {}).get("passes")),
    Figure(TRAINING, "speed of the last run, × real time", lambda m: m.training.get("x_real_time"), 0),
    Figure(TRAINING, "encoder's steps taken in turn, × real time", lambda m: m.training_speed.get("x_real_time"), 0),
    Figure(TRAINING, "seed", lambda m: m.training.get("seed"), 0),
    Figure(TRAINING, "started from", _started_from),
)

SUMMARY = (
    "parameters, M", "int8 file, MB", "dev-clean WER %", "… device graph", "… fp32", "dev-accent WER %",
    "commands, grammar, right %", "digits, grammar, right %", "real-time factor", "hours heard in all",
)  # fmt: skip


# --- the table -----------------------------------------------------------------------------------------------------


def cell(figure: Figure, model: Model) -> str:
    value = figure.of(model)
    if value is None:
        return MISSING
    return value if isinstance(value, str) else f"{value:,.{figure.digits}f}{figure.beside(model)}"


def shown_figures(models: Sequence[Model]) -> list[Figure]:
    """Figures that at least one model has."""
    return [figure for figure in FIGURES if any(figure.of(model) is not None for model in models)]


def as_text(models: Sequence[Model]) -> str:
    """The table for a terminal."""
    figures = shown_figures(models)
    width = max(len(figure.label) for figure in figures) + 4
    columns = [max(len(m.name), *(len(cell(f, m)) for f in figures)) for m in models]
    lines = [" " * width + "  ".join(f"{m.name:>{w}}" for m, w in zip(models, columns))]
    group = ""
    for figure in figures:
        if figure.group != group:
            group = figure.group
            lines += ["", group]
        lines.append(
            f"  {figure.label:{width - 2}}" + "  ".join(f"{cell(figure, m):>{w}}" for m, w in zip(models, columns))
        )
    return "\n".join(line.rstrip() for line in lines)


def as_markdown(models: Sequence[Model]) -> str:
    figures = shown_figures(models)
    lines = ["| | " + " | ".join(f"`{m.name}`" for m in models) + " |", "|---|" + "---:|" * len(models)]
    group = ""
    for figure in figures:
        if figure.group != group:
            group = figure.group
            lines.append(f"| **{group}** |" + " |" * len(models))
        lines.append(f"| {figure.label} | " + " | ".join(cell(figure, m) for m in models) + " |")
    return "\n".join(lines)


def summary(models: Sequence[Model]) -> str:
    """The short table of a README, a line for each model, and how far it is a comparison of encoders."""
    chosen = [figure for figure in shown_figures(models) if figure.label in SUMMARY]
    labels = [f.label.replace("… ", "dev-clean, ") for f in chosen]
    lines = ["| model | " + " | ".join(labels) + " |", "|---|" + "---:|" * len(chosen)]
    lines += [f"| `{m.name}` | " + " | ".join(cell(figure, m) for figure in chosen) + " |" for m in models]
    said = [note for note in (training_note(models), *stale_notes(models)) if note]
    return "\n".join([*lines, *(f"\n{note}" for note in said)])


def write_summary(path: Path, models: Sequence[Model]) -> None:
    """Replace what stands between the marks of a README. Raises OutputError."""
    try:
        text = path.read_text(encoding="utf-8")
        before, mark, rest = text.partition(MARKS[0])
        _, end, after = rest.partition(MARKS[1])
        if not mark or not end:
            raise OutputError(
                f"{path}: needs the lines {MARKS[0]} and {MARKS[1]} around the table, lacks them; add them"
            )
        path.write_text(f"{before}{mark}\n{summary(models)}\n{end}{after}", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another file") from error


def as_json(models: Sequence[Model]) -> dict[str, Any]:
    """Every figure of the table and every claim with its evidence, as plain data."""
    return {
        "figures": {
            model.name: [
                {"group": f.group, "label": f.label, "value": f.of(model)} for f in FIGURES if f.of(model) is not None
            ]
            for model in models
        },
        "claims": [vars(claim) for claim in claims(models)],
        "notes": notes(models),
        "measured": stamps(models),
    }


# --- the command ---------------------------------------------------------------------------------------------------


def write_folder(folder: Path, models: Sequence[Model]) -> list[Path]:
    """README.md, comparison.json, index.html and overview.svg. Raises OutputError, DependencyError."""
    try:
        page = importlib.import_module("edge_asr.compare_page")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "edge_asr":
            raise
        raise DependencyError(
            f"the page of plots needs the package {error.name}, which is not installed: pip install 'edge-asr[compare]'"
        ) from error
    files = {
        "README.md": page.markdown_page(models),
        "comparison.json": json.dumps(as_json(models), indent=1, ensure_ascii=False) + "\n",
        "index.html": page.html_page(models),
        "overview.svg": page.overview_svg(models) + "\n",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror}; choose another place") from error
    return [folder / name for name in files]


def main(argv: list[str] | None = None) -> int:
    """Entry of `edge-asr compare`."""
    parser = argparse.ArgumentParser(
        "edge-asr compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names or folders; default: all that were measured")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--out", type=Path, help="also write the pages of a comparison into this folder")
    parser.add_argument("--readme", type=Path, help="also renew the short table of this Markdown file")
    arguments = parser.parse_args(argv)
    models = load_models(arguments.models)
    if arguments.out is not None:
        write_folder(arguments.out, models)
    if arguments.readme is not None:
        write_summary(arguments.readme, models)
    if arguments.format == "json":
        print(json.dumps(as_json(models), ensure_ascii=False))
        return 0
    print(as_markdown(models) if arguments.format == "markdown" else as_text(models))
    print("\n" + "\n".join(notes(models)))
    return 0
