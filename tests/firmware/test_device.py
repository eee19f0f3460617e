"""Device profiles: the shipped ones are whole, broken ones are refused with the file, the key and the remedy."""

from pathlib import Path

import pytest

from firmware_sim.device import KINDS, PROFILE_DIR, SCHEMA, device_names, load_device, parse_device
from firmware_sim.errors import BudgetError, DeviceError
from firmware_sim.target import RUNTIME_DIR, load_target

NAMES = device_names()
WANTED = (
    "echo-dot-3 echo-1 google-home nest-mini raspberry-pi-zero-2w raspberry-pi-4 raspberry-pi-5 esp32-s3 stm32h743 "
)
WANTED += "nrf5340 rp2350 apollo4 ethos-u55-256 host"


def broken(tmp_path: Path, old: str, new: str) -> Path:
    text = (PROFILE_DIR / "echo-dot-3.toml").read_text()
    assert old in text
    path = tmp_path / "broken.toml"
    path.write_text(text.replace(old, new, 1))
    return path


def test_all_devices_of_the_field_are_shipped():
    assert set(WANTED.split()) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_profile_says_kind_and_source_of_every_figure(name):
    device = load_device(name)
    assert device.name == name
    for key, figure in device.figures.items():
        assert figure.kind in KINDS
        assert len(figure.source) > 5
        assert figure.low <= figure.value <= figure.high
        assert key in SCHEMA
    assert load_target(device.runtime).operators


@pytest.mark.parametrize("name", [p.stem for p in RUNTIME_DIR.glob("*.toml")])
def test_shipped_runtime_is_whole(name):
    assert load_target(name).name == name


def test_an_unknown_device_is_refused_with_near_matches():
    with pytest.raises(DeviceError, match=r"'echo-dot'.*did you mean echo-dot-3"):
        load_device("echo-dot")


def test_an_unknown_runtime_is_refused_with_near_matches():
    with pytest.raises(DeviceError, match="did you mean onnxruntime"):
        load_target("onnx-runtime")


def test_a_missing_profile_file_is_refused():
    with pytest.raises(DeviceError, match=r"no file nowhere\.toml"):
        load_device("nowhere.toml")


def test_a_user_adds_a_device_by_writing_one_file(tmp_path):
    path = broken(tmp_path, 'name = "echo-dot-3"', 'name = "mine"')
    assert load_device(path).name == "mine"


@pytest.mark.parametrize(
    ("old", "new", "error", "match"),
    [
        ("schema = 1", "schema = 9", DeviceError, "schema = 1"),
        ("schema = 1", "schema = ", DeviceError, "TOML"),
        ("clock_hz = {", "clok_hz = {", DeviceError, "did you mean clock_hz"),
        ("value = 830000000", "value = 0", DeviceError, r"ram_bytes_per_s.*above zero, have 0"),
        ("value = 830000000", "value = -5", DeviceError, "above zero, have -5"),
        ("value = 830000000", 'value = "fast"', DeviceError, "need a number"),
        ("value = 830000000", "value = nan", DeviceError, "need a number"),
        ("value = 830000000", "value = true", DeviceError, "need a number"),
        ('kind = "proxy"', 'kind = "rumour"', DeviceError, "measured, published"),
        ('source = "memcpy of Rock Pi S (4 × A35), sbc-bench"', 'source = ""', DeviceError, "need a source"),
        ('source = "memcpy of Rock Pi S (4 × A35), sbc-bench"', "low = 9e9", DeviceError, "need a source"),
        ('sbc-bench" }', 'sbc-bench", low = 9e9 }', DeviceError, "low ≤ value ≤ high"),
        ("ram_bytes = { value = 536870912", "ram_byte = { value = 536870912", DeviceError, "did you mean ram_bytes"),
        ('weights_in = "ram"', 'weights_in = "air"', DeviceError, "weights_in"),
        ('weights_in = "ram"', 'weights_in = "flash"', DeviceError, "flash_bytes_per_s is needed"),
        ("period_ms = 10", "period_ms = 0", BudgetError, "period_ms above zero"),
        ("cost_ms = 1.5", "cost_ms = 15", BudgetError, "cost_ms below period_ms"),
        ("clock_hz = 1300000000\nvoltage", "clock_hz = 1200000000\nvoltage", DeviceError, "fastest operating point"),
        ("voltage_v = 1.25", "voltage_v = -1", BudgetError, "voltage_v above zero"),
        ("[cpu]\n", "cpu = 3\n[cpux]\n", DeviceError, "cpu"),
        ('title = "Echo', 'titel = "Echo', DeviceError, "did you mean title"),
    ],
)
def test_a_broken_profile_is_refused(tmp_path, old, new, error, match):
    with pytest.raises(error, match=match):
        parse_device(broken(tmp_path, old, new))


@pytest.mark.parametrize("key", ["flash_bytes", "ram_bytes"])
def test_a_missing_or_negative_budget_is_refused(tmp_path, key):
    text = (PROFILE_DIR / "echo-dot-3.toml").read_text()
    head, tail = text.split("[budget]")
    line = next(line for line in tail.splitlines() if line.startswith(key))
    path = tmp_path / "broken.toml"
    path.write_text(head + "[budget]" + tail.replace(line, "", 1))
    with pytest.raises(BudgetError, match=f"need budget.{key}"):
        parse_device(path)
    path.write_text(
        head + "[budget]" + tail.replace(line, f'{key} = {{ value = -1, kind = "assumed", source = "x" }}', 1)
    )
    with pytest.raises(BudgetError, match="above zero"):
        parse_device(path)
    path.write_text(
        head + "[budget]" + tail.replace(line, f'{key} = {{ value = 1e15, kind = "assumed", source = "x" }}', 1)
    )
    with pytest.raises(BudgetError, match="at most"):
        parse_device(path)


def test_moving_a_figure_moves_its_band_and_the_operating_points():
    device = load_device("echo-dot-3")
    slow = device.with_value("cpu.clock_hz", 1.0e9)
    assert slow["cpu.clock_hz"] == 1.0e9
    assert [p.clock_hz for p in slow.points] == [598e6, 747.5e6, 1.0e9]
    half = device.with_value("memory.ram_bytes_per_s", device["memory.ram_bytes_per_s"] / 2)
    assert half.at("memory.ram_bytes_per_s", -1) == pytest.approx(device.at("memory.ram_bytes_per_s", -1) / 2)
    with pytest.raises(DeviceError, match="above zero"):
        device.with_value("memory.ram_bytes_per_s", 0)
