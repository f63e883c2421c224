"""``ccr fit|validate|test|predict``: LightningCLI with run folders, plain errors and a test at the end of training."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml  # type: ignore[import-untyped]
from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from ccr_lightning.cli.arguments import given_configs, option
from ccr_lightning.cli.messages import explain_parse_error, load_config, own_cause
from ccr_lightning.cli.outputs import print_left_out, write_config, write_embeddings, write_scores
from ccr_lightning.cli.processes import first_difference, is_first_process
from ccr_lightning.cli.resuming import changes_of_evaluation, check_settings
from ccr_lightning.data.datamodule import CaptionDataModule
from ccr_lightning.data.workers import explain_worker
from ccr_lightning.errors import CCRError, Interrupted, Stopped
from ccr_lightning.evaluation.protocol import EvaluationProtocol
from ccr_lightning.memory import is_out_of_memory
from ccr_lightning.models.pretrained import read_weights
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.training.bad_steps import PassOverBadSteps
from ccr_lightning.training.checkpoint_file import read_checkpoint
from ccr_lightning.training.checkpointing import AtomicCheckpointIO, KeepBestScore, RunFolder
from ccr_lightning.training.checks import check_galleries
from ccr_lightning.training.metrics_file import MetricsFile
from ccr_lightning.training.module import RetrievalModule
from ccr_lightning.training.out_of_memory import explain_elsewhere
from ccr_lightning.training.progress import EpochSummary, TrainingBar
from ccr_lightning.training.same_data import CompareData
from ccr_lightning.training.sharding import FullyShardedStrategy
from ccr_lightning.training.stopping import SaveBetweenSteps
from ccr_lightning.training.watching import WatchOverRanks

TRAINER_DEFAULTS = {
    "use_distributed_sampler": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 10,
    "gradient_clip_val": 1.0,
    "enable_model_summary": False,
}

# Numbers that Lightning takes as they are: it divides by the former, and trains uphill with a negative clip.
ABOVE_ZERO = ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval")
NOT_BELOW_ZERO = ("gradient_clip_val", "log_every_n_steps")

SECONDS_TO_MEND = 60
STEPS_BETWEEN_CHECKPOINTS = 1000  # within an epoch, so that a crash costs little of a long one


class _Parser(LightningArgumentParser):
    """Stops with one sentence, and a suggestion for a misspelt setting, instead of usage and traceback."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        subcommands = self._subcommands_action.choices.values() if self._subcommands_action else ()
        raise CCRError(explain_parse_error(message, [self, *subcommands], given_configs(sys.argv))) from ex


