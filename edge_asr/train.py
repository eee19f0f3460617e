"""Train an encoder: CTC, then CTC-CRF; Muon for the matrices; resumable at any step; one process or many (torchrun).

edge-asr train --encoder tcn --size small --manifest train.jsonl --dev dev.jsonl --noise noise/ --out runs/tcn-small
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from edge_asr.batches import BatchPlan, loader_of, target_ids
from edge_asr.checkpoint import candidate_weights, load_checkpoint, save_checkpoint
from edge_asr.corpora import resolve_manifest
from edge_asr.crf import token_trigram
from edge_asr.data import FeatureSet, prepare
from edge_asr.encoders import SIZES, build, config_of
from edge_asr.errors import CheckpointError, TrainingError
from edge_asr.initial_weights import moved_layers, silence, teacher_of, weights_of
from edge_asr.losses import dev_scores, to_batch, total_loss
from edge_asr.machine import describe_machine
from edge_asr.memory import give_back_heap
from edge_asr.tokens import Lexicon, TokenTable
from edge_asr.train_config import TrainConfig, build_parser, config_from

# --- the machine ---------------------------------------------------------------------------------------------------


def choose_precision(device: torch.device, wanted: str = "auto") -> tuple[torch.dtype, str]:
    """The faster of fp32 and bf16 for one matrix product of the size training does; and a line that says why."""
    if wanted in ("fp32", "bf16"):
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[wanted], f"{wanted}, as asked"
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((6144, 768), (512, 768)))
        best = float("inf")
        for _ in range(6):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            F.linear(a, b)
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - start)
        rates[dtype] = 2 * 6144 * 768 * 512 / best / 1e9
    dtype = torch.bfloat16 if rates[torch.bfloat16] > 1.2 * rates[torch.float32] else torch.float32
    return dtype, (
        f"{'bf16' if dtype is torch.bfloat16 else 'fp32'}: products run at {rates[torch.bfloat16]:.0f} GFLOP/s "
        f"in bf16, {rates[torch.float32]:.0f} in fp32"
    )


# --- optimiser --------------------------------------------------------------------------------------------------------


def make_optimisers(encoder: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon (Jordan 2024) for the matrices inside, AdamW for vectors, biases and output layers."""
    matrices = [
        p
        for n, p in encoder.named_parameters()
        if p.ndim == 2 and "output" not in n and "bias" not in n and min(p.shape) > 8
    ]
    chosen = {id(p) for p in matrices}
    others = [p for p in encoder.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(matrices, lr=config.muon_lr, momentum=0.95, nesterov=True, weight_decay=config.weight_decay),
        torch.optim.AdamW(others, lr=config.adam_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate_factor(progress: float, warm_up: float) -> float:
    """Linear up over `warm_up`, then linear down to zero at the end (progress 0…1)."""
    return min(progress / warm_up, (1 - progress) / (1 - warm_up)) if warm_up else 1 - progress


# --- the run -------------------------------------------------------------------------------------------------------


class Trainer:
    """One run in folder `config.out`: last.pt to resume from, best-*.pt per pass, final.pt, log.jsonl."""

    def __init__(self, config: TrainConfig) -> None:
        torch.set_flush_denormal(True)  # a product of denormals takes 200 times as long
        self.rank, self.n_ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device = (
            torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            if torch.cuda.is_available()
            else torch.device("cpu")
        )
        if self.n_ranks > 1 and not distributed.is_initialized():
            distributed.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        torch.set_num_threads(config.n_threads or max(1, (os.cpu_count() or 1) // self.n_ranks))
        torch.manual_seed(config.seed)  # all ranks start from the same weights
        self.config, self.out = config, Path(config.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.dtype, why = choose_precision(self.device, config.precision)
        self.say(f"precision {why}; {torch.get_num_threads()} threads, {self.n_ranks} processes, {self.device}")

        self.tokens = TokenTable.characters() if config.tokens == "characters" else TokenTable.phones()
        lexicon = Lexicon.characters() if config.tokens == "characters" else Lexicon.cmudict()
        if config.lexicon:
            lexicon.update(config.lexicon)
        self.train_set = FeatureSet(self.cached(config.manifest), config.augment)
        self.dev_set = FeatureSet(self.cached(config.dev)) if config.dev else None
        self.targets = target_ids(self.train_set, lexicon, self.tokens)
        self.dev_targets = target_ids(self.dev_set, lexicon, self.tokens) if self.dev_set else []
        self.trigram = token_trigram(self.targets, len(self.tokens))

        options = {"n_tokens": len(self.tokens), **SIZES[config.size][config.encoder], **config.encoder_options}
        self.encoder = build(config.encoder, options).to(self.device)
        torch.manual_seed(config.seed + self.rank)
        self.initial: dict[str, Tensor] = {}  # weights that came from elsewhere
        if config.init:
            self.start_from(weights_of(config.init))
        self.encoder.layers[0].mean.copy_(torch.from_numpy(self.train_set.mean))
        self.encoder.layers[0].inverse_std.copy_(torch.from_numpy(1 / self.train_set.std))
        self.teacher = None
        if config.teacher:
            self.teacher = teacher_of(config.teacher, self.tokens).to(self.device)
        self.optimisers = make_optimisers(self.encoder, config)
        self.averaged = {k: v.detach().clone() for k, v in self.encoder.state_dict().items()}
        self.epoch = self.step_in_epoch = self.step = self.n_skipped = 0
        self.heard_s = self.spent_s = 0.0
        self.averages_weights = self.n_ranks > 1 and config.average_every_s > 0
        self.agreed_s, self.agreed_at = 0.0, time.monotonic()  # heard by all when weights were last averaged
        self.dev_log: list[dict[str, float]] = []
        self.total_s = config.passes * sum(clip.duration for clip in self.train_set.clips)
        if (self.out / "last.pt").is_file():
            self.resume(load_checkpoint(self.out / "last.pt"))

    def say(self, text: str) -> None:
        if self.rank == 0:
            from tqdm import tqdm

            tqdm.write(text, file=sys.stderr)

    def cached(self, given: str) -> Path:
        """The feature cache of a manifest, a corpus (NAME:ROOT:SUBSET) or one prepared before; made where missing."""
        if (Path(given) / "clips.jsonl").is_file():
            return Path(given)
        folder = self.out.parent / "cache"
        cache = folder / "-".join(re.findall(r"[\w.]+", Path(given).stem))
        if self.rank == 0 and not (cache / "clips.jsonl").is_file():
            manifest = resolve_manifest(given, folder)
            prepare(manifest, cache, self.config.noise or None, n_workers=os.cpu_count() or 1, seed=self.config.seed)
        if self.n_ranks > 1:
            distributed.barrier()
        return cache

    # -- state

    def checkpoint(self) -> dict[str, Any]:
        return {
            "config": asdict(self.config),
            "encoder": self.config.encoder,
            "encoder_config": config_of(self.encoder),
            "tokens": self.tokens.symbols,
            "weights": self.encoder.state_dict(),
            "averaged": self.averaged,
            "optimisers": [o.state_dict() for o in self.optimisers],
            "epoch": self.epoch,
            "step": self.step,
            "step_in_epoch": self.step_in_epoch,
            "heard_s": self.heard_s,
            "spent_s": self.spent_s,
            "dev_log": self.dev_log,
            "machine": describe_machine(),
            "n_processes": self.n_ranks,
            "torch_rng": torch.get_rng_state(),
        }

    def start_from(self, weights: dict[str, Tensor]) -> None:
        """Copy the weights whose names and shapes agree with this encoder's, layers as `init_layers` has them."""
        own = self.encoder.state_dict()
        if self.config.init_layers:
            weights = moved_layers(weights, self.config.init_layers, len(self.encoder.layers))
            for layer, source in zip(self.encoder.layers, self.config.init_layers):
                if source < 0:
                    silence(layer)
        self.initial = {n: w.to(own[n]) for n, w in weights.items() if n in own and own[n].shape == w.shape}
        self.encoder.load_state_dict(self.initial, strict=False)
        self.say(f"started from {len(self.initial)} of {len(own)} weights of {self.config.init}")

    def resume(self, saved: dict[str, Any]) -> None:
        if saved["encoder_config"] != config_of(self.encoder) or saved["tokens"] != self.tokens.symbols:
            raise CheckpointError(
                f"need a checkpoint of {config_of(self.encoder)}, have {saved['encoder_config']} in "
                f"{self.out}; choose another --out"
            )
        self.encoder.load_state_dict(saved["weights"])
        self.averaged = {k: v.to(self.device) for k, v in saved["averaged"].items()}
        for optimiser, state in zip(self.optimisers, saved["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        for name in ("epoch", "step", "step_in_epoch", "heard_s", "spent_s", "dev_log"):
            setattr(self, name, saved[name])
        torch.set_rng_state(saved["torch_rng"])
        self.say(f"resumed at step {self.step}, {self.heard_s / 3600:.1f} h heard")

    # -- training

    @property
    def progress(self) -> float:
        return min(1.0, self.heard_s / self.total_s)

    def step_on(self, arrays: dict[str, np.ndarray]) -> dict[str, float]:
        """One optimiser step; returns the parts of the loss."""
        batch = to_batch(arrays, self.device)
        crf = self.trigram if self.progress >= self.config.crf_from else None
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
            loss, parts = total_loss(
                self.encoder,
                batch,
                crf,
                self.config.ctc_weight,
                self.config.aux_weight,
                self.config.consistency_weight,
                self.teacher,
                self.config.teacher_weight,
            )
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for p in self.encoder.parameters() if p.grad is not None]
        heard = float(arrays["n_frames"].sum()) / 100
        if self.n_ranks > 1 and not self.averages_weights:
            heard = self.mean_over_ranks(parameters, heard) * self.n_ranks
        norm = nn.utils.clip_grad_norm_(parameters, 5.0)
        if torch.isfinite(norm):
            factor = learning_rate_factor(self.progress, self.config.warm_up)
            for optimiser, peak in zip(self.optimisers, (self.config.muon_lr, self.config.adam_lr)):
                for group in optimiser.param_groups:
                    group["lr"] = peak * factor
                optimiser.step()
            decay = min(self.config.ema, (self.step + 1) / (self.step + 10))
            with torch.no_grad():
                for name, value in self.encoder.state_dict().items():
                    self.averaged[name].lerp_(value, 1 - decay)
        else:
            self.n_skipped += 1
            if self.n_skipped > 20:
                raise TrainingError("need finite gradients, have 21 steps without; lower --muon-lr and --adam-lr")
        self.step += 1
        self.heard_s += heard
        return parts

    def mean_over_ranks(self, parameters: list[nn.Parameter], heard: float) -> float:
        """Average the gradients in place, and `heard`: ranks must agree on progress, or one stops alone."""
        flat = torch.cat([*(p.grad.reshape(-1) for p in parameters), torch.tensor([heard], device=self.device)])
        distributed.all_reduce(flat)
        *gradients, mean = flat.div_(self.n_ranks).split([*(p.numel() for p in parameters), 1])
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient.view_as(parameter)
        return float(mean)

    def average_over_ranks(self) -> None:
        """Replace every rank's weights by their mean, by the audio each has heard since the last time (local SGD).

        Ranks need not be equally fast, and exchange little: the optimisers' states stay their own.
        """
        share = self.heard_s - self.agreed_s
        values = list(self.encoder.parameters())
        flat = torch.cat([*(p.detach().reshape(-1) * share for p in values), torch.tensor([share])])
        distributed.all_reduce(flat)
        *sums, heard = flat.split([*(p.numel() for p in values), 1])
        with torch.no_grad():
            for value, total in zip(values, sums):
                value.copy_((total / heard).view_as(value))
        self.agreed_s = self.heard_s = self.agreed_s + float(heard)
        self.agreed_at = time.monotonic()

    def run(self) -> Path:
        """Train to the end (or from the last checkpoint on); returns the path of final.pt."""
        from tqdm import tqdm

        self.encoder.train()
        bar = tqdm(
            total=round(self.total_s / 3600, 1),
            initial=round(self.heard_s / 3600, 1),
            unit="h",
            smoothing=0.05,
            disable=self.rank > 0,
            mininterval=5,
        )
        started, saved_at = time.monotonic() - self.spent_s, time.monotonic()
        self.agreed_s, self.agreed_at = self.heard_s, time.monotonic()
        while self.progress < 1:
            give_back_heap()  # or the process that draws batches would keep a copy of it
            plan = BatchPlan(
                self.train_set, self.targets, self.config, self.epoch, self.step_in_epoch, self.rank, self.n_ranks
            )
            for arrays in loader_of(plan):
                parts = self.step_on(arrays)
                self.step_in_epoch += 1
                overdue = time.monotonic() - self.agreed_at > self.config.average_every_s
                if self.averages_weights and (overdue or self.progress >= 1):
                    self.average_over_ranks()
                self.spent_s = time.monotonic() - started
                bar.update(round(self.heard_s / 3600, 2) - bar.n)
                bar.set_postfix({k: f"{v:.3f}" for k, v in parts.items()}, refresh=False)
                if time.monotonic() - saved_at > self.config.checkpoint_every_s:
                    give_back_heap()  # batches differ in length, and what is free between them grows to gigabytes
                    if self.rank == 0:
                        save_checkpoint(self.out / "last.pt", self.checkpoint())
                    saved_at = time.monotonic()
                if self.progress >= 1:
                    break
            self.epoch, self.step_in_epoch = self.epoch + 1, 0
            if self.rank == 0:
                self.end_of_pass(parts)
        if self.rank == 0:
            self.finish()
        return self.out / "final.pt"

    def score(self, weights: dict[str, Tensor]) -> dict[str, float]:
        """Scores on the dev set with other weights than the current ones."""
        kept = {k: v.clone() for k, v in self.encoder.state_dict().items()}
        self.encoder.load_state_dict(weights)
        scores = dev_scores(self.encoder, self.dev_set, self.dev_targets, self.trigram, self.dtype, self.device)
        self.encoder.load_state_dict(kept)
        return scores

    def end_of_pass(self, parts: dict[str, float]) -> None:
        row = {
            "epoch": self.epoch,
            "step": self.step,
            "heard_h": round(self.heard_s / 3600, 2),
            "spent_s": round(self.spent_s),
            "x_real_time": round(self.heard_s / max(self.spent_s, 1e-9), 1),
            **{k: round(v, 4) for k, v in parts.items()},
        }
        if self.dev_set:
            row |= self.score(self.averaged)
        self.dev_log.append(row)
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")
        self.say(json.dumps(row))
        save_checkpoint(
            self.out / f"pass-{self.epoch}.pt", {k: v for k, v in self.checkpoint().items() if k != "optimisers"}
        )
        for old in [r["epoch"] for r in self.best_passes()[self.config.best_of :]]:
            (self.out / f"pass-{old}.pt").unlink(missing_ok=True)
        save_checkpoint(self.out / "last.pt", self.checkpoint())

    def best_passes(self) -> list[dict[str, float]]:
        """Rows of the log, best first: by the loss that the graph search sees, or the latest where there is no dev set.

        Greedy token errors would choose wrongly: CTC-CRF leaves to the language model what it knows.
        """
        return sorted(self.dev_log, key=lambda r: (r.get("dev_crf", 0.0), -r["epoch"]))

    def finish(self) -> None:
        """final.pt: the best on the dev set of the candidates; without one, the last."""
        candidates = {"last": self.averaged}
        if self.dev_set:
            files = [self.out / f"pass-{r['epoch']}.pt" for r in self.best_passes()[: self.config.best_of]]
            initial = {} if self.config.init_layers else self.initial
            candidates = candidate_weights(self.averaged, [f for f in files if f.is_file()], initial)
        losses = {name: self.score(w)["dev_crf"] if len(candidates) > 1 else 0.0 for name, w in candidates.items()}
        chosen = min(losses, key=losses.get)
        if len(candidates) > 1:
            self.say("dev CTC-CRF loss: " + ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items()))
        saved = {key: value for key, value in self.checkpoint().items() if key not in ("optimisers", "weights")}
        save_checkpoint(self.out / "final.pt", {**saved, "averaged": candidates[chosen], "chosen": chosen})


def main(argv: list[str] | None = None) -> int:
    """Entry of `edge-asr train`; returns an exit code."""
    trainer = Trainer(config_from(build_parser().parse_args(argv)))
    final = trainer.run()
    trainer.say(f"done: {final}")
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return 0


if __name__ == "__main__":  # torchrun -m edge_asr.train
    sys.exit(main())
