"""Training samples straight from shards: which images, in which order, by whom, and the loader of their batches."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from ccr_lightning.data.dataset import TrainSample, augmentation_seed, choose_captions
from ccr_lightning.data.pixels import EncodedPicture
from ccr_lightning.data.sampler import draw_languages
from ccr_lightning.data.seeding import derived_seed
from ccr_lightning.data.sources.webdataset import Shard, ShardIndex, WebDatasetShards, read_samples
from ccr_lightning.data.transforms import ImageTransform
from ccr_lightning.data.workers import end_with_this_process
from ccr_lightning.errors import CCRError
from ccr_lightning.types import Batch, ImageCaptions

_T = TypeVar("_T")


class ShardSample(NamedTuple):
    """An image of the shards, still encoded."""

    row: int  # its number in all shards together
    record: ImageCaptions


class ShardBatches:
    """Batches of images from shards, an equal number on each rank, in an order that seed and epoch determine.

    In each epoch the shards are put into a random order, and the row of their images is cut into equal shares: one for
    each process that loads batches (``workers`` on each of ``world_size`` ranks). Each reads its share from beginning
    to end, and mixes it in a buffer. So each image is in an epoch at most once, and all ranks have the same number of
    steps. Fewer than batch size times processes images, those at the end of the row, are left out, other ones in each
    epoch. Images without a caption in ``languages`` are passed over, as in a store.

    Where a share begins within a shard, the shard's beginning is read and thrown away. So is all that was read before
    where an epoch is resumed in its middle; nothing of it is decoded.

    Another number of ranks or workers, another batch size or buffer gives another order.

    Args:
        index: The shards.
        languages: All K languages.
        batch_size: Images per batch and rank.
        seed: Seed of the order.
        rank: This process.
        world_size: Number of processes that train.
        workers: Number of processes that load batches for each of them.
        buffer: Images among which each of those draws the next.
        start: Epoch and batch at which an interrupted run goes on; other epochs start at batch 0.
        reshuffle: Whether each epoch has an order of its own; without it all repeat epoch 0.

    Raises:
        CCRError: There are fewer shards than processes that load, or too few images for one batch of each.
    """

    def __init__(
        self,
        index: ShardIndex,
        languages: Sequence[str],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 1,
        buffer: int = 1000,
        start: tuple[int, int] = (0, 0),
        reshuffle: bool = True,
    ) -> None:
        processes = world_size * workers
        if len(index.shards) < processes:
            raise CCRError(
                f"{index.folder} has {len(index.shards)} shards, fewer than the {processes} processes that load them "
                f"({workers} on each of {world_size} devices); lower num_workers, or write smaller shards."
            )
        self.index = index
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.workers = workers
        self.buffer = buffer
        self.start = start
        self.reshuffle = reshuffle
        self.epoch = 0
        self._source = WebDatasetShards({"train": str(index.folder)}, languages)
        self._counts = np.array([self._usable_images(shard) for shard in index.shards])
        self.size = int(self._counts.sum())
        self._of_each = self.size // (processes * batch_size)  # batches
        if not self._of_each:
            raise CCRError(
                f"{index.folder} has {self.size} images, too few for a batch of {batch_size} of each of {processes} "
                f"processes that load them ({workers} on each of {world_size} devices); lower batch_size."
            )

    @property
    def sampler(self) -> ShardBatches:
        """Itself: Lightning tells the epoch to the ``sampler`` of a batch sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._of_each * self.workers

    def of_worker(self, worker: int) -> Iterator[tuple[int, list[ShardSample]]]:
        """Yield step and batch, of the steps that a loader takes from its process ``worker`` in turn with the others.

        The process that loads a share changes where an epoch is resumed, as loaders begin with their first.
        """
        first = (self.start[1] if self.epoch == self.start[0] else 0) + worker
        share = self._share(self.rank * self.workers + first % self.workers, self.shuffle_epoch)
        batches = iter(lambda: list(islice(share, self.batch_size)), [])
        yield from zip(
            range(first, len(self), self.workers), islice(batches, first // self.workers, None), strict=False
        )

    @property
    def shuffle_epoch(self) -> int:
        """The epoch whose draws are used."""
        return self.epoch if self.reshuffle else 0

    def _share(self, number: int, epoch: int) -> Iterator[ShardSample]:
        order = np.random.default_rng(derived_seed("shards", self.seed, epoch)).permutation(len(self._counts))
        ends = np.cumsum(self._counts[order])
        size = self._of_each * self.batch_size
        first = int(np.searchsorted(ends, number * size, side="right"))
        skipped = int(number * size - (ends[first] - self._counts[order[first]]))
        images = chain.from_iterable(map(self._read, order[first:].tolist()))
        rng = random.Random(derived_seed("buffer", self.seed, epoch, number))
        return mixed(islice(images, skipped, skipped + size), self.buffer, rng)

    def _read(self, number: int) -> Iterator[ShardSample]:
        shard, found = self.index.shards[number], 0
        for sample in read_samples(shard.path, self._source.endings):
            record = self._source.record(sample, sample.key)
            if record is not None and record.captions:
                found += 1
                yield ShardSample(int(sample.key), record)
        if found != self._counts[number]:
            raise CCRError(f"{shard.path}: has {found} images instead of {self._counts[number]}; fetch it again.")

    def _usable_images(self, shard: Shard) -> int:
        languages = set(self._source.languages)
        return sum(count for names, count in shard.languages.items() if not languages.isdisjoint(names))


class ShardStream(IterableDataset[list[TrainSample]]):
    """Batches of training samples from shards; of an image and its row they are those of ``TrainSamples``.

    Args:
        batches: The images of each batch.
        transform: Its ``train`` is applied.
        languages: All K languages.
        languages_per_step: How many of them a step has; None takes all.
        required_languages: Languages that every step has.
        seed: Seed of all draws.
    """

    def __init__(
        self,
        batches: ShardBatches,
        transform: ImageTransform,
        languages: Sequence[str],
        languages_per_step: int | None,
        required_languages: Sequence[str],
        seed: int,
    ) -> None:
        self.batches = batches
        self.transform = transform
        self.languages = tuple(languages)
        self.languages_per_step = languages_per_step
        self.required_languages = tuple(required_languages)
        self.seed = seed

    def __iter__(self) -> Iterator[list[TrainSample]]:
        worker = get_worker_info()
        epoch = self.batches.shuffle_epoch
        for step, batch in self.batches.of_worker(0 if worker is None else worker.id):
            languages = draw_languages(
                self.languages, self.languages_per_step, self.required_languages, self.seed, epoch, step
            )
            yield [self._sample(image, languages, epoch) for image in batch]

    def _sample(self, image: ShardSample, languages: tuple[str, ...], epoch: int) -> TrainSample:
        row, record = image
        assert isinstance(record.image, bytes)  # as shards have it
        picture = EncodedPicture(record.image, record.where)
        pixels = self.transform.train(picture, augmentation_seed(self.seed, epoch, row))
        return TrainSample(pixels, row, choose_captions(record.captions, languages, self.seed, epoch, row), languages)


class ShardLoader:
    """A loader of training batches whose processes are started anew in each epoch, when Lightning has set it.

    Args:
        stream: The samples.
        collate: Makes a batch of them.
        settings: Of the :class:`~torch.utils.data.DataLoader`; ``num_workers`` is that of the batches.
    """

    def __init__(
        self, stream: ShardStream, collate: Callable[[list[TrainSample]], Batch], settings: dict[str, Any]
    ) -> None:
        self.stream = stream
        self.batch_sampler = stream.batches
        self._collate, self._settings = collate, settings

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        loader = DataLoader(self.stream, batch_size=None, collate_fn=self._collate, **self._settings)
        yield from end_with_this_process(iter(loader))

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the batches know where to start."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing."""


def mixed(items: Iterable[_T], size: int, rng: random.Random) -> Iterator[_T]:
    """Yield each item once, drawn among ``size`` of them that are in hand.

    Example:
        >>> list(mixed(range(8), 3, random.Random(0)))
        [1, 3, 0, 4, 2, 5, 7, 6]
    """
    in_hand: list[_T] = []
    for item in items:
        if len(in_hand) < size:
            in_hand.append(item)
            continue
        place = rng.randrange(size)
        yield in_hand[place]
        in_hand[place] = item
    rng.shuffle(in_hand)
    yield from in_hand
