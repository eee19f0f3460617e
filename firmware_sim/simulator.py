"""Discrete events on one core: capture → ring → chunk jobs, beside background tasks, under DVFS and heat.

Capture writes a block every 10 ms; like the real ring it overwrites the oldest samples when it is full, and the reader
finds out when it reads. A chunk job is released when its last sample is captured and may be pre-empted by every task of
a lower priority number. The clock follows the load as under Linux' ondemand governor, heat lowers it. Everything is
deterministic for a seed.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from firmware_sim.device import Device, OperatingPoint, Task
from firmware_sim.errors import BudgetError
from firmware_sim.latency import Interval

BLOCK_S = 0.010
BLOCK_SAMPLES = 160
RECOGNISER_PRIORITY = 10
LOAD_PERIOD_MS = 10.0
GOVERNOR_S = 0.050
UP_THRESHOLD = 0.80  # busier than this: the highest clock; below it the clock goes with the load, as in ondemand
HYSTERESIS_C = 3.0
SLEEP_AFTER_S = 0.001  # idle longer than this: the core sleeps
CLUSTER_SLEEP_AFTER_S = 0.010  # idle longer than this: the whole cluster does
QUIET_COST = 0.6  # a background job takes from this share of its cost_ms to all of it
SAME_TIME_S = 1e-9  # a job that ends as another is released has ended
DRAIN_PERIODS = 50  # how long a stream may take to empty the ring after the last sample


@dataclass(frozen=True)
class ChunkLoad:
    """One chunk job: samples it takes, audio time, duration at each operating point (slowest first)."""

    chunk_samples: int
    durations: tuple[Interval, ...]

    @property
    def period_s(self) -> float:
        return self.chunk_samples / BLOCK_SAMPLES * BLOCK_S


@dataclass(frozen=True)
class Scenario:
    """What happens around the recogniser. `pessimistic`: worst durations, all tasks released together at the start."""

    duration_s: float = 60.0
    ring_s: float = 2.0
    deadline_s: float | None = None  # None: the chunk's own period
    background_load: float = 0.0  # further share of the core, as a task of LOAD_PERIOD_MS above the recogniser
    governor: str = "ondemand"  # or "performance": always the highest clock that heat allows
    pessimistic: bool = True
    wake_up: bool = True
    seed: int = 0
    n_samples: int | None = None  # length of the audio, None: duration_s


@dataclass(frozen=True)
class Job:
    """One chunk job, seconds since the start."""

    release_s: float
    start_s: float
    finish_s: float
    lateness_s: float  # finish − deadline; above zero is late


@dataclass
class Timeline:
    """Samples of the run at every governor tick, for plots."""

    time_s: list[float] = field(default_factory=list)
    ring_samples: list[int] = field(default_factory=list)
    temperature_c: list[float] = field(default_factory=list)
    clock_hz: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """What came of a simulation. Gaps are (first sample, samples) that were captured and never read."""

    audio_s: float
    captured: int
    consumed: int
    dropped: int
    in_ring: int
    gaps: tuple[tuple[int, int], ...]
    jobs: tuple[Job, ...]
    busy_s: float
    energy_j: float
    wall_s: float
    throttled_at_s: float | None
    peak_temperature_c: float
    steady_temperature_c: float
    timeline: Timeline
    deadline_s: float

    @property
    def rtf(self) -> float:
        """Computing time of the recogniser per second of audio."""
        return self.busy_s / self.audio_s if self.audio_s else 0.0

    @property
    def mean_power_w(self) -> float:
        return self.energy_j / self.wall_s if self.wall_s else 0.0

    def lateness(self, percent: float) -> float:
        """Percentile of the lateness in seconds, over all jobs."""
        return float(np.percentile([job.lateness_s for job in self.jobs], percent)) if self.jobs else 0.0

    def response(self, percent: float) -> float:
        """Percentile of the time from the last sample of a chunk to its result."""
        return float(np.percentile([job.finish_s - job.release_s for job in self.jobs], percent)) if self.jobs else 0.0

    @property
    def n_late(self) -> int:
        return sum(job.lateness_s > 1e-9 for job in self.jobs)


def background_tasks(device: Device, load: float) -> list[Task]:
    """The profile's tasks and the extra load. Raises BudgetError for a load outside 0 … 1."""
    if not 0 <= load <= 1 or math.isnan(load):
        raise BudgetError(f"need a background load from 0 to 1, have {load}")
    tasks = list(device.background)
    if load:
        tasks.append(Task("extra load", LOAD_PERIOD_MS, load * LOAD_PERIOD_MS, 2, 0.0, "assumed", "scenario"))
    return sorted(tasks, key=lambda task: task.priority)


