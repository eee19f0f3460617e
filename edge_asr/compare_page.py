"""The comparison as one self-contained HTML page, as Markdown, and as one picture for a README."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from edge_asr.claims import FAILS, HOLDS, claims, notes, ns_per_mac, stale_notes, training_note
from edge_asr.compare import as_markdown, cell, shown_figures
from edge_asr.measured import CHUNKS_MS, Model
from edge_asr.page import page, section, table_html
from edge_asr.plotting import COLOURS, FAINT, GRID, STYLE, as_svg, new_figure

TITLE = "Encoders compared"
SETS = (
    ("dev-clean", "dev-clean"),
    ("dev-clean device graph", "dev-clean,\ndevice graph"),
    ("dev-accent", "dev-accent"),
    ("dev-commands with grammar", "commands,\ngrammar"),
    ("dev-digits with grammar", "digits,\ngrammar"),
)
PARTS = (("weight", "weights"), ("state", "state"), ("activation", "activations"))
LENGTHS_S = (0.0, 4.0, 8.0, 12.0, 18.0, 60.0)
POSITIONS_S = (0.0, 30.0, 120.0, 240.0, 3600.0)
BADGES = {HOLDS: "measured", FAILS: "proxy"}  # colours of the page's style
Draw = Callable[[Axes, Sequence[Model]], None]


def colour(models: Sequence[Model], model: Model) -> str:
    return COLOURS[list(models).index(model) % len(COLOURS)]


# --- plots: each draws into one pair of axes and leaves out what was not measured ------------------------------------


def draw_words(ax: Axes, models: Sequence[Model]) -> None:
    """Word error rate of each set, a bar for each model."""
    names = [(name, label) for name, label in SETS if any(m.row(name) for m in models)]
    width = 0.8 / max(len(models), 1)
    for i, model in enumerate(models):
        rates = [model.row(name).get("wer", np.nan) for name, _ in names]
        places = np.arange(len(names)) + (i - (len(models) - 1) / 2) * width
        ax.bar(places, rates, width * 0.92, color=colour(models, model), label=model.name)
        for x, rate in zip(places, rates):
            if np.isfinite(rate):
                ax.annotate(f"{rate:.0f}", (x, rate), (0, 1.5), textcoords="offset points", ha="center", fontsize=7)
    ax.set_xticks(range(len(names)), [label for _, label in names], fontsize=8.5)
    ax.set(ylabel="WER %", title="word errors, int8, chunks of 320 ms (less is better)")
    ax.grid(True, axis="y")
    ax.legend(fontsize=8.5)


def draw_chunks(ax: Axes, models: Sequence[Model]) -> None:
    """Word error rate by chunk on the clips that were measured at every chunk."""
    for model in models:
        rows = {ms: row for ms in CHUNKS_MS if "clip_errors" in (row := model.at_chunk(ms))}
        if len(rows) < 2:
            continue
        step = max(row["every"] for row in rows.values())
        rates = []
        for row in rows.values():
            errors, words = (np.array(row[f"clip_{key}"][:: step // row["every"]]) for key in ("errors", "words"))
            rates.append(100 * errors.sum() / max(words.sum(), 1))
        label = model.name + (f" (every {step}th clip)" if step > 1 else "")
        ax.plot(list(rows), rates, "o-", color=colour(models, model), label=label, markersize=4)
    _chunk_axis(ax)
    ax.set(ylabel="dev-clean WER %", title="words by chunk: flat where only the delay changes")
    ax.set_ylim(0, None)
    ax.legend(fontsize=8.5)


def draw_latency(ax: Axes, models: Sequence[Model]) -> None:
    """p99 of the CPU time of one chunk, and the chunk itself as the deadline."""
    for model in models:
        values = {ms: model.speed(ms)["chunk_cpu_ms"] for ms in CHUNKS_MS if model.speed(ms)}
        ax.plot(list(values), [v["p99"] for v in values.values()], "o-", color=colour(models, model), label=model.name)
        ax.plot(list(values), [v["p50"] for v in values.values()], ":", color=colour(models, model), linewidth=1)
    ax.plot(CHUNKS_MS, CHUNKS_MS, "--", color=FAINT, linewidth=1, label="real time")
    _chunk_axis(ax)
    ax.set(yscale="log", ylabel="CPU ms", title="time for one chunk: p99, and p50 dotted")
    ax.legend(fontsize=8.5)


def draw_bytes(ax: Axes, models: Sequence[Model]) -> None:
    """Bytes moved per second of audio at each chunk, stacked by what they are."""
    width = 0.8 / max(len(models), 1)
    for i, model in enumerate(models):
        for j, ms in enumerate(CHUNKS_MS):
            cost, bottom = model.cost(ms), 0.0
            for (key, _), strength in zip(PARTS, (1.0, 0.7, 0.35)):
                value = cost.get(f"{key}_bytes_per_s", 0) / 1e6
                place = j + (i - (len(models) - 1) / 2) * width
                ax.bar(place, value, width * 0.92, bottom=bottom, color=colour(models, model), alpha=strength)
                bottom += value
    ax.set_xticks(range(len(CHUNKS_MS)), [f"{ms} ms" for ms in CHUNKS_MS])
    ax.set(ylabel="MB per second of audio", title="bytes moved: weights dark, activations light")
    ax.grid(True, axis="y")


def draw_intensity(ax: Axes, models: Sequence[Model]) -> None:
    for model in models:
        values = {ms: model.bytes_per_mac(ms) for ms in CHUNKS_MS if model.bytes_per_mac(ms) is not None}
        ax.plot(list(values), list(values.values()), "o-", color=colour(models, model), label=model.name, markersize=4)
    _chunk_axis(ax)
    ax.set(ylabel="bytes per multiply-add", title="bytes moved for each multiply-add")
    ax.set_ylim(0, None)
    ax.legend(fontsize=8.5)


def draw_pace(ax: Axes, models: Sequence[Model]) -> None:
    for model in models:
        values = {ms: t for ms in CHUNKS_MS if (t := ns_per_mac(model, ms)) is not None}
        ax.plot(list(values), list(values.values()), "o-", color=colour(models, model), label=model.name, markersize=4)
    _chunk_axis(ax)
    ax.set(ylabel="ns per multiply-add", title="encoder's CPU time for each multiply-add")
    ax.set_ylim(0, None)
    ax.legend(fontsize=8.5)


def draw_influence(ax: Axes, models: Sequence[Model]) -> None:
    """The effect of 320 ms of other sound on the emissions after it."""
    for model in models:
        found = model.results.get("memory", {}).get("influence", {})
        points = [(s, e) for s, e in zip(found.get("from_s", ()), found.get("divergence_nats", ())) if e]
        if points:
            xs, ys = zip(*points)
            ax.plot([max(x, 0.25) for x in xs], ys, "o-", color=colour(models, model), label=model.name, markersize=4)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="seconds since then; a line ends where nothing is left",
        ylabel="divergence of emissions, nats",
    )
    ax.set_title("what 320 ms of other sound change later")
    ax.grid(True, which="major")
    ax.legend(fontsize=8.5)


def draw_lengths(ax: Axes, models: Sequence[Model]) -> None:
    """Word error rate of dev-clean by the length of the utterance."""
    for model in models:
        row = model.row("dev-clean")
        if "clip_errors" in row:
            _binned(
                ax, row["clip_s"], row["clip_errors"], row["clip_words"], LENGTHS_S, colour(models, model), model.name
            )
    ax.set(xlabel="length of the utterance, s", ylabel="WER %", title="dev-clean by length")
    ax.set_ylim(0, None)
    ax.grid(True, axis="y")


def draw_positions(ax: Axes, models: Sequence[Model]) -> None:
    """What keeping the state changes, by how long the speaker has been heard."""
    for model in models:
        kept, reset = model.row("dev-clean long recordings"), model.row("dev-clean")
        if "clip_errors" in kept and "clip_errors" in reset:
            errors = np.array(kept["clip_errors"]) - np.array(reset["clip_errors"][:: kept["every"] // reset["every"]])
            words, begins = kept["clip_words"], kept["clip_begins_s"]
            _binned(ax, begins, errors, words, POSITIONS_S, colour(models, model), model.name)
    ax.axhline(0, color=FAINT, linewidth=1)
    ax.set(xlabel="seconds of the speaker heard before", ylabel="WER, less that of a reset state, points")
    ax.set_title("state kept over clips: below 0 it helps")
    ax.grid(True, axis="y")
    ax.legend(fontsize=8.5)


def draw_training(ax: Axes, models: Sequence[Model]) -> None:
    """The dev loss over the hours heard, runs one after another drawn on."""
    for model in models:
        runs, run = [], model.training
        while run:
            runs.append(run)
            run = run.get("started_from", {})
        before = 0.0
        for run in reversed(runs):
            points = np.array(run.get("curve") or np.empty((0, 2)))
            last = run is runs[0]
            if len(points):
                label = model.name if last else None
                ax.plot(before + points[:, 0], points[:, 1], "o-" if last else ":", color=colour(models, model),
                        label=label, markersize=3)  # fmt: skip
            before += run.get("heard_h", 0.0)
    ax.set(
        xlabel="hours heard, earlier runs dotted", ylabel="CTC-CRF loss on dev-clean", title="dev loss while training"
    )
    ax.grid(True)
    ax.legend(fontsize=8.5)


def pareto(label: str, x_of: Callable[[Model], float | None]) -> Draw:
    """A plot of dev-clean WER against a cost; the line joins the models that no other beats in both."""

    def draw(ax: Axes, models: Sequence[Model]) -> None:
        points = [(x, m.row("dev-clean")["wer"], m) for m in models if (x := x_of(m)) and m.row("dev-clean")]
        for x, y, model in points:
            ax.scatter([x], [y], s=46, color=colour(models, model), zorder=3)
            ax.annotate(model.name, (x, y), (6, 5), textcoords="offset points", fontsize=8.5)
        front = [p for p in sorted(points, key=lambda p: p[:2]) if not any(beats(q, p) for q in points)]
        ax.plot([p[0] for p in front], [p[1] for p in front], color=FAINT, linewidth=1, zorder=1)
        ax.set(xlabel=label, ylabel="dev-clean WER %", title=label.partition(",")[0])
        ax.margins(y=0.3)
        ax.set_xlim(0, 1.3 * max((p[0] for p in points), default=1))  # from 0: models of one size stand close together
        ax.grid(True)

    return draw


def beats(one: tuple[float, float, Model], other: tuple[float, float, Model]) -> bool:
    return one[0] <= other[0] and one[1] <= other[1] and one[:2] != other[:2]


def _chunk_axis(ax: Axes) -> None:
    ax.set_xscale("log")
    ax.set_xticks(CHUNKS_MS, [str(ms) for ms in CHUNKS_MS])
    ax.minorticks_off()
    ax.set_xlabel("chunk, ms")
    ax.grid(True, axis="y", color=GRID)


def _binned(
    ax: Axes,
    at: Sequence[float],
    errors: Sequence[int],
    words: Sequence[int],
    edges: Sequence[float],
    line_colour: str,
    label: str,
) -> None:
    """Errors over words in bins, as a line over the bins' names."""
    at, errors, words = np.array(at), np.array(errors), np.array(words)
    names, rates = [], []
    for low, high in pairwise(edges):
        chosen = (at >= low) & (at < high)
        names.append(f"{low:g}–{high:g}" if high < edges[-1] else f"over {low:g}")
        rates.append(100 * errors[chosen].sum() / words[chosen].sum() if words[chosen].sum() else np.nan)
    ax.plot(range(len(names)), rates, "o-", color=line_colour, label=label, markersize=4)
    ax.set_xticks(range(len(names)), names)


