"""The roofline: intervals, cache residency, bandwidth of others, and the claim about LSTM and convolution."""

import pytest
from graphs import lstm_encoder, save, tcn_encoder

from firmware_sim.cost import OpCost
from firmware_sim.device import FEATURES, NOMINAL, OPTIMISTIC, PESSIMISTIC, device_names, load_device
from firmware_sim.errors import BudgetError
from firmware_sim.latency import (
    chunk_latency,
    chunk_times,
    evidence,
    features,
    op_time,
    rates,
    weight_traffic,
)
from firmware_sim.model import load_model

PRODUCT = OpCost(
    "p", "MatMul", "gemm", "int8", macs=8_000_000, weight_bytes=1_000_000, rows=8, columns=1000, depth=1000
)
LSTM = OpCost(
    "l", "LSTM", "recurrent", "int8", macs=8_000_000, weight_bytes=1_000_000, step_weight_bytes=1_000_000, steps=8
)


@pytest.fixture(scope="module")
def dot():
    return load_device("echo-dot-3")


def test_compute_bound_time_is_macs_over_rate(dot):
    r = rates(dot)
    time = op_time(OpCost("p", "MatMul", "gemm", "int8", macs=10**9), r, True, True)
    assert time.compute_s == pytest.approx(1e9 / (1.12 * 1.3e9))
    assert time.bound == "compute"


def test_memory_bound_time_is_bytes_over_bandwidth(dot):
    time = op_time(OpCost("p", "MatMul", "gemm", "int8", macs=1, weight_bytes=83_000_000), rates(dot), False, True)
    assert time.transfer_s == pytest.approx(0.1)
    assert time.bound == "memory"


def test_a_recurrence_beyond_the_cache_reads_its_weights_at_every_step(dot):
    room = rates(dot).resident_bytes
    assert LSTM.step_weight_bytes > room
    assert weight_traffic(LSTM, room, False) == (8_000_000, 0)
    assert weight_traffic(LSTM, 2_000_000, False) == (1_000_000, 7_000_000)
    assert weight_traffic(LSTM, 2_000_000, True) == (0, 8_000_000)
    assert weight_traffic(PRODUCT, room, False) == (1_000_000, 0)


def test_at_equal_work_the_lstm_waits_for_memory_and_the_convolution_computes(dot):
    r = rates(dot)
    lstm, product = op_time(LSTM, r, False, True), op_time(PRODUCT, r, False, True)
    assert (lstm.bound, product.bound) == ("memory", "compute")
    assert lstm.total_s > 1.5 * product.total_s
    assert lstm.op.intensity < 1.01 < product.op.intensity


def test_halving_bandwidth_hurts_the_lstm_more_than_the_convolution(tmp_path, dot):
    half = dot.with_value("memory.ram_bytes_per_s", dot["memory.ram_bytes_per_s"] / 2)
    slowdown = {}
    for name, model in (("lstm", lstm_encoder(320, 2)), ("tcn", tcn_encoder(320, 2))):
        ops = load_model(save(model, tmp_path / f"{name}.onnx")).ops
        slowdown[name] = chunk_latency(ops, half, 50_000).nominal / chunk_latency(ops, dot, 50_000).nominal
    assert slowdown["lstm"] > 1.5
    assert slowdown["lstm"] > 1.2 * slowdown["tcn"]


@pytest.mark.parametrize("name", device_names())
def test_the_interval_holds_its_middle_and_every_end_is_positive(name):
    interval = chunk_latency([PRODUCT, LSTM], load_device(name), 100_000)
    assert 0 < interval.low < interval.nominal < interval.high


def test_everything_in_cache_is_faster_than_streaming_it(dot):
    small = OpCost("p", "MatMul", "gemm", "int8", macs=100_000, weight_bytes=100_000)
    assert chunk_times([small], dot, 1000)[0].slow_bytes == 0
    assert chunk_times([small] * 8, dot, 1000)[0].slow_bytes == 100_000


def test_lower_clock_and_busier_bus_never_make_it_faster(dot):
    base = chunk_latency([PRODUCT, LSTM], dot, 1000)
    assert chunk_latency([PRODUCT, LSTM], dot, 1000, clock_hz=0.6e9).nominal > base.nominal
    assert chunk_latency([PRODUCT, LSTM], dot, 1000, other_bytes_per_s=0.4e9).nominal > base.nominal


def test_a_saturated_bus_still_serves_a_fair_share(dot):
    assert rates(dot, other_bytes_per_s=1e12).ram_bytes_per_s == pytest.approx(0.83e9 / 4)
    with pytest.raises(BudgetError, match="need background traffic"):
        rates(dot, other_bytes_per_s=-1)


def test_ends_order_every_rate(dot):
    low, mid, high = (rates(dot, end) for end in (PESSIMISTIC, NOMINAL, OPTIMISTIC))
    assert low.int8_mac_per_cycle < mid.int8_mac_per_cycle < high.int8_mac_per_cycle
    assert low.ram_bytes_per_s < mid.ram_bytes_per_s < high.ram_bytes_per_s
    assert low.node_overhead_cycles > mid.node_overhead_cycles > high.node_overhead_cycles
    assert low.clock_hz == high.clock_hz  # published: a clock is what it is


def test_evidence_is_shared_out_completely_and_names_the_weakest_figure(dot):
    shares = evidence(chunk_times([PRODUCT, LSTM], dot, 1000), dot)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["proxy"] > shares["assumed"] > 0  # RAM bandwidth is a proxy, the multiply-add rate is assumed


def test_features_pad_products_to_tiles():
    row = features(OpCost("p", "MatMul", "gemm", "fp32", macs=5 * 17 * 10, rows=5, columns=17, depth=10), 1e6, True)
    assert row[FEATURES.index("padded_macs")] == 8 * 32 * 10
    assert row[FEATURES.index("one")] == 1
