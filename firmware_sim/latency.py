"""Time per chunk: a roofline per operator class with cache residency, or calibrated classes where a device has them.

    operator time = longer of compute and transfer + (1 − overlap) × the shorter + node overhead

Weights that fit the last-level cache together with the arena stay there. Otherwise every operator reads its weights
from RAM (or flash) once a chunk, and a recurrence whose step weights do not fit reads them again at every step: that is
why an LSTM at batch one waits for memory while a convolution over a chunk uses each weight many times.
Every figure has a band; the interval takes all of them at their bad and at their good ends together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from firmware_sim.cost import OpCost
from firmware_sim.device import NOMINAL, OPTIMISTIC, PESSIMISTIC, WEAKEST_FIRST, Device
from firmware_sim.errors import BudgetError

CACHE_SHARE = 0.8  # of the last-level cache that one program can hold against the others
ENDS = {"pessimistic": PESSIMISTIC, "nominal": NOMINAL, "optimistic": OPTIMISTIC}
INTEGER_ELEMENTS = 4  # 8-bit elements per float element in a vector register
MIN_BANDWIDTH_SHARE = 0.05  # a saturated bus still serves everybody a little


@dataclass(frozen=True)
class Interval:
    """Seconds: best, expected, worst."""

    low: float
    nominal: float
    high: float

    def __add__(self, other: Interval) -> Interval:
        return Interval(self.low + other.low, self.nominal + other.nominal, self.high + other.high)

    def scaled(self, low: float, high: float) -> Interval:
        return Interval(self.low * low, self.nominal, self.high * high)


@dataclass(frozen=True)
class Rates:
    """One end of a device's figures as plain numbers; bandwidths in bytes/s."""

    clock_hz: float
    fp32_mac_per_cycle: float
    int8_mac_per_cycle: float
    depthwise_mac_per_cycle: float
    elementwise_per_cycle: float
    transcendental_per_cycle: float
    node_overhead_cycles: float
    run_overhead_cycles: float
    arc_cycles: float
    overlap: float
    cache_bytes_per_s: float
    ram_bytes_per_s: float
    weight_bytes_per_s: float
    ram_latency_s: float
    resident_bytes: float
    end: int


@dataclass(frozen=True)
class OpTime:
    """Where the time of an operator goes, seconds."""

    op: OpCost
    compute_s: float
    transfer_s: float
    overhead_s: float
    total_s: float
    slow_bytes: float  # what crosses the memory interface

    @property
    def bound(self) -> str:
        """What the operator waits for."""
        parts = {"compute": self.compute_s, "memory": self.transfer_s, "overhead": self.overhead_s}
        return max(parts, key=parts.__getitem__)


def rates(device: Device, end: int = NOMINAL, clock_hz: float | None = None, other_bytes_per_s: float = 0.0) -> Rates:
    """The device's figures at one end of their bands, at a clock, beside traffic of other programs.

    The bus gives everybody at least a fair share, one part in `cores`; a single core gets what is left."""
    if other_bytes_per_s < 0:
        raise BudgetError(f"need background traffic ≥ 0 bytes/s, have {other_bytes_per_s}")
    clock = device.at("cpu.clock_hz", end) * ((clock_hz or device["cpu.clock_hz"]) / device["cpu.clock_hz"])
    ram = device.at("memory.ram_bytes_per_s", end)
    floor = ram / device["cpu.cores"] if device["cpu.cores"] > 1 else ram * MIN_BANDWIDTH_SHARE
    ram = max(ram - other_bytes_per_s, floor)
    in_flash = device.weights_in == "flash"

    def get(key: str) -> float:
        return device.at(key, end)

    int8 = get("cpu.int8_mac_per_cycle")
    return Rates(
        clock_hz=clock,
        fp32_mac_per_cycle=get("cpu.fp32_mac_per_cycle"),
        int8_mac_per_cycle=int8,
        depthwise_mac_per_cycle=get("cpu.depthwise_mac_per_cycle")
        if "cpu.depthwise_mac_per_cycle" in device.figures
        else int8,
        elementwise_per_cycle=get("cpu.elementwise_per_cycle"),
        transcendental_per_cycle=get("cpu.transcendental_per_cycle"),
        node_overhead_cycles=get("cpu.node_overhead_cycles"),
        run_overhead_cycles=get("cpu.run_overhead_cycles"),
        arc_cycles=get("cpu.arc_cycles"),
        overlap=min(get("cpu.overlap"), 1.0),
        cache_bytes_per_s=get("memory.cache_bytes_per_cycle") * clock,
        ram_bytes_per_s=ram,
        weight_bytes_per_s=get("memory.flash_bytes_per_s") if in_flash else ram,
        ram_latency_s=get("memory.ram_latency_s"),
        resident_bytes=CACHE_SHARE * device["memory.cache_bytes"],
        end=end,
    )