# --- pages ---------------------------------------------------------------------------------------------------------

PARETO_PLOTS = (
    pareto("int8 file, MB", lambda m: m.int8_mb),
    pareto("multiply-adds, M per second of audio", lambda m: (m.cost().get("macs_per_s") or 0) / 1e6),
    pareto("bytes moved, MB per second of audio", lambda m: (m.bytes_per_s() or 0) / 1e6),
    pareto("real-time factor, CPU", lambda m: m.speed().get("rtf_cpu")),
)


def draw_all(models: Sequence[Model], draws: Sequence[Draw], height: float = 3.2) -> str:
    """Plots side by side, two in a row, as one SVG element."""
    columns = min(len(draws), 2)
    rows = -(-len(draws) // columns)
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(10.5, height * rows, nrows=rows, ncols=columns)
        for ax, draw in zip(axes.flat, draws, strict=True):
            draw(ax, models)
            if not ax.get_legend_handles_labels()[0] and ax.get_legend():
                ax.get_legend().remove()
        return as_svg(figure)


def overview_svg(models: Sequence[Model]) -> str:
    """One picture for a README: words, cost and memory."""
    return draw_all(models, [draw_words, PARETO_PLOTS[1], draw_intensity, draw_influence], 3.4)


def _first_notes(models: Sequence[Model]) -> tuple[list[str], list[str]]:
    """What must stand before the figures, and the rest."""
    first = [note for note in (training_note(models), *stale_notes(models)) if note]
    return first, [note for note in notes(models) if note not in first]


def html_page(models: Sequence[Model]) -> str:
    found = shown_figures(models)
    rows, group = [], ""
    for figure in found:
        if figure.group != group:
            group = figure.group
            rows.append((f"<b>{escape(group)}</b>", *("" for _ in models)))
        rows.append((escape(figure.label), *(escape(cell(figure, model)) for model in models)))
    table = table_html(("", *(m.name for m in models)), rows, numeric=set(range(1, len(models) + 1)))
    verdicts = "".join(
        f'<p><b>{escape(c.title)}</b> <span class="kind {BADGES.get(c.verdict, "assumed")}">{escape(c.verdict)}</span>'
        f'<br>{escape(c.claim)}</p><ul class="faint">{"".join(f"<li>{escape(e)}</li>" for e in c.evidence)}</ul>'
        for c in claims(models)
    )
    first, rest = _first_notes(models)
    return page(
        TITLE,
        [
            f"<section><h1>{TITLE}</h1>{''.join(f'<p>{escape(note)}</p>' for note in first)}</section>",
            section("Words", draw_all(models, [draw_words], 3.6), draw_all(models, [draw_chunks, draw_lengths])),
            section("Words against cost", draw_all(models, PARETO_PLOTS)),
            section("Time and memory traffic", draw_all(models, [draw_latency, draw_pace, draw_bytes, draw_intensity])),
            section("Memory", draw_all(models, [draw_influence, draw_positions])),
            section("Do the articles' claims hold here?", verdicts),
            section("Training", draw_all(models, [draw_training], 3.4)),
            section("All figures", table),
            section("How it was measured", "".join(f'<p class="faint">{escape(note)}</p>' for note in rest)),
        ],
    )


def markdown_page(models: Sequence[Model]) -> str:
    """README.md of the folder: the same without the interactive size."""
    lines = [f"# {TITLE}", "", "Written by `edge-asr compare --out`; all plots are in `index.html`.", ""]
    first, rest = _first_notes(models)
    lines += [
        *(line for note in first for line in (note, "")),
        "![words, cost and memory of the models](overview.svg)",
        "",
        as_markdown(models),
        "",
    ]
    lines += ["## Do the articles' claims hold here?", ""]
    for claim in claims(models):
        lines += [f"**{claim.title}: {claim.verdict}.** {claim.claim}", "", *(f"- {e}" for e in claim.evidence), ""]
    lines += ["## How it was measured", "", *(f"- {note}" for note in rest)]
    return "\n".join(lines) + "\n"
