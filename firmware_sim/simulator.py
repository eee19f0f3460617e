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
from dataclasses import dataclass

import numpy as np

from firmware_sim.device import Device, OperatingPoint, Task
from firmware_sim.errors import BudgetError
from firmware_sim.scenario import BLOCK_S, BLOCK_SAMPLES, ChunkLoad, Job, Run, Scenario, Timeline, check

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


@dataclass
class Work:
    """A released job: what is left of it (1 … 0) and its whole duration at each operating point."""

    left: float
    durations: list[float]
    release_s: float
    due_s: float = 0.0  # when the chunk would be full; the deadline counts from here
    start_s: float | None = None


class Core:
    """One core with its tasks, the ring, the governor and the heat; `run` is the event loop."""

    def __init__(self, device: Device, load: ChunkLoad, scenario: Scenario) -> None:
        check(scenario, load, len(device.points))
        self.device, self.load, self.scenario = device, load, scenario
        self.rng = np.random.default_rng(scenario.seed)
        self.points: tuple[OperatingPoint, ...] = device.points
        self.tasks = background_tasks(device, scenario.background_load)
        self.total_samples = (
            round(scenario.duration_s / BLOCK_S) * BLOCK_SAMPLES if scenario.n_samples is None else scenario.n_samples
        )
        self.end_s = self.total_samples / BLOCK_SAMPLES * BLOCK_S
        self.deadline_s = load.period_s if scenario.deadline_s is None else scenario.deadline_s
        self.capacity = round(scenario.ring_s * BLOCK_SAMPLES / BLOCK_S)
        self.read = self.consumed = self.dropped = 0
        self.gaps: list[tuple[int, int]] = []
        self.jobs: list[Job] = []
        self.t = self.idle_since = self.awake_at = self.last_tick = 0.0
        self.next_tick = GOVERNOR_S
        self.busy_s = self.energy_j = self.window_j = self.window_busy_s = 0.0
        self.temperature_c = device["thermal.ambient_c"] + device["thermal.resistance_c_per_w"] * device["power.idle_w"]
        self.peak_c, self.throttled_at = self.temperature_c, None
        self.cap = self.point = len(self.points) - 1
        self.timeline = Timeline()
        # Ready jobs by rank: the recogniser sits between the tasks above and below it.
        self.rank = sum(task.priority < RECOGNISER_PRIORITY for task in self.tasks)
        self.ready: list[deque[Work]] = [deque() for _ in range(len(self.tasks) + 1)]
        phase = (lambda task: 0.0) if scenario.pessimistic else (lambda task: self.rng.uniform(0, task.period_ms / 1e3))
        self.releases = [(phase(task), i) for i, task in enumerate(self.tasks)]
        self.phases = {i: at for at, i in self.releases}
        self.n_released = [0] * len(self.tasks)
        heapq.heapify(self.releases)
        self.chunk_ready_s, self.chunk_waiting = self.ready_at(), False

    def run(self) -> None:
        """Events until the audio is worked off, or nothing moves long after its end."""
        stop_s = self.end_s + DRAIN_PERIODS * self.load.period_s
        while self.t <= stop_s:
            event = self.next_event()
            running = next((k for k, jobs in enumerate(self.ready) if jobs), None)
            if running is None:
                self.spend(event - self.t, False)
                self.t = event
            elif self.work(running, event):
                continue  # it ended before the event
            if self.chunk_ready_s is None and not self.chunk_waiting and self.t >= self.end_s:
                break
            self.release()
            if self.next_tick <= self.t:
                self.tick(self.t, self.t - self.last_tick)
                self.last_tick, self.next_tick = self.t, self.next_tick + GOVERNOR_S

    def next_event(self) -> float:
        """The next release, chunk or governor tick; a chunk that waited in the ring is ready in the past."""
        event = min(self.releases[0][0] if self.releases else math.inf, self.next_tick)
        if self.chunk_ready_s is not None and not self.chunk_waiting:
            event = max(min(event, self.chunk_ready_s), self.t)
        return event

    def work(self, rank: int, event: float) -> bool:
        """Let the first job of a rank run until it ends or the event comes; True if it ended before."""
        job = self.ready[rank][0]
        if self.awake_at > self.t:  # waking up costs time and does nothing
            upto = min(self.awake_at, event)
            self.spend(upto - self.t, True)
            self.t = upto
            return upto < event
        if rank == self.rank and job.start_s is None:
            self.take(job)
        duration = job.durations[self.point]
        done = self.t + job.left * duration
        if done <= event + SAME_TIME_S:
            event = max(event, done)
        upto = min(done, event)
        if duration > 0:
            job.left -= (upto - self.t) / duration
        if rank == self.rank:
            self.busy_s += upto - self.t
        self.spend(upto - self.t, True)
        self.t = upto
        if upto < done:
            return False
        self.finish(rank)
        return done < event

    def finish(self, rank: int) -> None:
        """Take a job off; the recogniser looks at once for its next chunk."""
        job = self.ready[rank].popleft()
        if rank == self.rank:
            self.jobs.append(Job(job.release_s, job.start_s, self.t, self.t - job.due_s - self.deadline_s))
            self.chunk_ready_s, self.chunk_waiting = self.ready_at(), False
        if not any(self.ready):
            self.idle_since = self.t

    def release(self) -> None:
        """Put everything on the queue that is due; a sleeping core has to wake up first."""
        was_idle = not any(self.ready)
        while self.releases and self.releases[0][0] <= self.t:
            at, i = heapq.heappop(self.releases)
            task = self.tasks[i]
            self.ready[i if i < self.rank else i + 1].append(Work(1.0, self.task_durations(task), at))
            self.n_released[i] += 1
            heapq.heappush(self.releases, (self.phases[i] + self.n_released[i] * task.period_ms / 1e3, i))
        if self.chunk_ready_s is not None and not self.chunk_waiting and self.chunk_ready_s <= self.t:
            self.ready[self.rank].append(Work(1.0, self.chunk_durations(), self.chunk_ready_s))
            self.chunk_waiting = True
        if was_idle and any(self.ready) and self.scenario.wake_up:
            self.awake_at = self.t + wake_latency(self.device, self.t - self.idle_since)

    def written(self, t: float) -> int:
        """Samples captured until t."""
        return min(int(t / BLOCK_S + 1e-6) * BLOCK_SAMPLES, self.total_samples)

    def ready_at(self) -> float | None:
        """When the next chunk is complete; None where no audio is left."""
        end = min(self.read + self.load.chunk_samples, self.total_samples)
        if self.read >= self.total_samples:
            return None
        return math.ceil(end / BLOCK_SAMPLES) * BLOCK_S

    def take(self, job: Work) -> None:
        """Read a chunk from the ring: what was overwritten in the meantime is lost."""
        lost = max(self.written(self.t) - self.capacity - self.read, 0)
        if lost:
            self.gaps.append((self.read, lost))
            self.dropped += lost
            self.read += lost
        n = min(self.load.chunk_samples, self.written(self.t) - self.read)
        job.due_s = math.ceil((self.read + self.load.chunk_samples) / BLOCK_SAMPLES) * BLOCK_S
        self.consumed += n
        self.read += n
        job.start_s, job.release_s = self.t, math.ceil(self.read / BLOCK_SAMPLES) * BLOCK_S

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
    core = Core(device, load, scenario or Scenario())
    core.run()
    return summary(core)


def wake_latency(device: Device, idle_s: float) -> float:
    """Time to leave the sleep that an idle core has fallen into."""
    if idle_s > CLUSTER_SLEEP_AFTER_S:
        return device["cpu.cluster_exit_s"]
    return device["cpu.sleep_exit_s"] if idle_s > SLEEP_AFTER_S else 0.0


def summary(core: Core) -> Run:
    """Close the books: what is still in the ring, and the temperature the mean power leads to."""
    device, t = core.device, core.t
    captured = core.written(t)
    lost = max(captured - core.capacity - core.read, 0)
    if lost:
        core.gaps.append((core.read, lost))
    power = core.energy_j / t if t else device["power.idle_w"]
    return Run(
        audio_s=core.end_s,
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
        deadline_s=core.deadline_s,
    )
