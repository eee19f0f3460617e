"""The commands: verdicts, exit codes, JSON, the report, and a clear error for every bad input."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from graphs import Builder, attention_encoder, lstm_encoder, model_directory, save, tcn_encoder

from firmware_sim.cli import main, size_of
from firmware_sim.device import PROFILE_DIR
from firmware_sim.verdict import EXIT_CODES

SHIPPED = Path(__file__).parents[2] / "models" / "tcn-small"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_directory(tmp_path_factory.mktemp("models") / "toy", tcn_encoder(), tcn_encoder(quantised=True))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("audio") / "noise.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 48_000).astype(np.float32), 16_000)
    return path


def run(capsys, *arguments):
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def run_json(capsys, *arguments):
    code, out, _ = run(capsys, *arguments, "--json")
    return code, json.loads(out)


def test_a_model_that_fits_leaves_with_zero_and_one_screen(capsys, model):
    code, out, err = run(capsys, "run", model, "--device", "echo-dot-3", "--seconds", 10)
    assert code == 0
    assert "toy keeps every budget of echo-dot-3" in out
    assert "rests on" in out
    assert err == ""


def test_json_carries_the_verdict_the_ledgers_and_what_they_rest_on(capsys, model):
    code, result = run_json(capsys, "run", model, "--device", "raspberry-pi-4", "--seconds", 10)
    assert code == result["exit_code"] == 0
    assert result["broken"] == []
    assert result["ram"]["used_bytes"] == sum(entry["bytes"] for entry in result["ram"]["entries"])
    assert result["latency_ms"]["low"] < result["latency_ms"]["nominal"] < result["latency_ms"]["high"]
    assert sum(result["evidence"].values()) == pytest.approx(1)
    samples = result["run"]["samples"]
    assert samples["captured"] == samples["consumed"] + samples["dropped"] + samples["in_ring"]
    assert all(figure["source"] for figure in result["figures"].values())


@pytest.mark.parametrize(
    ("budget", "options"),
    [
        ("flash", ["--device", "echo-dot-3", "--flash-budget", "3.1G"]),
        ("RAM", ["--device", "echo-dot-3", "--ram-budget", "300Mi"]),
        ("deadline", ["--device", "echo-dot-3", "--background", "0.7"]),
        ("deadline", ["--device", "echo-dot-3", "--deadline-ms", "1"]),
        ("operator", ["--device", "ethos-u55-256"]),
    ],
)
def test_each_broken_budget_has_its_exit_code(capsys, model, budget, options):
    code, result = run_json(capsys, "run", model, *options, "--seconds", 10)
    assert result["broken"][0] == budget
    assert code == EXIT_CODES[budget]


def test_a_device_that_gets_too_hot_breaks_heat(capsys, model, tmp_path):
    text = (PROFILE_DIR / "echo-dot-3.toml").read_text()
    hot = re.sub(r"ambient_c = \{ value = \d+", "ambient_c = { value = 70", text)
    (tmp_path / "hot.toml").write_text(hot)
    code, result = run_json(capsys, "run", model, "--device", tmp_path / "hot.toml", "--seconds", 10)
    assert (code, result["broken"]) == (EXIT_CODES["heat"], ["heat"])


def test_the_first_of_several_broken_budgets_gives_the_code_and_all_are_named(capsys, model):
    options = ["--flash-budget", "1M", "--ram-budget", "1M", "--deadline-ms", "1", "--seconds", "5"]
    code, result = run_json(capsys, "run", model, "--device", "echo-dot-3", *options)
    assert code == EXIT_CODES["flash"]
    assert result["broken"] == ["flash", "RAM", "deadline"]


def test_a_budget_of_exactly_what_is_used_is_kept_and_a_byte_less_is_not(capsys, model):
    options = ["run", model, "--device", "echo-dot-3", "--seconds", "5"]
    _, result = run_json(capsys, *options)
    used = result["ram"]["used_bytes"]
    assert run_json(capsys, *options, "--ram-budget", used)[0] == 0
    assert run_json(capsys, *options, "--ram-budget", used - 1)[0] == EXIT_CODES["RAM"]


def test_states_in_place_halve_the_state_ledger(capsys, model):
    def state(*options):
        _, result = run_json(capsys, "run", model, "--device", "echo-dot-3", "--seconds", 5, *options)
        return next(e["bytes"] for e in result["ram"]["entries"] if e["label"] == "streaming state")

    assert state() == 2 * state("--alias-state")


def test_the_report_is_one_page_that_loads_nothing(capsys, model, clip, tmp_path):
    path = tmp_path / "report.html"
    code, _, err = run(capsys, "run", model, "--device", "echo-dot-3", "--audio", clip, "--report", path)
    page = path.read_text()
    assert code == 0
    assert "wrote" in err
    assert page.count("<svg") == 5
    assert not re.findall(r'(?:src|href)="(?!#)[^"]*"', page)
    assert not re.findall(r"url\((?!#)", page)
    for words in ("Memory", "roofline", "ring buffer", "temperature and clock", "What breaks first", "sbc-bench"):
        assert words in page


def test_a_report_that_cannot_be_written_is_an_error(capsys, model, tmp_path):
    code, _, err = run(
        capsys, "run", model, "--device", "echo-dot-3", "--seconds", 5, "--report", tmp_path / "no" / "where.html"
    )
    assert code == 5
    assert "cannot write the report" in err


def test_words_that_an_overrun_costs_are_really_lost(capsys, model, clip):
    options = ["run", model, "--device", "echo-dot-3", "--audio", clip, "--ring-ms", "400"]
    code, calm = run_json(capsys, *options)
    assert code == 0
    assert calm["heard"]["lost_samples"] == 0
    assert calm["heard"]["text"] == calm["heard"]["reference"]
    code, busy = run_json(capsys, *options, "--background", "0.75")
    assert code == EXIT_CODES["deadline"]
    assert busy["heard"]["lost_samples"] == busy["run"]["samples"]["dropped"] > 0
    assert busy["heard"]["n_gaps"] == busy["run"]["overruns"]


def test_enforcement_tells_the_host_from_the_device(capsys, model, clip):
    options = ["run", model, "--device", "raspberry-pi-zero-2w", "--audio", clip, "--enforce"]
    _, result = run_json(capsys, *options)
    enforced = result["enforced"]
    assert enforced["predicted_to_fit"]
    assert enforced["outcome"] == "finished"
    assert enforced["text"] == result["heard"]["reference"]
    assert enforced["host_peak_rss_bytes"] > 0


def test_enforcement_refuses_a_model_that_is_too_large(capsys, clip):
    """The shipped one, for a toy's memory is found in what importing the libraries has left free."""
    options = ["run", str(SHIPPED), "--device", "raspberry-pi-zero-2w", "--audio", clip, "--enforce"]
    _, result = run_json(capsys, *options)
    enforced = result["enforced"]
    assert enforced["outcome"] == "finished"
    assert enforced["host_grown_bytes"] > 100e6  # the graph is counted, though it is mapped
    for share in (0.0, 0.5):
        budget = result["ram"]["used_bytes"] - int((1 - share) * enforced["predicted_bytes"]) + 1
        _, starved = run_json(capsys, *options, "--ram-budget", budget)
        assert not starved["enforced"]["predicted_to_fit"]
        assert starved["enforced"]["outcome"] != "finished"


