"""Runs that are stopped or killed again and again end as one that nobody touched: the same losses, the same weights."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

COMMAND = [sys.executable, "-m", "ccr_lightning.cli.main", "fit"]
STEPS, EPOCHS = 10, 3
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


def start(folder, ranks, name):
    command = [*COMMAND, "--config", f"{ranks}.yaml", "--name", name, "--resume", "auto"]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def losses(run):
    """The losses of the steps that were logged so far; the last line may be cut off."""
    if not (run / "metrics.csv").exists():
        return {}
    lines = csv.DictReader((run / "metrics.csv").read_text().rpartition("\n")[0].splitlines())
    return {int(line["step"]): line["train/loss"] for line in lines if line.get("train/loss")}


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module", params=[1, 2])
def whole(request, folder):
    """The number of processes, and a run of so many that nobody touched."""
    process = start(folder, request.param, f"whole-{request.param}")
    assert process.wait(timeout=300) == 0, process.stderr.read()
    run = folder / "runs" / f"whole-{request.param}"
    assert list(losses(run)) == list(range(STEPS * EPOCHS))
    return request.param, run


@pytest.mark.ddp
@pytest.mark.parametrize(
    "signals",
    [
        pytest.param([signal.SIGTERM, signal.SIGINT, signal.SIGTERM], id="stopped"),
        pytest.param([signal.SIGKILL, signal.SIGTERM, signal.SIGKILL], id="killed"),
    ],
)
def test_a_run_that_is_stopped_again_and_again(folder, whole, signals):
    ranks, expected = whole
    name = f"{ranks}-{'-'.join(of.name for of in signals)}"
    run, draws = folder / "runs" / name, random.Random(name)
    reached = 0
    for number, signum in enumerate(signals):
        process = start(folder, ranks, name)
        last = (number + 1) * STEPS * EPOCHS // (len(signals) + 1)
        wanted = draws.randint(reached + 1, max(reached + 1, last))
        while len(losses(run)) < wanted:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        to_all = signum == signal.SIGKILL or draws.random() < 0.5  # of a terminal or of a scheduler, or of a person
        (os.killpg if to_all else os.kill)(process.pid, signum)
        status = process.wait(timeout=60)
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
