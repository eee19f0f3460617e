"""The comparison of models: figures come out as they went in, nothing is invented, and claims follow the data."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_asr import compare
from edge_asr.checkpoint import save_checkpoint, training_record
from edge_asr.claims import (
    FAILS,
    HOLDS,
    OPEN,
    PARTLY,
    claims,
    comparable,
    notes,
    paired_difference,
    training_differences,
)
from edge_asr.cli import main
from edge_asr.compare import MISSING, as_json, as_markdown, as_text
from edge_asr.compare_page import beats, html_page
from edge_asr.measured import CHUNKS_MS, Model, load_models

ROOT = Path(__file__).parent.parent
STAMP = {"date": "2026-01-02T03:04Z", "command": "measure all", "load": 0.5,
         "machine": {"cpu": "A Processor", "cores": 2, "system": "Linux", "python": "3"}}  # fmt: skip
SCHEDULE = {"passes": 4.0, "batch_s": 240.0, "muon_lr": 0.02, "adam_lr": 0.001, "crf_from": 0.1, "ctc_weight": 0.1,
            "aux_weight": 0.3}  # fmt: skip
RUN = {"run": "first", "encoder": "tcn", "epochs": 4, "steps": 10, "heard_h": 91.0, "spent_h": 0.5, "seed": 1,
       "x_real_time": 182.0, "machine": None, "schedule": SCHEDULE, "augment": {"noise": 0.3}, "curve": [[23, 1.5]],
       "heard_h_in_all": 91.0}  # fmt: skip
N_CLIPS = 40


def errors_of(rate: float, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).binomial(10, rate, N_CLIPS).tolist()


def row_of(dev_set: str, rate: float, **changes) -> dict:
    errors = errors_of(rate)
    return {
        "dev_set": dev_set, "every": 1, "clips": N_CLIPS, "words": 10 * N_CLIPS, "wer": 100 * sum(errors) / 400,
        "substitutions": sum(errors), "insertions": 0, "deletions": 0, "exact_percent": 25.0,
        "same_emissions_as_320_ms": N_CLIPS, "speakers": {"a": [20, 200, 30], "b": [20, 200, 60]},
        "worst_words": [["the", 9, 3]], "clip_errors": errors, "clip_words": [10] * N_CLIPS,
        "clip_s": np.linspace(1, 20, N_CLIPS).tolist(), "clip_begins_s": np.linspace(0, 300, N_CLIPS).tolist(),
        "key": "k", "measured": STAMP, **changes,
    }  # fmt: skip


def model_of(name: str, encoder: str, rate: float, reread: int = 0, parameters: int = 3_000_000) -> Model:
    """A model whose figures are made up, all measured."""
    rows = {title: row_of("dev-clean", rate) for title in ("dev-clean", "dev-clean fp32", "dev-clean device graph")}
    rows |= {f"dev-clean {ms} ms": row_of("dev-clean", rate) for ms in (80, 160, 640)}
    rows |= {"dev-clean long recordings": row_of("dev-clean", rate), "dev-accent": row_of("dev-accent", rate + 0.1)}
    cost = {
        f"int8 {ms} ms": {"macs_per_s": 80_000_000, "weight_bytes": 3_000_000, "state_bytes": 5000,
                          "weight_bytes_per_s": 3_000_000_000 // ms + reread, "reread_bytes_per_s": reread,
                          "state_bytes_per_s": 10_000_000 // ms, "activation_bytes_per_s": 9_000_000,
                          "measured": STAMP}
        for ms in CHUNKS_MS
    }  # fmt: skip
    speed = {
        str(ms): {"rtf_cpu": 0.02, "encoder_rtf_cpu": 0.002 + 1e-11 * reread, "ratio_to_fastest": 1.0,
                  "ratio_to_pocketsphinx": None, "chunk_cpu_ms": {"p50": 3.0, "p99": ms / 20}}
        for ms in CHUNKS_MS
    }  # fmt: skip
    influence = {"from_s": [0, 1, 20], "divergence_nats": [0.3, 0.01, 0.004 if encoder == "attention" else 0.0]}
    results = {
        "schema": 1,
        "model": name,
        "rows": rows,
        "cost": cost,
        "speed": {"run": {"chunks": speed, "measured": STAMP}},
        "memory": {"influence": {**influence, "measured": STAMP}},
    }
    export = {"parameters": parameters, "int8_bytes": parameters + 100_000, "fp32_bytes": 2 * parameters,
              "int8_token_changes_percent": 1.0, "fp32_nodes": []}  # fmt: skip
    return Model(name, {"encoder": encoder, "export": export, "training": copy.deepcopy(RUN)}, results)


@pytest.fixture
def models() -> list[Model]:
    return [
        model_of("tcn-x", "tcn", 0.2),
        model_of("lstm-x", "lstm", 0.3, reread=50_000_000),
        model_of("attention-x", "attention", 0.25),
        model_of("tcn-tiny", "tcn", 0.4, parameters=1_000_000),
    ]


@pytest.fixture
def folder(tmp_path, models, monkeypatch) -> Path:
    """The models on disk, installed."""
    for model in models:
        directory = tmp_path / "models" / model.name
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps(model.config))
        (directory / "results.json").write_text(json.dumps(model.results))
        (directory / "encoder.int8.onnx").write_bytes(b"never read")
    monkeypatch.setenv("EDGE_ASR_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr("edge_asr.model_files.search_path", lambda: [tmp_path / "models"])
    return tmp_path / "models"


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def verdicts(models: list[Model]) -> dict[str, str]:
    return {claim.title: claim.verdict for claim in claims(models)}


# --- the table -----------------------------------------------------------------------------------------------------


def test_every_figure_of_the_table_is_one_of_the_results(models):
    lines = as_text(models).splitlines()
    assert re.search(r"dev-clean WER %\s+" + r"\s+".join(f"{m.row('dev-clean')['wer']:.1f}" for m in models), lines[3])
    assert next(line for line in lines if "multiply-adds, M/s" in line).split()[-4:] == ["80.0"] * 4
    assert next(line for line in lines if "hours heard in all" in line).split()[-4:] == ["91.0"] * 4


def test_what_nobody_measured_is_a_dash_and_what_nobody_measured_at_all_is_left_out(models):
    del models[1].results["rows"]["dev-accent"]
    text = as_text(models)
    assert next(line for line in text.splitlines() if "dev-accent" in line).split()[-3] == MISSING
    assert "dev-digits" not in text
    assert "PocketSphinx" not in text


def test_a_rate_on_fewer_clips_stands_beside_the_usual_one_on_the_same_clips(models):
    thinned = row_of("dev-clean", 0.5, every=4, wer=47.0)
    models[0].results["rows"]["dev-clean 80 ms"] = thinned | {"clip_errors": thinned["clip_errors"][::4]}
    same = sum(models[0].row("dev-clean")["clip_errors"][::4])
    assert f"47.0 (of {100 * same / (10 * N_CLIPS / 4):.1f})" in as_text(models)
    assert "every 4th clip" in "\n".join(notes(models))


def test_a_model_with_nothing_but_a_name_breaks_no_page(models):
    page = html_page([*models, Model("bare", {}, {"schema": 1})])
    assert "bare" in page


def test_markdown_has_a_column_for_each_model_in_every_line(models):
    assert {line.count("|") for line in as_markdown(models).splitlines()} == {len(models) + 2}


def test_json_holds_the_figures_the_claims_and_where_they_come_from(models):
    data = json.loads(json.dumps(as_json(models), allow_nan=False))
    assert {row["label"] for row in data["figures"]["tcn-x"]} >= {"dev-clean WER %", "parameters, M"}
    assert all(claim["verdict"] and claim["evidence"] for claim in data["claims"])
    assert data["measured"][0]["machine"]["cpu"] == "A Processor"
    assert data["measured"][0]["first"] == STAMP["date"]


def test_the_command_prints_and_writes_all_measured_models_best_first(capsys, folder, tmp_path):
    (folder / "lstm-x" / "results.json").unlink()
    assert main(["compare", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["tcn-x", "attention-x", "tcn-tiny"]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "README.md", "comparison.json", "index.html", "overview.svg",
    }  # fmt: skip
    assert main(["compare", "tcn-tiny", "tcn-x", "--format", "json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["figures"]) == ["tcn-tiny", "tcn-x"]


def test_the_page_is_one_file_of_modest_size_that_loads_nothing(folder, tmp_path):
    compare.write_folder(tmp_path / "out", load_models())
    page = (tmp_path / "out" / "index.html").read_text()
    assert len(page) < 500_000
    assert page.count("<svg") == page.count("</svg>") > 5
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "<script" not in page
    assert (tmp_path / "out" / "overview.svg").read_text().startswith("<svg")
    assert "](overview.svg)" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("damage", "code", "says"),
    [
        (lambda f: (f / "tcn-x" / "results.json").unlink(), 21, "measure the model"),
        (lambda f: (f / "tcn-x" / "results.json").write_text("{"), 22, "measure the model again"),
        (lambda f: (f / "tcn-x" / "results.json").write_text('{"dev-clean": {}}'), 22, "schema"),
    ],
    ids=["missing", "damaged", "of an older kind"],
)
def test_results_that_cannot_be_read_are_an_error_with_its_remedy(capsys, folder, damage, code, says):
    damage(folder)
    assert main(["compare", "tcn-x"]) == code
    assert says in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_an_error(capsys, folder, tmp_path):
    (tmp_path / "file").write_text("")
    assert main(["compare", "--out", str(tmp_path / "file" / "out")]) == 5
    assert "cannot write" in capsys.readouterr().err


def test_only_what_is_between_the_marks_of_a_readme_is_renewed(capsys, folder, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- models -->\nold 99.9\n<!-- /models -->\nafter\n")
    for _ in range(2):
        assert main(["compare", "--readme", str(readme)]) == 0
        text = readme.read_text()
        assert text.startswith("before\n<!-- models -->\n| model |")
        assert text.endswith("\n<!-- /models -->\nafter\n")
        assert "99.9" not in text
        assert text.count("`tcn-tiny`") == 1
        assert "trained alike" in text
    readme.write_text("no marks")
    assert main(["compare", "--readme", str(readme)]) == 5
    assert "add them" in capsys.readouterr().err


def test_a_page_without_matplotlib_names_the_extra_to_install(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "edge_asr.compare_page", raising=False)
    monkeypatch.delitem(sys.modules, "edge_asr.plotting", raising=False)
    assert main(["compare", "--out", str(tmp_path / "out")]) == 6
    assert "edge-asr[compare]" in capsys.readouterr().err


def test_the_table_needs_neither_torch_nor_onnxruntime_nor_the_plots(folder):
    code = (
        "import sys; from edge_asr.cli import main; main(['compare', *sys.argv[1:]]); "
        "print([m for m in ('torch', 'onnxruntime', 'matplotlib') if m in sys.modules])"
    )
    paths = [str(p) for p in sorted(folder.iterdir())]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# --- what the data say ---------------------------------------------------------------------------------------------


def test_models_trained_alike_are_called_so_and_others_are_not(models):
    assert training_differences(models) == []
    assert "trained alike" in notes(models)[0]
    assert "not trained" not in notes(models)[0]
    models[0].training["heard_h_in_all"] = 200.0
    models[2].training["started_from"] = {"run": "tcn-x", "encoder": "tcn"}
    models[1].training["schedule"]["muon_lr"] = 0.01
    models[1].training["teacher"] = {"name": "tcn-y", "weight": 1.0}
    said = notes(models)[0]
    for part in ("tcn-x 200", "attention-x started from the weights of another encoder (tcn)", "muon lr differ",
                 f"{models[1].name} tcn-y"):  # fmt: skip
        assert part in said
    models[0].config.pop("training")
    assert "nothing is recorded of the training of tcn-x" in notes(models)[0]


def test_encoders_trained_alike_are_compared_even_where_a_better_one_of_their_size_was_not(models):
    longer = model_of("tcn-long", "tcn", 0.1)
    longer.training["heard_h_in_all"] = 900.0
    longer.training["seed"] = 5  # a seed is no difference
    models = [longer, *models]
    assert [m.name for m in comparable(models)] == ["tcn-x", "lstm-x", "attention-x"]
    note = notes(models)[0]
    assert note.startswith("tcn-x, lstm-x, attention-x were trained alike")
    assert "tcn-long, of the same size, was not: hours heard in all: tcn-x 91, tcn-long 900." in note
    claim = next(c for c in claims(models) if c.title == "Convolutions beat recurrence")
    assert (claim.verdict, claim.evidence[0].split()[1]) == (HOLDS, "tcn-x")
    assert [m.name for m in comparable([longer, models[2]])] == ["tcn-long", "lstm-x"]  # no two alike: all of the size


def test_a_better_model_proves_nothing_if_it_heard_more(models):
    title = "Convolutions beat recurrence"
    assert verdicts(models)[title] == HOLDS
    models[0].training["heard_h_in_all"] = 200.0
    assert verdicts(models)[title] == OPEN
    models[0].training["heard_h_in_all"] = 20.0  # less training and still better
    assert verdicts(models)[title] == HOLDS
    assert verdicts([model_of("tcn-x", "tcn", 0.3), model_of("lstm-x", "lstm", 0.1)])[title] == FAILS
    assert verdicts([models[0]])[title] == OPEN


def test_attention_is_held_against_convolutions_of_its_size(models):
    title = "Attention to the past beats convolutions alone"
    assert verdicts(models)[title] == FAILS  # 0.25 against 0.2 of the words
    claim = next(c for c in claims(models) if c.title == title)
    assert claim.evidence[0].startswith("dev-clean: attention-x against tcn-x +")
    assert verdicts([model_of("tcn-x", "tcn", 0.3), model_of("attention-x", "attention", 0.1)])[title] == HOLDS
    assert verdicts(models[:2])[title] == OPEN


def test_claims_of_bytes_reach_chunks_and_eight_bits_follow_the_figures(models):
    found = verdicts(models)
    assert found["A recurrence waits for memory"] == HOLDS
    assert found["A short path reaches further"] == HOLDS
    assert found["A long memory makes fewer errors"] == FAILS  # keeping the state changes nothing in these figures
    assert found["The chunk changes the delay, not the words"] == HOLDS
    assert found["int8 costs nothing"] == HOLDS
    models[2].results["memory"]["influence"]["divergence_nats"] = [0.3, 0.01, 0.001]
    assert verdicts(models)["A short path reaches further"] == PARTLY  # further, but faint
    for model in models:
        model.results["rows"]["dev-clean 80 ms"] = row_of("dev-clean", 0.9)
        model.results["rows"]["dev-clean fp32"] = row_of("dev-clean", 0.01)
        model.results["memory"]["influence"]["divergence_nats"] = [0.3, 0.1, 0.0]
    found = verdicts(models)
    assert found["The chunk changes the delay, not the words"] == FAILS
    assert found["int8 costs nothing"] == FAILS
    assert found["A short path reaches further"] == FAILS


def test_where_nothing_was_measured_no_claim_is_judged():
    bare = [Model(name, {"encoder": name}, {"schema": 1}) for name in ("tcn", "lstm", "attention")]
    assert set(verdicts(bare).values()) == {OPEN}


def test_the_difference_of_rows_is_that_of_their_errors_on_the_clips_they_share():
    one, two = row_of("dev-clean", 0.2), row_of("dev-clean", 0.5)
    value, low, high = paired_difference(one, two)
    assert value == pytest.approx(two["wer"] - one["wer"])
    assert low < value < high
    assert paired_difference(one, one) == (0, 0, 0)
    thinned = row_of("dev-clean", 0.5, every=4) | {"clip_errors": two["clip_errors"][::4]}
    errors = np.array(two["clip_errors"])[::4].sum() - np.array(one["clip_errors"])[::4].sum()
    assert paired_difference(one, thinned)[0] == pytest.approx(100 * errors / (10 * N_CLIPS / 4))
    assert paired_difference(one, row_of("dev-accent", 0.5)) is None
    assert paired_difference(one, {}) is None


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=6))
def test_the_front_holds_what_no_other_beats(points):
    models = [(x, y, None) for x, y in points]
    for one, other in product(models, models):
        better = (one[0] < other[0] and one[1] <= other[1]) or (one[0] <= other[0] and one[1] < other[1])
        assert beats(one, other) == better


# --- training records ----------------------------------------------------------------------------------------------


def checkpoint_of(run: Path, heard_h: float, init: str = "", encoder: str = "tcn") -> Path:
    config = {"out": str(run), "init": init, "seed": 3, "passes": 2.0, "augment": {"noise": 0.5}}
    run.mkdir()
    content = {"config": config, "encoder": encoder, "epoch": 2, "step": 7, "heard_s": 3600 * heard_h,
               "spent_s": 360.0, "dev_log": [{"heard_h": 1.0, "dev_crf": 2.5}, {"heard_h": 2.0}]}  # fmt: skip
    save_checkpoint(run / "final.pt", content)
    return run / "final.pt"


def test_a_run_carries_the_record_of_the_runs_it_started_from(tmp_path):
    from edge_asr.checkpoint import load_checkpoint

    first = checkpoint_of(tmp_path / "first", 10.0)
    second = checkpoint_of(tmp_path / "second", 5.0, str(first), "attention")
    record = training_record(load_checkpoint(second))
    assert (record["heard_h"], record["heard_h_in_all"], record["x_real_time"]) == (5.0, 15.0, 50.0)
    assert (record["started_from"]["run"], record["started_from"]["encoder"]) == ("first", "tcn")
    assert record["curve"] == [[1.0, 2.5]]
    assert str(tmp_path) not in json.dumps(record)
    first.unlink()
    assert training_record(load_checkpoint(second))["started_from"] == {"run": "first"}


# --- cards ------------------------------------------------------------------------------------------------------------


def test_a_card_says_hours_seeds_licences_and_what_the_model_is_bad_at(benchmarks, models):
    import model_card

    models[2].training["started_from"] = {**RUN, "run": "elder", "heard_h": 12.5}
    models[2].training["heard_h_in_all"] = 103.5
    card = model_card.card("attention-x", models[2].config, models[2].results, "| LibriSpeech | CC BY 4.0 |\n")
    for part in ("91.0 hours heard", "`elder`", "12.5 hours", "103.5 hours heard in all", "seed 1", "CC BY 4.0",
                 "from 15.0 to 30.0 % WER over the 2 of dev-clean", "the 3/9", "A Processor"):  # fmt: skip
        assert part in card, part
    bare = {"schema": 1, "rows": {"dev-clean": {k: v for k, v in row_of("dev-clean", 0.1).items() if "clip" not in k}
                                  | {"clips": 3}}}  # fmt: skip
    assert "What it is bad at" in model_card.card("x", {**models[2].config, "training": None}, bare, "")
