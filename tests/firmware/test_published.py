"""The simulator against published results: MLPerf Tiny duty cycles and MCUNet latencies."""

import numpy as np
import pytest
from graphs import save, wakeword

from firmware_sim.cost import cost_graph
from firmware_sim.device import load_device
from firmware_sim.errors import CalibrationError
from firmware_sim.graph import load_graph
from firmware_sim.latency import chunk_latency
from firmware_sim.ledger import arena_buffers, weight_storage
from firmware_sim.planner import plan_arena
from firmware_sim.published import fit_speed, leave_cell_out, leave_one_out, load_published, predict_duties
from firmware_sim.target import load_target


@pytest.fixture(scope="module")
def wakeword_graph(tmp_path_factory):
    return load_graph(save(wakeword(), tmp_path_factory.mktemp("graph") / "wakeword.onnx"))


def test_wakeword_totals_equal_the_published_report(wakeword_graph):
    report = load_published()["wakeword_report"]
    ops, target = cost_graph(wakeword_graph), load_target("st-edge-ai")
    plan = plan_arena(arena_buffers(wakeword_graph, ops, target), target.alignment)
    macs = sum(op.macs + op.bias_elements for op in ops) + 15 * 3  # ST counts biases, and 15 per softmax element
    assert plan.arena_bytes == plan.lower_bound_bytes == report["activation_bytes"]
    assert weight_storage(wakeword_graph)[0] == report["weight_bytes"]
    assert macs == report["macs"]


def test_duty_cycles_follow_from_a_boards_other_clock_within_one_percent(wakeword_graph):
    duties = predict_duties(load_device("stm32h743"), cost_graph(wakeword_graph), 10_116)
    assert len(duties) == 6
    assert max(abs(duty.error) for duty in duties) < 0.01


def test_mcunet_latencies_are_predicted_within_ten_percent_leaving_one_network_out():
    mcunet = load_published()["mcunet"]
    for row in mcunet["latency_ms"].values():
        errors = leave_one_out([mcunet["million_macs"][name] for name in row], list(row.values()))
        assert np.mean(np.abs(errors)) <= 0.10


def test_tinyengine_latencies_are_within_ten_percent_each_given_the_other_runtimes():
    mcunet = load_published()["mcunet"]
    errors = leave_cell_out(mcunet["latency_ms"], mcunet["million_macs"])
    assert max(abs(error) for error in errors["tinyengine"].values()) <= 0.10


def test_the_h743_profile_carries_the_rate_that_the_published_latencies_imply():
    mcunet, device = load_published()["mcunet"], load_device("stm32h743")
    figure = device.figures["cpu.int8_mac_per_cycle"]
    for runtime in ("x-cube-ai", "tinyengine"):
        row = mcunet["latency_ms"][runtime]
        rates = [mcunet["million_macs"][n] * 1e9 / (t * mcunet["clock_hz"]) for n, t in row.items()]
        assert figure.low * 0.99 <= np.exp(np.mean(np.log(rates))) <= figure.high * 1.01


def test_leave_one_out_equals_fitting_the_others_by_hand():
    errors = leave_one_out([1, 2, 4], [1, 2, 8])
    assert errors[2] == pytest.approx(4 * 1.0 / 8 - 1)
    assert errors[0] == pytest.approx(np.sqrt(1.0 * 2.0) - 1)


def test_a_table_of_rank_one_is_predicted_exactly():
    macs = {"a": 1.0, "b": 2.0, "c": 5.0}
    table = {r: {n: rate * m * 1.3 for n, m in macs.items()} for r, rate in (("x", 1.0), ("y", 3.0), ("z", 7.0))}
    for row in leave_cell_out(table, macs).values():
        assert all(abs(error) < 1e-6 for error in row.values())


def test_a_fitted_board_takes_the_published_time(wakeword_graph):
    ops, device = cost_graph(wakeword_graph), load_device("stm32h743")
    fitted = fit_speed(device, ops, 10_116, 0.01)
    assert chunk_latency(ops, fitted, 10_116).nominal == pytest.approx(0.01, rel=1e-6)


def test_a_time_that_memory_does_not_allow_is_refused(wakeword_graph):
    with pytest.raises(CalibrationError, match="memory traffic alone"):
        fit_speed(load_device("stm32h743"), cost_graph(wakeword_graph), 10_116, 1e-7)