class TrainingCLI(LightningCLI):
    """The commands that need a trainer.

    Args:
        until_the_end: Of the command; a run keeps others out of its folder as long.
        *args: LightningCLI's.
        **kwargs: LightningCLI's.
    """

    def __init__(self, *args: Any, until_the_end: ExitStack, **kwargs: Any) -> None:
        self._until_the_end = until_the_end
        super().__init__(*args, **kwargs)

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
            parser.add_argument(
                "--resume-changed", action="store_true", help="go on although settings or data have changed"
            )
        # Of fit, but a run's config.yaml says it to the other commands too.
        parser.add_argument("--init_from", type=str | None, default=None, help="checkpoint that training starts from")
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """One seed for everything."""
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        parser.link_arguments("seed_everything", "model.seed", compute_fn=int)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Also explains the one fault of a configuration file that the parser lets pass."""
        try:
            super().parse_arguments(parser, args)
        except UnicodeDecodeError as error:
            parser.error(f"Problems parsing config: {error}", error)

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
        if settings.name in ("", ".", "..") or Path(settings.name).name != settings.name:
            raise CCRError(f"--name is {settings.name!r}: give a name without slashes; --runs_dir says where runs lie.")
        self.folder = RunFolder(Path(settings.runs_dir) / settings.name)
        self.resume_from = None
        self._changes = ""  # that have been accepted
        self.asked = settings
        if self.subcommand == "fit":
            resume, self.accepts_changes = settings.pop("resume"), settings.pop("resume_changed")
            if self.accepts_changes and resume is None:
                raise CCRError("--resume-changed is for a run that goes on: give --resume auto, must or a path, too.")
            if is_first_process():
                self._until_the_end.enter_context(self.folder.alone())
            if resume in ("auto", "must"):
                _mend_last(self.folder)
            self.resume_from = self.folder.resume_from(resume)
            if resume == "auto" and self.resume_from is None and self.folder.config.exists():
                _say(f"{self.folder.path} has no checkpoint: the run starts anew")
            if self.resume_from and settings.init_from and self.resume_from.parent != self.folder.checkpoints:
                raise CCRError(
                    f"--init_from starts anew and --resume {self.resume_from} goes on with another run: give one only."
                )
            start = self.resume_from or settings.init_from
            if start is not None and not Path(start).exists():
                raise CCRError(f"--init_from {start}: there is no such checkpoint; check the path.")
            self.asked = settings.clone()
            if self._goes_on_here:
                _take_own_model(settings, self.folder.model)
                _keep_names(self.asked, self.folder.config)
            if self.resume_from is not None:
                self._compare_with(self.resume_from)
            is_run = start is not None and Path(start).is_file()
            self.start = read_checkpoint(Path(start), "meta") if is_run else None
            _prepare_data(settings, self.start)
        elif settings.ckpt_path is not None:
            self._compare_with(Path(settings.ckpt_path))

    def _compare_with(self, checkpoint: Path) -> None:
        """Says what is asked for that the run of a checkpoint did in another way; one that resumes may refuse it."""
        if not checkpoint.is_file() or not (file := checkpoint.parent.parent / "config.yaml").is_file():
            return
        before, now = load_config(str(file)), yaml.safe_load(self._settings_as_written())
        if self.subcommand == "fit":
            changes = check_settings(before, now, self.accepts_changes)
            if changes and self.accepts_changes:
                self._changes = f"from step {read_checkpoint(checkpoint, 'meta')['global_step']} on, {changes}"
        else:
            changes = changes_of_evaluation(before, now)
        if changes:
            _say(changes)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """A trainer that writes into the run's folder."""
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        _check_numbers(config)
        if config.get("strategy") in ("fsdp", "fsdp_cpu_offload"):
            raise CCRError(f"trainer.strategy is {config['strategy']}, torch's older way: give fsdp2.")
        if config.get("strategy") == "fsdp2":
            config["strategy"] = FullyShardedStrategy()
        config["default_root_dir"] = str(self.folder.path)
        self.watch = WatchOverRanks()
        self._failed_in: str | None = None
        callbacks: list[Any] = [EpochSummary(), self.watch, LambdaCallback(on_exception=self._note_stage)]
        if config.get("enable_progress_bar") is not False and sys.stdout.isatty():
            callbacks.append(TrainingBar())
        else:
            config["enable_progress_bar"] = False
        if self.subcommand == "fit":
            checkpoints: dict[str, Any] = {"dirpath": self.folder.checkpoints, "enable_version_counter": False}
            self._best = ModelCheckpoint(filename="best", monitor="val/mean_recall", mode="max", **checkpoints)
            self._stopping = SaveBetweenSteps(self.folder.last, STEPS_BETWEEN_CHECKPOINTS)
            callbacks += [
                self._best,
                # Not save_last=True, which saves only when the best checkpoint is a new one.
                ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **checkpoints),
                KeepBestScore(),
                CompareData(self.accepts_changes),
                LambdaCallback(on_train_start=lambda *_: self._begin_run()),  # a start that fails changes nothing
                PassOverBadSteps(self.folder.path),
                self._stopping,
            ]
            if config.get("logger") is None:
                config["logger"] = self._metrics_file()
        else:
            config["logger"] = False
            config["overfit_batches"] = 0.0  # a setting of training, which limits validation too
        config["plugins"] = [*(config.get("plugins") or []), AtomicCheckpointIO()]
        try:
            trainer = self._instantiate_trainer(config, callbacks)
        except (MisconfigurationException, TypeError, ValueError) as error:  # for example, there is no such device
            raise CCRError(f"the trainer cannot be built: {' '.join(str(error).split())}") from error
        _check_nodes(trainer)
        if trainer.num_nodes > 1 and trainer.local_rank == 0:
            print(
                f"node {trainer.node_rank} of {trainer.num_nodes} waits for the others, {trainer.world_size} processes "
                "in all",
                flush=True,
            )
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        with self.watch.over(self.trainer, "go on with --resume auto" if subcommand == "fit" else "start again"):
            try:
                super()._run_subcommand(subcommand)
            except Exception as error:
                if self._failed_in in ("train", "validate", "test", "predict") and is_out_of_memory(error):
                    raise explain_elsewhere(self._failed_in, error) from error
                if (explained := explain_worker(error)) is None:
                    raise
                raise explained from error

    def _note_stage(self, trainer: Trainer, *_: Any) -> None:
        self._failed_in = trainer.state.stage and trainer.state.stage.value  # which is gone once the trainer has ended

    def _metrics_file(self) -> MetricsFile:
        """A run that resumes from its own checkpoint keeps the metrics up to there."""
        step = 0
        if self.resume_from and self._goes_on_here:
            step = read_checkpoint(self.resume_from, "meta")["global_step"]
        return MetricsFile(self.folder.path / "metrics.csv", first_step=step)

    def fit(self, model: RetrievalModule, datamodule: CaptionDataModule) -> None:
        """Trains, then tests the best checkpoint."""
        model.accepts_changes = datamodule.accepts_changes = self.accepts_changes
        _take_tokenizer(datamodule, self.start)
        if self.resume_from is None and (start := self.config[self.subcommand].init_from):
            _start_from(model, start)
        if self.trainer.limit_val_batches != 0 and (part := self._part("val")) and not self._is_trial:
            _say(f"{part}: neither is the choice of the best checkpoint")
        try:
            self.trainer.fit(model, datamodule=datamodule, ckpt_path=self.resume_from, weights_only=True)
            self._stopping.end_if_asked(self.trainer.strategy.root_device)
            self._test_what_was_trained()
            if self.trainer.is_global_zero:
                print_left_out(datamodule)
        except SystemExit as error:  # Stopped, or what Lightning makes of a second Ctrl-C
            signum = error.signum if isinstance(error, Stopped) else signal.SIGINT
            raise Interrupted(self._how_to_go_on(), 128 + signum) from error

    def _test_what_was_trained(self) -> None:
        if self._is_trial:
            _say("fast_dev_run tries a few batches only: no checkpoint and no results are written")
            return
        if not self.folder.last.exists():
            raise CCRError(
                "nothing was trained, and there is nothing to test: raise --trainer.max_epochs, max_steps, max_time or "
                "limit_train_batches."
            )
        if part := self._part("test"):
            command = shlex.join(["ccr", "test", *option("ckpt_path", self.folder.path)])
            _say(f"not tested: {part}; to test it all the same: {command}")
            return
        if "test" not in self.datamodule.source.splits:
            _say(f"not tested: {self.datamodule.source.name} has no test split")
            return
        if self._best.best_model_path:
            self._score("test", self.folder.best)
            return
        if self.folder.best.exists():
            _say("no validation like that of now ran, and best.ckpt is of another: the last checkpoint is tested")
        else:
            _say("no validation ran, hence there is no best checkpoint: the last one is tested")
        self._score("test", self.folder.last)

    def _how_to_go_on(self) -> str:
        if not self.folder.config.exists():
            return "the run was interrupted before it began: start it again."
        if not self.folder.has_checkpoint() and self.resume_from is None:
            return f"the run was interrupted before its first checkpoint: start anew with {self._command_to_go_on()}"
        return f"the run was interrupted: continue it with {self._command_to_go_on()}"

    def _command_to_go_on(self) -> str:
        resume = "must" if self.folder.has_checkpoint() else self.resume_from or "auto"
        path = self.folder.path
        settings = {"config": self.folder.config, "runs_dir": path.parent, "name": path.name, "resume": resume}
        return shlex.join(["ccr", "fit", *(part for name, value in settings.items() for part in option(name, value))])

    def validate(self, model: RetrievalModule, datamodule: CaptionDataModule, ckpt_path: str) -> None:
        """Scores a checkpoint on the validation split."""
        if model.protocol.rerank_depth:
            raise CCRError(
                "ccr validate does not re-rank: pass --model.protocol.rerank_depth 0, or re-rank with ccr test."
            )
        self._refuse_part("val")
        self._score("val", Path(ckpt_path))

    def test(self, model: RetrievalModule, datamodule: CaptionDataModule, ckpt_path: str) -> None:
        """Scores a checkpoint on the test split."""
        self._refuse_part("test")
        self._score("test", Path(ckpt_path))

    def predict(self, model: RetrievalModule, datamodule: CaptionDataModule, ckpt_path: str) -> None:
        """Writes the embeddings of the test split."""
        if self.trainer.world_size > 1:
            raise CCRError("ccr predict runs on one device: pass --trainer.devices 1.")
        self._refuse_part("predict")
        predictions: Any = self.trainer.predict(
            model,
            datamodule=datamodule,
            ckpt_path=self._checkpoint_or_weights(Path(ckpt_path)),
            weights_only=True,
            return_predictions=True,
        )
        if self._is_trial:
            _say("fast_dev_run tries a few batches only: no embeddings are written")
            return
        write_embeddings(self.folder.path, predictions, datamodule.image_names("test"), datamodule.languages)

    def _score(self, split: Literal["val", "test"], checkpoint: Path) -> None:
        evaluate = self.trainer.test if split == "test" else self.trainer.validate
        ckpt_path = self._checkpoint_or_weights(checkpoint)
        evaluate(self.model, datamodule=self.datamodule, ckpt_path=ckpt_path, weights_only=True, verbose=False)
        weights = self.trainer.strategy.lightning_module_state_dict()  # all devices have to ask for what is sharded
        if self._is_trial:
            _say("fast_dev_run tries a few batches only: no results are written")
        elif self.trainer.is_global_zero:
            source = self.config[self.subcommand].data.source.as_dict()
            write_scores(self.folder.path, self.model, self.datamodule, split, checkpoint, source, weights)

    def _checkpoint_or_weights(self, given: Path) -> Path | None:
        """A checkpoint for the trainer to load; None once the model has the weights of a model's folder."""
        if given.is_file():
            return given
        if isinstance(self.model.retriever, Retriever):  # others have loaded theirs already
            _start_from(self.model, str(given))
        return None

    @property
    def _goes_on_here(self) -> bool:
        """Whether the run resumes from a checkpoint of its own."""
        return self.resume_from is not None and self.resume_from.parent == self.folder.checkpoints

    @property
    def _is_trial(self) -> bool:
        return bool(self._get(self.config_init, "trainer").get("fast_dev_run"))

    def _refuse_part(self, split: str) -> None:
        """Stops before numbers are made that are not those of the split."""
        if (part := self._part(split)) and not self._is_trial:
            raise CCRError(f"{part}: pass --trainer.limit_{split}_batches 1.0.")

    def _part(self, split: str) -> str | None:
        limit = getattr(self.trainer, f"limit_{split}_batches")
        if isinstance(limit, float) and limit == 1:  # an integer is a number of batches
            return None
        return f"limit_{split}_batches is {limit}, and the numbers of some batches are not those of the split"

    def _settings_as_written(self) -> str:
        """The configuration as a run's folder has it, in YAML."""
        settings = self.asked.clone()
        settings.pop("config", None)
        text: str = self._parser(self.subcommand).dump(settings, skip_unset=False, skip_validation=True)
        return text

    def _begin_run(self) -> None:
        """Writes the configuration; a node that does not see it would not see the checkpoints either."""
        text = self._settings_as_written()
        if self.trainer.is_global_zero:
            if not self._is_trial and (lacks := self.folder.make_ready(self.model)):
                _say(lacks)
            self.model.retriever.save_settings(self.folder.model)
            write_config(self.folder.config, text, self._changes, keeps_notes=self._goes_on_here)
        self.trainer.strategy.barrier()
        if not self.folder.config.is_file():
            raise CCRError(
                f"{self.folder.path}: this node does not see what the first one wrote there; give a --runs_dir that "
                "all share."
            )
        if differs := first_difference(load_config(str(self.folder.config)), yaml.safe_load(text)):
            raise CCRError(f"{differs} on this node: start all nodes with the same settings.")


