"""Runs that are stopped or killed again and again end as one that nobody touched: the same losses, the same weights."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import cache

import pytest
import torch

COMMAND = [sys.executable, "-m", "ccr_lightning.cli.main", "fit"]
STEPS, EPOCHS = 10, 3
TIMES = 10
KILLED_IN_A_VALIDATION = """
import os, signal, sys
from ccr_lightning.cli import training
from ccr_lightning.cli.main import main
from ccr_lightning.training.module import RetrievalModule

training.STEPS_BETWEEN_CHECKPOINTS = 5
validate = RetrievalModule.validation_step

def validation_step(module, *batch):
    if module.global_step == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    return validate(module, *batch)

RetrievalModule.validation_step = validation_step
sys.exit(main(sys.argv[1:]))
"""
KILLED_BEFORE_ITS_FIRST_LAST_CHECKPOINT = """
import os, signal, sys
from ccr_lightning.cli.main import main
from ccr_lightning.training.checkpointing import AtomicCheckpointIO

save = AtomicCheckpointIO.save_checkpoint

def save_checkpoint(self, checkpoint, path, storage_options=None):
    save(self, checkpoint, path)
    if str(path).endswith("best.ckpt"):
        os.kill(os.getpid(), signal.SIGKILL)

AtomicCheckpointIO.save_checkpoint = save_checkpoint
sys.exit(main(sys.argv[1:]))
"""
TERMINATED_WHILE_SCORING = """
import os, signal, sys
from ccr_lightning.cli.main import main
from ccr_lightning.training.module import RetrievalModule

name = sys.argv.pop(1)
step = getattr(RetrievalModule, name)

def scoring(module, *batch):
    os.kill(os.getpid(), signal.SIGTERM)
    return step(module, *batch)

setattr(RetrievalModule, name, scoring)
sys.exit(main(sys.argv[1:]))
"""
TERMINATED_AFTER_TRAINING = """
import os, signal, sys
from ccr_lightning.cli.main import main
from ccr_lightning.training.module import RetrievalModule

def on_train_end(module):
    if module.global_rank == int(os.environ["RANK_TO_END"]):
        os.kill(os.getpid(), signal.SIGTERM)

RetrievalModule.on_train_end = on_train_end
sys.exit(main(sys.argv[1:]))
"""
ASKED_WHERE_AN_EXCEPTION_IS_LOST = """
import os, signal, sys, time
from ccr_lightning.cli.main import main
from ccr_lightning.data.datamodule import CaptionDataModule

signum = int(sys.argv.pop(1))
prepare = CaptionDataModule.prepare_data

class Asks:
    def __del__(self):
        os.kill(os.getpid(), signum)

def prepare_data(data):
    asks = Asks()
    del asks
    time.sleep(1)  # elsewhere a library might swallow the signal when it comes again
    prepare(data)

