"""Checkpoints that survive failures, and the folder of a run."""

import errno
import os
import resource
from pathlib import Path

import pytest
import torch

from ccr_lightning.errors import CCRError
from ccr_lightning.training.checkpoint_file import explain_mismatch
from ccr_lightning.training.checkpointing import AtomicCheckpointIO, RunFolder, take_optimizer_settings


def checkpoint(value, size=4):
    return {
        "state_dict": {"weight": torch.full((size,), float(value))},
        "pytorch-lightning_version": "2.6.6",
        "epoch": value,
    }


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_save_and_load(tmp_path):
    path = tmp_path / "new" / "folders" / "last.ckpt"
    for value in (1, 2):
        AtomicCheckpointIO().save_checkpoint(checkpoint(value), path)
        loaded = AtomicCheckpointIO().load_checkpoint(path)
        assert loaded["epoch"] == value
        assert loaded["state_dict"]["weight"].tolist() == [value] * 4
    assert files(path.parent) == ["last.ckpt", "previous.ckpt"]
    assert AtomicCheckpointIO().load_checkpoint(path.with_name("previous.ckpt"))["epoch"] == 1


def test_others_may_read_what_the_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        AtomicCheckpointIO().save_checkpoint(checkpoint(1), tmp_path / "last.ckpt")
    finally:
        os.umask(before)
    assert (tmp_path / "last.ckpt").stat().st_mode & 0o777 == 0o640


def expect_refusal(path, value=2, size=4):
    with pytest.raises(CCRError, match=r"last\.ckpt: the checkpoint could not be written \(.+\); free some space"):
        AtomicCheckpointIO().save_checkpoint(checkpoint(value, size), path)
    assert files(path.parent) == ["last.ckpt"]
    assert torch.load(path, weights_only=True)["epoch"] == 1


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")]
)
def test_a_write_that_breaks_off_leaves_the_previous_checkpoint(tmp_path, monkeypatch, error):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(1), path)

    def breaks_off(content, file):
        file.write(b"half of it")
        raise error

    monkeypatch.setattr(torch, "save", breaks_off)
    expect_refusal(path)


def test_a_file_system_that_takes_no_more_leaves_the_previous_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(1), path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        expect_refusal(path, size=100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_rename_that_fails_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(checkpoint(1), path)

    def refuse(self, target):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "replace", refuse)
    expect_refusal(path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(CCRError, match="could not be written"):
        AtomicCheckpointIO().save_checkpoint(checkpoint(1), tmp_path / "run" / "checkpoints" / "last.ckpt")
    with pytest.raises(CCRError, match="the folder cannot be made"):
        RunFolder(tmp_path / "run" / "deeper").create()


def truncated(path):
    torch.save(checkpoint(1, size=1000), path)
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"garbage"), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (truncated, "cannot be read"),
        (lambda path: torch.save({**checkpoint(1), "where": Path("code")}, path), "cannot be read"),
        (lambda path: None, "cannot be read"),
        (lambda path: torch.save(checkpoint(1)["state_dict"], path), "not the checkpoint of a run"),
        (lambda path: torch.save(torch.zeros(3), path), "not the checkpoint of a run"),
    ],
    ids=["garbage", "empty", "truncated", "code", "missing", "weights only", "tensor"],
)
def test_files_that_are_no_checkpoints(tmp_path, write, message):
    path = tmp_path / "some.ckpt"
    write(path)
    with pytest.raises(CCRError, match=rf"some\.ckpt: .*{message}") as caught:
        AtomicCheckpointIO().load_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("checkpoint", "expected"),
    [
        ({"b": torch.ones(3), "a": torch.ones(2, 2)}, None),
        ({"a": torch.ones(2, 2), "b": torch.ones(4)}, "1 of 2 tensors differ, first 'b' (3,) in the model and (4,) in"),
        ({"a": torch.ones(2, 2)}, "1 of 2 tensors differ, first 'b' (3,) in the model and missing in"),
        (
            {"a": torch.ones(2, 2), "b": torch.ones(3), "c": torch.ones(())},
            "1 of 3 tensors differ, first 'c' missing in the model and () in",
        ),
        ({"a": torch.ones(4), "c": torch.ones(1)}, "3 of 3 tensors differ, first 'a' (2, 2) in the model and (4,) in"),
        ({}, "2 of 2 tensors differ, first 'a' (2, 2) in the model and missing in"),
    ],
)
def test_explain_mismatch(checkpoint, expected):
    found = explain_mismatch({"a": torch.zeros(2, 2), "b": torch.zeros(3)}, checkpoint)
    if expected is None:
        assert found is None
    else:
        assert found.startswith("the checkpoint is of another architecture: " + expected + " the checkpoint; ")


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "runs" / "mine")


