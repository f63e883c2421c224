"""Gradients that are not finite, in the real command: what they leave as it was, and how they end a run."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from ccr_lightning.training.bad_steps import gradient_norm

RUN = """
import os, sys
import torch
from ccr_lightning.training.module import RetrievalModule

steps, where = set(map(int, os.environ["BAD"].split(","))), os.environ["WHERE"]
train, end = RetrievalModule.training_step, RetrievalModule.on_train_batch_end

def training_step(module, batch, batch_idx):
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    is_bad = module.global_step in steps
    if is_bad and where in ("a picture", "a picture of rank " + os.environ.get("LOCAL_RANK", "0")):
        images = batch.images.clone()
        images[0] = torch.nan
        batch = batch._replace(images=images)
    loss = train(module, batch, batch_idx)
    module.before = before if is_bad else None
    return loss * torch.inf if is_bad and where == "the loss" else loss

def on_train_batch_end(module, *arguments):
    if module.before is not None:
        copied = ".running_" if module.global_rank else "nothing"  # ddp takes them from the first process
        kept = [name for name in module.before if copied not in name]
        same = all(torch.equal(module.state_dict()[name], module.before[name]) for name in kept)
        print("changed nothing" if same else "changed something", flush=True)
    return end(module, *arguments)

RetrievalModule.training_step, RetrievalModule.on_train_batch_end = training_step, on_train_batch_end
from ccr_lightning.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, write_tiny_jsonl, tiny_config):
    """A run with an image encoder that has BatchNorm, on one process or two, with bad steps."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "run.py").write_text(RUN)
    config = tiny_config(write_tiny_jsonl(folder / "data", train=48), folder / "cache")
    encoder = config["model"]["retriever"]["init_args"]["image_encoder"]["init_args"]
    encoder["name"] = "test_resnet"
    for part in ("fusion",):
        config["model"]["retriever"]["init_args"][part]["init_args"]["image_width"] = 96
    config["trainer"] |= {"max_epochs": 3, "log_every_n_steps": 1}

    def start(name, steps, where, ranks=1):
        config["trainer"] |= {"devices": ranks, "strategy": "ddp" if ranks > 1 else "auto"}
        config["data"]["batch_size"] = 8 // ranks
        (folder / f"{name}.yaml").write_text(json.dumps(config))
        command = [sys.executable, "run.py", "fit", "--config", f"{name}.yaml", "--runs_dir", "runs"]
        environment = {**os.environ, "BAD": ",".join(map(str, steps)), "WHERE": where}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
        return done, folder / "runs" / name

    return start


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("where", "ranks"), [("a picture", 1), ("the loss", 1), ("a picture of rank 1", 2)], ids=["picture", "loss", "rank"]
)
def test_a_bad_step_changes_nothing(run, where, ranks):
    done, folder = run(f"{where.replace(' ', '-')}-few", [2, 3, 9], where, ranks)
    assert done.returncode == 0, done.stderr
    line = r"^step (\d+) is passed over: the gradient is (?:nan|inf) \((\d) so far, (\d) in a row\)$"
    said = re.findall(line, done.stdout, re.MULTILINE)
    assert said == [("2", "1", "1"), ("3", "2", "2"), ("9", "3", "1")]
    assert re.findall("changed (nothing|something)", done.stdout) == ["nothing"] * 3 * ranks
    assert all(of.isfinite().all() for of in weights(folder).values())
    assert (folder / "results.json").exists()


@pytest.mark.ddp
@pytest.mark.parametrize("ranks", [1, 2])
def test_too_many_in_a_row_end_the_run(run, ranks):
    where = "a picture" if ranks == 1 else "a picture of rank 1"
    done, folder = run(f"many-{ranks}", range(7, 18), where, ranks)
    assert done.returncode == 1
    assert done.stdout.count(" is passed over: ") == 10
    (says,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    of_rank = r"(?:rank (\d) of 2 \(on .*?\) stopped at step \d+: )?"
    what = r"the gradient was not finite in 10 steps in a row, the last of them with the images (.*?): "
    rank, images = re.match(f"error: {of_rank}{what}", says).groups()
    assert "Traceback" not in done.stderr
    assert not (folder / "results.json").exists()
    assert all(of.isfinite().all() for of in weights(folder).values())
    batches = [torch.load(path, weights_only=True) for path in sorted(folder.glob("bad_batch-*.pt"))]
    assert len(batches) == ranks
    assert images.split(", ") == [str(image) for image in batches[int(rank or 0)]["image_ids"].tolist()]
    assert batches[0]["images"].shape[1:] == (3, 32, 32)


def test_the_norm_of_all_gradients():
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in (3, 4, 2)]
    for parameter in parameters[:2]:
        parameter.grad = torch.randn(parameter.shape)
    expected = torch.cat([of.grad for of in parameters[:2]]).double().square().sum().sqrt()
    torch.testing.assert_close(gradient_norm(parameters).double(), expected, rtol=1e-6, atol=0)
    parameters[1].grad[0] = torch.nan
    assert not gradient_norm(parameters).isfinite()