def response_time(tasks: Sequence[Task], cost_s: float, blocking_s: float = 0.0, limit_s: float = 10.0) -> float | None:
    """Worst response of a job of `cost_s` below all given tasks (Joseph and Pandya 1986); None beyond the limit.

    Holds for a job that ends before its next release; the tasks' costs are those at the highest clock."""
    response = cost_s + blocking_s
    while response <= limit_s:
        demand = cost_s + blocking_s
        for task in tasks:
            demand += math.ceil(round(response / (task.period_ms / 1e3), 9)) * task.cost_ms / 1e3
        if demand <= response + 1e-12:
            return response
        response = demand
    return None


class Core:
    """Event loop over one core; `Simulation` keeps ring, heat and bookkeeping."""

    def __init__(self, device: Device, load: ChunkLoad, scenario: Scenario) -> None:
        check(scenario, load, len(device.points))
        self.device, self.load, self.scenario = device, load, scenario
        self.rng = np.random.default_rng(scenario.seed)
        self.points: tuple[OperatingPoint, ...] = device.points
        self.tasks = background_tasks(device, scenario.background_load)
        self.rank = sum(task.priority < RECOGNISER_PRIORITY for task in self.tasks)  # of the recogniser
        self.total_samples = (
            round(scenario.duration_s / BLOCK_S) * BLOCK_SAMPLES if scenario.n_samples is None else scenario.n_samples
        )
        self.capacity = round(scenario.ring_s * BLOCK_SAMPLES / BLOCK_S)
        self.read = self.consumed = self.dropped = 0
        self.gaps: list[tuple[int, int]] = []
        self.jobs: list[Job] = []
        self.busy_s = self.energy_j = self.window_j = self.window_busy_s = 0.0
        self.temperature_c = device["thermal.ambient_c"] + device["thermal.resistance_c_per_w"] * device["power.idle_w"]
        self.peak_c, self.throttled_at = self.temperature_c, None
        self.cap = self.point = len(self.points) - 1
        self.timeline = Timeline()

    def written(self, t: float) -> int:
        """Samples captured until t."""
        return min(int(t / BLOCK_S + 1e-6) * BLOCK_SAMPLES, self.total_samples)

    def ready_at(self) -> float | None:
        """When the next chunk is complete; None where no audio is left."""
        end = min(self.read + self.load.chunk_samples, self.total_samples)
        if self.read >= self.total_samples:
            return None
        return math.ceil(end / BLOCK_SAMPLES) * BLOCK_S

    def take(self, t: float) -> None:
        """Read a chunk from the ring: what was overwritten in the meantime is lost."""
        lost = max(self.written(t) - self.capacity - self.read, 0)
        if lost:
            self.gaps.append((self.read, lost))
            self.dropped += lost
            self.read += lost
        n = min(self.load.chunk_samples, self.written(t) - self.read)
        self.consumed += n
        self.read += n

    def chunk_durations(self) -> list[float]:
        """Seconds of this job at each operating point; drawn between best and worst unless pessimistic."""
        if self.scenario.pessimistic:
            return [d.high for d in self.load.durations]
        at = self.rng.triangular(-1.0, 0.0, 1.0)
        pick = [d.nominal + at * ((d.high - d.nominal) if at > 0 else (d.nominal - d.low)) for d in self.load.durations]
        return [max(p, 0.0) for p in pick]

    def task_durations(self, task: Task) -> list[float]:
        share = 1.0 if self.scenario.pessimistic else self.rng.uniform(QUIET_COST, 1.0)
        top = self.points[-1].clock_hz
        return [task.cost_ms / 1e3 * share * top / point.clock_hz for point in self.points]

    def tick(self, t: float, span_s: float) -> None:
        """Governor and heat, once a window."""
        if span_s <= 0:
            return
        device = self.device
        power = self.window_j / span_s
        target = device["thermal.ambient_c"] + device["thermal.resistance_c_per_w"] * power
        tau = device["thermal.resistance_c_per_w"] * device["thermal.capacitance_j_per_c"]
        self.temperature_c = target + (self.temperature_c - target) * math.exp(-span_s / tau)
        self.peak_c = max(self.peak_c, self.temperature_c)
        if self.temperature_c >= device["thermal.throttle_c"]:
            self.throttled_at = t if self.throttled_at is None else self.throttled_at
            self.cap = max(self.cap - 1, 0)
        elif self.temperature_c < device["thermal.throttle_c"] - HYSTERESIS_C:
            self.cap = min(self.cap + 1, len(self.points) - 1)
        self.point = self.cap
        load = self.window_busy_s / span_s
        if self.scenario.governor == "ondemand" and load <= UP_THRESHOLD:
            slowest, fastest = self.points[0].clock_hz, self.points[-1].clock_hz
            wanted = slowest + load * (fastest - slowest)
            while self.point > 0 and self.points[self.point - 1].clock_hz >= wanted:
                self.point -= 1
        self.window_j = self.window_busy_s = 0.0
        line = self.timeline
        line.time_s.append(t)
        line.ring_samples.append(min(self.written(t) - self.read, self.capacity))
        line.temperature_c.append(self.temperature_c)
        line.clock_hz.append(self.points[self.point].clock_hz)

    def spend(self, span_s: float, busy: bool) -> None:
        """Energy of a stretch of time: rest, and activity that goes with f · V²."""
        top, now = self.points[-1], self.points[self.point]
        power = self.device["power.idle_w"]
        if busy:
            power += (
                self.device["power.active_w"] * (now.clock_hz / top.clock_hz) * (now.voltage_v / top.voltage_v) ** 2
            )
            self.window_busy_s += span_s
        self.energy_j += power * span_s
        self.window_j += power * span_s