@pytest.fixture
def used_folder(folder):
    folder.create()
    folder.checkpoints.mkdir()
    folder.best.touch()
    folder.last.touch()
    return folder


def test_a_new_run(folder):
    assert folder.resume_from(None) is None
    assert folder.resume_from("auto") is None
    with pytest.raises(CCRError, match=r"--resume must: .*mine has no checkpoints/last\.ckpt"):
        folder.resume_from("must")
    assert not folder.path.exists()
    folder.create()
    folder.create()
    assert folder.path.is_dir()
    assert folder.resume_from(None) is None


def test_a_run_that_is_there(used_folder):
    with pytest.raises(CCRError, match="mine already holds a run: pass --resume auto to continue it, or --name"):
        used_folder.resume_from(None)
    assert used_folder.resume_from("auto") == used_folder.last
    assert used_folder.resume_from("must") == used_folder.last


def test_resume_from_a_path(used_folder, tmp_path):
    assert used_folder.resume_from(str(used_folder.best)) == used_folder.best
    elsewhere = tmp_path / "other.ckpt"
    elsewhere.touch()
    with pytest.raises(CCRError, match=r"mine already holds a run: pass --name for a new one\.$"):
        used_folder.resume_from(str(elsewhere))
    assert RunFolder(tmp_path / "runs" / "new").resume_from(str(elsewhere)) == elsewhere
    for wrong in (tmp_path / "nowhere.ckpt", used_folder.path):
        with pytest.raises(CCRError, match=f"--resume {wrong}: there is no such checkpoint; pass auto, must or"):
            used_folder.resume_from(str(wrong))


def test_a_kill_while_a_damaged_checkpoint_is_replaced(folder, monkeypatch):
    for value in (1, 2):
        AtomicCheckpointIO().save_checkpoint({**checkpoint(value), "global_step": value}, folder.last)
    truncated(folder.last)
    replace = Path.replace

    def killed(self, target):
        if Path(target) == folder.last:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.mend()
    assert folder.resume_from("auto") is None  # without mending, that is
    assert folder.mend() == f"{folder.last} is missing: previous.ckpt, of step 1, is taken."
    assert torch.load(folder.last, weights_only=True)["epoch"] == 1
    assert files(folder.checkpoints) == ["damaged.ckpt", "last.ckpt", "previous.ckpt"]


@pytest.mark.parametrize("best", [1, 3])
def test_the_newest_that_is_whole_takes_the_place_of_a_damaged_one(folder, best):
    for value in (2, 4):
        AtomicCheckpointIO().save_checkpoint({**checkpoint(value), "global_step": value}, folder.last)
    AtomicCheckpointIO().save_checkpoint({**checkpoint(best), "global_step": best}, folder.best)
    truncated(folder.last)
    taken, step = ("best", 3) if best == 3 else ("previous", 2)
    assert folder.mend().endswith(f"It is kept as damaged.ckpt, and {taken}.ckpt, of step {step}, is taken.")
    assert torch.load(folder.last, weights_only=True)["epoch"] == step
    assert torch.load(folder.best, weights_only=True)["epoch"] == best


def test_a_best_checkpoint_alone_is_a_run(folder):
    AtomicCheckpointIO().save_checkpoint({**checkpoint(1), "global_step": 1}, folder.best)
    with pytest.raises(CCRError, match="mine already holds a run"):
        folder.resume_from(None)
    assert folder.mend() == f"{folder.last} is missing: best.ckpt, of step 1, is taken."
    assert folder.resume_from("must") == folder.last


def test_no_checkpoint_that_can_be_read(folder):
    for name in ("last", "best"):
        AtomicCheckpointIO().save_checkpoint({**checkpoint(1), "global_step": 1}, folder.checkpoints / f"{name}.ckpt")
        truncated(folder.checkpoints / f"{name}.ckpt")
    with pytest.raises(CCRError, match=r"checkpoints: no checkpoint can be read, last\.ckpt, best\.ckpt: damaged or"):
        folder.mend()


def test_a_learning_rate_that_was_zero():
    group = {"lr": 0.0, "initial_lr": 0.0, "weight_decay": 0.0, "betas": (0.9, 0.98)}
    state = {"optimizer_states": [{"param_groups": [group]}], "lr_schedulers": [{"base_lrs": [0.0]}]}
    take_optimizer_settings(state, [{"lr": 0.02, "weight_decay": 0.0, "betas": (0.9, 0.98)}])
    assert group["lr"] == group["initial_lr"] == 0.02


def test_a_folder_in_which_no_lock_can_be_made(folder):
    folder.create()
    (folder.path / ".lock").mkdir()
    says = r"mine: the folder cannot be written \(.+\); mend it or change --runs_dir\.$"
    with pytest.raises(CCRError, match=says), folder.alone():
        pass
