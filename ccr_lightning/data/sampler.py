"""Which images, in which order, on which rank: functions of the seed, the epoch and the step, so that runs resume."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Sampler

from ccr_lightning.data.seeding import derived_seed
from ccr_lightning.errors import CCRError


class SampleKey(NamedTuple):
    """What a training sample depends on."""

    position: int  # among the training samples
    epoch: int
    step: int  # batch within the epoch, the same on every rank


class TrainBatchSampler(Sampler[list[SampleKey]]):
    """Shuffled batches of training images, an equal number on each rank, the incomplete last ones dropped.

    The order is a function of the seed and the epoch. The batches of all ranks at a step are together the batch that
    one process with ``world_size`` times the batch size would draw. Each image is in an epoch once, so that two
    captions of one image are never negatives of each other.

    With ``lengths``, images whose captions are about as long come into one batch, so that little padding is computed:
    of ``length_window`` batches the images are drawn, sorted by length, cut into batches, and these are shuffled.

    Args:
        size: Number of images.
        batch_size: Images per batch and rank.
        seed: Seed of the order.
        rank: This process.
        world_size: Number of processes.
        start: Epoch and batch at which an interrupted run goes on; other epochs start at batch 0.
        reshuffle: Whether each epoch has an order of its own; without it all repeat epoch 0.
        lengths: ``(size,)``, how long the captions of each image are, in any unit.
        length_window: Number of batches, of all ranks together, that are sorted at a time; 1 sorts none.

    Raises:
        CCRError: There are too few images for one batch on each rank.

    Example:
        >>> sampler = TrainBatchSampler(size=10, batch_size=4, seed=0)
        >>> [[key.position for key in batch] for batch in sampler]
        [[6, 5, 1, 2], [4, 0, 7, 3]]
        >>> sampler.set_epoch(1)
        >>> next(iter(sampler))[0]
        SampleKey(position=3, epoch=1, step=0)
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: tuple[int, int] = (0, 0),
        reshuffle: bool = True,
        lengths: np.ndarray[Any, np.dtype[np.int32]] | None = None,
        length_window: int = 1,
    ) -> None:
        if size < batch_size * world_size:
            raise CCRError(
                f"the training split has {size} images, too few for a batch of {batch_size} on each of {world_size} "
                "devices; lower batch_size."
            )
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start = start
        self.reshuffle = reshuffle
        self.lengths = lengths
        self.length_window = length_window
        self.epoch = 0

    @property
    def sampler(self) -> TrainBatchSampler:
        """Itself: Lightning tells the epoch to the ``sampler`` of a batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        first = self.start[1] if self.epoch == self.start[0] else 0
        epoch = self.epoch if self.reshuffle else 0
        order = self._order(epoch)
        for step in range(first, len(self)):
            begin = (step * self.world_size + self.rank) * self.batch_size
            yield [SampleKey(int(position), epoch, step) for position in order[begin : begin + self.batch_size]]

    def _order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        rng = np.random.default_rng(derived_seed("order", self.seed, epoch))
        order = rng.permutation(self.size)
        if self.lengths is None or self.length_window == 1:
            return order
        of_all = self.batch_size * self.world_size
        batches = order[: len(self) * of_all].reshape(-1, of_all)
        for begin in range(0, len(batches), self.length_window):
            window = batches[begin : begin + self.length_window]
            drawn = window.ravel()
            by_length = drawn[np.argsort(self.lengths[drawn], kind="stable")].reshape(window.shape)
            window[:] = rng.permuted(by_length[rng.permutation(len(window))], axis=1)
        return batches.ravel()


class ShardSampler(Sampler[int]):
    """Every ``world_size``-th item from ``rank`` on: each item on exactly one rank, none repeated.

    Example:
        >>> list(ShardSampler(5, rank=0, world_size=2)), list(ShardSampler(5, rank=1, world_size=2))
        ([0, 2, 4], [1, 3])
    """

    def __init__(self, size: int, rank: int = 0, world_size: int = 1) -> None:
        self.items = range(rank, size, world_size)

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[int]:
        return iter(self.items)


@lru_cache(maxsize=1)  # every sample of a step asks
def draw_languages(
    languages: tuple[str, ...], count: int | None, required: tuple[str, ...], seed: int, epoch: int, step: int
) -> tuple[str, ...]:
    """Draw the languages of one training step, the same on every rank, in their configured order.

    Args:
        languages: All K languages.
        count: How many to draw; None takes all.
        required: Languages that are always among them.
        seed: Seed of the draw.
        epoch: Epoch of the step.
        step: Batch within the epoch.

    Example:
        >>> draw_languages(("en", "de", "ja", "zh"), 2, ("en",), seed=0, epoch=0, step=0)
        ('en', 'zh')
    """
    if count is None:
        return languages
    others = [language for language in languages if language not in required]
    rng = random.Random(derived_seed("languages", seed, epoch, step))
    drawn = {*required, *rng.sample(others, count - len(required))}
    return tuple(language for language in languages if language in drawn)
