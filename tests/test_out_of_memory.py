"""``ccr fit`` that runs out of memory, because its process may have no more: one sentence, and what it names fits."""

import json
import re
import subprocess
import sys

import pytest
import torch

from ccr_lightning.training.out_of_memory import explain_elsewhere, is_out_of_memory

# From the second step on there are 500 MB more than the process has by then, however much that is.
LIMITED = """
import resource, sys
from pathlib import Path
from ccr_lightning.cli.main import main
from ccr_lightning.training.module import RetrievalModule

note = RetrievalModule.on_train_batch_start

def on_train_batch_start(module, batch, batch_idx):
    note(module, batch, batch_idx)
    if module.global_step == {step}:
        lines = Path("/proc/self/status").read_text().splitlines()
        used = next(int(line.split()[1]) for line in lines if line.startswith("VmSize"))
        resource.setrlimit(resource.RLIMIT_AS, (1024 * used + 500_000_000, -1))

RetrievalModule.on_train_batch_start = on_train_batch_start
sys.exit(main())
"""
FAILING = """
import sys, torch
from ccr_lightning.cli.main import main
from ccr_lightning.training.module import RetrievalModule

def fail(*_):
    raise {error}

RetrievalModule.{method} = fail
sys.exit(main())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_tiny_jsonl, tiny_config):
    folder = tmp_path_factory.mktemp("memory")
    config = tiny_config(write_tiny_jsonl(folder / "data", train=80), folder / "cache")
    config["model"]["retriever"]["init_args"]["image_encoder"]["init_args"]["image_size"] = 320
    config["data"]["transform"]["init_args"]["image_size"] = 320
    config["trainer"]["max_epochs"] = 1
    (folder / "tiny.yaml").write_text(json.dumps(config))
    return folder


def fit(folder, program, *settings):
    (folder / "program.py").write_text(program)
    command = [sys.executable, "program.py", "fit", "--config", "tiny.yaml", *map(str, settings)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def test_what_is_named_fits(folder):
    done = fit(folder, LIMITED.format(step=0), "--name", "large", "--data.batch_size", 80)
    assert done.returncode == 1, done.stdout
    (line,) = done.stderr.splitlines()
    found = re.fullmatch(
        r"error: out of memory in a training step of 80 images \((?P<free>\d+) MB are free beside it\): a batch of "
        r"(?P<fits>\d+) should fit, by estimate; lower --data\.batch_size, or set --model\.chunk_size 16, say, then go "
        r"on with --resume auto --resume-changed\.",
        line,
    )
    assert found, line
    assert 100 <= int(found["free"]) <= 500
    fits = int(found["fits"])
    assert 2 <= fits < 80
    done = fit(folder, LIMITED.format(step=0), "--name", "small", "--data.batch_size", fits)
    assert done.returncode == 0, done.stderr
    done = fit(folder, LIMITED.format(step=0), "--name", "chunks", "--data.batch_size", 80, "--model.chunk_size", 4)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("method", "error", "says"),
    [
        (
            "training_step",
            "torch.OutOfMemoryError('CUDA out of memory.')",
            "error: out of memory in a training step of 8",
        ),
        ("validation_step", "MemoryError()", "error: out of memory in validation "),
        ("test_step", "torch.OutOfMemoryError('CUDA out of memory.')", "error: out of memory in the test "),
    ],
)
def test_errors_of_other_devices_and_stages(folder, method, error, says):
    done = fit(folder, FAILING.format(error=error, method=method), "--name", method)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(says)
    assert ("--data.batch_size" if method == "training_step" else "--data.eval_batch_size") in line


def test_other_errors_are_left_alone(folder):
    done = fit(folder, FAILING.format(error="RuntimeError('a mistake')", method="training_step"), "--name", "mistake")
    assert done.returncode == 1
    assert done.stderr.endswith("RuntimeError: a mistake\n")
    assert "Traceback" in done.stderr


def test_what_is_out_of_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("CUDA out of memory"))
    assert "lower --data.batch_size or --data.num_workers" in str(explain_elsewhere("train"))
