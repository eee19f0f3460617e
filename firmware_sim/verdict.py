"""Everything about one model on one device, and the verdict: which budgets it keeps, at the bad end of every figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from firmware_sim.cost import OpCost
from firmware_sim.device import WEAKEST_FIRST, Device
from firmware_sim.errors import BudgetError
from firmware_sim.latency import Interval, OpTime, chunk_latency, chunk_times, evidence
from firmware_sim.ledger import Ledger, flash_ledger, plan_model, ram_ledger
from firmware_sim.model import Model
from firmware_sim.planner import Plan
from firmware_sim.scenario import BLOCK_S, BLOCK_SAMPLES, ChunkLoad, Run, Scenario
from firmware_sim.simulator import background_tasks, response_time, simulate
from firmware_sim.target import Target, load_target

# Exit code of each broken budget; with several, the first of this order.
EXIT_CODES = {"operator": 80, "flash": 81, "RAM": 82, "deadline": 83, "heat": 84}
SEARCH_STEPS = 24
FARTHEST_FACTOR = 64.0


@dataclass(frozen=True)
class Setup:
    """What the user chose. Budgets of None are the device's."""

    ring_s: float = 2.0
    deadline_ms: float | None = None
    background_load: float = 0.0
    background_bytes_per_s: float = 0.0
    alias_state: bool = False
    flash_budget: float | None = None
    ram_budget: float | None = None
    seconds: float = 60.0
    n_samples: int | None = None
    governor: str = "ondemand"
    seed: int = 0


@dataclass(frozen=True)
class Breaking:
    """A figure and the value at which the deadline verdict turns, `factor` times its present one; None: never."""

    label: str
    factor: float | None
    value: float | None
    unit: str
    kind: str


@dataclass(frozen=True)
class Assessment:
    """The result of `assess`. `run` is pessimistic and decides, `expected` is drawn with the seed."""

    model: Model
    device: Device
    target: Target
    setup: Setup
    plan: Plan
    flash: Ledger
    ram: Ledger
    unsupported: tuple[str, ...]
    latency: Interval
    times: tuple[OpTime, ...]
    worst_times: tuple[OpTime, ...]
    evidence: dict[str, float]
    run: Run
    expected: Run
    worst_response_s: float | None
    breaking: tuple[Breaking, ...]

    @property
    def broken(self) -> list[str]:
        """Budgets that do not hold, in the order of EXIT_CODES."""
        states = {
            "operator": bool(self.unsupported),
            "flash": not self.flash.is_kept,
            "RAM": not self.ram.is_kept,
            "deadline": bool(self.run.n_late or self.run.dropped),
            "heat": self.hottest_c >= self.device["budget.temperature_c"],
        }
        return [name for name, is_broken in states.items() if is_broken]

    @property
    def hottest_c(self) -> float:
        """Of the run, or where its mean power leads in the long run."""
        return max(self.run.peak_temperature_c, self.run.steady_temperature_c)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.broken[0]] if self.broken else 0

    @property
    def verdict(self) -> str:
        if not self.broken:
            return f"{self.model.name} keeps every budget of {self.device.name}"
        return f"{self.model.name} breaks {', '.join(self.broken)} on {self.device.name}"

    @property
    def word_delay_s(self) -> float:
        """From a sound to its result at worst: a whole chunk, the look-ahead, the worst response."""
        return self.model.period_s + self.model.lookahead_frames * BLOCK_S + self.run.response(100)

    def basis(self) -> str:
        """How much of the verdict rests on what, in words."""
        parts = [f"{self.evidence[kind]:.0%} {kind}" for kind in WEAKEST_FIRST if self.evidence[kind] >= 0.005]
        return (
            f"time: {', '.join(parts)}; bytes that rest on assumptions: "
            f"flash {self.flash.share_assumed():.0%}, RAM {self.ram.share_assumed():.0%}"
        )


def assess(model: Model, device: Device, setup: Setup | None = None) -> Assessment:
    """Ledgers, latency, simulated runs and breaking points of a model on a device.

    Raises BudgetError for settings that cannot be, DeviceError for a profile whose runtime is unknown."""
    setup = setup or Setup()
    target = load_target(device.runtime)
    plan = plan_model(model, target)
    traffic = background_traffic(device, setup)
    times = chunk_times(job_of(model, device), device, plan.arena_bytes, other_bytes_per_s=traffic)
    load = chunk_load(model, device, plan.arena_bytes, traffic)
    scenario = scenario_of(setup)
    return Assessment(
        model=model,
        device=device,
        target=target,
        setup=setup,
        plan=plan,
        flash=flash_ledger(model, device, target, setup.flash_budget),
        ram=ram_ledger(model, device, target, plan, setup.ring_s, setup.alias_state, setup.ram_budget),
        unsupported=tuple(target.unsupported(model.ops)),
        latency=load.durations[-1],
        times=tuple(times),
        worst_times=tuple(chunk_times(job_of(model, device), device, plan.arena_bytes, -1, other_bytes_per_s=traffic)),
        evidence=evidence(times, device),
        run=simulate(device, load, scenario),
        expected=simulate(device, load, replace(scenario, pessimistic=False)),
        worst_response_s=worst_response(device, load.durations[-1].high, setup),
        breaking=tuple(breaking_points(model, device, setup, plan.arena_bytes)),
    )


