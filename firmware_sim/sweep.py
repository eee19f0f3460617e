"""Where does it break? Chunk size × clock × background load, and models × devices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich import box
from rich.table import Table
from rich.text import Text

from firmware_sim.device import Device
from firmware_sim.errors import BudgetError
from firmware_sim.ledger import plan_model
from firmware_sim.model import Model
from firmware_sim.screen import BAD, GOOD, ms, size
from firmware_sim.simulator import simulate
from firmware_sim.target import load_target
from firmware_sim.verdict import (
    Assessment,
    Setup,
    background_traffic,
    chunk_load,
    first_to_break,
    scenario_of,
    worst_response,
)

SWEEP_SECONDS = 20.0


@dataclass(frozen=True)
class Cell:
    """One point of a sweep, judged at the pessimistic end."""

    chunk_ms: float
    clock_hz: float
    load: float
    chunk_cost_ms: float
    rtf: float
    worst_response_ms: float | None
    n_late: int
    dropped: int
    hottest_c: float
    is_kept: bool


def sweep(
    models: Sequence[Model], device: Device, clock_shares: Sequence[float], loads: Sequence[float], setup: Setup
) -> list[Cell]:
    """Simulated cells for each model (one per chunk size), clock share and load.

    Raises BudgetError for a share outside (0, 1] or a load outside 0 … 1."""
    for share in clock_shares:
        if not 0 < share <= 1:
            raise BudgetError(f"need clock shares above 0 and at most 1, have {share}")
    target = load_target(device.runtime)
    cells = []
    for model in models:
        arena = plan_model(model, target).arena_bytes
        for share in clock_shares:
            slowed = device if share == 1 else device.with_value("cpu.clock_hz", device["cpu.clock_hz"] * share)
            for load in loads:
                cells.append(sweep_cell(model, slowed, arena, replace(setup, background_load=load)))
    return cells


def sweep_cell(model: Model, device: Device, arena_bytes: int, setup: Setup) -> Cell:
    """One simulated scenario."""
    chunk = chunk_load(model, device, arena_bytes, background_traffic(device, setup))
    run = simulate(device, chunk, replace(scenario_of(setup), duration_s=min(setup.seconds, SWEEP_SECONDS)))
    cost = chunk.durations[-1].high
    worst = worst_response(device, cost, setup)
    hottest = max(run.peak_temperature_c, run.steady_temperature_c)
    return Cell(
        chunk_ms=model.period_s * 1e3,
        clock_hz=device["cpu.clock_hz"],
        load=setup.background_load,
        chunk_cost_ms=cost * 1e3,
        rtf=run.rtf,
        worst_response_ms=None if worst is None else worst * 1e3,
        n_late=run.n_late,
        dropped=run.dropped,
        hottest_c=hottest,
        is_kept=not run.n_late and not run.dropped and hottest < device["budget.temperature_c"],
    )


def sweep_tables(cells: Sequence[Cell], device: Device) -> list[Table]:
    """One table per chunk size: clocks down, loads across."""
    own = sum(task.cost_ms / task.period_ms for task in device.background)
    tables = []
    for chunk in sorted({cell.chunk_ms for cell in cells}):
        mine = [cell for cell in cells if cell.chunk_ms == chunk]
        loads = sorted({cell.load for cell in mine})
        table = Table(title=f"chunk {chunk:.0f} ms", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        table.add_column("clock", justify="right")
        for load in loads:
            table.add_column(f"load {own:.0%} + {load:.0%}", justify="right")
        for clock in sorted({cell.clock_hz for cell in mine}, reverse=True):
            row = [next(c for c in mine if c.clock_hz == clock and c.load == load) for load in loads]
            table.add_row(f"{clock / 1e6:.0f} MHz", *(cell_text(cell) for cell in row))
        tables.append(table)
    return tables


def cell_text(cell: Cell) -> Text:
    if cell.is_kept:
        return Text(f"keeps, RTF {cell.rtf:.2f}", GOOD)
    if cell.dropped:
        return Text(f"loses {cell.dropped / 16000:.1f} s", BAD)
    return Text(f"{cell.n_late} late" if cell.n_late else f"{cell.hottest_c:.0f} °C", BAD)


def compare_table(rows: Sequence[Assessment]) -> Table:
    """Models × devices, one line each."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in (
        "device",
        "model",
        "verdict",
        "ms per chunk",
        "RTF judged",
        "arena",
        "RAM",
        "flash",
        "hottest",
        "first to break",
    ):
        table.add_column(name, justify="left" if name in ("device", "model", "verdict", "first to break") else "right")
    for i, a in enumerate(rows):
        nearest = first_to_break(a.breaking)
        table.add_row(
            a.device.name,
            f"{a.model.name} {a.model.precision}",
            Text(f"breaks {', '.join(a.broken)}", BAD) if a.broken else Text("keeps all", GOOD),
            f"{ms(a.latency.nominal)} … {ms(a.latency.high)}",
            f"{a.latency.high / a.model.period_s:.3f}",
            size(a.plan.arena_bytes),
            f"{a.ram.used_bytes / a.ram.budget_bytes:.0%}",
            f"{a.flash.used_bytes / a.flash.budget_bytes:.0%}",
            f"{a.hottest_c:.0f} °C",
            f"{nearest.label} × {nearest.factor:.2f}" if nearest else "nothing within × 64",
            end_section=i + 1 < len(rows) and rows[i + 1].device.name != a.device.name,
        )
    return table
