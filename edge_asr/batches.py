"""The batches of a training run: target tokens of each clip, the plan of each pass, the process that draws them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from edge_asr.data import FeatureSet
from edge_asr.tokens import Lexicon, TokenTable
from edge_asr.train_config import TrainConfig


def target_ids(features: FeatureSet, lexicon: Lexicon, tokens: TokenTable) -> list[np.ndarray]:
    """Token ids of each clip's text: the pronunciations that it names, else the first of every word."""
    targets = []
    for clip in features.clips:
        said = [p.split() for p in clip.pronunciations] or (lexicon.pronunciations(w)[0] for w in clip.text.split())
        targets.append(np.array([i for phones in said for i in tokens.ids(phones)], np.int64))
    return targets


class BatchPlan(torch.utils.data.Dataset):
    """Batches of one pass from `first` on; each is drawn from its own seed, so that a resumed run repeats nothing."""

    def __init__(
        self,
        features: FeatureSet,
        targets: list[np.ndarray],
        config: TrainConfig,
        epoch: int,
        first: int,
        rank: int,
        n_ranks: int,
    ) -> None:
        self.features, self.targets, self.seed = features, targets, (config.seed, epoch, rank)
        self.n_views, self.undisturbed = 2 if config.consistency_weight else 1, bool(config.teacher)
        if config.average_every_s:  # ranks of unequal speed: each hears all the data, in an order of its own
            rng, rank, n_ranks = np.random.default_rng((config.seed, epoch, rank)), 0, 1
        else:
            rng = np.random.default_rng((config.seed, epoch))
        self.plan = list(features.batches(targets, config.batch_s / self.n_views, rng, rank=rank, n_ranks=n_ranks))
        self.first = first

    def __len__(self) -> int:
        return len(self.plan) - self.first

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng((*self.seed, self.first + i))
        return self.features.collate(self.plan[self.first + i], self.targets, rng, self.n_views, self.undisturbed)


def loader_of(plan: BatchPlan) -> Iterator[dict[str, np.ndarray]]:
    """One worker process with one thread: torch operators beside the training threads would fight for the cores."""
    return iter(
        torch.utils.data.DataLoader(plan, batch_size=None, num_workers=1, prefetch_factor=6, collate_fn=lambda x: x)
    )
