"""The event simulation: samples are conserved, response times agree with analysis, heat follows its law."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware_sim.device import Task, load_device
from firmware_sim.errors import BudgetError
from firmware_sim.latency import Interval
from firmware_sim.scenario import ChunkLoad, Scenario
from firmware_sim.simulator import response_time, simulate

DOT = load_device("echo-dot-3")


def task(period_ms: float, cost_ms: float, priority: int = 1) -> Task:
    return Task(f"t{priority}", period_ms, cost_ms, priority, 0.0, "assumed", "test")


def device_with(*tasks: Task):
    return replace(DOT, background=tasks, points=DOT.points[-1:])


BARE = device_with()  # one clock, no background


def load(seconds: float, device=DOT, chunk_ms: int = 320) -> ChunkLoad:
    top = device.points[-1].clock_hz
    durations = tuple(
        Interval(seconds * top / p.clock_hz, seconds * top / p.clock_hz, seconds * top / p.clock_hz)
        for p in device.points
    )
    return ChunkLoad(chunk_ms * 16, durations)


task_sets = st.lists(
    st.tuples(st.sampled_from([5, 10, 20, 25, 40, 50, 100]), st.floats(0.02, 0.25)), min_size=0, max_size=4
).map(lambda rows: [task(period, round(period * share, 3), i) for i, (period, share) in enumerate(rows)])


@given(
    task_sets,
    st.floats(0.001, 0.6),
    st.sampled_from([40, 80, 160, 320]),
    st.floats(0.33, 2.0),
    st.booleans(),
    st.integers(0, 99),
    st.integers(1, 100_000),
)
@settings(max_examples=40, deadline=None)
def test_samples_are_conserved(tasks, seconds, chunk_ms, ring_s, pessimistic, seed, n_samples):
    device = replace(DOT, background=tuple(tasks))
    scenario = Scenario(ring_s=ring_s, pessimistic=pessimistic, seed=seed, n_samples=n_samples)
    run = simulate(device, load(seconds, chunk_ms=chunk_ms), scenario)
    assert run.captured == run.consumed + run.dropped + run.in_ring
    assert run.captured == n_samples
    assert run.dropped == sum(n for _, n in run.gaps)
    assert 0 <= run.in_ring <= round(ring_s * 16000)
    assert all(a.finish_s <= b.start_s + 1e-9 for a, b in itertools.pairwise(run.jobs))
    ends = [(first, first + n) for first, n in run.gaps]
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(ends))


@given(task_sets, st.floats(0.005, 0.25))
@settings(max_examples=40, deadline=None)
def test_no_response_is_longer_than_the_analysis_allows_and_the_first_equals_it(tasks, seconds):
    device = device_with(*tasks)
    bound = response_time(tasks, seconds)
    if bound is None or bound > 0.320:
        return  # not schedulable: the analysis promises nothing
    scenario = Scenario(duration_s=12.8, governor="performance", wake_up=False, ring_s=10.0)
    run = simulate(device, load(seconds, device), scenario)
    assert max(job.finish_s - job.release_s for job in run.jobs) <= bound + 1e-6
    assert run.n_late == run.dropped == 0


def test_at_the_critical_instant_the_response_is_the_analysed_one():
    tasks = [task(40, 8, 1), task(80, 12, 2), task(320, 30, 3)]  # all released with the chunk, every 320 ms
    device = device_with(*tasks)
    run = simulate(device, load(0.05, device), Scenario(duration_s=6.4, governor="performance", wake_up=False))
    expected = response_time(tasks, 0.05)
    assert run.response(100) == pytest.approx(expected, abs=1e-9)
    assert expected == pytest.approx(0.05 + 4 * 0.008 + 2 * 0.012 + 0.030)


def test_response_time_equals_simulation_by_hand():
    assert response_time([task(10, 5)], 0.005) == pytest.approx(0.010)
    assert response_time([task(10, 5)], 0.006) == pytest.approx(0.016)
    assert response_time([task(10, 10 - 1e-9)], 1.0) is None


def test_an_unloaded_recogniser_is_never_late_and_loses_nothing():
    run = simulate(BARE, load(0.03, BARE), Scenario(duration_s=32))
    assert (run.n_late, run.dropped, run.in_ring) == (0, 0, 0)
    assert len(run.jobs) == 100
    assert run.rtf == pytest.approx(0.03 / 0.32, rel=1e-3)


def test_a_recogniser_slower_than_the_microphone_fills_the_ring_and_loses_the_oldest():
    run = simulate(BARE, load(0.64, BARE), Scenario(duration_s=64, ring_s=2.0))
    assert run.dropped > 0
    assert max(run.timeline.ring_samples) == 32_000
    assert run.consumed == pytest.approx(run.captured / 2, rel=0.1)


def test_lower_priority_work_does_not_delay_the_recogniser():
    alone = simulate(BARE, load(0.05, BARE), Scenario(duration_s=10, wake_up=False))
    device = device_with(task(50, 30, 20))
    beside = simulate(device, load(0.05, device), Scenario(duration_s=10, wake_up=False))
    assert [job.finish_s for job in alone.jobs] == pytest.approx([job.finish_s for job in beside.jobs])


def test_waking_up_costs_the_latency_of_the_profile():
    fast = simulate(BARE, load(0.05, BARE), Scenario(duration_s=10, wake_up=False))
    slow = simulate(BARE, load(0.05, BARE), Scenario(duration_s=10))
    assert slow.response(50) - fast.response(50) == pytest.approx(DOT["cpu.cluster_exit_s"], abs=1e-9)


def test_the_same_seed_gives_the_same_run_and_another_seed_another():
    scenario = Scenario(duration_s=20, pessimistic=False, seed=3)
    chunk = ChunkLoad(5120, tuple(Interval(0.02, 0.05, 0.12) for _ in DOT.points))
    assert simulate(DOT, chunk, scenario).jobs == simulate(DOT, chunk, scenario).jobs
    assert simulate(DOT, chunk, scenario).jobs != simulate(DOT, chunk, replace(scenario, seed=4)).jobs


def test_a_drawn_run_is_never_slower_than_the_pessimistic_one():
    chunk = ChunkLoad(5120, tuple(Interval(0.02, 0.05, 0.12) for _ in DOT.points))
    worst = simulate(DOT, chunk, Scenario(duration_s=30))
    drawn = simulate(DOT, chunk, Scenario(duration_s=30, pessimistic=False))
    assert drawn.rtf < worst.rtf


def test_an_idle_device_settles_at_ambient_plus_resistance_times_power():
    run = simulate(BARE, load(1e-6, BARE), Scenario(duration_s=600))
    expected = DOT["thermal.ambient_c"] + DOT["thermal.resistance_c_per_w"] * DOT["power.idle_w"]
    assert run.timeline.temperature_c[-1] == pytest.approx(expected, abs=0.05)
    assert run.throttled_at_s is None


def test_heating_up_follows_the_first_order_law():
    device = device_with(task(10, 9.99, 1))
    run = simulate(device, load(1e-6, device), Scenario(duration_s=300, governor="performance", ring_s=10))
    rise = DOT["thermal.resistance_c_per_w"] * DOT["power.active_w"]
    tau = DOT["thermal.resistance_c_per_w"] * DOT["thermal.capacitance_j_per_c"]
    start = DOT["thermal.ambient_c"] + DOT["thermal.resistance_c_per_w"] * DOT["power.idle_w"]
    at = np.array(run.timeline.time_s)
    expected = start + rise * (1 - np.exp(-at / tau))
    assert np.abs(np.array(run.timeline.temperature_c) - expected).max() < 0.05


def test_a_hot_device_throttles_and_the_clock_falls():
    hot = DOT.with_value("thermal.ambient_c", 57.0)
    run = simulate(hot, load(0.25, hot), Scenario(duration_s=120))
    assert run.throttled_at_s is not None
    assert min(run.timeline.clock_hz) < max(run.timeline.clock_hz)
    assert run.peak_temperature_c < hot["thermal.throttle_c"] + 2


def test_the_governor_lowers_the_clock_of_a_lightly_loaded_core():
    slow = simulate(DOT, load(0.005), Scenario(duration_s=20))
    fast = simulate(DOT, load(0.005), Scenario(duration_s=20, governor="performance"))
    assert np.mean(slow.timeline.clock_hz) < np.mean(fast.timeline.clock_hz)
    assert slow.energy_j < fast.energy_j


def test_percentiles_are_those_of_the_jobs():
    run = simulate(DOT, load(0.05), Scenario(duration_s=30))
    lateness = [job.lateness_s for job in run.jobs]
    assert run.lateness(99) == pytest.approx(np.percentile(lateness, 99))
    assert run.n_late == sum(value > 0 for value in lateness)


@pytest.mark.parametrize(
    ("scenario", "match"),
    [
        (Scenario(duration_s=0), "longer than 0 s"),
        (Scenario(duration_s=float("nan")), "longer than 0 s"),
        (Scenario(n_samples=0), "0 samples"),
        (Scenario(deadline_s=-1.0), "deadline above 0"),
        (Scenario(background_load=1.5), "load from 0 to 1"),
        (Scenario(background_load=-0.1), "load from 0 to 1"),
        (Scenario(governor="turbo"), "turbo"),
        (Scenario(ring_s=0.1), "at least one chunk"),
    ],
)
def test_impossible_scenarios_are_refused(scenario, match):
    with pytest.raises(BudgetError, match=match):
        simulate(DOT, load(0.05), scenario)