def run(args: list[str]) -> int:
    """Runs ``fit``, ``validate``, ``test`` or ``predict`` with command-line arguments.

    Raises:
        CCRError: For whatever the user can put right.
    """
    _quieten()
    sys.argv = [sys.argv[0], *args]
    try:
        with ExitStack() as until_the_end:
            TrainingCLI(
                RetrievalModule,
                CaptionDataModule,
                save_config_callback=None,
                trainer_defaults=TRAINER_DEFAULTS,
                seed_everything_default=0,
                parser_class=_Parser,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
                until_the_end=until_the_end,
            )
    except (ValueError, MisconfigurationException) as error:
        if (cause := own_cause(error)) is not None:
            raise cause from cause.__cause__
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if not frame.f_globals["__name__"].startswith("lightning."):  # somebody's mistake in a program
            raise
        raise CCRError(f"the trainer refuses: {' '.join(str(error).split())}") from error
    return 0


def _check_numbers(trainer: Mapping[str, Any]) -> None:
    if str(trainer.get("precision")) in ("16-true", "bf16-true", "64-true", "64"):
        raise CCRError(f"trainer.precision is {trainer['precision']}: give 32-true, bf16-mixed or 16-mixed.")
    for name in (*ABOVE_ZERO, *NOT_BELOW_ZERO):
        value = trainer.get(name)
        if isinstance(value, int | float) and (value < 0 or (value == 0 and name in ABOVE_ZERO)):
            expected = "a number above 0" if name in ABOVE_ZERO else "0 or more"
            raise CCRError(f"trainer.{name} is {value}: give {expected}.")


