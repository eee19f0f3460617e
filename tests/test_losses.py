"""What training minimises beside the transcript: the distance of two views, and that to a teacher."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from little_runs import SAMPLES, config_for

from edge_asr.batches import BatchPlan
from edge_asr.checkpoint import training_record
from edge_asr.data import FeatureSet
from edge_asr.encoders import SIZES, build
from edge_asr.errors import TrainingError
from edge_asr.export import export
from edge_asr.losses import consistency_loss, run_offline, teacher_loss, to_batch
from edge_asr.train import Trainer


def test_two_views_of_a_clip_are_drawn_together(tmp_path, prepared_samples):
    trainer = Trainer(config_for(tmp_path, prepared_samples, consistency_weight=0.5, passes=6))
    arrays = BatchPlan(trainer.train_set, trainer.targets, trainer.config, 0, 0, 0, 1)[0]
    n = len(arrays["x"]) // 2
    for name in ("n_frames", "targets", "n_targets"):
        np.testing.assert_array_equal(arrays[name][:n], arrays[name][n:])
    assert not np.allclose(arrays["x"][:n], arrays["x"][n:])
    assert trainer.step_on(arrays)["apart"] > 0


def test_consistency_pulls_both_views_alike_and_ignores_padding():
    logits = torch.randn(4, 6, 5, requires_grad=True)  # two clips, two views
    lengths = torch.tensor([6, 3, 6, 3])
    loss = consistency_loss(logits.log_softmax(-1), lengths)
    loss.backward()
    p = logits.detach().log_softmax(-1)
    expected = sum(
        (a.exp() * (a - b))[:n].sum() + (b.exp() * (b - a))[:n].sum() for a, b, n in zip(p[:2], p[2:], (6, 3))
    )
    assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-4)
    assert not logits.grad[1, 3:].any()
    torch.testing.assert_close(logits.grad[:2, 0], -logits.grad[2:, 0], atol=1e-5, rtol=1e-4)
    same = torch.randn(1, 6, 5).log_softmax(-1)
    assert float(consistency_loss(torch.cat([same, same]), torch.tensor([6, 6]))) == pytest.approx(0, abs=1e-5)


def test_a_student_comes_near_its_teacher(tmp_path, prepared_samples):
    first = Trainer(config_for(tmp_path / "first", prepared_samples, "attention", passes=2)).run()
    export(first, tmp_path / "model", str(SAMPLES), n_clips=3, max_disagreement=100)
    for teacher in (first, tmp_path / "model"):
        config = config_for(
            tmp_path / f"of-{teacher.name}", prepared_samples, teacher=str(teacher), teacher_weight=2.0, passes=3
        )
        student = Trainer(replace(config, consistency_weight=0.1, aux_weight=0.0))
        plan = BatchPlan(student.train_set, student.targets, student.config, 0, 0, 0, 1)
        arrays = plan[0]
        n = len(arrays["undisturbed"])
        assert arrays["x"].shape == (2 * n, *arrays["undisturbed"].shape[1:])
        before = {name: value.clone() for name, value in student.teacher.state_dict().items()}
        taught = [student.step_on(arrays)["taught"] for _ in range(40)]
        assert 0 < taught[-1] < 0.5 * taught[0]
        assert all(torch.equal(value, before[name]) for name, value in student.teacher.state_dict().items())
        name = "first" if teacher == first else "model"
        assert training_record(student.checkpoint())["teacher"] == {"name": name, "weight": 2.0}


def test_the_distance_to_a_teacher_counts_the_frames_of_a_clip_and_no_others(prepared_samples):
    features = FeatureSet(prepared_samples)
    targets = [np.array([1, 2])] * len(features.clips)
    arrays = features.collate([0, 3], targets, np.random.default_rng(0), undisturbed=True)
    batch = to_batch(arrays, torch.device("cpu"))
    assert torch.equal(batch.x, batch.undisturbed)  # nothing is drawn in a set without augmentation
    teacher = build("tcn", SIZES["tiny"]["tcn"]).eval().requires_grad_(False)
    aim, _, lengths = run_offline(teacher, batch, aux=False)
    assert float(teacher_loss(aim, lengths, batch, teacher)) == pytest.approx(0, abs=1e-3)
    other = torch.randn_like(aim).log_softmax(-1)
    expected = sum((a.exp() * (a - b))[:n].sum() for a, b, n in zip(aim, other, lengths))
    assert float(teacher_loss(other, lengths, batch, teacher)) == pytest.approx(float(expected), rel=1e-4)


def test_a_teacher_of_other_tokens_is_refused(tmp_path, prepared_samples):
    final = Trainer(config_for(tmp_path / "first", prepared_samples, tokens="characters", passes=1)).run()
    with pytest.raises(TrainingError, match="need a teacher with the run's 40 tokens, have 29"):
        Trainer(config_for(tmp_path / "next", prepared_samples, teacher=str(final)))
