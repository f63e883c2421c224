"""``ccr fit`` whose workers die, or find a fault: one sentence, as without workers."""

import gc
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, IterableDataset

from ccr_lightning.data.workers import begin_worker, explain_worker

CCR = [sys.executable, "-m", "ccr_lightning.cli.main"]


@pytest.fixture
def config(tmp_path, tiny_jsonl, tiny_config):
    config = tiny_config(tiny_jsonl(train=80, test=40), tmp_path / "cache")
    config["trainer"] |= {"max_epochs": 30, "log_every_n_steps": 1}
    config["data"]["num_workers"] = 2
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(config))
    return path


def children_of(pid):
    """The processes that a process has started, which have not ended."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_a_worker_that_is_killed(config, tmp_path):
    process = subprocess.Popen(
        [*CCR, "fit", "--config", config], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "runs" / "tiny" / "checkpoints" / "last.ckpt").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    os.kill(children_of(process.pid)[0], signal.SIGKILL)  # those of training came first
    _, errors = process.communicate(timeout=240)
    says = r"has died \((Killed|without a word)\), often for want of memory: lower data\.num_workers\."
    assert process.returncode == 1
    assert re.fullmatch(f"error: a process that loads batches {says}\n", errors)
    done = subprocess.run(
        [*CCR, "fit", "--config", config, "--resume", "auto", "--data.num_workers", "1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fault_that_a_worker_finds(config, tmp_path):
    shards = tmp_path / "shards"
    build = [*CCR, "data", "shards", config, "--out", shards, "--shard_mb", "0.005"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    for shard in (shards / "train").glob("*.tar"):
        content = shard.read_bytes()
        shard.write_bytes(re.sub(rb"IDAT.{8}", b"IDAT" + bytes(8), content, flags=re.DOTALL))
    fit = [*CCR, "fit", "--config", config, "--data.train_shards", shards / "train"]
    done = subprocess.run(fit, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.match(r"error: .*shard-\d+\.tar: 0000000\d\d: the image .*", line)


def test_batches_that_were_evaluated_keep_no_files_open(config, tmp_path):
    def few_files():
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))

    few = ["--trainer.max_epochs", "1", "--data.eval_batch_size", "1", "--data.num_workers", "1"]
    for arguments in (["fit", "--config", config, *few], ["predict", "--ckpt_path", "runs/tiny"]):
        done = subprocess.run(
            [*CCR, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
            preexec_fn=few_files,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, ""), arguments


class FrozenObjects(IterableDataset):
    def __iter__(self):
        yield gc.get_freeze_count()


def test_workers_leave_what_is_the_parents_alone():
    """A collection of its objects would write to all their pages, which processes share until one of them writes."""
    (count,) = DataLoader(FrozenObjects(), None, num_workers=1, worker_init_fn=begin_worker)
    assert count > len(gc.get_objects()) / 2
    assert gc.get_freeze_count() == 0


OTHER_PROCESSES = """
import multiprocessing, signal, sys, time
from pathlib import Path
from torch.utils.data import DataLoader
from ccr_lightning.data.workers import end_with_this_process, begin_worker

def other(ready, saved):
    signal.signal(signal.SIGTERM, lambda *_: (saved.touch(), sys.exit()))
    ready.touch()
    time.sleep(60)

ready, saved = Path("ready"), Path("saved")
multiprocessing.Process(target=other, args=(ready, saved), daemon=True).start()
batches = end_with_this_process(iter(DataLoader(range(99), num_workers=1, worker_init_fn=begin_worker)))
next(batches)
while not ready.exists():
    time.sleep(0.01)
"""


def test_a_process_that_is_no_worker_ends_as_it_would(tmp_path):
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", OTHER_PROCESSES], cwd=tmp_path, timeout=60, check=True)
    assert (tmp_path / "saved").exists()
    assert time.monotonic() - start < 40, "the worker, which ignores SIGTERM, was not waited for"


FORKED = """
import atexit, os, sys
from torch.utils.data import DataLoader
from ccr_lightning.data.workers import end_with_this_process, begin_worker

def loader():
    return end_with_this_process(iter(DataLoader(range(9), num_workers=1, worker_init_fn=begin_worker)))

before = atexit._ncallbacks()
for _ in range(3):
    assert len(list(loader())) == 9
added = atexit._ncallbacks() - before
batches = loader()
next(batches)  # its worker leaves signals to its parent by now
if not (child := os.fork()):
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
next(batches)
print(added)
"""


def test_a_process_that_was_forked_leaves_workers_to_its_parent(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", FORKED], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ccr_lightning" not in done.stderr  # what multiprocessing itself says of such a fork is not ours
    assert int(done.stdout) <= 2, "that of torch or multiprocessing, and ours, once"


@pytest.mark.parametrize(
    ("torch_says", "we_say"),
    [
        (
            "DataLoader worker (pid(s) 4, 5) exited unexpectedly",
            r"died \(without a word\), often for want of memory",
        ),
        (
            "DataLoader worker (pid 4) is killed by signal: Bus error. It is possible that dataloader's workers are "
            "out of shared memory. Please try to raise your shared memory limit.",
            r"died \(Bus error\), for want of shared memory: enlarge /dev/shm \(docker run --shm-size 8g\), or",
        ),
        (
            "Too many open files. Communication with the workers is no longer possible. Please increase the limit "
            "using `ulimit -n` in the shell or change the sharing strategy by calling ...",
            r"too many files are open .*: raise the limit \(ulimit -n\), or lower data\.num_workers",
        ),
        (
            "unable to open shared memory object </torch_4_7_0> in read-write mode: Too many open files (24)",
            "too many files are open",
        ),
    ],
)
def test_what_torch_says_of_workers(torch_says, we_say):
    assert re.search(we_say, str(explain_worker(RuntimeError(torch_says))))


def test_other_errors_are_left_alone():
    assert explain_worker(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