def job_of(model: Model, device: Device) -> tuple[OpCost, ...]:
    """The work of a chunk as the device's runtime sees it."""
    return model.job(load_target(device.runtime).runs_shapes)


def scenario_of(setup: Setup) -> Scenario:
    """The pessimistic scenario of a setup."""
    return Scenario(
        duration_s=setup.seconds,
        ring_s=setup.ring_s,
        deadline_s=None if setup.deadline_ms is None else setup.deadline_ms / 1e3,
        background_load=setup.background_load,
        governor=setup.governor,
        seed=setup.seed,
        n_samples=setup.n_samples,
    )


def background_traffic(device: Device, setup: Setup) -> float:
    """Bytes/s that the other programs take of the memory bus."""
    if not setup.background_bytes_per_s >= 0:
        raise BudgetError(f"need a background bandwidth ≥ 0 bytes/s, have {setup.background_bytes_per_s}")
    return setup.background_bytes_per_s + sum(task.bytes_per_s for task in device.background)


def chunk_load(model: Model, device: Device, arena_bytes: int, traffic: float) -> ChunkLoad:
    """The chunk job at each operating point."""
    durations = tuple(
        chunk_latency(job_of(model, device), device, arena_bytes, point.clock_hz, traffic) for point in device.points
    )
    return ChunkLoad(model.chunk_frames * BLOCK_SAMPLES, durations)


def worst_response(device: Device, cost_s: float, setup: Setup) -> float | None:
    """Response-time analysis at the highest clock; None where the job never ends in ten deadlines."""
    tasks = [task for task in background_tasks(device, setup.background_load) if task.priority < 10]
    return response_time(tasks, cost_s, device["cpu.cluster_exit_s"])


def keeps_deadline(model: Model, device: Device, setup: Setup, arena_bytes: int) -> bool:
    """Analytic form of the deadline verdict, at the highest clock and the bad end of the figures."""
    traffic = background_traffic(device, setup)
    cost = chunk_latency(job_of(model, device), device, arena_bytes, None, traffic).high
    deadline = model.period_s if setup.deadline_ms is None else setup.deadline_ms / 1e3
    worst = worst_response(device, cost, setup)
    return worst is not None and worst <= min(deadline, model.period_s)


def breaking_points(model: Model, device: Device, setup: Setup, arena_bytes: int) -> list[Breaking]:
    """For each figure alone: how far it may move before the deadline verdict turns."""
    rate = "cpu.int8_mac_per_cycle" if model.precision == "int8" else "cpu.fp32_mac_per_cycle"
    keys = [("core clock", "cpu.clock_hz", "Hz"), ("multiply-adds per cycle", rate, "MAC/cycle")]
    in_flash = device.weights_in == "flash"
    memory = "memory.flash_bytes_per_s" if in_flash else "memory.ram_bytes_per_s"
    keys.append(("flash bandwidth" if in_flash else "RAM bandwidth", memory, "B/s"))
    found = []
    for label, key, unit in keys:

        def keeps(factor: float, key: str = key) -> bool:
            return keeps_deadline(model, device.with_value(key, device[key] * factor), setup, arena_bytes)

        factor = turning_factor(keeps)
        value = None if factor is None else device[key] * factor
        found.append(Breaking(label, factor, value, unit, device.figures[key].kind))
    found.append(turning_load(model, device, setup, arena_bytes))
    return found


def turning_factor(keeps: Callable[[float], bool]) -> float | None:
    """Factor on a rate at which `keeps` turns, by bisection on a log scale; None where it never does within ×64."""
    if keeps(1.0):
        low, high = 1 / FARTHEST_FACTOR, 1.0
        if keeps(low):
            return None
    else:
        low, high = 1.0, FARTHEST_FACTOR
        if not keeps(high):
            return None
    for _ in range(SEARCH_STEPS):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return high


def turning_load(model: Model, device: Device, setup: Setup, arena_bytes: int) -> Breaking:
    """The background load at which the deadline verdict turns."""
    own = sum(task.cost_ms / task.period_ms for task in device.background)

    def keeps(load: float) -> bool:
        return keeps_deadline(model, device, replace(setup, background_load=load), arena_bytes)

    low, high = 0.0, 1.0
    if not keeps(low):
        return Breaking("load of other programs", None, None, "of a core", "assumed")
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return Breaking("load of other programs", (own + low) / own if own else None, own + low, "of a core", "assumed")


def first_to_break(breaking: Sequence[Breaking]) -> Breaking | None:
    """The figure nearest to its turning point."""
    distances = [(max(b.factor, 1 / b.factor), b) for b in breaking if b.factor]
    return min(distances, key=lambda pair: pair[0])[1] if distances else None
