"""The trainer: it learns, it resumes exactly, several processes agree, and an exported model is the trained one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from little_runs import LITTLE, SAMPLES, config_for
from torch import distributed

from edge_asr.checkpoint import average_weights, load_checkpoint, training_record
from edge_asr.data import AugmentConfig, prepare
from edge_asr.encoders import ENCODERS, build
from edge_asr.errors import CheckpointError, EdgeAsrError, TrainingError, UsageError
from edge_asr.export import export, linear_nodes, load_encoder, stream_all
from edge_asr.onnx_weights import shipped_weights
from edge_asr.runtime import EncoderSession
from edge_asr.train import Trainer, choose_precision, learning_rate_factor
from edge_asr.train_config import build_parser, config_from


class Killed(Exception):
    """Stands for a power cut."""


def test_a_killed_run_resumes_to_the_very_same_weights(tmp_path, prepared_samples, monkeypatch):
    Trainer(config_for(tmp_path / "whole", prepared_samples)).run()
    whole = load_checkpoint(tmp_path / "whole" / "final.pt")

    broken = Trainer(config_for(tmp_path / "broken", prepared_samples, checkpoint_every_s=0.0))
    step_on, n_steps = broken.step_on, iter(range(100))

    def die_at_the_eighth(arrays):
        if next(n_steps) == 8:
            raise Killed
        return step_on(arrays)

    monkeypatch.setattr(broken, "step_on", die_at_the_eighth)
    with pytest.raises(Killed):
        broken.run()
    resumed = Trainer(config_for(tmp_path / "broken", prepared_samples))
    assert resumed.step == 8
    resumed.run()
    again = load_checkpoint(tmp_path / "broken" / "final.pt")
    assert again["step"] == whole["step"]
    assert all(torch.equal(again["averaged"][k], v) for k, v in whole["averaged"].items())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_loss_falls(tmp_path, prepared_samples, encoder):
    trainer = Trainer(
        config_for(
            tmp_path,
            prepared_samples,
            encoder,
            passes=8,
            dev=str(prepared_samples),
            augment=AugmentConfig(room=0, noise=0),
        )
    )
    trainer.run()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert log[3]["dev_ctc"] < 0.85 * log[0]["dev_ctc"]  # the passes with CTC
    assert log[7]["dev_crf"] < log[4]["dev_crf"] - 0.2  # those with CTC-CRF
    assert "crf" in log[-1]
    assert "crf" not in log[0]


@pytest.mark.parametrize("average_every_s", ["0", "0.2"])
def test_two_processes_train_one_model(tmp_path, prepared_samples, average_every_s):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        "--local-addr",
        "127.0.0.1",
        "-m",
        "edge_asr.train",
        "--out",
        str(tmp_path),
        "--manifest",
        str(prepared_samples),
        "--size",
        "tiny",
        "--encoder-options",
        json.dumps(LITTLE["tcn"]),
        "--passes",
        "2",
        "--batch-s",
        "10",
        "--precision",
        "fp32",
        "--n-threads",
        "1",
        "--average-every-s",
        average_every_s,
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    final = load_checkpoint(tmp_path / "final.pt")
    assert final["heard_s"] >= final["config"]["passes"] * 50
    assert "2 processes" in done.stderr


def test_weights_are_averaged_by_what_each_rank_heard(tmp_path, prepared_samples, monkeypatch):
    fast, slow = (Trainer(config_for(tmp_path / str(seed), prepared_samples, seed=seed)) for seed in (1, 2))
    expected = {n: 0.75 * p + 0.25 * q for (n, p), (_, q) in zip(named(fast), named(slow), strict=True)}
    fast.heard_s, slow.heard_s = 30.0, 10.0
    sent = []
    monkeypatch.setattr(distributed, "all_reduce", lambda flat: sent.append(flat.clone()))
    for trainer in (fast, slow):  # what each would send; the weights are unchanged by a sum over itself alone
        trainer.average_over_ranks()
        trainer.agreed_s, trainer.heard_s = 0.0, {fast: 30.0, slow: 10.0}[trainer]
    monkeypatch.setattr(distributed, "all_reduce", lambda flat: flat.copy_(sent[0] + sent[1]))
    for trainer in (fast, slow):
        trainer.average_over_ranks()
        assert trainer.heard_s == trainer.agreed_s == 40.0
        for name, value in named(trainer):
            torch.testing.assert_close(value, expected[name])


def named(trainer: Trainer) -> list[tuple[str, torch.Tensor]]:
    return [(name, p.detach().clone()) for name, p in trainer.encoder.named_parameters()]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_an_exported_model_is_the_trained_one(tmp_path, prepared_samples, encoder):
    Trainer(config_for(tmp_path / "run", prepared_samples, encoder, passes=1)).run()
    report = export(tmp_path / "run" / "final.pt", tmp_path / "model", str(SAMPLES), n_clips=4, max_disagreement=100)
    assert report["torch_vs_onnx"] < 1e-4
    int8 = onnx.load(tmp_path / "model" / "encoder.int8.onnx")
    kinds = {n.op_type for n in int8.graph.node}
    assert ("Scan" in kinds) == (encoder == "lstm")  # DynamicQuantizeLSTM alone mixes the streams of a batch
    assert "QuantizeLinear" in kinds
    assert "LayerNormalization" not in kinds  # its bits depend on the release of onnxruntime
    assert not linear_nodes(int8), "a linear layer was left in fp32"
    metadata = {p.key: p.value for p in int8.metadata_props}
    assert json.loads(metadata["config"])["dim"] == 32


@pytest.mark.parametrize("encoder", ["tcn", "attention"])
def test_a_statically_quantised_model_streams_as_it_runs_offline(tmp_path, prepared_samples, encoder):
    Trainer(config_for(tmp_path / "run", prepared_samples, encoder, passes=1)).run()
    export(tmp_path / "run" / "final.pt", tmp_path / "model", str(SAMPLES), n_clips=4, max_disagreement=100)
    session = EncoderSession(tmp_path / "model" / "encoder.int8.onnx")
    frames = np.random.default_rng(0).normal(-6, 3, (371, 80)).astype(np.float32)
    whole = stream_all(session, frames, 400)
    for chunk_frames in (8, 32, 64):
        np.testing.assert_allclose(
            stream_all(session, frames, chunk_frames), whole, atol=0.2
        )  # a rounding may tip over
        assert (stream_all(session, frames, chunk_frames).argmax(1) == whole.argmax(1)).mean() > 0.97


def test_a_run_may_start_from_the_weights_of_another(tmp_path, prepared_samples):
    Trainer(config_for(tmp_path / "tcn", prepared_samples, passes=1)).run()
    given = load_checkpoint(tmp_path / "tcn" / "final.pt")["averaged"]
    started = Trainer(
        config_for(tmp_path / "next", prepared_samples, "attention", init=str(tmp_path / "tcn" / "final.pt"))
    )
    weights = started.encoder.state_dict()
    assert torch.equal(weights["layers.1.project.weight"], given["layers.1.project.weight"])
    assert "layers.3.qkv.weight" in weights  # what the other run did not have starts afresh


@pytest.mark.parametrize(("share", "chosen"), [(0.0, "last"), (0.5, "mean of last and initial")])
def test_a_run_ends_with_what_is_best_on_the_dev_set(tmp_path, prepared_samples, monkeypatch, share, chosen):
    first = Trainer(config_for(tmp_path / "first", prepared_samples, passes=1)).run()
    given = load_checkpoint(first)["averaged"]
    config = config_for(tmp_path / "next", prepared_samples, passes=1, dev=str(prepared_samples), init=str(first))
    trainer = Trainer(config)

    def distance(weights):
        aims = ((trainer.averaged[name] * (1 - share) + given[name] * share) for name in weights)
        return {"dev_crf": sum(float((w - aim).abs().sum()) for w, aim in zip(weights.values(), aims))}

    monkeypatch.setattr(trainer, "score", distance)  # least for the wanted mean
    final = load_checkpoint(trainer.run())
    assert final["chosen"] == training_record(final)["weights"] == chosen
    assert distance(final["averaged"])["dev_crf"] < 1e-2
    assert any(not torch.equal(w, given[name]) for name, w in final["averaged"].items())


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_run_may_start_from_an_exported_model(tmp_path, prepared_samples, encoder):
    final = Trainer(config_for(tmp_path / "first", prepared_samples, encoder, passes=1)).run()
    export(final, tmp_path / "model", str(SAMPLES), n_clips=3, max_disagreement=100)
    given = load_encoder(load_checkpoint(final)).state_dict()  # as exported: rounded to fp16
    started = Trainer(config_for(tmp_path / "next", prepared_samples, encoder, init=str(tmp_path / "model"), passes=1))
    weights = started.encoder.state_dict()
    differing = {n for n, v in given.items() if not torch.allclose(weights[n], v, atol=1e-3)}  # two LSTM biases are one
    assert {n.split(".")[0] for n in differing} <= {"aux_output"}  # for training only, not exported
    record = training_record(load_checkpoint(started.run()))
    assert record["started_from"]["run"] == "first"
    assert record["heard_h_in_all"] == pytest.approx(2 * record["heard_h"], abs=0.11)


def test_a_damaged_model_is_no_start(tmp_path, prepared_samples):
    final = Trainer(config_for(tmp_path / "first", prepared_samples, passes=1)).run()
    export(final, tmp_path / "model", str(SAMPLES), n_clips=3, max_disagreement=100)
    model = onnx.load(tmp_path / "model" / "encoder.onnx")
    node = next(n for n in model.graph.node if n.op_type == "MatMul")
    node.name = "elsewhere"
    onnx.save(model, tmp_path / "model" / "encoder.onnx")
    with pytest.raises(CheckpointError, match=r"layers\.0\.project\.weight"):
        shipped_weights(tmp_path / "model")


def test_a_deeper_encoder_starts_as_the_one_it_grew_from(tmp_path, prepared_samples):
    final = Trainer(config_for(tmp_path / "first", prepared_samples, passes=1)).run()
    deeper = {"dim": 32, "dilations": (1, 4, 2, 1), "lookaheads": (1, 0, 2, 0)}
    config = config_for(
        tmp_path / "next", prepared_samples, encoder_options=deeper, init=str(final), init_layers=(0, 1, -1, 2, -1)
    )
    grown = Trainer(config)
    small = build("tcn", load_checkpoint(final)["encoder_config"])
    small.load_state_dict(load_checkpoint(final)["averaged"])
    x = torch.randn(2, 64, 80)
    before, after = (e.eval()(x, e.initial_state(2))[0] for e in (small, grown.encoder))
    torch.testing.assert_close(before, after, atol=1e-5, rtol=0)
    grown.run()
    new = grown.encoder.state_dict()["layers.2.project.weight"]
    assert new[: len(new) // 2].abs().max() > 0  # and learns
    with pytest.raises(TrainingError, match="each of 5 layers"):
        Trainer(replace(config, out=str(tmp_path / "short"), init_layers=(0, 1)))
    with pytest.raises(TrainingError, match="have a Subsample"):
        Trainer(replace(config, out=str(tmp_path / "first-new"), init_layers=(-1, 1, -1, 2, -1)))


def test_characters_are_selectable(tmp_path, prepared_samples):
    trainer = Trainer(config_for(tmp_path, prepared_samples, tokens="characters", passes=1))
    assert len(trainer.tokens) == 29
    text = trainer.train_set.clips[0].text
    assert "".join(trainer.tokens.symbols[i] for i in trainer.targets[0]).replace("▁", " ").strip() == text


def test_no_word_is_without_a_pronunciation(tmp_path, prepared_samples):
    manifest = tmp_path / "m.jsonl"
    row = {
        "audio_filepath": str(SAMPLES.parent / json.loads(SAMPLES.read_text().splitlines()[0])["audio_filepath"]),
        "duration": 2.0,
    }
    manifest.write_text(json.dumps({**row, "text": "xylozzy's frobnicates quilter"}) + "\n")
    prepare(manifest, tmp_path / "cache", n_workers=1)
    trainer = Trainer(config_for(tmp_path / "run", tmp_path / "cache"))
    assert len(trainer.targets[0]) > 12


def test_learning_rate_rises_then_falls_to_zero():
    factors = [learning_rate_factor(p, 0.1) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert factors == pytest.approx([0, 0.5, 1, 0.5, 0])


def test_average_is_the_mean_of_the_weights():
    states = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 6.0])}]
    assert average_weights(states)["w"].tolist() == [2, 4]


def test_precision_is_measured_and_said():
    dtype, why = choose_precision(torch.device("cpu"))
    assert dtype in (torch.float32, torch.bfloat16)
    assert "GFLOP/s" in why
    assert choose_precision(torch.device("cpu"), "bf16")[0] is torch.bfloat16


def test_a_damaged_checkpoint_is_an_error_not_a_traceback(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="no file"):
        load_checkpoint(tmp_path / "none.pt")


def test_a_checkpoint_of_another_shape_is_refused(tmp_path, prepared_samples):
    Trainer(config_for(tmp_path, prepared_samples, passes=1)).run()
    with pytest.raises(CheckpointError, match="choose another --out"):
        Trainer(config_for(tmp_path, prepared_samples, encoder_options={**LITTLE["tcn"], "dim": 48}))


def test_an_unknown_encoder_is_refused_with_the_known_ones():
    arguments = build_parser().parse_args(["--out", "x", "--manifest", "y", "--encoder", "rwkv"])
    with pytest.raises(UsageError, match="lstm, tcn, attention"):
        config_from(arguments)


def test_flags_reach_every_field_of_the_configuration():
    arguments = build_parser().parse_args(
        [
            "--out",
            "x",
            "--manifest",
            "y",
            "--passes",
            "7",
            "--augment.noise",
            "0.9",
            "--augment.snr_db",
            "1",
            "2",
            "--encoder-options",
            '{"cell": "gru"}',
        ]
    )
    config = config_from(arguments)
    assert (config.passes, config.augment.noise, config.augment.snr_db, config.encoder_options) == (
        7,
        0.9,
        (1, 2),
        {"cell": "gru"},
    )


def test_every_error_of_training_has_its_exit_code():
    assert issubclass(CheckpointError, EdgeAsrError)
    assert CheckpointError.exit_code != UsageError.exit_code