def test_devices_lists_profiles_and_shows_sources(capsys):
    code, out, _ = run(capsys, "devices")
    assert code == 0
    assert "echo-dot-3" in out
    code, out, _ = run(capsys, "devices", "echo-dot-3")
    assert "sbc-bench" in out
    code, result = run_json(capsys, "devices", "echo-dot-3")
    assert result["memory.ram_bytes_per_s"]["kind"] == "proxy"


def test_sweep_finds_that_more_load_and_less_clock_only_make_it_worse(capsys, model):
    code, cells = run_json(
        capsys, "sweep", model, "--device", "echo-dot-3", "--chunks", "160,320", "--clocks", "1,0.5", "--loads", "0,0.5"
    )
    assert code == 0
    assert len(cells) == 8
    for chunk in (160, 320):
        mine = {(c["clock_hz"], c["load"]): c for c in cells if c["chunk_ms"] == chunk}
        assert mine[1.3e9, 0]["chunk_cost_ms"] < mine[0.65e9, 0]["chunk_cost_ms"]
        assert mine[1.3e9, 0]["is_kept"]
        assert not mine[0.65e9, 0.5]["is_kept"]
    code, out, _ = run(
        capsys, "sweep", model, "--device", "echo-dot-3", "--chunks", "320", "--clocks", "1", "--loads", "0"
    )
    assert "keeps" in out


def test_compare_shows_models_by_devices(capsys, model, tmp_path):
    lstm = save(lstm_encoder(), tmp_path / "lstm.onnx")
    path = tmp_path / "compare.html"
    options = ["compare", model, lstm, "--devices", "echo-dot-3,stm32h743", "--seconds", "5", "--report", path]
    code, rows = run_json(capsys, *options)
    assert code == 0
    assert len(rows) == 4
    assert path.read_text().count("<svg") == 2
    code, out, _ = run(capsys, *options)
    assert "stm32h743" in out


