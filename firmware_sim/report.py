"""One self-contained HTML page: verdict, ledgers, roofline, timeline, heat, cost per layer, sources of all figures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from edge_asr.page import columns, section, table_html, write_page
from firmware_sim.enforce import Enforced
from firmware_sim.hearing import Heard
from firmware_sim.latency import OpTime
from firmware_sim.ledger import Ledger
from firmware_sim.plots import heat_plot, layer_plot, ledger_plot, roofline_plot, timeline_plot
from firmware_sim.screen import ms, quantity, size
from firmware_sim.verdict import Assessment, first_to_break

MAX_OPERATORS = 600


def write_report(path: Path, a: Assessment, heard: Heard | None = None, enforced: Enforced | None = None) -> None:
    """Write the page. Raises OutputError where the file cannot be written."""
    write_page(path, a.verdict, sections_of(a, heard, enforced))


def sections_of(a: Assessment, heard: Heard | None = None, enforced: Enforced | None = None) -> list[str]:
    """The parts of the page in order."""
    one = [(a.model.name, a.times)]
    sections = [
        verdict_section(a),
        section("Memory", ledger_plot([a.flash, a.ram]), columns(ledger_html(a.flash), ledger_html(a.ram))),
        section("Where the time goes", roofline_plot(a.device, one, a.model.precision), roofline_note(a)),
        section("Cost per operator", layer_plot(a.times)),
        section("The run, at the bad end of every figure", timeline_plot(a.run, a.setup.ring_s), heat_plot(a)),
    ]
    if heard is not None:
        sections.append(heard_section(heard))
    if enforced is not None:
        sections.append(enforced_section(enforced))
    return [*sections, breaking_section(a), operators_section(a.times, a.worst_times), figures_section(a)]


def write_comparison(path: Path, rows: Sequence[Assessment]) -> None:
    """Models × devices on one page: a table, and for each device one roofline with all models in it."""
    cells = []
    for a in rows:
        nearest = first_to_break(a.breaking)
        verdict = f"breaks {', '.join(a.broken)}" if a.broken else "keeps all"
        cells.append((
            escape(a.device.name), escape(f"{a.model.name} {a.model.precision}"),
            f'<b style="color:var(--{"bad" if a.broken else "good"})">{escape(verdict)}</b>',
            ms(a.latency.nominal), ms(a.latency.high), f"{a.latency.high / a.model.period_s:.3f}",
            f"{a.flash.used_bytes / a.flash.budget_bytes:.0%}", f"{a.ram.used_bytes / a.ram.budget_bytes:.0%}",
            f"{a.hottest_c:.0f} °C", escape(f"{nearest.label} × {nearest.factor:.2f}") if nearest else "",
        ))  # fmt: skip
    head = ("device", "model", "verdict", "per chunk", "worst", "RTF", "flash", "RAM", "hottest", "first to break")
    sections = [section("Models and devices", table_html(head, cells, numeric={3, 4, 5, 6, 7, 8}))]
    for name in dict.fromkeys(a.device.name for a in rows):
        mine = [a for a in rows if a.device.name == name]
        models = [(f"{a.model.name} {a.model.precision}", a.times) for a in mine]
        plot = roofline_plot(mine[0].device, models, mine[0].model.precision)
        sections.append(section(mine[0].device.title, plot, *(roofline_note(mine[0]),) * (name == rows[0].device.name)))
    write_page(path, "Models and devices", sections)


def verdict_section(a: Assessment) -> str:
    model, broken = a.model, set(a.broken)
    cards = [
        ("flash", f"{a.flash.used_bytes / a.flash.budget_bytes:.0%}", f"of {size(a.flash.budget_bytes)}", "flash"),
        ("RAM", f"{a.ram.used_bytes / a.ram.budget_bytes:.0%}", f"of {size(a.ram.budget_bytes)}", "RAM"),
        ("computing per chunk", ms(a.latency.nominal), f"{ms(a.latency.low)} to {ms(a.latency.high)}", "deadline"),
        ("chunks late", f"{a.run.n_late} of {len(a.run.jobs)}", f"p99 {ms(a.run.lateness(99))}", "deadline"),
        ("samples lost", f"{a.run.dropped:,}", f"of {a.run.captured:,}", "deadline"),
        ("hottest", f"{a.hottest_c:.0f} °C", f"limit {a.device['budget.temperature_c']:.0f} °C", "heat"),
        ("mean power", f"{a.run.mean_power_w:.2f} W", f"{a.run.energy_j:.0f} J in {a.run.wall_s:.0f} s", ""),
        ("sound to result", ms(a.word_delay_s), "chunk, look-ahead, worst response", ""),
    ]
    tiles = "".join(
        f'<div class="card{" broken" if budget in broken else ""}"><span>{escape(label)}</span>'
        f"<b>{escape(value)}</b><span>{escape(note)}</span></div>"
        for label, value, note, budget in cards
    )
    missing = (
        f"<p><b>{escape(a.target.title)} cannot run: {escape(', '.join(a.unsupported))}</b></p>"
        if a.unsupported
        else ""
    )
    notes = f'<p class="faint">{escape(a.device.notes)}</p>' if a.device.notes else ""
    return (
        f'<section class="verdict{" broken" if broken else ""}"><h1>{escape(a.verdict)}</h1>'
        f"<p>{escape(a.device.title)} · {escape(a.target.title)} · {escape(model.encoder_kind)} {model.precision}, "
        f"{model.macs / 1e6:.1f} M multiply-adds per {model.period_s * 1e3:.0f} ms of audio</p>{missing}"
        f'<p class="faint">Judged at the bad end of every figure. What it rests on: {escape(a.basis())}.</p>{notes}'
        f'<div class="cards">{tiles}</div></section>'
    )


def ledger_html(ledger: Ledger) -> str:
    rows = [(escape(e.label), size(e.n_bytes), kind_html(e.kind)) for e in ledger.entries]
    word = "free" if ledger.is_kept else "too much"
    rows.append((f"<b>{ledger.name} {word}</b>", f"<b>{size(abs(ledger.margin_bytes))}</b>", ""))
    return table_html(("use", "bytes", "rests on"), rows, numeric={1})


def roofline_note(a: Assessment) -> str:
    memory = [t for t in a.times if t.bound == "memory"]
    share = sum(t.total_s for t in memory) / sum(t.total_s for t in a.times)
    return (
        f'<p class="faint">{share:.0%} of the time waits for memory. Area of a point: its share of the time. '
        "A recurrence reads its weights again at every step, so at batch one it does about one multiply-add per byte; "
        "a product over a whole chunk uses each weight once per row of the chunk.</p>"
    )


def heard_section(heard: Heard) -> str:
    return section(
        "What the device heard",
        f'<p class="faint">without load</p><blockquote>{escape(heard.reference) or "(nothing)"}</blockquote>',
        f'<p class="faint">on the device</p><blockquote>{escape(heard.text) or "(nothing)"}</blockquote>',
        f"<p>{heard.lost_samples:,} samples lost in {heard.n_gaps} overruns; word error rate against the unloaded run "
        f"<b>{heard.word_error_percent:.1f} %</b> ({heard.n_errors} errors in {heard.n_words} words)</p>",
    )


def enforced_section(e: Enforced) -> str:
    predicted = "fits" if e.predicted_to_fit else "does not fit"
    rows = [
        ("predicted for the device", f"{size(e.predicted_bytes)} of {size(e.allowance_bytes)} for speech: {predicted}"),
        ("happened here under that limit", escape(e.outcome)),
        ("same runtime as the device", "yes" if e.same_runtime else "no: memory may differ"),
        ("host process before the model", size(e.host_baseline_bytes)),
        ("host process grew by", size(e.host_grown_bytes)),
        ("host peak RSS", size(e.host_peak_rss_bytes)),
        ("CPU time, start included", f"{e.cpu_s:.2f} s for {e.audio_s:.1f} s of audio"),
        ("CPU quota", escape(e.cpu_quota)),
    ]
    note = '<p class="faint">The host process holds Python and libraries for another processor: not device RAM.</p>'
    return section("Enforced on this machine", table_html(("", ""), rows), note)


def breaking_section(a: Assessment) -> str:
    nearest = first_to_break(a.breaking)
    rows = []
    for b in a.breaking:
        label = f"<b>{escape(b.label)}</b>" if b is nearest else escape(b.label)
        factor = f"× {b.factor:.2f}" if b.factor else "never within × 64"
        rows.append((label, factor, quantity(b.value, b.unit) if b.value is not None else "", kind_html(b.kind)))
    note = (
        '<p class="faint">Each figure moved alone until the deadline verdict turns, the others at their bad ends.</p>'
    )
    return section(
        "What breaks first", note, table_html(("figure", "factor", "turns at", "figure is"), rows, numeric={1, 2})
    )


def operators_section(times: Sequence[OpTime], worst: Sequence[OpTime]) -> str:
    rows = [
        (
            escape(t.op.name[-60:]),
            escape(t.op.op_type),
            t.op.precision,
            f"{t.op.macs / 1e3:,.0f}" if t.op.macs else "",
            f"{t.op.weight_bytes / 1e3:,.1f}",
            f"{t.op.traffic_bytes / 1e3:,.1f}",
            f"{t.slow_bytes / 1e3:,.1f}",
            f"{t.total_s * 1e3:.3f}",
            f"{w.total_s * 1e3:.3f}",
            t.bound,
        )
        for t, w in list(zip(times, worst, strict=True))[:MAX_OPERATORS]
    ]
    head = (
        "node",
        "operator",
        "",
        "k MACs",
        "weights kB",
        "moved kB",
        "beyond cache kB",
        "ms",
        "worst ms",
        "waits for",
    )
    body = table_html(head, rows, numeric=set(range(3, 9)))
    return f"<section><details><summary>All {len(times)} operators</summary>{body}</details></section>"


def figures_section(a: Assessment) -> str:
    rows = [
        (
            key,
            f"{f.value:,.5g}",
            f"{f.low:,.4g} to {f.high:,.4g}" if f.high > f.low else "exact",
            kind_html(f.kind),
            escape(f.source),
        )
        for key, f in a.device.figures.items()
    ]
    rows += [
        (f"runtime.{key}", f"{f.value:,.5g}", "", kind_html(f.kind), escape(f.source))
        for key, f in a.target.figures.items()
    ]
    rows.append(
        ("runtime.operators", str(len(a.target.operators)), "", kind_html(a.target.kind), escape(a.target.source))
    )
    body = table_html(("figure", "value", "band", "kind", "source"), rows, numeric={1, 2})
    return f"<section><details open><summary>Every figure and its source</summary>{body}</details></section>"


def kind_html(kind: str) -> str:
    return f'<span class="kind {escape(kind)}">{escape(kind)}</span>'
