"""One screen for one verdict (rich)."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.columns import Columns
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from firmware_sim.device import Device
from firmware_sim.enforce import Enforced
from firmware_sim.hearing import Heard
from firmware_sim.latency import OpTime
from firmware_sim.ledger import Ledger
from firmware_sim.verdict import Assessment, Breaking, first_to_break

BAR_WIDTH = 22
PIPE_WIDTH = 150
GOOD, BAD = "green", "bold red"


def make_console() -> Console:
    """A terminal as wide as it is; a pipe gets full lines."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPE_WIDTH)


def show(console: Console, a: Assessment, heard: Heard | None = None, enforced: Enforced | None = None) -> None:
    """The verdict, the ledgers, where the time goes, the run, what breaks first, and what it all rests on."""
    console.print(Panel(headline(a), box=box.HEAVY, border_style=BAD if a.broken else GOOD))
    console.print(Columns([ledger_table(a.flash), ledger_table(a.ram)], padding=(0, 2)))
    console.print(Columns([time_table(a.times, a.worst_times), run_table(a)], padding=(0, 2)))
    console.print(breaking_line(a.breaking))
    if a.device.notes:
        console.print(Text(a.device.notes, style="dim"))
    if heard is not None:
        console.print(heard_panel(heard))
    if enforced is not None:
        console.print(enforced_panel(enforced))


def headline(a: Assessment) -> Group:
    model, latency = a.model, a.latency
    first = Text(a.verdict, style=BAD if a.broken else f"bold {GOOD}")
    second = Text(
        f"{a.device.title} · {a.target.title} · {model.encoder_kind} {model.precision}, "
        f"{model.macs / 1e6:.1f} M MACs per {model.period_s * 1e3:.0f} ms"
    )
    third = Text(
        f"computing {ms(latency.nominal)} per chunk ({ms(latency.low)} to {ms(latency.high)}, judged at the latter); "
        f"sound to result {ms(a.word_delay_s)} at worst",
    )
    lines = [first, second, third]
    if a.unsupported:
        lines.append(Text(f"{a.target.title} cannot run: {', '.join(a.unsupported)}", style=BAD))
    lines.append(Text(f"rests on · {a.basis()}", style="dim"))
    return Group(*lines)