def op_time(op: OpCost, r: Rates, weights_resident: bool, activations_resident: bool) -> OpTime:
    """Time of one operator at one set of rates."""
    factor = op.spread[0] if r.end == OPTIMISTIC else op.spread[1] if r.end == PESSIMISTIC else 1.0
    vector = INTEGER_ELEMENTS if op.precision == "int8" else 1
    cycles = op.macs / mac_rate(op, r)
    cycles += op.elements / (r.elementwise_per_cycle * vector)
    cycles += op.transcendentals / (r.transcendental_per_cycle * vector)
    cycles += op.arcs * factor * r.arc_cycles
    slow_weights, fast = weight_traffic(op, r.resident_bytes, weights_resident)
    activations = op.read_bytes + op.write_bytes
    slow_activations = 0 if activations_resident else activations
    fast += activations - slow_activations
    transfer = slow_weights / r.weight_bytes_per_s + slow_activations / r.ram_bytes_per_s + fast / r.cache_bytes_per_s
    transfer += op.random_reads * factor * r.ram_latency_s
    compute = cycles / r.clock_hz
    overhead = op.nodes * r.node_overhead_cycles / r.clock_hz
    total = max(compute, transfer) + (1 - r.overlap) * min(compute, transfer) + overhead
    return OpTime(op, compute, transfer, overhead, total, slow_weights + slow_activations)


def mac_rate(op: OpCost, r: Rates) -> float:
    """Multiply-adds per cycle of the operator's class."""
    if op.precision == "fp32":
        return r.fp32_mac_per_cycle
    return r.depthwise_mac_per_cycle if op.kind == "depthwise" else r.int8_mac_per_cycle


def weight_traffic(op: OpCost, resident_bytes: float, weights_resident: bool) -> tuple[float, float]:
    """(bytes from where weights are stored, bytes from the cache) for all steps of the operator."""
    later_steps = op.step_weight_bytes * (op.steps - 1)
    if weights_resident:
        return 0.0, op.weight_bytes + later_steps
    if op.step_weight_bytes <= resident_bytes:
        return op.weight_bytes, later_steps
    return op.weight_bytes + later_steps, 0.0


def chunk_times(
    ops: Sequence[OpCost],
    device: Device,
    arena_bytes: int,
    end: int = NOMINAL,
    clock_hz: float | None = None,
    other_bytes_per_s: float = 0.0,
) -> list[OpTime]:
    """Times of all operators of a chunk at one end of the bands."""
    r = rates(device, end, clock_hz, other_bytes_per_s)
    weights = sum(op.weight_bytes for op in ops)
    weights_resident = weights + arena_bytes <= r.resident_bytes
    activations_resident = arena_bytes <= r.resident_bytes
    times = [op_time(op, r, weights_resident, activations_resident) for op in ops]
    if device.fit:
        times = [calibrated(time, device, r, weights_resident) for time in times]
    return times


def calibrated(time: OpTime, device: Device, r: Rates, weights_resident: bool) -> OpTime:
    """The same operator by the device's calibrated class, where it has one; the band is the held-out error."""
    coefficients = device.fit.get(fit_class(time.op))
    if coefficients is None:
        return time
    found = features(time.op, r.resident_bytes, weights_resident)
    seconds = sum(c * f for c, f in zip(coefficients, found, strict=True))
    if r.end != NOMINAL:
        seconds *= device.fit_error[0] if r.end == OPTIMISTIC else device.fit_error[1]
    seconds *= device["cpu.clock_hz"] / r.clock_hz
    return OpTime(time.op, seconds, 0.0, 0.0, seconds, time.slow_bytes)


