"""``ccr fit`` in two real processes against the same command in one."""

import csv
import json
import socket
import subprocess
import sys

import pytest
import torch

from ccr_lightning.cli.main import main

pytestmark = pytest.mark.ddp


def command(config, runs, name, *settings):
    devices = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "4"]
    return ["fit", "--config", str(config), "--runs_dir", str(runs), "--name", name, *devices, *settings]


def two_processes(config, runs, name, *settings):
    program = [sys.executable, "-m", "ccr_lightning.cli.main", *command(config, runs, name, *settings)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("written to") == 1
    assert "Warning" not in done.stderr
    return json.loads((runs / name / "results.json").read_text()), done.stdout


def one_process(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["ccr"])
    assert main([str(argument) for argument in arguments]) == 0


def numbers(document):
    return {key: document[key] for key in ("languages", "mean_recall", "mrv", "mrsd")}


def contrastive_losses(run):
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [float(line["train/contrastive"]) for line in csv.DictReader(file) if line["train/contrastive"]]


def test_two_processes_do_what_one_does(exact_config, tmp_path, monkeypatch):
    alone = ["--model.matching_weight", "0", "--model.masked_lm_weight", "0"]
    document, _ = two_processes(exact_config, tmp_path, "two", *alone)
    one_process(monkeypatch, "fit", "--config", exact_config, "--runs_dir", tmp_path, "--name", "one", *alone)
    two, one = (torch.load(tmp_path / f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("two", "one"))
    assert two["global_step"] == one["global_step"] == 4
    for name, weight in one["state_dict"].items():
        if not name.endswith("attention.key.bias"):  # its gradient is 0 but for rounding, which AdamW makes large
            torch.testing.assert_close(two["state_dict"][name], weight, rtol=0, atol=1e-5, msg=name)

    logged = [contrastive_losses(tmp_path / name) for name in ("two", "one")]  # the whole batch's, not one rank's share
    assert len(logged[0]) == 4
    assert logged[0] == pytest.approx(logged[1], rel=1e-5)

    for scores in document["languages"].values():
        for of in scores.values():
            assert (of["queries"], of["gallery"]) == (7, 7)
    one_process(
        monkeypatch, "test", "--ckpt_path", tmp_path / "two", "--trainer.devices", 1, "--trainer.strategy", "auto",
        "--name", "again",
    )  # fmt: skip
    assert numbers(json.loads((tmp_path / "again" / "results.json").read_text())) == numbers(document)


def test_two_processes_train_all_losses(exact_config, tmp_path):
    document, output = two_processes(exact_config, tmp_path, "all", "--trainer.max_epochs", "1")
    assert "for 2 steps on 2 x cpu" in output
    assert 0 <= document["mean_recall"] <= 1
    checkpoint = torch.load(tmp_path / "all" / "checkpoints" / "best.ckpt", weights_only=True)
    assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())
    logged = (tmp_path / "all" / "metrics.csv").read_text()
    assert all(f"train/{name}" in logged for name in ("contrastive", "matching", "masked_lm"))


FAILS = """
import sys
from ccr_lightning.cli import main
from ccr_lightning.errors import CCRError
from ccr_lightning.training.module import RetrievalModule

step = RetrievalModule.training_step

def fail(module, batch, batch_idx):
    if batch_idx == 1 and module.global_rank in {ranks}:
        raise CCRError("the picture is damaged.")
    return step(module, batch, batch_idx)

RetrievalModule.training_step = fail
sys.exit(main.main())
"""
AT_ONE = (
    f"error: rank {{}} of 2 (on {socket.gethostname()}) stopped at step 1: the picture is damaged; "
    "mend that and go on with --resume auto."
)


@pytest.mark.parametrize(
    ("ranks", "says"),
    [([0, 1], "error: the picture is damaged."), ([0], AT_ONE.format(0)), ([1], AT_ONE.format(1))],
)
def test_an_error_is_said_once(exact_config, tmp_path, ranks, says):
    """Whether all processes find it or one of them does; the connections that then break are nothing to read about."""
    program = tmp_path / "fails.py"
    program.write_text(FAILS.format(ranks=ranks))
    arguments = [sys.executable, str(program), *command(exact_config, tmp_path, "fails")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr.splitlines()) == (1, [says])