def test_larger_chunks_cost_less_per_second_of_an_lstm(capsys, tmp_path):
    path = save(lstm_encoder(256), tmp_path / "lstm.onnx")
    per_second = []
    for chunk in (40, 320):
        _, result = run_json(capsys, "run", path, "--device", "echo-dot-3", "--chunk-ms", chunk, "--seconds", 5)
        per_second.append(result["latency_ms"]["nominal"] / chunk)
    assert per_second[1] < per_second[0]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--device", "echo-dott-3"], 71, "did you mean echo-dot-3"),
        (["--device", "missing.toml"], 71, "have no file"),
        (["--device", "echo-dot-3", "--ram-budget", "-5"], 75, "above zero"),
        (["--device", "echo-dot-3", "--flash-budget", "0"], 75, "above zero"),
        (["--device", "echo-dot-3", "--flash-budget", "big"], 2, "as bytes such as 8M"),
        (["--device", "echo-dot-3", "--chunk-ms", "50"], 75, "multiple of 40 ms"),
        (["--device", "echo-dot-3", "--chunk-ms", "-40"], 75, "multiple of 40 ms"),
        (["--device", "echo-dot-3", "--clock-mhz", "0"], 71, "above zero"),
        (["--device", "echo-dot-3", "--background", "2"], 75, "from 0 to 1"),
        (["--device", "echo-dot-3", "--background-bandwidth", "-1"], 75, "bandwidth ≥ 0"),
        (["--device", "echo-dot-3", "--ring-ms", "-1"], 75, "ring buffer"),
        (["--device", "echo-dot-3", "--ring-ms", "100"], 75, "at least one chunk"),
        (["--device", "echo-dot-3", "--deadline-ms", "0"], 75, "deadline above 0"),
        (["--device", "echo-dot-3", "--seconds", "0"], 75, "longer than 0 s"),
        (["--device", "echo-dot-3", "--dim", "T"], 2, "--dim NAME=N"),
        (["--device", "echo-dot-3", "--audio", "nowhere.wav"], 11, "nowhere.wav"),
        (["--device", "echo-dot-3", "--enforce"], 2, "give --audio"),
    ],
)
def test_bad_settings_are_told_clearly(capsys, model, arguments, code, message):
    found, out, err = run(capsys, "run", model, *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b"", 72, "0 bytes"),
        (b"not a graph at all", 72, "not an ONNX file"),
        (tcn_encoder().SerializeToString()[:5000], 72, "cut short"),
    ],
)
def test_damaged_files_are_told_clearly(capsys, tmp_path, content, code, message):
    (tmp_path / "m.onnx").write_bytes(content)
    found, _, err = run(capsys, "run", tmp_path / "m.onnx", "--device", "echo-dot-3")
    assert found == code
    assert message in err


def test_an_unknown_model_is_told_clearly(capsys):
    code, _, err = run(capsys, "run", "no-such-model", "--device", "echo-dot-3")
    assert code == 21
    assert "no-such-model" in err


def test_a_graph_that_is_no_encoder_needs_its_audio_time(capsys, tmp_path):
    b = Builder()
    b.node("Relu", ["x"], outputs=["y"])
    path = save(b.model({"x": [1, 32]}, {"y": [1, 32]}), tmp_path / "m.onnx")
    code, _, err = run(capsys, "run", path, "--device", "echo-dot-3")
    assert code == 74
    assert "--chunk-ms" in err
    assert run(capsys, "run", path, "--device", "echo-dot-3", "--chunk-ms", 320, "--seconds", 5)[0] == 0


def test_words_need_a_model_directory(capsys, tmp_path, clip):
    path = save(attention_encoder(), tmp_path / "m.onnx")
    code, _, err = run(capsys, "run", path, "--device", "echo-dot-3", "--audio", clip)
    assert code == 2
    assert "give its folder" in err


@pytest.mark.parametrize(("text", "value"), [("8M", 8e6), ("2Mi", 2**21), ("1.5e6", 1.5e6), ("3 kB", 3e3), ("7", 7)])
def test_sizes_are_read_with_their_units(text, value):
    assert size_of(text, "--x") == value


def test_simulating_imports_neither_torch_nor_the_plots():
    code = "import sys, firmware_sim.cli, firmware_sim.verdict; print({'torch', 'matplotlib'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert result.stdout.strip() == "set()"
