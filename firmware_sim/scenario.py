"""What is simulated and what came of it: the load of a chunk, the scenario around it, the run and its figures."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from firmware_sim.errors import BudgetError
from firmware_sim.latency import Interval

BLOCK_S = 0.010
BLOCK_SAMPLES = 160


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
    """One chunk job, seconds since the start; `release_s` is when its last sample was captured."""

    release_s: float
    start_s: float
    finish_s: float
    lateness_s: float  # finish − deadline, above zero is late; a last, ragged chunk is due when a whole one would be


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
