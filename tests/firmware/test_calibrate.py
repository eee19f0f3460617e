"""Calibration on a synthetic machine whose true costs are known, and the profile it writes."""

import numpy as np
import pytest
from graphs import lstm_encoder, model_directory, tcn_encoder

from firmware_sim.calibrate import (
    Calibration,
    calibrate,
    errors_percent,
    fit,
    predict,
    row_of,
    time_networks,
    write_profile,
)
from firmware_sim.device import FEATURES, load_device
from firmware_sim.errors import CalibrationError
from firmware_sim.latency import chunk_latency
from firmware_sim.microbench import elementwise, networks, product
from firmware_sim.model import load_model

# Seconds per feature of an invented machine; every class the same, so that nothing is hidden in a class.
TRUE = dict(zip(FEATURES, (4e-7, 2e-11, 5e-12, 2e-11, 4e-11, 1e-10, 5e-10), strict=True))


@pytest.fixture(scope="module")
def small():
    return networks()


def oracle(noise: float):
    """A timer that answers from TRUE, with noise that only ever adds."""
    rng = np.random.default_rng(1)
    costs = np.array([TRUE[name] for name in FEATURES])

    def timer(nets, repeats):
        exact = [sum(float(v @ costs) for v in row_of(net, 1.0).by_class.values()) for net in nets]
        return [t * (1 + rng.exponential(noise, repeats).min()) for t in exact]

    return timer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_directory(tmp_path_factory.mktemp("models") / "toy", lstm_encoder(256, 3), tcn_encoder(160, 6, True))


def test_an_exact_machine_is_recovered_on_networks_never_fitted(model, small):
    result = calibrate([str(model)], 1, timer=oracle(0.0), small=small)
    assert errors_percent(result.held_out)["worst"] < 2
    assert errors_percent(result.models)["worst"] < 2
    assert set(result.models) == {"toy fp32", "toy int8"}


def test_noise_that_only_adds_hardly_moves_the_fit(model, small):
    result = calibrate([str(model)], 15, timer=oracle(0.3), small=small)
    assert errors_percent(result.held_out)["median"] < 5
    assert errors_percent(result.models)["worst"] < 10


def test_a_written_profile_predicts_what_was_fitted(model, small, tmp_path):
    result = calibrate([str(model)], 1, timer=oracle(0.0), small=small)
    write_profile(tmp_path / "here.toml", result)
    device = load_device(tmp_path / "here.toml")
    loaded = load_model(model, "fp32")
    seconds = chunk_latency((*loaded.ops, loaded.shapes), device, 0).nominal
    assert seconds == pytest.approx(result.measured_s["toy fp32"], rel=0.05)
    assert device.fit_error[0] <= 1 <= device.fit_error[1]
    assert device.title == result.machine


def test_the_fit_is_never_negative_and_needs_enough_rows():
    rows = [row_of(product(r, k, 64, False), 1e-5 * r) for r in (1, 4, 8, 16) for k in (32, 64, 128)]
    assert all(c >= 0 for row in fit(rows).values() for c in row)
    with pytest.raises(CalibrationError, match="at least 8"):
        fit(rows[:3])


def test_an_operator_class_that_was_never_measured_is_refused():
    rows = [row_of(product(r, k, 64, False), 1e-5 * r) for r in (1, 4, 8, 16) for k in (32, 64, 128)]
    with pytest.raises(CalibrationError, match="need measurements of"):
        predict(row_of(product(4, 64, 64, True), 1e-5), fit(rows))


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_cannot_be_is_refused(seconds):
    with pytest.raises(CalibrationError, match="time above 0"):
        row_of(elementwise(1, 8, ("Add", "Mul"), "plain"), seconds)


def test_the_true_runtime_runs_every_small_network(small):
    assert len({net.name for net in small}) == len(small)
    times = time_networks(small[::12], 1)
    assert all(0 < t < 60 for t in times)


def test_the_band_is_the_widest_held_out_ratio():
    result = Calibration({}, {}, {"a": 1.3}, {"m": 0.8, "n": 1.1}, {}, "x")
    assert result.band == (0.8, 1.1)
