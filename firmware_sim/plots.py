"""Plots of an assessment as SVG text (matplotlib without its global state)."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from edge_asr.plotting import BAD, COLOURS, FAINT, GOOD, STYLE, as_svg, new_figure
from firmware_sim.cost import WITH_MACS
from firmware_sim.device import Device
from firmware_sim.latency import OpTime, rates
from firmware_sim.ledger import Ledger
from firmware_sim.scenario import BLOCK_S, BLOCK_SAMPLES, Run
from firmware_sim.verdict import Assessment

BOUND_COLOURS = {"compute": "#2b6cb0", "memory": "#dd6b20", "overhead": "#a0aec0"}
MAX_POINTS = 1500  # of a curve in the page
N_LABELS = 5
SYSTEM_LABEL = "system reserve"


def ledger_plot(ledgers: Sequence[Ledger]) -> str:
    """One stacked bar per memory, as share of what the system leaves; what is too much is drawn beyond the line."""
    with mpl.rc_context(STYLE):
        figure, axes = new_figure(9, 1.5 * len(ledgers) + 0.2, nrows=len(ledgers))
        for ax, ledger in zip(axes, ledgers, strict=True):
            own = [entry for entry in ledger.entries if entry.label != SYSTEM_LABEL]
            system = ledger.used_bytes - sum(entry.n_bytes for entry in own)
            room = max(ledger.budget_bytes - system, 1)
            left = 0.0
            for i, entry in enumerate(sorted(own, key=lambda e: -e.n_bytes)):
                share = 100 * entry.n_bytes / room
                ax.barh(
                    0, share, left=left, color=COLOURS[i % len(COLOURS)], height=0.6, edgecolor="white", linewidth=0.6
                )
                left += share
            wide = max(108, left * 1.03)
            left = 0.0
            for entry in sorted(own, key=lambda e: -e.n_bytes):
                share = 100 * entry.n_bytes / room
                if share > 0.0085 * wide * len(entry.label) + 1:
                    ax.text(left + share / 2, 0, entry.label, ha="center", va="center", color="white", fontsize=8.5)
                left += share
            ax.axvline(100, color=GOOD if ledger.is_kept else BAD, linewidth=2)
            ax.set_xlim(0, wide)
            ax.set_yticks([])
            ax.spines["left"].set_visible(False)
            used = f"{left * room / 1e8:,.2f} of the {room / 1e6:,.2f} MB"
            ax.set_title(f"{ledger.name}: {used} that the system leaves ({left:.0f} %)")
            ax.set_xlabel("percent of what the system leaves" if ledger is ledgers[-1] else "")
        return as_svg(figure)


def roofline_plot(device: Device, models: Sequence[tuple[str, Sequence[OpTime]]], precision: str) -> str:
    """Multiply-adds per second over multiply-adds per byte, with the roofs of the device."""
    r = rates(device)
    with mpl.rc_context(STYLE):
        figure, (ax,) = new_figure(9, 4.6)
        x = np.logspace(-2, 3, 200)
        peak = {"int8": r.int8_mac_per_cycle, "fp32": r.fp32_mac_per_cycle}[precision] * r.clock_hz
        memory = "flash" if device.weights_in == "flash" else "RAM"
        for label, bandwidth, style in ((memory, r.weight_bytes_per_s, "-"), ("cache", r.cache_bytes_per_s, "--")):
            ax.plot(x, np.minimum(x * bandwidth, peak) / 1e9, style, color=FAINT, linewidth=1.4, zorder=1)
            at = (0.4 * peak / bandwidth, 0.4 * peak / 1e9)  # on the slope, a little below the bend
            text = f"{label} {bandwidth / 1e9:.2g} GB/s"
            ax.annotate(text, at, (-6, 3), textcoords="offset points", ha="right", fontsize=8.5, color=FAINT)
        ax.text(950, peak / 1e9 * 1.08, f"{precision} {peak / 1e9:.3g} GMAC/s", ha="right", fontsize=8.5, color=FAINT)
        for i, (name, times) in enumerate(models):
            draw_points(ax, name, times, COLOURS[i % len(COLOURS)], len(models) == 1)
        ax.set(
            xscale="log",
            yscale="log",
            xlim=(0.04, 1000),
            ylim=(peak / 3e11, peak / 4e8),
            xlabel="multiply-adds per byte moved",
            ylabel="GMAC/s",
        )
        ax.grid(True, which="major")
        ax.set_title("roofline: left of the bend an operator waits for memory, right of it for arithmetic")
        legend = ax.legend(loc="lower right", fontsize=8.5)
        for handle in legend.legend_handles:
            handle.set_sizes([40])  # the areas mean time, in the plot only
        return as_svg(figure)


def draw_points(ax: Axes, name: str, times: Sequence[OpTime], colour: str, by_kind: bool) -> None:
    """Operators with products, the area by their time; one colour per model, or per class for a single model."""
    shown = [t for t in times if t.op.macs and t.total_s > 0]
    total = sum(t.total_s for t in times)
    kinds = sorted({t.op.kind for t in shown}) if by_kind else [None]
    for k, kind in enumerate(kinds):
        mine = [t for t in shown if kind is None or t.op.kind == kind]
        share = sum(t.total_s for t in mine) / total if total else 0
        ax.scatter(
            [t.op.intensity for t in mine],
            [t.op.macs / t.total_s / 1e9 for t in mine],
            s=[20 + 900 * t.total_s / total for t in mine],
            color=COLOURS[WITH_MACS.index(kind)] if kind else colour,
            alpha=0.65,
            edgecolor="white",
            label=f"{kind or name} ({share:.0%} of the time)",
            zorder=3 + k,
        )


def timeline_plot(run: Run, ring_s: float) -> str:
    """Ring fill and the lateness of every chunk over the run."""
    line = run.timeline
    with mpl.rc_context(STYLE):
        figure, (fill, late) = new_figure(9, 4.4, nrows=2, sharex=True)
        t, n = thinned(line.time_s), thinned(np.array(line.ring_samples) / BLOCK_SAMPLES * BLOCK_S)
        fill.fill_between(t, n, color=COLOURS[0], alpha=0.25, linewidth=0)
        fill.plot(t, n, color=COLOURS[0], linewidth=0.9)
        fill.axhline(ring_s, color=BAD, linewidth=1.2)
        fill.set(ylabel="s in the ring", ylim=(0, ring_s * 1.08))
        fill.set_title(f"ring buffer: {run.dropped:,} samples lost in {len(run.gaps)} overruns")
        jobs = run.jobs[:: max(len(run.jobs) // MAX_POINTS, 1)]
        lateness = np.array([job.lateness_s * 1e3 for job in jobs])
        colours = [BAD if value > 0 else COLOURS[2] for value in lateness]
        late.scatter([job.finish_s for job in jobs], lateness, s=9, color=colours, linewidth=0)
        late.axhline(0, color=BAD, linewidth=1.2)
        late.set(ylabel="lateness, ms", xlabel="seconds")
        late.set_title(
            f"chunks: {run.n_late} of {len(run.jobs)} late, p99 {run.lateness(99) * 1e3:.1f} ms (below 0 is in time)"
        )
        for ax in (fill, late):
            ax.grid(True, axis="y")
        return as_svg(figure)


def heat_plot(a: Assessment) -> str:
    """Temperature and clock over the run, with the limit and where the mean power leads."""
    line = a.run.timeline
    with mpl.rc_context(STYLE):
        figure, (heat, clock) = new_figure(9, 3.8, nrows=2, sharex=True)
        heat.plot(thinned(line.time_s), thinned(line.temperature_c), color=COLOURS[1], linewidth=1.4)
        limit, steady = a.device["budget.temperature_c"], a.run.steady_temperature_c
        heat.axhline(limit, color=BAD, linewidth=1.2, label=f"limit {limit:.0f} °C")
        heat.axhline(steady, color=FAINT, linestyle="--", linewidth=1, label=f"in the long run {steady:.1f} °C")
        heat.set(ylabel="°C")
        heat.set_title("temperature and clock")
        heat.legend(loc="center right", fontsize=8.5)
        clock.step(
            thinned(line.time_s), thinned(np.array(line.clock_hz) / 1e6), where="post", color=COLOURS[0], linewidth=0.9
        )
        clock.set(ylabel="MHz", xlabel="seconds", ylim=(0, a.device["cpu.clock_hz"] / 1e6 * 1.1))
        for ax in (heat, clock):
            ax.grid(True, axis="y")
        return as_svg(figure)


def layer_plot(times: Sequence[OpTime]) -> str:
    """Time of every operator in the order of execution, coloured by what it waits for."""
    with mpl.rc_context(STYLE):
        figure, (ax,) = new_figure(9, 3.2)
        for bound, colour in BOUND_COLOURS.items():
            mine = [(i, t.total_s * 1e3) for i, t in enumerate(times) if t.bound == bound]
            if mine:
                ax.bar([i for i, _ in mine], [v for _, v in mine], color=colour, width=0.9, label=f"waits for {bound}")
        for i in sorted(range(len(times)), key=lambda i: -times[i].total_s)[:N_LABELS]:
            ax.annotate(
                times[i].op.op_type,
                (i, times[i].total_s * 1e3),
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
            )
        ax.set(xlabel="operators in order of execution", ylabel="ms", xlim=(-1, len(times)))
        ax.margins(y=0.28)
        ax.set_title("cost per operator")
        ax.legend(loc="upper right", fontsize=8.5, ncols=3)
        return as_svg(figure)


def thinned(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Every n-th value, so that an hour fits the page."""
    array = np.asarray(values, float)
    return array[:: max(len(array) // MAX_POINTS, 1)]