CaptionDataModule.prepare_data = prepare_data
sys.exit(main(sys.argv[1:]))
"""
STATUS = {signal.SIGTERM: 143, signal.SIGINT: 130}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_tiny_jsonl, tiny_config):
    """Configurations with one and two processes, of the same global batch, and everything random switched on."""
    folder = tmp_path_factory.mktemp("stopped")
    config = tiny_config(write_tiny_jsonl(folder / "data", train=80), folder / "cache")
    config["trainer"] |= {"max_epochs": EPOCHS, "log_every_n_steps": 1, "deterministic": True}
    (folder / "1.yaml").write_text(json.dumps(config))
    config["trainer"] |= {"devices": 2, "strategy": "ddp"}
    config["data"] |= {"batch_size": config["data"]["batch_size"] // 2, "num_workers": 2}
    (folder / "2.yaml").write_text(json.dumps(config))
    return folder


def start(folder, ranks, name, *settings, stdout=subprocess.DEVNULL):
    command = [*COMMAND, "--config", f"{ranks}.yaml", "--name", name, "--resume", "auto", *settings]
    return subprocess.Popen(
        command, cwd=folder, stdout=stdout, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def losses(run):
    """The losses of the steps that were logged so far; the last line may be cut off."""
    if not (run / "metrics.csv").exists():
        return {}
    lines = csv.DictReader((run / "metrics.csv").read_text().rpartition("\n")[0].splitlines())
    return {int(line["step"]): line["train/loss"] for line in lines if line.get("train/loss")}


def changed(run):
    """When something was logged last."""
    return (run / "metrics.csv").stat().st_mtime_ns if (run / "metrics.csv").exists() else None


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def whole(folder):
    """A function that returns a run of one process or two that nobody touched."""

    @cache
    def run(ranks):
        process = start(folder, ranks, f"whole-{ranks}")
        assert process.wait(timeout=300) == 0, process.stderr.read()
        found = folder / "runs" / f"whole-{ranks}"
        assert list(losses(found)) == list(range(STEPS * EPOCHS))
        return found

    return run


@pytest.mark.ddp
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_is_stopped_or_killed_ten_times(folder, whole, ranks, workers):
    expected = whole(ranks)
    name = f"{ranks} ranks, {workers} workers"
    run, draws = folder / "runs" / name, random.Random(name)
    reached = 0
    for number in range(TIMES):
        signum = draws.choice([signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
        before = changed(run)
        process = start(folder, ranks, name, "--data.num_workers", str(workers))
        last = (number + 1) * STEPS * EPOCHS // (TIMES + 1)
        wanted = draws.randint(reached + 1, max(reached + 1, last))
        while changed(run) == before or len(losses(run)) < wanted:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        to_all = signum == signal.SIGKILL or draws.random() < 0.5  # of a terminal or of a scheduler, or of a person
        (os.killpg if to_all else os.kill)(process.pid, signum)
        status = process.wait(timeout=240)
        said = process.stderr.read()
        if signum != signal.SIGKILL:
            assert status == STATUS[signum], said
            assert "the run was interrupted: continue it with ccr fit" in said
            assert "Traceback" not in said
            reached = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
            assert reached >= wanted  # nothing that was done is done again
    process = start(folder, ranks, name)
    assert process.wait(timeout=300) == 0, process.stderr.read()
    assert losses(run) == losses(expected)
    assert weights(run).keys() == weights(expected).keys()
    assert all(torch.equal(tensor, weights(run)[name]) for name, tensor in weights(expected).items())
    found, whole_run = (json.loads((of / "results.json").read_text()) for of in (run, expected))
    assert found["languages"] == whole_run["languages"]
    assert found["model"] == whole_run["model"]


def truncated(path):
    os.truncate(path, path.stat().st_size // 2)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def stopped(folder):
    """A run that was stopped in its last epoch."""
    process, run = start(folder, 1, "stopped"), folder / "runs" / "stopped"
    while len(losses(run)) < 2 * STEPS + 2:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=240) == 143
    return run


@pytest.mark.parametrize("damage", [truncated, flipped])
def test_a_damaged_checkpoint_is_not_the_end(folder, stopped, whole, damage):
    expected = whole(1)
    run = shutil.copytree(stopped, folder / "runs" / damage.__name__)
    damage(run / "checkpoints" / "last.ckpt")
    lost = (run / "checkpoints" / "last.ckpt").read_bytes()
    process = start(folder, 1, damage.__name__, stdout=subprocess.PIPE)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert f"runs/{damage.__name__}/checkpoints/last.ckpt: the checkpoint cannot be read" in said
    assert f"It is kept as damaged.ckpt, and previous.ckpt, of step {2 * STEPS}, is taken." in said
    assert (run / "checkpoints" / "damaged.ckpt").read_bytes() == lost
    assert losses(run) == losses(expected)
    assert all(torch.equal(tensor, weights(run)[name]) for name, tensor in weights(expected).items())


def test_checkpoints_that_are_all_damaged_are_the_end(folder, stopped):
    run = shutil.copytree(stopped, folder / "runs" / "all")
    for name in ("last.ckpt", "previous.ckpt", "best.ckpt"):
        flipped(run / "checkpoints" / name)
    process = start(folder, 1, "all")
    assert process.wait(timeout=240) == 1
    (says,) = process.stderr.read().splitlines()
    assert says.startswith("error: runs/all/checkpoints/last.ckpt: the checkpoint cannot be read")
    assert says.endswith(" Neither can previous.ckpt, best.ckpt; without them the run starts anew.")


def test_two_runs_in_one_folder(folder):
    process, run = start(folder, 1, "shared"), folder / "runs" / "shared"
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)
    try:
        whole_one = (run / "checkpoints" / "last.ckpt").read_bytes()
        flipped(run / "checkpoints" / "last.ckpt")  # which is not the second one's to mend
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        second = start(folder, 1, "shared")
        assert second.wait(timeout=240) == 1
        says = "error: runs/shared: another process trains here; wait for it, or pass --name for a new run."
        assert second.stderr.read().splitlines() == [says]
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        (run / "checkpoints" / "last.ckpt").write_bytes(whole_one)
    finally:
        process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=300) == 0
    assert not (run / ".lock").exists()


def test_a_validation_that_was_cut_off_is_done_again(folder, whole):
    command = [sys.executable, "-c", KILLED_IN_A_VALIDATION, "fit", "--config", "1.yaml", "--name", "cut off"]
    assert subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=False).returncode == -signal.SIGKILL
    process, run = start(folder, 1, "cut off"), folder / "runs" / "cut off"
    assert process.wait(timeout=300) == 0, process.stderr.read()
    scores = []
    for of in (run, whole(1)):
        lines = csv.DictReader((of / "metrics.csv").open())
        scores.append([(line["step"], line["val/mean_recall"]) for line in lines if line["val/mean_recall"]])
    assert len(scores[0]) == EPOCHS
    assert scores[0] == scores[1]


def test_a_run_whose_only_checkpoint_is_its_best_goes_on_from_there(folder, whole):
    name = "best only"
    command = [sys.executable, "-c", KILLED_BEFORE_ITS_FIRST_LAST_CHECKPOINT, "fit", "--config", "1.yaml"]
    done = subprocess.run([*command, "--name", name], cwd=folder, stdout=subprocess.DEVNULL, check=False)
    assert done.returncode == -signal.SIGKILL
    run = folder / "runs" / name
    assert [path.name for path in (run / "checkpoints").glob("*.ckpt")] == ["best.ckpt"]
    process = start(folder, 1, name, stdout=subprocess.PIPE)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert f"last.ckpt is missing: best.ckpt, of step {STEPS}, is taken." in said
    assert losses(run) == losses(whole(1))
    assert all(torch.equal(tensor, weights(run)[key]) for key, tensor in weights(whole(1)).items())


def test_sigterm_where_a_validation_follows_every_step(folder, whole):
    settings = ["--data.batch_size", "80", "--trainer.max_epochs", "1000"]
    process, run = start(folder, 1, "a step an epoch", *settings), folder / "runs" / "a step an epoch"
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    (says,) = process.stderr.read().splitlines()
    assert says.startswith("error: the run was interrupted: continue it with ccr fit ")


@pytest.mark.parametrize("step", ["validation_step", "test_step"])
def test_sigterm_while_a_split_is_scored(folder, whole, step):
    command = [sys.executable, "-c", TERMINATED_WHILE_SCORING, step, "fit", "--config", "1.yaml", "--name", step]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 143
    (says,) = done.stderr.splitlines()
    assert says.startswith("error: the run was interrupted: continue it with ccr fit ")
    process, run = start(folder, 1, step), folder / "runs" / step
    assert process.wait(timeout=300) == 0, process.stderr.read()
    assert all(torch.equal(tensor, weights(run)[key]) for key, tensor in weights(whole(1)).items())
    assert (run / "results.json").exists()


@pytest.mark.ddp
@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (2, 0), (2, 1)])
def test_sigterm_when_training_is_over(folder, ranks, rank, monkeypatch):
    monkeypatch.setenv("RANK_TO_END", str(rank))
    name = f"over, {ranks}, {rank}"
    (folder / "over.py").write_text(TERMINATED_AFTER_TRAINING)
    settings = ["--config", f"{ranks}.yaml", "--name", name, "--trainer.max_epochs", "1"]
    command = [sys.executable, "over.py", "fit", *settings]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 143, done.stderr
    (says,) = done.stderr.splitlines()
    assert says.startswith("error: the run was interrupted: continue it with ccr fit ")
    assert not (folder / "runs" / name / "results.json").exists()


@pytest.mark.parametrize("signum", STATUS)
def test_a_signal_where_an_exception_is_lost(folder, signum):
    """In a ``__del__`` Python only says that it ignores the exception."""
    script = [sys.executable, "-c", ASKED_WHERE_AN_EXCEPTION_IS_LOST, str(int(signum))]
    command = [*script, "fit", "--config", "1.yaml", "--name", f"lost {signum.name}", "--trainer.max_epochs", "1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == STATUS[signum], done.stderr
    (says,) = done.stderr.splitlines()
    assert "interrupted" in says


def test_a_run_without_a_checkpoint_says_that_it_starts_anew(folder, stopped):
    run = shutil.copytree(stopped, folder / "runs" / "lost")
    shutil.rmtree(run / "checkpoints")
    process = start(folder, 1, "lost", "--trainer.max_epochs", "1", stdout=subprocess.PIPE)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "runs/lost has no checkpoint: the run starts anew\n" in said