def fit_class(op: OpCost) -> str:
    """Class of an operator for calibration: kind and, where it has a product, precision."""
    return f"{op.kind}.{op.precision}" if op.macs else op.kind


TILE_COLUMNS = 16
TILE_ROWS = 4


def features(op: OpCost, resident_bytes: float, weights_resident: bool) -> tuple[float, ...]:
    """What a calibrated class multiplies with its coefficients, in the order of FEATURES.

    Products are padded to tiles of 4 rows by 16 columns: a kernel pays for a whole tile. A recurrence pays per step.
    Weights are near where the cache holds them and far where they come from beyond it."""
    activations = op.read_bytes + op.write_bytes
    if not op.macs:
        return (op.nodes, 0, 0, 0, activations + op.weight_bytes, op.elements, op.transcendentals)
    padded = op.macs
    if op.kind in ("gemm", "attention", "conv") and op.rows and op.columns:
        tiles = -(-op.rows // TILE_ROWS) * TILE_ROWS * -(-op.columns // TILE_COLUMNS) * TILE_COLUMNS
        padded = op.macs * tiles / (op.rows * op.columns)
    far, near = weight_traffic(op, resident_bytes, weights_resident)
    one = op.steps if op.kind == "recurrent" else 1
    return (one, padded, near, far, activations, op.elements, op.transcendentals)


def chunk_latency(
    ops: Sequence[OpCost],
    device: Device,
    arena_bytes: int,
    clock_hz: float | None = None,
    other_bytes_per_s: float = 0.0,
) -> Interval:
    """Seconds of computing per chunk: best, expected, worst."""
    sums = []
    for end in (OPTIMISTIC, NOMINAL, PESSIMISTIC):
        r = rates(device, end, clock_hz, other_bytes_per_s)
        times = chunk_times(ops, device, arena_bytes, end, clock_hz, other_bytes_per_s)
        run_s = device.fit["run"][0] if "run" in device.fit else r.run_overhead_cycles / r.clock_hz
        sums.append(sum(t.total_s for t in times) + run_s)
    return Interval(*sums)


def evidence(times: Sequence[OpTime], device: Device) -> dict[str, float]:
    """Share of the time by kind of evidence; an operator counts for the weakest figure that binds it."""
    shares = dict.fromkeys(WEAKEST_FIRST, 0.0)
    total = sum(t.total_s for t in times)
    if total <= 0:
        return shares
    for time in times:
        if fit_class(time.op) in device.fit:
            shares["measured"] += time.total_s / total
            continue
        kinds = {device.figures[key].kind for key in binding_keys(time, device)}
        weakest = next(kind for kind in WEAKEST_FIRST if kind in kinds)
        shares[weakest] += time.total_s / total
    return shares


def binding_keys(time: OpTime, device: Device) -> list[str]:
    """Figures that decide an operator's time."""
    op = time.op
    if time.bound == "overhead":
        return ["cpu.clock_hz", "cpu.node_overhead_cycles"]
    if time.bound == "memory":
        if op.random_reads and not time.slow_bytes:
            return ["memory.ram_latency_s"]
        if not time.slow_bytes:
            return ["cpu.clock_hz", "memory.cache_bytes_per_cycle"]
        in_flash = device.weights_in == "flash"
        return ["memory.flash_bytes_per_s" if in_flash else "memory.ram_bytes_per_s"]
    if op.arcs:
        return ["cpu.clock_hz", "cpu.arc_cycles"]
    if op.macs:
        return ["cpu.clock_hz", "cpu.fp32_mac_per_cycle" if op.precision == "fp32" else "cpu.int8_mac_per_cycle"]
    transcendental = (
        op.transcendentals / device["cpu.transcendental_per_cycle"] > op.elements / device["cpu.elementwise_per_cycle"]
    )
    return ["cpu.clock_hz", "cpu.transcendental_per_cycle" if transcendental else "cpu.elementwise_per_cycle"]
