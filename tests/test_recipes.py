"""models/make.py: every recipe is a run that the trainer takes, and no run is taken for another."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from edge_asr.model_files import read_config
from edge_asr.train_config import build_parser, config_from

ROOT = Path(__file__).parent.parent


@pytest.fixture
def make(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "models"))
    import make

    return make


def test_every_recipe_is_a_run_that_the_trainer_takes_and_the_compared_share_one_schedule(make):
    configs, first_of = {}, {}
    for name, recipe in make.read_recipes().items():
        for command in make.train_commands(name, recipe, Path("speech"), Path("runs"), 1):
            configs[name] = config_from(build_parser().parse_args(command[3:]))
            first_of.setdefault(name, configs[name])
        assert (configs[name].encoder, configs[name].out) == (name.partition("-")[0], f"runs/{name}")
        assert set(recipe["decoder"]) <= {"acoustic_scale", "beam", "max_active", "word_cost", "blank_skip"}
    schedules = [
        replace(configs[name], out="", init="", encoder="", size="")
        for name in ("tcn-small-150h", "lstm-small", "attention-small")
    ]
    assert all(schedule == schedules[0] for schedule in schedules)
    for shipped in (first_of["tcn-base"].init, configs["tcn-tiny"].teacher):
        assert (ROOT / shipped / "encoder.onnx").is_file()


@pytest.mark.parametrize("name", ["tcn-small-150h", "lstm-small", "attention-small", "tcn-tiny"])
def test_a_shipped_model_was_trained_as_its_recipe_says(make, name):
    recipe, shipped = make.read_recipes()[name], read_config(ROOT / "models" / name)
    (command,) = make.train_commands(name, recipe, Path("speech"), Path("runs"), 2)
    config, record = asdict(config_from(build_parser().parse_args(command[command.index("edge_asr.train") + 1 :]))), {}
    for given in (shipped["training"], shipped["training"]["schedule"]):
        record |= {key: value for key, value in given.items() if key in config and key != "encoder_options"}
    plain = json.loads(json.dumps(config))  # tuples as lists
    assert record.pop("teacher") == {"name": Path(config["teacher"]).name, "weight": config["teacher_weight"]}
    assert {"encoder", "seed", "augment", "passes", "average_every_s"} <= set(record)
    assert record == {key: plain[key] for key in record}
    assert shipped["decoder"] == recipe["decoder"]


def test_stages_start_from_one_another_and_override_the_schedule(make, tmp_path):
    path = tmp_path / "recipes.toml"
    path.write_text(
        "[align]\nmodel = 'x'\n"
        "[train]\npasses = 5.0\naugment = { room = 0.1, noise = 0.2 }\n[export]\ngraph = 'g'\nexclude = ['a', 'b']\n"
        "[decoder]\nbeam = 9.0\n[models.m]\nencoder = 'tcn'\ndecoder = { beam = 7.0 }\n"
        "stages = [{}, { passes = 1.0, augment = { room = 0.0 } }]\n"
    )
    recipe = make.read_recipes(path)["m"]
    first, second = make.train_commands("m", recipe, Path("s"), Path("r"), 2)
    one, two = (config_from(build_parser().parse_args(c[c.index("edge_asr.train") + 1 :])) for c in (first, second))
    assert (one.out, two.out, two.init, one.passes, two.passes) == ("r/m-1", "r/m", "r/m-1/final.pt", 5.0, 1.0)
    assert (one.augment.room, two.augment.room, two.augment.noise) == (0.1, 0.0, 0.2)
    assert recipe["decoder"] == {"beam": 7.0}
    assert make.align_command(recipe, Path("s"), Path("r"))[-2:] == ["--model", "x"]
    assert make.export_command("m", recipe, Path("s"), Path("r"), Path("f"))[-3:] == ["--exclude", "a", "b"]


def test_a_run_of_another_recipe_is_not_taken_for_this_one(make, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(make, "run", ran.append)
    command = ["python", "-m", "edge_asr.train", "--passes", "1", "--out", str(tmp_path / "m")]
    make.train(command)
    make.train(command)  # stopped before final.pt: goes on
    (tmp_path / "m" / "final.pt").write_bytes(b"")
    make.train(command)  # finished
    assert len(ran) == 2
    command[4] = "2"
    with pytest.raises(make.TrainingError, match="another recipe"):
        make.train(command)


def test_making_an_unknown_model_names_the_known_ones(make, capsys, tmp_path):
    assert make.main(["nothing", "speech"]) == 2
    assert "tcn-small" in capsys.readouterr().err
    assert make.main(["tcn-small", "speech", "--dry-run", "--runs", str(tmp_path)]) == 0
    steps = [line.split()[2] for line in capsys.readouterr().out.splitlines()[:4]]
    assert steps == ["edge_asr.cli", "edge_asr.train", "edge_asr.train", "edge_asr.cli"]  # align, two stages, export