def simulate(device: Device, load: ChunkLoad, scenario: Scenario | None = None) -> Run:
    """Run a scenario. Raises BudgetError for impossible settings."""
    scenario = scenario or Scenario()
    core = Core(device, load, scenario)
    n_tasks = len(core.tasks)
    rank, end_s = core.rank, core.total_samples / BLOCK_SAMPLES * BLOCK_S
    stop_s = end_s + DRAIN_PERIODS * load.period_s
    releases: list[tuple[float, int]] = []
    for i, task in enumerate(core.tasks):
        phase = 0.0 if scenario.pessimistic else core.rng.uniform(0, task.period_ms / 1e3)
        heapq.heappush(releases, (phase, i))
    released = [0] * n_tasks
    phases = {i: at for at, i in releases}
    # Ready jobs by rank: the recogniser sits between the tasks above and below it.
    ready: list[deque] = [deque() for _ in range(n_tasks + 1)]
    slot = [i if i < rank else i + 1 for i in range(n_tasks)]
    ready_at, waiting = core.ready_at(), False
    t = last_tick = idle_since = 0.0
    awake_at = 0.0
    next_tick = GOVERNOR_S
    while True:
        running = next((k for k in range(n_tasks + 1) if ready[k]), -1)
        event = min(releases[0][0] if releases else math.inf, next_tick)
        if ready_at is not None and not waiting:
            event = max(min(event, ready_at), t)  # a chunk that waited in the ring is ready in the past
        if running >= 0:
            job = ready[running][0]
            begin = max(t, awake_at)
            if running == rank and job[2] is None and begin <= event:
                if begin > t:
                    core.spend(begin - t, True)
                    t = begin
                    continue
                core.take(t)
                job[2], job[3] = t, math.ceil(core.read / BLOCK_SAMPLES) * BLOCK_S
            done = begin + job[0] * job[1][core.point]
            if done <= event + SAME_TIME_S:
                event = max(event, done)
            upto = min(done, event)
            if upto > begin:
                job[0] -= (upto - begin) / job[1][core.point] if job[1][core.point] else job[0]
                if running == rank:
                    core.busy_s += upto - begin
            core.spend(upto - t, True)
            t = upto
            if done <= event:
                ready[running].popleft()
                if running == rank:
                    release = job[3]
                    core.jobs.append(Job(release, job[2], t, t - release - deadline_of(scenario, load)))
                    waiting, ready_at = False, core.ready_at()
                if not any(ready):
                    idle_since = t
                if done < event:
                    continue
        else:
            core.spend(event - t, False)
            t = event
        if (ready_at is None and not waiting and t >= end_s) or t > stop_s:
            break
        was_idle = not any(ready)
        while releases and releases[0][0] <= t:
            at, i = heapq.heappop(releases)
            task = core.tasks[i]
            ready[slot[i]].append([1.0, core.task_durations(task), at, at])
            released[i] += 1
            heapq.heappush(releases, (phases[i] + released[i] * task.period_ms / 1e3, i))
        if ready_at is not None and not waiting and ready_at <= t:
            ready[rank].append([1.0, core.chunk_durations(), None, ready_at])
            waiting = True
        if was_idle and any(ready) and scenario.wake_up:
            awake_at = t + wake_latency(device, t - idle_since)
        if next_tick <= t:
            core.tick(t, t - last_tick)
            last_tick, next_tick = t, next_tick + GOVERNOR_S
    return summary(core, t)


