"""``ccr fit|validate|test|predict``: LightningCLI with run folders, plain errors and a test at the end of training."""

from __future__ import annotations

import csv
import json
import logging
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import save_file

from ccr_lightning.cli.messages import explain_parse_error
from ccr_lightning.data.datamodule import CaptionDataModule
from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation.results import results_document, write_results
from ccr_lightning.evaluation.table import print_results
from ccr_lightning.training.checkpointing import AtomicCheckpointIO, RunFolder
from ccr_lightning.training.module import RetrievalModule
from ccr_lightning.training.progress import EpochSummary

TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "gradient_clip_val": 1.0,
    "enable_model_summary": False,
}

STEPS_BETWEEN_CHECKPOINTS = 1000  # within an epoch, so that a crash costs little of a long one


class _Parser(LightningArgumentParser):
    """Stops with one sentence, and a suggestion for a misspelt setting, instead of usage and traceback."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        subcommands = self._subcommands_action.choices.values() if self._subcommands_action else ()
        raise CCRError(explain_parse_error(message, [self, *subcommands])) from ex


class TrainingCLI(LightningCLI):
    """The commands that need a trainer."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The trainer method that the command names, and those of its arguments that are not options."""
        hidden = {"model", "dataloaders", "datamodule", "weights_only", "verbose"}
        every = {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule", "ckpt_path", "weights_only"},
            "validate": hidden,
            "test": hidden,
            "predict": {*hidden, "return_predictions"},
        }
        return {sys.argv[1]: every[sys.argv[1]]}  # a parser takes a while to build

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """A parser that accepts no abbreviated, hence no misspelt, option."""
        return super().init_parser(allow_abbrev=False, **kwargs)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.add_argument("--name", type=str | None, default=None, help="name of the run; default: the config's name")
        parser.add_argument("--runs_dir", type=str, default="runs", help="the folder in which runs lie")
        if subcommand == "fit":
            parser.add_argument("--resume", type=str | None, default=None, help="auto, must or a checkpoint's path")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One seed for everything."""
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)

    def _parse_ckpt_path(self) -> None:
        """The command line wins over hyper-parameters that a checkpoint carries."""

    def _set_seed(self) -> None:
        try:
            super()._set_seed()
        except ValueError as error:
            raise CCRError(f"--seed_everything: {error}.") from error

    def before_instantiate_classes(self) -> None:
        """Settles the run's folder and what to resume from, before anything is built."""
        settings = self.config[self.subcommand]
        if settings.name is None:
            configs = settings.get("config") or []
            settings.name = Path(str(configs[-1])).stem if configs else self.subcommand
        self.folder = RunFolder(Path(settings.runs_dir) / settings.name)
        self.resume_from = None
        if self.subcommand == "fit":
            self.resume_from = self.folder.resume_from(settings.pop("resume"))
            _prepare_data(settings.data)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that writes into the run's folder."""
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        config["default_root_dir"] = str(self.folder.path)
        callbacks: list[Any] = [EpochSummary()]
        if config.get("enable_progress_bar") is not False and sys.stdout.isatty():
            callbacks.append(RichProgressBar())
        else:
            config["enable_progress_bar"] = False
        if self.subcommand == "fit":
            self.folder.create()
            checkpoints: dict[str, Any] = {"dirpath": self.folder.checkpoints, "enable_version_counter": False}
            callbacks += [
                ModelCheckpoint(filename="best", monitor="val/mean_recall", mode="max", **checkpoints),
                # Not save_last=True, which saves only when the best checkpoint is a new one.
                ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **checkpoints),
                ModelCheckpoint(filename="last", every_n_train_steps=STEPS_BETWEEN_CHECKPOINTS, **checkpoints),
            ]
            if config.get("logger") is None:
                config["logger"] = self._csv_logger()
        else:
            config["logger"] = False
        config["plugins"] = [*(config.get("plugins") or []), AtomicCheckpointIO()]
        try:
            return self._instantiate_trainer(config, callbacks)
        except (MisconfigurationException, ValueError) as error:  # for example, there is no such device
            raise CCRError(f"the trainer cannot be built: {' '.join(str(error).split())}") from error

    def _csv_logger(self) -> CSVLogger:
        """Writes metrics.csv; a resumed run keeps the lines up to its checkpoint, which Lightning would delete."""
        path = self.folder.path / "metrics.csv"
        lines: list[dict[str, Any]] = []
        if self.resume_from and self.resume_from.parent == self.folder.checkpoints and path.is_file():
            step = AtomicCheckpointIO().load_checkpoint(self.resume_from, "meta")["global_step"]
            with path.open(encoding="utf-8", newline="") as file:
                every = [{name: value for name, value in line.items() if value} for line in csv.DictReader(file)]
            lines = [line for line in every if int(line["step"]) < step]
        logger = CSVLogger(self.folder.path, name="", version="")
        for line in lines:
            logger.log_metrics(line, int(line.pop("step")))
        return logger

    def fit(self, model: RetrievalModule, datamodule: CaptionDataModule) -> None:
        """Trains, then tests the best checkpoint."""
        self._save_config()
        try:
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=self.resume_from, weights_only=True)
        except SystemExit as error:  # what Lightning makes of Ctrl-C
            raise CCRError(
                f"training was interrupted: continue it with --name {self.folder.path.name} --resume auto."
            ) from error
        if self._get(self.config_init, "trainer").get("fast_dev_run"):
            return
        best = self.folder.best if self.folder.best.exists() else self.folder.last
        self.trainer.test(model, datamodule=datamodule, ckpt_path=best, weights_only=True, verbose=False)
        self._report("test", best)

    def validate(self, model: RetrievalModule, datamodule: CaptionDataModule, ckpt_path: str) -> None:
        """Scores a checkpoint on the validation split."""
        self.trainer.validate(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True, verbose=False)
        self._report("val", Path(ckpt_path))

    def test(self, model: RetrievalModule, datamodule: CaptionDataModule, ckpt_path: str) -> None:
        """Scores a checkpoint on the test split."""
        self.trainer.test(model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True, verbose=False)
        self._report("test", Path(ckpt_path))

    def predict(self, model: RetrievalModule, datamodule: CaptionDataModule, ckpt_path: str) -> None:
        """Writes the embeddings of the test split."""
        if self.trainer.world_size > 1:
            raise CCRError("ccr predict runs on one device: pass --trainer.devices 1.")
        predictions: Any = self.trainer.predict(
            model, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True, return_predictions=True
        )
        images, captions = predictions
        tensors = {
            f"{kind}_{name}": torch.cat([batch[name] for batch in batches]).contiguous()
            for kind, batches in (("image", images), ("text", captions))
            for name in batches[0]
        }
        self.folder.create()
        save_file(tensors, self.folder.path / "embeddings.safetensors")
        names = {"image_ids": datamodule.image_names("test"), "languages": list(datamodule.languages)}
        (self.folder.path / "embeddings.json").write_text(json.dumps(names, ensure_ascii=False), encoding="utf-8")
        n_images, n_captions = len(tensors["image_embeds"]), len(tensors["text_embeds"])
        print(f"{n_images} images and {n_captions} captions written to {self.folder.path / 'embeddings.safetensors'}")

    @rank_zero_only
    def _save_config(self) -> None:
        settings = self.config[self.subcommand].clone()
        settings.pop("config", None)
        text = self._parser(self.subcommand).dump(settings, skip_unset=False, skip_validation=True)
        header = f"# What made this run; repeat it with: ccr fit --config {self.folder.config} --name NAME\n"
        self.folder.config.write_text(header + text, encoding="utf-8")

    @rank_zero_only
    def _report(self, split: str, checkpoint: Path) -> None:
        made_with: dict[str, Any] = {
            "dataset": self.datamodule.source.name,
            "split": split,
            "checkpoint": checkpoint,
            "seed": self.model.seed,
        }
        documents = {
            "-val" if split == "val" else "": results_document(self.model.results, rerank_depth=0, **made_with)
        }
        if self.model.reranked:
            documents["-reranked"] = results_document(
                self.model.reranked, ranking="re-ranked", rerank_depth=self.model.rerank_depth, **made_with
            )
        for suffix, document in documents.items():
            path = self.folder.path / f"results{suffix}.json"
            write_results(path, document)
            print_results(document)
            print(f"written to {path}")