def ledger_table(ledger: Ledger) -> Table:
    """Entries with bars; the last line is the sum against the budget."""
    style = GOOD if ledger.is_kept else BAD
    table = Table(title=ledger.name, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("use", no_wrap=True)
    table.add_column("bytes", justify="right")
    table.add_column("rests on", style="dim")
    for entry in ledger.entries:
        table.add_row(entry.label, size(entry.n_bytes), entry.kind)
    share = min(ledger.used_bytes / ledger.budget_bytes, 9.99)
    table.add_section()
    word = "free" if ledger.is_kept else "too much"
    table.add_row(f"of {size(ledger.budget_bytes)}", Text(size(ledger.used_bytes), style), Text(f"{share:.0%}", style))
    table.add_row(bar(share, style), size(abs(ledger.margin_bytes)), Text(word, style))
    return table


def bar(share: float, style: str) -> Text:
    full = min(round(share * BAR_WIDTH), BAR_WIDTH)
    return Text("█" * full, style) + Text("░" * (BAR_WIDTH - full), "dim")


def time_table(times: Sequence[OpTime], worst: Sequence[OpTime]) -> Table:
    """Operators by class: time, what they wait for, work per byte."""
    table = Table(title="time per chunk", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("class", "nodes", "M MACs", "MB moved", "MAC/B", "ms", "worst ms", "waits for"):
        table.add_column(name, justify="left" if name in ("class", "waits for") else "right")
    for kind in sorted({t.op.kind for t in times}, key=lambda k: -sum(t.total_s for t in times if t.op.kind == k)):
        mine = [t for t in times if t.op.kind == kind]
        macs, moved = sum(t.op.macs for t in mine), sum(t.op.traffic_bytes for t in mine)
        waits = {b: sum(t.total_s for t in mine if t.bound == b) for b in ("compute", "memory", "overhead")}
        table.add_row(
            kind,
            str(len(mine)),
            f"{macs / 1e6:.2f}" if macs else "",
            f"{moved / 1e6:.2f}",
            f"{macs / moved:.1f}" if macs and moved else "",
            f"{sum(t.total_s for t in mine) * 1e3:.2f}",
            f"{sum(t.total_s for t in worst if t.op.kind == kind) * 1e3:.2f}",
            max(waits, key=waits.__getitem__),
        )
    return table


def run_table(a: Assessment) -> Table:
    """The simulated run at the pessimistic end, beside the expected one."""
    run, expected = a.run, a.expected
    table = Table(
        title=f"{run.audio_s:.0f} s of audio",
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("", "judged", "expected"):
        table.add_column(name, justify="left" if not name else "right")

    def row(label: str, *values: str, bad: bool = False) -> None:
        table.add_row(label, *(Text(v, BAD if bad and i == 0 else "") for i, v in enumerate(values)))

    row("real-time factor", f"{run.rtf:.3f}", f"{expected.rtf:.3f}")
    row("chunks late", f"{run.n_late} of {len(run.jobs)}", f"{expected.n_late}", bad=bool(run.n_late))
    row("samples lost", f"{run.dropped:,}", f"{expected.dropped:,}", bad=bool(run.dropped))
    for percent in (50, 99, 99.9):
        row(f"lateness p{percent:g}", ms(run.lateness(percent)), ms(expected.lateness(percent)))
    row("energy", f"{run.energy_j:.1f} J", f"{expected.energy_j:.1f} J")
    row("mean power", f"{run.mean_power_w:.2f} W", f"{expected.mean_power_w:.2f} W")
    heat = a.hottest_c >= a.device["budget.temperature_c"]
    row("hottest", f"{a.hottest_c:.0f} °C", f"of {a.device['budget.temperature_c']:.0f} °C", bad=heat)
    never = "never"
    row(
        "throttles after",
        *(never if r.throttled_at_s is None else f"{r.throttled_at_s:.0f} s" for r in (run, expected)),
    )
    worst = "unbounded" if a.worst_response_s is None else ms(a.worst_response_s)
    row("worst response, by analysis", worst, f"of {ms(run.deadline_s)}")
    return table


def breaking_line(breaking: Sequence[Breaking]) -> Text:
    """What breaks first and how far the other figures are from it."""
    nearest = first_to_break(breaking)
    if nearest is None:
        return Text("no single figure turns the deadline verdict within a factor of 64")
    text = Text("deadline verdict turns first by ")
    text.append(f"{nearest.label} × {nearest.factor:.2f}", "bold")
    text.append(f" = {quantity(nearest.value, nearest.unit)} ({nearest.kind} figure); ")
    others = [f"{b.label} × {b.factor:.2f}" if b.factor else f"{b.label}: never" for b in breaking if b is not nearest]
    return text + Text(", ".join(others), "dim")


def heard_panel(heard: Heard) -> Panel:
    body = Group(
        Text("without load  ", "dim") + Text(heard.reference or "(nothing)"),
        Text("on the device ", "dim") + Text(heard.text or "(nothing)"),
        Text(
            f"{heard.lost_samples:,} samples lost in {heard.n_gaps} overruns; "
            f"word error rate against the unloaded run {heard.word_error_percent:.1f} %",
            BAD if heard.lost_samples else GOOD,
        ),
    )
    return Panel(body, title="what the device heard", title_align="left", box=box.ROUNDED)


def enforced_panel(e: Enforced) -> Panel:
    """What happened on the host beside what was predicted for the device; host memory is named as such."""
    predicted = "fits" if e.predicted_to_fit else "does not fit"
    body = Group(
        Text(
            f"predicted for the device: {size(e.predicted_bytes)} of {size(e.allowance_bytes)} for speech: {predicted}"
        ),
        Text(f"here, with that much data above the bare process: {e.outcome}", enforced_style(e)),
        Text(
            f"host process (not device RAM): {size(e.host_baseline_bytes)} before the model, "
            f"grew by {size(e.host_grown_bytes)}, peak RSS {size(e.host_peak_rss_bytes)}",
            "dim",
        ),
        Text(
            ("" if e.same_runtime else "the device's runtime is another than the host's, so memory may differ; ")
            + f"CPU {e.cpu_s:.2f} s and {e.wall_s:.2f} s by the clock, start included, for {e.audio_s:.1f} s of audio; "
            f"CPU quota: {e.cpu_quota}",
            "dim",
        ),
    )
    return Panel(body, title="enforced on this machine", title_align="left", box=box.ROUNDED)


def enforced_style(e: Enforced) -> str:
    """Green or red where host and device run the same code, neutral where they do not."""
    if not e.same_runtime:
        return ""
    return GOOD if e.agrees else BAD


def figure_table(device: Device) -> Table:
    """Every figure of a profile with its kind, band and source."""
    table = Table(title=device.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("figure", "value", "band", "kind", "source"):
        table.add_column(name, justify="right" if name in ("value", "band") else "left", no_wrap=name != "source")
    for key, f in device.figures.items():
        band = f"{f.low:g} … {f.high:g}" if f.high > f.low else ""
        table.add_row(key, f"{f.value:g}", band, Text(f.kind, "yellow" if f.kind == "assumed" else ""), f.source)
    return table


def device_table(devices: Sequence[Device]) -> Table:
    """All profiles, with how much of each is known."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("name", "device", "cores", "MHz", "int8 MAC/cycle", "RAM", "flash", "RAM GB/s", "figures assumed"):
        text = name in ("name", "device")
        table.add_column(name, justify="left" if text else "right", no_wrap=name == "name")
    for d in devices:
        kinds = [figure.kind for figure in d.figures.values()]
        table.add_row(
            d.name,
            d.title,
            f"{d['cpu.cores']:.0f}",
            f"{d['cpu.clock_hz'] / 1e6:.0f}",
            f"{d['cpu.int8_mac_per_cycle']:g}",
            size(d["memory.ram_bytes"]),
            size(d["memory.flash_bytes"]),
            f"{d['memory.ram_bytes_per_s'] / 1e9:.2f}",
            f"{kinds.count('assumed')} of {len(kinds)}",
        )
    return table


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def size(n_bytes: float) -> str:
    """Bytes for people: 1,234 B, 56.7 kB, 8.9 MB, 1.2 GB (powers of ten)."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(n_bytes) >= factor * 0.9995:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes:,.0f} B"


def quantity(value: float | None, unit: str) -> str:
    if value is None:
        return "?"
    if unit == "Hz":
        return f"{value / 1e6:.0f} MHz"
    if unit == "B/s":
        return f"{value / 1e9:.3f} GB/s"
    return f"{value:.2f} {unit}"
