"""Checkpoints that are whole or absent, and the folder of a run."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from ccr_lightning.errors import CCRError, OutOfMemory
from ccr_lightning.files import atomic_write, could_not_be_written, make_folder, remove_remains
from ccr_lightning.locks import one_process
from ccr_lightning.memory import in_words
from ccr_lightning.training.checkpoint_file import read_checkpoint

LAST, PREVIOUS, DAMAGED = "last.ckpt", "previous.ckpt", "damaged.ckpt"
_CHECKPOINTS_AT_A_TIME = 4  # last, previous, best, and one that is being written
_SAYS = "the checkpoint", "change --runs_dir"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place, syncs it to disk, then renames it.

    A crash or a full disk leaves the previous checkpoint as it was and nothing incomplete under the final name. Of
    ``last.ckpt`` the one before stays as ``previous.ckpt``, for a disk that loses bits.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Saves ``checkpoint`` at ``path``.

        Raises:
            CCRError: If the file cannot be written; it names the cause.
        """
        with atomic_write(Path(path), *_SAYS) as file:
            _save(checkpoint, file)
            if Path(path).name == LAST:
                _keep_as_previous(Path(path))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Loads the checkpoint at ``path``.

        Raises:
            CCRError: If it is damaged, or something else than the checkpoint of a run.
        """
        return read_checkpoint(Path(path), map_location, weights_only)


def _save(checkpoint: dict[str, Any], file: IO[bytes]) -> None:
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:  # what torch's writer makes of a full disk, whose own error came before it
        cause = error.__context__
        raise (cause if isinstance(cause, OSError) else OSError(str(error))) from error


def _keep_as_previous(path: Path) -> None:
    """Gives a checkpoint that is about to be replaced a second name, where the file system can; it has its own, too."""
    linked = path.with_name(f".{PREVIOUS}.{os.getpid()}")
    with suppress(OSError):
        try:
            os.link(path, linked)
            linked.replace(path.with_name(PREVIOUS))
        finally:
            linked.unlink(missing_ok=True)


class KeepBestScore(Callback):
    """Lets a run that resumes from its own folder know its best score, also where the folder was moved or copied to.

    A checkpoint says where its folder was when it was written, and Lightning forgets the best score if that is not the
    run's folder now. A score of another validation, whose split, part of it, languages or inputs have changed, is
    forgotten: no later one could be compared with it.
    """

    def __init__(self) -> None:
        self._validation: dict[str, Any] | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes what scores depend on."""
        self._validation = trainer.datamodule.validated_on()  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """What the scores so far depend on."""
        return {"validation": self._validation}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on."""
        self._validation = state_dict["validation"]

    def _is_another_validation(self, trainer: Trainer, checkpoint: Mapping[str, Any]) -> bool:
        before = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("validation")
        if before is None or not trainer.limit_val_batches:
            return False
        has_changed: bool = before != trainer.datamodule.validated_on()  # type: ignore[attr-defined]
        return has_changed

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Puts the paths right before the callbacks take their states."""
        if trainer.state.fn != "fit":
            return
        folder = Path(str(trainer.ckpt_path)).resolve().parent
        forgets = self._is_another_validation(trainer, checkpoint)
        if forgets and trainer.is_global_zero:
            print("the validation is not that of before: the best score so far is forgotten", flush=True)

        def here(path: str) -> str:
            return path and str(folder / Path(path).name)

        for callback in trainer.checkpoint_callbacks:
            state = checkpoint.get("callbacks", {}).get(callback.state_key)
            if state is None or not isinstance(callback, ModelCheckpoint):
                continue
            if callback.dirpath == str(folder):
                state["dirpath"] = str(folder)
                state["best_k_models"] = {here(path): score for path, score in state["best_k_models"].items()}
                for name in ("best_model_path", "kth_best_model_path"):
                    state[name] = here(state[name])
            is_own = state["dirpath"] == callback.dirpath
            if forgets or not is_own or not all(Path(path).exists() for path in state["best_k_models"]):
                state["dirpath"] = None  # a score without its checkpoint would keep a worse one from being saved
                state["best_model_path"] = ""  # which Lightning takes even so