def run(args: list[str]) -> int:
    """Runs ``fit``, ``validate``, ``test`` or ``predict`` with command-line arguments.

    Raises:
        CCRError: For whatever the user can put right.
    """
    _quieten()
    sys.argv = [sys.argv[0], *args]
    try:
        TrainingCLI(
            RetrievalModule,
            CaptionDataModule,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=_Parser,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
    except (ValueError, MisconfigurationException) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, CCRError):
            cause = cause.__cause__  # the parser packs the errors of parts that may be null into its own
        if cause is not None:
            raise cause from cause.__cause__
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not frame.f_globals["__name__"].startswith("lightning."):  # somebody's mistake in a program
            raise
        raise CCRError(f"the trainer refuses: {' '.join(str(error).split())}") from error
    return 0


@rank_zero_only
def _prepare_data(settings: Namespace) -> None:
    """Prepares all splits before the model is built and trained: what is wrong with the data shows at once."""
    parser = ArgumentParser()
    parser.add_class_arguments(CaptionDataModule, "data")
    parser.instantiate(Namespace(data=settings)).data.prepare_data()  # type: ignore[no-untyped-call]


def _quieten() -> None:
    """Hides library messages that ask nothing of the user."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*recommended to use `self.log.*sync_dist=True.*",
        ".*Grad strides do not match bucket view strides.*",
        ".*Experiment logs directory .* exists and is not empty.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*The dirpath has changed from .*",
        ".*GPU available but not used.*",
    ):
        warnings.filterwarnings("ignore", message=message)