def _mend_last(folder: RunFolder) -> None:
    """Sees to it that the last checkpoint can be read; other processes wait until the first one has."""
    deadline = time.monotonic() + SECONDS_TO_MEND
    while not is_first_process():
        try:
            read_checkpoint(folder.last, "meta", verify=True)
            return
        except CCRError:
            if not folder.has_checkpoint() or time.monotonic() > deadline:
                return
            time.sleep(0.5)
    if says := folder.mend():
        print(says, flush=True)


def _check_nodes(trainer: Trainer) -> None:
    """Lightning would wait half an hour for nodes that nobody starts."""
    started_alone = isinstance(getattr(trainer.strategy, "cluster_environment", None), LightningEnvironment)
    if trainer.num_nodes > 1 and started_alone and "MASTER_ADDR" not in os.environ:
        raise CCRError(
            f"trainer.num_nodes is {trainer.num_nodes}, and nothing says which node this is: set MASTER_ADDR, "
            "MASTER_PORT and NODE_RANK, or start ccr with torchrun or srun, see docs/several_machines.md."
        )


@rank_zero_only
def _say(line: str) -> None:
    print(line, flush=True)


def _take_own_model(settings: Namespace, folder: Path) -> None:
    """Lets a run that resumes make its model from its own folder: the one that it started from may have changed."""
    retriever: Namespace = settings.model.retriever.init_args
    if not folder.is_dir() or "name_or_path" not in retriever:
        return
    named = retriever.name_or_path
    retriever.pretrained = False
    for part in (retriever, settings.data.tokenizer.init_args, settings.data.transform.init_args):
        if part.get("name_or_path") == named:
            part.name_or_path = str(folder)


def _keep_names(asked: Namespace, file: Path) -> None:
    """Lets a run that resumes say what its model is made of in the words that it began with."""
    if not file.is_file():
        return
    before = load_config(str(file))
    for part, name in (("model", "retriever"), ("data", "tokenizer"), ("data", "transform")):
        own, now = (before.get(part) or {}).get(name) or {}, asked[part].get(name)
        for key in ("name_or_path", "pretrained"):
            if now is not None and key in (own.get("init_args") or {}) and key in now.init_args:
                now.init_args[key] = own["init_args"][key]


@rank_zero_only
def _prepare_data(settings: Namespace, start: Mapping[str, Any] | None) -> None:
    """Prepares all splits before the model is built and trained: what is wrong with the data shows at once."""
    parser = ArgumentParser()
    parser.add_class_arguments(CaptionDataModule, "data")
    data = parser.instantiate(Namespace(data=settings.data)).data  # type: ignore[no-untyped-call]
    _take_tokenizer(data, start)
    data.prepare_data()
    if "test" in data.source.splits and not settings.trainer.fast_dev_run:
        check_galleries(EvaluationProtocol(**vars(settings.model.protocol)), data)


def _take_tokenizer(data: CaptionDataModule, start: Mapping[str, Any] | None) -> None:
    """Lets the data module use the tokeniser of the checkpoint that training starts from, before it trains its own."""
    if start is not None and (state := start.get(CaptionDataModule.__qualname__)):
        data.use_tokenizer(state["tokenizer"])


def _start_from(model: RetrievalModule, checkpoint: str) -> None:
    """Gives the model the weights of another run, or of a model's folder; nothing else of it goes on."""
    if Path(checkpoint).is_dir():
        weights = {f"retriever.{name}": tensor for name, tensor in read_weights(Path(checkpoint)).items()}
    else:
        weights = read_checkpoint(Path(checkpoint))["state_dict"]
    if any(".lora_A." in name for name in weights):
        raise CCRError(f"--init_from {checkpoint}: this run has adapters: make a model of it with ccr export first.")
    try:
        resampled = model.load_initial_weights(weights)
    except CCRError as error:
        raise CCRError(f"--init_from {checkpoint}: {error}") from error
    also = f", {len(resampled)} tensors of the image encoder resampled to its image size" if resampled else ""
    _say(f"weights of {checkpoint}{also}")


def _quieten() -> None:
    """Hides library messages that ask nothing of the user."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*could not find the monitored key.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*The number of training batches .* is smaller than the logging interval.*",
        ".*recommended to use `self.log.*sync_dist=True.*",
        ".*Grad strides do not match bucket view strides.*",
        ".*callbacks used to create the checkpoint need to be provided.*",
        ".*The dirpath has changed from .*",
        ".*GPU available but not used.*",
    ):
        warnings.filterwarnings("ignore", message=f"(?s){message}")  # a path in it may have line ends
