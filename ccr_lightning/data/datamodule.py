"""The data module: a source, a tokeniser and a transform in, loaders of batches out."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import lightning
import torch
from torch.utils.data import DataLoader, Dataset

from ccr_lightning.data.build import MAX_BAD_FRACTION, BadRecords, build_store, check_max_bad_fraction, default_policy
from ccr_lightning.data.cache import cache_folder
from ccr_lightning.data.collate import collate_captions, collate_images, collate_training
from ccr_lightning.data.dataset import CaptionSamples, ImageSamples, TrainSamples
from ccr_lightning.data.open_clip_inputs import OpenClipTokenizer
from ccr_lightning.data.sampler import ShardSampler, TrainBatchSampler
from ccr_lightning.data.shard_stream import ShardBatches, ShardLoader, ShardStream
from ccr_lightning.data.sources.protocol import Source
from ccr_lightning.data.sources.webdataset import ShardIndex, WebDatasetShards, read_index
from ccr_lightning.data.store import LEFT_OUT, Store, open_store, read_left_out, store_folder
from ccr_lightning.data.store_reader import StoreReader
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.data.transforms import ImageTransform
from ccr_lightning.data.workers import begin_worker, end_with_this_process
from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write, load_json, settings_sha256
from ccr_lightning.types import Batch, CaptionBatch, ImageBatch

_Batch = TypeVar("_Batch", Batch, ImageBatch, CaptionBatch)

_SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}


class CaptionDataModule(lightning.LightningDataModule):
    """Loads the captioned images of a source for training and retrieval evaluation.

    Loaders yield images as bytes, which a trainer normalises on the device (:meth:`normalize` does it elsewhere).
    Training batches are :class:`~ccr_lightning.types.Batch`. Validation, test and prediction have two loaders: first
    the images, each once (:class:`~ccr_lightning.types.ImageBatch`), then the captions, sorted by language
    (:class:`~ccr_lightning.types.CaptionBatch`); with several devices each has its share, nothing is repeated. Image
    ids are rows of the split, and :meth:`image_names` gives them their names.

    The order of images is a function of the seed and the epoch, augmentation of seed, epoch and image, the languages of
    a step of seed, epoch and step. A run that resumes in mid-epoch goes on with the next batch; the devices may be more
    or fewer, as long as their batches are together as large as before.

    Images without a caption in ``languages`` are left out of training. In evaluation they are loaded like all others,
    but they are in no gallery: that of a language holds the images with a caption in it.

    Each split is written to ``cache_dir`` once. A tokeniser without ``name_or_path`` is trained on the training
    captions when fitting, kept in ``cache_dir`` too, and travels in every checkpoint.

    With ``train_shards`` training reads WebDataset shards instead of a store, for storage on which random access is
    slow. Images are then mixed less: shards are shuffled, and images within ``shuffle_buffer``; the order depends on
    the number of devices and on ``num_workers`` too. In each epoch fewer than ``batch_size`` images for each process
    that loads are left out. A run that resumes in mid-epoch first reads what came before once more, and goes on with
    the next batch only if devices, workers, batches and buffer are the same. Image ids are numbers of the images in the
    shards. Evaluation always reads stores. See docs/shards.md.

    Args:
        source: Where images and captions come from.
        tokenizer: By default ``CaptionTokenizer()``, trained on the training captions.
        transform: By default ``ImageTransform()``, 224 pixels.
        languages: Languages to use, in the order of the K axis; by default the source's.
        batch_size: Training images per device.
        eval_batch_size: Images, or captions, per device in evaluation.
        languages_per_step: Languages of each training step, drawn at random; by default all.
        required_languages: Languages that are always among those drawn.
        length_window: Batches whose images are sorted by the length of their captions before they are cut into batches
            again: some tens spare padding, and make the captions that an image is compared with alike in length; 1
            leaves batches to chance.
        num_workers: Processes that load batches; 0 loads them in the training process.
        seed: Seed of order, augmentation and draws.
        train_shards: Folder of the shards to train on, as ``ccr data shards`` writes it; the train split of ``source``
            is then not read.
        shuffle_buffer: Encoded images that each process holds to draw from, with ``train_shards``.
        bad_records: What to do with a record that cannot be parsed or whose image cannot be decoded: ``error`` stops,
            ``skip`` leaves it out, and lists it in the store's ``left_out.jsonl``. By default training skips, and
            evaluation, whose numbers would change, stops.
        max_bad_fraction: Share of bad records, in [0, 1], above which skipping stops too.
        cache_dir: Folder of the stores; by default ``$CCR_CACHE_DIR`` or the user's cache folder.

    Attributes:
        accepts_changes: Whether a run that resumes in mid-epoch may go on in another order, or with batches of another
            size: the epoch then ends with what is left of it in the new order.

    Raises:
        CCRError: A setting is out of range, a language or a split does not exist, an image cannot be read, or a run
            resumes in mid-epoch in another order or with batches of another size, which nobody has accepted.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: CaptionTokenizer | None = None,
        transform: ImageTransform | None = None,
        languages: Sequence[str] | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        languages_per_step: int | None = None,
        required_languages: Sequence[str] = (),
        length_window: int = 1,
        num_workers: int = 0,
        seed: int = 0,
        train_shards: str | None = None,
        shuffle_buffer: int = 1000,
        bad_records: BadRecords | None = None,
        max_bad_fraction: float = MAX_BAD_FRACTION,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 2:
            raise CCRError(f"batch_size is {batch_size}, but a batch of one image has no negatives; give 2 or more.")
        if eval_batch_size < 1 or num_workers < 0:
            raise CCRError(
                f"eval_batch_size is {eval_batch_size} and num_workers {num_workers}; give at least 1 and at least 0."
            )
        if length_window < 1:
            raise CCRError(f"length_window is {length_window}; give a number of batches, 1 for no sorting.")
        if shuffle_buffer < 1:
            raise CCRError(f"shuffle_buffer is {shuffle_buffer}; give a number of images, 1 for no mixing.")
        if train_shards is not None and length_window > 1:
            raise CCRError("length_window sorts the images of a store; leave it at 1 with train_shards.")
        check_max_bad_fraction(max_bad_fraction)
        self.allow_zero_length_dataloader_with_multiple_devices = True  # a rank may have nothing to evaluate
        self.source = source
        self.tokenizer = CaptionTokenizer() if tokenizer is None else tokenizer
        self.transform = ImageTransform() if transform is None else transform
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.languages_per_step = languages_per_step
        self.required_languages = tuple(required_languages)
        self.length_window = length_window
        self.num_workers = num_workers
        self.seed = seed
        self.train_shards = train_shards
        self.shuffle_buffer = shuffle_buffer
        self.bad_records = bad_records
        self.max_bad_fraction = max_bad_fraction
        self._languages = None if languages is None else tuple(languages)
        self._cache_dir = cache_dir
        self._stores: dict[str, Store] = {}
        self._outlined: dict[str, str] = {}
        self._shards: ShardIndex | None = None
        self._saved_global_batch: int | None = None
        self._saved_order: str | None = None
        self.accepts_changes = False

    @property
    def languages(self) -> tuple[str, ...]:
        """The K languages, in order."""
        available = self.source.languages
        chosen = available if self._languages is None else self._languages
        if not chosen:
            raise CCRError("languages is empty; name at least one, or leave it out for all of the source's.")
        self._check_languages("languages", chosen, available)
        return chosen

    def _check_step_languages(self) -> None:
        """Of training: an evaluation of other languages has no steps."""
        self._check_languages("required_languages", self.required_languages, self.languages)
        count, most = self.languages_per_step, len(self.languages)
        if count is not None and not max(1, len(self.required_languages)) <= count <= most:
            least = f"{len(self.required_languages)}, for required_languages," if self.required_languages else "1"
            raise CCRError(
                f"data.languages_per_step is {count}, and there are {most} languages: give at least {least} and at "
                f"most {most}, or null for all of them."
            )

    def image_names(self, split: str) -> list[str]:
        """Return the image id in the source of each row of a split's store."""
        if split == "train" and self.train_shards is not None:
            raise CCRError("train_shards is read without a store; the .json of image 42 is 000000042.json in a shard.")
        return self._store(split).image_names

    def gallery_sizes(self, split: str) -> tuple[int, dict[str, int]]:
        """Return how many images a split has, and how many of them have a caption, by language."""
        manifest = self._store(split).manifest
        described = manifest["images_with_caption"]
        return manifest["images"], {language: described.get(language, 0) for language in self.languages}

    def left_out(self, split: str) -> dict[str, int]:
        """Return how many bad records and blank captions the split had."""
        manifest = self._store(split).manifest
        return {name: manifest[name] for name in ("bad_records", "blank_captions")}

    def list_of_left_out(self, split: str) -> tuple[Path, list[dict[str, str]]]:
        """Return the file that lists what a split had and its store or shards have not, and its entries."""
        if split == "train" and self.train_shards is not None:
            return Path(self.train_shards) / LEFT_OUT, read_left_out(Path(self.train_shards))
        return self._store(split).folder / LEFT_OUT, read_left_out(self._store(split).folder)

    def validated_on(self) -> dict[str, Any]:
        """Return what scores of the validation split depend on beside the weights, in a few plain types."""
        return {
            "split": self._outline_of_store("val"),
            "languages": list(self.languages),
            "max_tokens": self._ready_tokenizer().max_tokens,
            "transform": settings_sha256(self.transform.evaluation_settings),
            **self._part_that_is_validated(),
        }

    def made_of(self, split: str) -> dict[str, Any]:
        """Return what an evaluation of the split depends on: hashes and settings of data, tokeniser and transform."""
        store, tokenizer = self._store(split), self._ready_tokenizer()
        transform = self.transform.evaluation_settings
        return {
            "data": {"images": len(store), "sha256": store.content_sha256(self.languages)},
            "tokenizer": {"max_tokens": tokenizer.max_tokens, "sha256": settings_sha256(tokenizer.identity)},
            "transform": {**transform, "sha256": settings_sha256(transform)},
        }

    def prepare_data(self) -> None:
        """Build the stores of the stage, all of them without a trainer, and train the tokeniser if that is needed."""
        stage = None if self.trainer is None or self.trainer.state.fn is None else self.trainer.state.fn.value
        if stage in (None, "fit"):
            self._check_step_languages()
        for split in self._splits(stage):
            if split == "train" and self.train_shards is not None:
                self._shard_index()
                continue
            bad_records = self.bad_records or default_policy(split)
            build_store(self.source, split, self._store_folder(split), bad_records, self.max_bad_fraction)
        if stage in (None, "fit") and not self.tokenizer.is_ready and not self._tokenizer_file().is_file():
            self._train_tokenizer()

    def setup(self, stage: str | None = None) -> None:
        """Open the stores of the stage."""
        for split in self._splits(stage):
            counts = self._caption_counts(split)
            missing = [language for language in self.languages if not counts.get(language)]
            if missing:
                named = ", ".join(map(repr, missing))
                raise CCRError(
                    f"the split {split!r} of {self.source.name} has no caption in {named}: name the others in "
                    "data.languages, or mend the captions."
                )

    def train_dataloader(self) -> DataLoader[Batch] | ShardLoader:
        """Return the loader of training batches, which starts where an interrupted epoch stopped."""
        if self.train_shards is not None:
            return self._shard_loader()
        store = self._store("train")
        rank, world_size = self._rank_and_world_size()
        samples = TrainSamples(
            store, self.transform, self.languages, self.languages_per_step, self.required_languages, self.seed
        )
        batches = TrainBatchSampler(
            len(samples),
            self.batch_size,
            self.seed,
            rank,
            world_size,
            start=self._start(),
            reshuffle=self._reshuffle(),
            lengths=samples.text_lengths() if self.length_window > 1 else None,
            length_window=self.length_window,
        )
        collate = partial(collate_training, tokenizer=self._ready_tokenizer())
        return _ResumableLoader(
            samples,
            batch_sampler=batches,
            collate_fn=collate,
            persistent_workers=self.num_workers > 0,
            **self._loader_settings(),
        )

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Return the loaders of validation images and captions."""
        return self._eval_loaders("val")

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """Return the loaders of test images and captions."""
        return self._eval_loaders("test")

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        """Return the loaders of test images and captions."""
        return self._eval_loaders("test")

    def reader(self, split: str, prepare: Callable[[Any], Any]) -> StoreReader:
        """Return what reads chosen images and captions of an evaluated split once more.

        Args:
            split: ``val`` or ``test``.
            prepare: Applied to each batch, which is on the CPU, its images as bytes: see :meth:`normalize`.
        """
        store = self._store(split)
        images, captions = ImageSamples(store, self.transform), CaptionSamples(store, self.languages)
        return StoreReader(images, captions, self._ready_tokenizer(), prepare, self._loader_settings())

    def on_after_batch_transfer(self, batch: _Batch, dataloader_idx: int) -> _Batch:
        """Normalise the images, which travel to the device as bytes."""
        return self.normalize(batch)

    def normalize(self, batch: _Batch) -> _Batch:
        """Return a batch of a loader as the model expects it, its images normalised; a trainer does this itself."""
        if isinstance(batch, CaptionBatch):
            return batch
        return batch._replace(images=self.transform.normalize(batch.images))

    def state_dict(self) -> dict[str, Any]:
        """Return the tokeniser, as plain types, how many images all devices take at a step, and which in what order."""
        state: dict[str, Any] = {"tokenizer": self.tokenizer.to_dict(), "global_batch": self._global_batch()}
        is_fitting = self.train_shards is not None or "train" in self._stores
        return {**state, "order": self._order_of_images(), "images": self._outlines()} if is_fitting else state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the checkpoint's tokeniser, since its weights belong to it, and where it was in the data."""
        self.use_tokenizer(state_dict["tokenizer"])
        self._saved_order = state_dict.get("order")
        self._saved_global_batch = state_dict.get("global_batch")  # None in checkpoints of earlier versions

    def use_tokenizer(self, state: dict[str, Any]) -> None:
        """Use the tokeniser that its ``to_dict`` described; ``max_tokens`` stays as configured."""
        state = {**state, "max_tokens": self.tokenizer.max_tokens}
        kind = OpenClipTokenizer if OpenClipTokenizer.wrote(state) else CaptionTokenizer
        self.tokenizer = kind.from_dict(state)

    def _splits(self, stage: str | None) -> tuple[str, ...]:
        if stage is None:  # of a source of a test split only, say, all there is
            return tuple(split for split in ("train", "val", "test") if split in self.source.splits)
        if stage == "fit" and self.trainer is not None and not self.trainer.limit_val_batches:
            return ("train",)
        return _SPLITS[stage]

    def _check_languages(self, name: str, asked: Sequence[str], available: Sequence[str]) -> None:
        unknown = [language for language in asked if language not in available]
        if unknown:
            raise CCRError(
                f"data.{name} has {unknown[0]!r}, but there are only {', '.join(available)}; choose among these."
            )
        if len(set(asked)) < len(asked):
            raise CCRError(f"{name} is {', '.join(asked)}; name each language once.")

    def _cache(self) -> Path:
        return cache_folder(self._cache_dir)

    def _store_folder(self, split: str) -> Path:
        return store_folder(self.source, split, self._cache())

    def _store(self, split: str) -> Store:
        if split not in self._stores:
            self._stores[split] = open_store(self._store_folder(split))
        return self._stores[split]

    def _caption_counts(self, split: str) -> dict[str, int]:
        if split == "train" and self.train_shards is not None:
            counts: dict[str, int] = self._shard_index().content["captions"]
            return counts
        return self._store(split).caption_counts()

    def _shard_index(self) -> ShardIndex:
        if self._shards is None:
            assert self.train_shards is not None
            self._shards = read_index(Path(self.train_shards))
        return self._shards

    def _shard_loader(self) -> ShardLoader:
        rank, world_size = self._rank_and_world_size()
        batches = ShardBatches(
            self._shard_index(),
            self.languages,
            self.batch_size,
            self.seed,
            rank,
            world_size,
            max(1, self.num_workers),
            self.shuffle_buffer,
            self._start(),
            self._reshuffle(),
        )
        stream = ShardStream(
            batches, self.transform, self.languages, self.languages_per_step, self.required_languages, self.seed
        )
        collate = partial(collate_training, tokenizer=self._ready_tokenizer())
        return ShardLoader(stream, collate, self._loader_settings())

    def _order_of_images(self) -> str:
        """What the order of images and the draws depend on besides the epoch; of a store, not the devices."""
        drawn = f"{', '.join(self.languages)}, seed {self.seed}"
        if self.languages_per_step is not None:
            drawn += f", {self.languages_per_step} languages a step with {', '.join(self.required_languages) or 'any'}"
        if self.train_shards is None:
            manifest = self._store("train").manifest
            return f"{manifest['images']} images of a store in {drawn}, length_window {self.length_window}"
        return (
            f"shards {self._digest_of_shards()} in {drawn}, that {self._rank_and_world_size()[1]} devices read with "
            f"{max(1, self.num_workers)} workers each, {self.batch_size} images at a time out of {self.shuffle_buffer}"
        )

    def _outlines(self) -> dict[str, str]:
        """Which images and captions are trained and validated on, by split, in a few words that tell any change."""
        outlines = {name: self._outline_of_store(name) for name in self._stores if name != "test"}
        if self.train_shards is not None:
            outlines["train"] = f"shards {self._digest_of_shards()}"
        return outlines

    def _outline_of_store(self, split: str) -> str:
        if split not in self._outlined:
            store = self._store(split)
            self._outlined[split] = f"{len(store)} images ({store.records_sha256()[:8]})"
        return self._outlined[split]

    def _digest_of_shards(self) -> str:
        return hashlib.sha256(json.dumps(self._shard_index().content).encode()).hexdigest()[:8]

    def _reshuffle(self) -> bool:
        return not getattr(self.trainer, "overfit_batches", 0)

    def _tokenizer_file(self) -> Path:
        shards = None if self.train_shards is None else self._shard_index().content["fingerprint"]
        key = [shards or self.source.fingerprint("train"), self.languages, self.tokenizer.recipe]
        digest = hashlib.sha256(repr(key).encode()).hexdigest()[:16]
        return self._cache() / f"{self.source.name}-tokenizer-{digest}.json"

    def _train_tokenizer(self) -> None:
        rows: Iterable[Mapping[str, Sequence[str]]]
        if self.train_shards is None:
            store = self._store("train")
            rows = map(store.captions, range(len(store)))
        else:
            rows = WebDatasetShards({"train": self.train_shards}).captions("train")
        self.tokenizer.train(text for row in rows for name in self.languages for text in row.get(name, ()))
        text = json.dumps(self.tokenizer.to_dict(), ensure_ascii=False)
        with atomic_write(self._tokenizer_file(), "the trained tokeniser", "choose another cache_dir") as file:
            file.write(text.encode())

    def _ready_tokenizer(self) -> CaptionTokenizer:
        """The tokeniser, from the cache if no checkpoint brought it: only then are the training files asked for."""
        if self.tokenizer.is_ready:
            return self.tokenizer
        try:
            path = self._tokenizer_file()
            text = path.read_bytes()
        except (CCRError, OSError) as error:
            raise CCRError(
                "there is no trained tokeniser; pass the checkpoint of a training run, fit first with the same "
                "cache_dir, or give the tokeniser's name_or_path."
            ) from error
        try:
            self.use_tokenizer(load_json(text))
        except (TypeError, ValueError) as error:
            reason = error.__cause__ or error
            raise CCRError(f"{path}: the trained tokeniser is damaged ({reason}); delete the file and fit.") from error
        return self.tokenizer

    def _rank_and_world_size(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        world_size = self.trainer.world_size
        if world_size > 1 and self.trainer._accelerator_connector.use_distributed_sampler:
            raise CCRError("the data module shards its data itself; pass --trainer.use_distributed_sampler false.")
        return self.trainer.global_rank, world_size

    def _part_that_is_validated(self) -> dict[str, Any]:
        """What says which images a limited validation takes; empty if it takes all."""
        limit = 1.0 if self.trainer is None else self.trainer.limit_val_batches
        if isinstance(limit, float) and limit == 1:  # an integer is a number of batches
            return {}
        return {"limit": limit, "batch_size": self.eval_batch_size, "processes": self._rank_and_world_size()[1]}

    def _global_batch(self) -> int:
        return self.batch_size * self._rank_and_world_size()[1]

    def _start(self) -> tuple[int, int]:
        """Epoch and batch at which a run that resumes in mid-epoch goes on, by the trainer's own progress."""
        if self.trainer is None or not self.trainer.fit_loop.restarting:
            return 0, 0
        epochs: Any = self.trainer.fit_loop.epoch_progress.current
        batches: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        if epochs.started == epochs.processed or not batches.processed:
            return epochs.processed, 0
        if self.accepts_changes:
            return epochs.processed, batches.processed
        if self._saved_order not in (None, now := self._order_of_images()):
            raise CCRError(
                f"the checkpoint lies within an epoch of {self._saved_order}, and now there would be {now}, in another "
                "order; resume as it was, or from the end of an epoch."
            )
        if self._saved_global_batch not in (None, self._global_batch()):
            raise CCRError(
                f"the checkpoint lies within an epoch of batches of {self._saved_global_batch} images on all devices "
                f"together, and now they have {self._global_batch()}; choose batch_size so that it, times the number "
                f"of devices, is {self._saved_global_batch}."
            )
        return epochs.processed, batches.processed

    def _eval_loaders(self, split: str) -> list[DataLoader[Any]]:
        store = self._store(split)
        collate = partial(collate_captions, tokenizer=self._ready_tokenizer(), languages=self.languages)
        return [
            self._eval_loader(ImageSamples(store, self.transform), collate_images),
            self._eval_loader(CaptionSamples(store, self.languages), collate),
        ]

    def _eval_loader(
        self, samples: Dataset[Any], collate: Callable[[Any], ImageBatch | CaptionBatch]
    ) -> DataLoader[Any]:
        sampler = ShardSampler(len(samples), *self._rank_and_world_size())  # type: ignore[arg-type]
        return _EndingLoader(
            samples, batch_size=self.eval_batch_size, sampler=sampler, collate_fn=collate, **self._loader_settings()
        )

    def _loader_settings(self) -> dict[str, Any]:
        if self.num_workers:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # threads do not survive the fork of workers
        return {
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": begin_worker,
        }


class _EndingLoader(DataLoader[Any]):
    """A loader whose workers end with the last batch: Lightning never asks for more, and keeps what it has asked."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        held: deque[Any] = deque()
        for batch in end_with_this_process(super().__iter__()):
            held.append(batch)
            del batch  # neither it nor the last one may stay here for as long as Lightning keeps this
            if len(held) > 1:
                yield held.popleft()
        while held:
            yield held.popleft()


class _ResumableLoader(DataLoader[Any]):
    """A loader that Lightning may resume in mid-epoch: its batch sampler knows where to start."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # Only at the first batch, when Lightning has set the epoch, workers fetch ahead.
        yield from end_with_this_process(super().__iter__())

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass
