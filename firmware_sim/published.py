"""Published results, and how far the simulator is from them.

A board is fitted with one number, the multiply-adds per cycle that its published run implies, and then asked for a run
it was not fitted with: another clock, another network, or another network under another runtime.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from firmware_sim.cost import OpCost
from firmware_sim.device import Device
from firmware_sim.errors import CalibrationError
from firmware_sim.latency import chunk_latency

PUBLISHED = Path(__file__).parent / "published.toml"
CYCLE_KEYS = (
    "cpu.fp32_mac_per_cycle",
    "cpu.int8_mac_per_cycle",
    "cpu.depthwise_mac_per_cycle",
    "cpu.elementwise_per_cycle",
    "cpu.transcendental_per_cycle",
)
COST_KEYS = ("cpu.node_overhead_cycles", "cpu.run_overhead_cycles", "cpu.arc_cycles")
FIT_ROUNDS = 60
TWO_WAY_ROUNDS = 200


def load_published() -> dict:
    """The table of published results."""
    return tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))


def fit_speed(device: Device, ops: Sequence[OpCost], arena_bytes: int, seconds: float) -> Device:
    """The device with all its cycle counts scaled by one factor, so that `ops` take `seconds` at its clock.

    Raises CalibrationError where memory alone takes longer than that."""
    for _ in range(FIT_ROUNDS):
        now = chunk_latency(ops, device, arena_bytes).nominal
        if abs(now / seconds - 1) < 1e-9:
            return device
        device = faster(device, now / seconds)
    now = chunk_latency(ops, device, arena_bytes).nominal
    if abs(now / seconds - 1) > 1e-3:
        raise CalibrationError(
            f"need {seconds * 1e3:.2f} ms, memory traffic alone allows no less than {now * 1e3:.2f} ms"
        )
    return device


def faster(device: Device, factor: float) -> Device:
    """All cycle counts of a device divided by a factor."""
    for key in CYCLE_KEYS:
        if key in device.figures:
            device = device.with_value(key, device[key] * factor)
    for key in COST_KEYS:
        if device[key]:
            device = device.with_value(key, device[key] / factor)
    return device


@dataclass(frozen=True)
class Duty:
    """One published run and what the board, fitted at its other clock, predicts for it."""

    board: str
    clock_hz: float
    duty: float
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.duty - 1


def predict_duties(board: Device, ops: Sequence[OpCost], arena_bytes: int) -> list[Duty]:
    """Each published duty cycle from the board's other clock; `board` lends its memory figures only."""
    found = []
    for entry in load_published()["duty"]:
        for known, asked in (entry["runs"], entry["runs"][::-1]):
            at_known = board.with_value("cpu.clock_hz", known["clock_hz"])
            fitted = fit_speed(at_known, ops, arena_bytes, known["duty"] * known["period_s"])
            there = fitted.with_value("cpu.clock_hz", asked["clock_hz"])
            seconds = chunk_latency(ops, there, arena_bytes).nominal
            found.append(Duty(entry["board"], asked["clock_hz"], asked["duty"], seconds / asked["period_s"]))
    return found


def leave_one_out(macs: Sequence[float], seconds: Sequence[float]) -> np.ndarray:
    """Relative errors of predicting each latency from the multiply-adds and the rate that all the others imply.

    The rate is the geometric mean of seconds per multiply-add: the least-squares answer in relative terms."""
    cost = np.log(np.asarray(seconds, float)) - np.log(np.asarray(macs, float))
    if len(cost) < 2:
        raise CalibrationError(f"need at least 2 networks to leave one out, have {len(cost)}")
    others = (cost.sum() - cost) / (len(cost) - 1)
    return np.exp(others - cost) - 1


def leave_cell_out(table: Mapping[str, Mapping[str, float]], macs: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Relative errors of predicting each (runtime, network) from the others of its row and column.

    Latency = rate of the runtime × work of the network, both unknown: what one learns who has run the network under
    another runtime. Fitted in logarithms by alternating means; `macs` is where the work starts from."""
    names = list(macs)
    logs = np.log(np.array([[row.get(name, np.nan) for name in names] for row in table.values()]))
    errors: dict[str, dict[str, float]] = {runtime: {} for runtime in table}
    for i, runtime in enumerate(table):
        for j, name in enumerate(names):
            if np.isnan(logs[i, j]):
                continue
            left = logs.copy()
            left[i, j] = np.nan
            work = np.log(np.array([macs[n] for n in names]))
            for _ in range(TWO_WAY_ROUNDS):
                rate = np.nanmean(left - work, axis=1)
                work = np.nanmean(left - rate[:, None], axis=0)
            errors[runtime][name] = float(np.exp(rate[i] + work[j] - logs[i, j]) - 1)
    return errors