def explain_optimizer_mismatch(now: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> str | None:
    """Says in one sentence how a run's optimiser differs from that of the checkpoint it resumes, or returns None.

    The checkpoint brings the old optimiser's settings along, so new ones would be ignored without a word.

    Args:
        now: Parameter groups with ``lr``, ``weight_decay`` and ``betas``.
        before: Those of the checkpoint, whose ``lr`` has changed since; it counts where it began, ``initial_lr``.

    Example:
        >>> now = {"params": [1, 2], "lr": 0.5, "weight_decay": 0.0, "betas": (0.9, 0.98)}
        >>> print(explain_optimizer_mismatch([now], [now | {"initial_lr": 0.1}]))  # doctest: +ELLIPSIS
        the checkpoint's run began with lr 0.1 and this one asks for 0.5: keep model.lr, ...
    """
    trained, asked = (sum(len(group["params"]) for group in groups) for groups in (before, now))
    if trained != asked:
        return (
            f"the checkpoint's run trained {trained} tensors and this one trains {asked}: switch the same losses on as "
            "then, or start a new run."
        )
    for old, new in zip(before, now, strict=False):
        settings = {"lr": old["initial_lr"], "weight_decay": old["weight_decay"], "betas": tuple(old["betas"])}
        for name, value in settings.items():
            if value != (tuple(new[name]) if name == "betas" else new[name]):
                return (
                    f"the checkpoint's run began with {name} {value} and this one asks for {new[name]}: keep model.lr, "
                    "new_lr_scale, weight_decay and betas as they were, or start a new run."
                )
    return None


def take_optimizer_settings(checkpoint: Mapping[str, Any], now: Sequence[Mapping[str, Any]]) -> None:
    """Puts new settings into the optimiser and the schedule of a checkpoint, in place, from its step on.

    Args:
        checkpoint: With ``optimizer_states`` and ``lr_schedulers``.
        now: Parameter groups with ``lr``, ``weight_decay`` and ``betas``, in the order of those of the checkpoint.

    Example:
        >>> group = {"lr": 0.05, "initial_lr": 0.1, "weight_decay": 0.0, "betas": (0.9, 0.98)}  # half-way down
        >>> checkpoint = {"optimizer_states": [{"param_groups": [group]}], "lr_schedulers": [{"base_lrs": [0.1]}]}
        >>> take_optimizer_settings(checkpoint, [{"lr": 0.02, "weight_decay": 0.0, "betas": (0.9, 0.98)}])
        >>> group["lr"], group["initial_lr"], checkpoint["lr_schedulers"]
        (0.01, 0.02, [{'base_lrs': [0.02]}])
    """
    for state in checkpoint["optimizer_states"]:
        for old, new in zip(state["param_groups"], now, strict=False):
            done = old["lr"] / old["initial_lr"] if old["initial_lr"] else 1.0
            old["lr"] = new["lr"] * done
            old |= {"initial_lr": new["lr"], "weight_decay": new["weight_decay"], "betas": tuple(new["betas"])}
    for schedule in checkpoint["lr_schedulers"]:
        schedule["base_lrs"] = [group["lr"] for group in now]


class RunFolder:
    """The folder of a run: ``config.yaml``, ``checkpoints/``, ``metrics.csv``, ``results.json``, ``ranks.csv``.

    And ``model/``, if the model is one of others: all that makes it but its weights.

    Args:
        path: The folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.best = self.checkpoints / "best.ckpt"
        self.last = self.checkpoints / LAST
        self.config = path / "config.yaml"
        self.model = path / "model"
        self._made: list[Path] = []

    def create(self) -> None:
        """Makes the folder unless it is there.

        Raises:
            CCRError: If it cannot be made.
        """
        self._made += [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            make_folder(self.path)
        except OSError as error:
            raise CCRError(f"{self.path}: the folder cannot be made ({error.strerror}); change --runs_dir.") from error

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other runs out of the folder, which is made if need be, until the block ends or the process does.

        Raises:
            CCRError: Another process trains in it, or it cannot be made.
        """
        self.create()
        lock = self.path / ".lock"
        busy = f"{self.path}: another process trains here; wait for it, or pass --name for a new run."
        try:
            with one_process(lock, busy, "mend it or change --runs_dir"):
                try:
                    for folder in (self.path, self.checkpoints):
                        remove_remains(folder)
                    yield
                finally:
                    with suppress(OSError):
                        lock.unlink()
        finally:  # not before: on some network file systems a file that is open keeps its folder
            self.remove_if_empty()

    def make_ready(self, module: nn.Module) -> str:
        """Makes what a run writes into, before it has anything to lose.

        Args:
            module: What is trained, whose checkpoints have weights and AdamW's two averages.

        Returns:
            A sentence on want of space; empty if there is enough, by estimate.

        Raises:
            CCRError: Something is in the way.
        """
        metrics = self.path / "metrics.csv"
        try:
            make_folder(self.checkpoints)
            if metrics.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        except OSError as error:
            path = metrics if self.checkpoints.is_dir() else self.checkpoints
            raise could_not_be_written(path, "the run", error, "change --runs_dir") from error
        weights = [(of.nbytes, of.requires_grad) for of in module.parameters()]
        need = _CHECKPOINTS_AT_A_TIME * sum(size * (3 if is_trained else 1) for size, is_trained in weights)
        there = sum(path.stat().st_size for path in self.checkpoints.glob("*.ckpt"))
        free = shutil.disk_usage(self.checkpoints).free
        if free + there >= need:
            return ""
        return (
            f"{self.checkpoints}: {in_words(free)} are free, and the checkpoints of this run will need "
            f"{in_words(need - there)}: free some space, or change --runs_dir"
        )

    def remove_if_empty(self) -> None:
        """Removes the folder, and what was made for it, if a start that failed has left nothing in it."""
        for folder in (self.path, *self._made):
            with suppress(OSError):  # something is in it, or another process has removed it
                folder.rmdir()

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to go on from, maybe once it is mended."""
        return any(path.exists() for path in (self.last, self.checkpoints / PREVIOUS, self.best))

    def mend(self) -> str:
        """Puts another checkpoint in the place of the last one, if that is missing or damaged; it is kept, too.

        That is the one before it or the best one, whichever is newer and whole.

        Returns:
            What was done, in a sentence; empty if nothing was.

        Raises:
            CCRError: There are checkpoints, none of which can be read, or there is no space.
        """
        if not self.has_checkpoint():
            return ""
        steps: dict[Path, int] = {}
        damaged: dict[Path, CCRError] = {}
        for path in (self.last, self.checkpoints / PREVIOUS, self.best):
            if path.exists():
                try:
                    steps[path] = read_checkpoint(path, "meta", verify=True)["global_step"]
                except OutOfMemory:
                    raise
                except CCRError as error:
                    damaged[path] = error
            if self.last in steps:
                return ""
        if not steps:
            first, *others = damaged
            if not others:
                raise damaged[first]
            raise CCRError(
                f"{damaged[first]} Neither can {', '.join(path.name for path in others)}; without them the run starts "
                "anew."
            )
        newest = max(steps, key=lambda path: steps[path])
        with atomic_write(self.last, *_SAYS) as file, newest.open("rb") as content:
            shutil.copyfileobj(content, file)
            if self.last in damaged:
                self.last.replace(self.checkpoints / DAMAGED)
        taken = f"{newest.name}, of step {steps[newest]}, is taken."
        if self.last in damaged:
            return f"{damaged[self.last]} It is kept as {DAMAGED}, and {taken}"
        return f"{self.last} is missing: {taken}"

    def resume_from(self, resume: str | None) -> Path | None:
        """Finds the checkpoint to start from.

        Args:
            resume: None (a new run), ``auto`` (the last checkpoint if there is one), ``must`` (the last checkpoint), or
                the path of a checkpoint.

        Returns:
            The checkpoint, or None for a new run.

        Raises:
            CCRError: If a new run would overwrite one, or the checkpoint is not there.

        Example:
            >>> RunFolder(Path("runs/nowhere")).resume_from("must")  # doctest: +ELLIPSIS
            Traceback (most recent call last):
            ...
            ccr_lightning.errors.CCRError: --resume must: runs/nowhere has no checkpoints/last.ckpt; check ...
        """
        if resume is None:
            if self.has_checkpoint():
                raise CCRError(
                    f"{self.path} already holds a run: pass --resume auto to continue it, or --name for a new one."
                )
            return None
        if resume == "auto":
            return self.last if self.last.exists() else None
        if resume == "must":
            if not self.last.exists():
                raise CCRError(
                    f"--resume must: {self.path} has no checkpoints/last.ckpt; check --name, or pass --resume auto to "
                    "start anew."
                )
            return self.last
        if not Path(resume).is_file():
            raise CCRError(f"--resume {resume}: there is no such checkpoint; pass auto, must or the path of one.")
        if Path(resume).resolve().parent == self.checkpoints.resolve():
            return self.checkpoints / Path(resume).name
        if self.has_checkpoint():
            raise CCRError(f"--resume {resume}: {self.path} already holds a run: pass --name for a new one.")
        return Path(resume)