def wake_latency(device: Device, idle_s: float) -> float:
    """Time to leave the sleep that an idle core has fallen into."""
    if idle_s > CLUSTER_SLEEP_AFTER_S:
        return device["cpu.cluster_exit_s"]
    return device["cpu.sleep_exit_s"] if idle_s > SLEEP_AFTER_S else 0.0


def deadline_of(scenario: Scenario, load: ChunkLoad) -> float:
    return load.period_s if scenario.deadline_s is None else scenario.deadline_s


def summary(core: Core, t: float) -> Run:
    """Close the books: what is still in the ring, and the temperature the mean power leads to."""
    device = core.device
    captured = core.written(t)
    lost = max(captured - core.capacity - core.read, 0)
    if lost:
        core.gaps.append((core.read, lost))
    power = core.energy_j / t if t else device["power.idle_w"]
    return Run(
        audio_s=core.total_samples / BLOCK_SAMPLES * BLOCK_S,
        captured=captured,
        consumed=core.consumed,
        dropped=core.dropped + lost,
        in_ring=captured - core.read - lost,
        gaps=tuple(core.gaps),
        jobs=tuple(core.jobs),
        busy_s=core.busy_s,
        energy_j=core.energy_j,
        wall_s=t,
        throttled_at_s=core.throttled_at,
        peak_temperature_c=core.peak_c,
        steady_temperature_c=device["thermal.ambient_c"] + device["thermal.resistance_c_per_w"] * power,
        timeline=core.timeline,
        deadline_s=deadline_of(core.scenario, core.load),
    )


def check(scenario: Scenario, load: ChunkLoad, n_points: int) -> None:
    """Refuse scenarios that cannot be: BudgetError."""
    if len(load.durations) != n_points:
        raise BudgetError(f"need one duration per operating point, {n_points} in all, have {len(load.durations)}")
    if not scenario.duration_s > 0 or (scenario.n_samples is not None and scenario.n_samples <= 0):
        raise BudgetError(f"need audio longer than 0 s, have {scenario.duration_s} s, {scenario.n_samples} samples")
    if scenario.deadline_s is not None and not scenario.deadline_s > 0:
        raise BudgetError(f"need a deadline above 0 s, have {scenario.deadline_s} s")
    if scenario.governor not in ("ondemand", "performance"):
        raise BudgetError(f'need governor "ondemand" or "performance", have {scenario.governor!r}')
    if scenario.ring_s < load.period_s:
        raise BudgetError(
            f"need a ring buffer of at least one chunk ({load.period_s:g} s), have {scenario.ring_s:g} s; "
            "give a longer ring or a shorter chunk"
        )
