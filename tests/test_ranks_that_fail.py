"""One process of two that fails, dies or is stuck ends both in time, with one sentence, and the run can go on."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from ccr_lightning import distributed
from ccr_lightning.training.watching import WatchOverRanks

pytestmark = pytest.mark.ddp

FAULTY = """
import os, signal, sys, time
from pathlib import Path
from ccr_lightning.cli.main import main
from ccr_lightning.training.module import RetrievalModule

step = RetrievalModule.training_step

def training_step(module, batch, batch_idx):
    if os.environ.get("FAULT") and (module.global_step, module.global_rank) == (5, int(os.environ["RANK_WITH_FAULT"])):
        time.sleep(1.5)  # longer than a beat, so that the others know where it is
        Path(os.environ["FLAG"]).write_text(str(os.getpgrp()))
        exec(os.environ["FAULT"])
    return step(module, batch, batch_idx)

RetrievalModule.training_step = training_step
sys.exit(main(sys.argv[1:]))
"""
STEPS, EPOCHS = 3, 3
NAME = f"error: rank {{}} of 2 (on {socket.gethostname()})"
AGAIN = "go on with --resume auto."
GONE = (
    "was killed or stopped, or its machine is lost: nothing was heard of it for {} seconds, and before that it was at"
)
LAST = "it was last heard of at step 5;"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_tiny_jsonl, tiny_config):
    """A configuration with two processes, everything random switched on, and a program to which faults happen."""
    folder = tmp_path_factory.mktemp("faults")
    config = tiny_config(write_tiny_jsonl(folder / "data", train=24), folder / "cache")
    config["data"] |= {"batch_size": 4, "num_workers": 1}
    settings = {"max_epochs": EPOCHS, "log_every_n_steps": 1, "deterministic": True, "devices": 2, "strategy": "ddp"}
    config["trainer"] |= settings
    (folder / "two.yaml").write_text(json.dumps(config))
    (folder / "faulty.py").write_text(FAULTY)
    return folder


def fit(folder, name, **variables):
    """The exit status, what was said, and the seconds that the processes took to end after the fault."""
    command = [sys.executable, "faulty.py", "fit", "--config", "two.yaml", "--name", name, "--resume", "auto"]
    flag = folder / f"{name}.flag"
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "FLAG": str(flag), **variables}
    with (folder / f"{name}.errors").open("w+") as errors:
        process = subprocess.Popen(
            command, cwd=folder, env=variables, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
        try:
            status = process.wait(timeout=300)
            deadline = time.monotonic() + 60
            while is_alive(process.pid):
                assert time.monotonic() < deadline, "a process is left over"
                time.sleep(0.1)
        finally:
            if is_alive(process.pid):
                os.killpg(process.pid, signal.SIGKILL)
        errors.seek(0)
        return status, errors.read().splitlines(), time.time() - flag.stat().st_mtime if flag.exists() else None


def is_alive(group):
    """Whether any process of the group is left, those that read the data among them."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def losses(run):
    lines = csv.DictReader((run / "metrics.csv").open(encoding="utf-8", newline=""))
    return [(line["step"], line["train/loss"]) for line in lines if line["train/loss"]]


def weights(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def undisturbed(folder):
    status, said, _ = fit(folder, "undisturbed")
    assert (status, said) == (0, [])
    run = folder / "runs" / "undisturbed"
    assert [int(step) for step, _ in losses(run)] == list(range(STEPS * EPOCHS))
    return run


KILL = "os.kill(os.getpid(), signal.{})".format


@pytest.mark.parametrize(
    ("fault", "rank", "patience", "seconds", "says"),
    [
        pytest.param(
            "raise RuntimeError('two words')", 1, 600, 15,
            [NAME, "stopped at step 5: RuntimeError: two words; mend that and"], id="error",
        ),
        pytest.param(
            "raise RuntimeError('two words')", 0, 600, 15,
            [NAME, "stopped at step 5: RuntimeError: two words; mend that and"], id="error-of-the-first",
        ),
        pytest.param(
            KILL("SIGKILL"), 1, 600, 15,
            [NAME, "was killed by SIGKILL, which the system sends when memory runs out;", LAST], id="killed",
        ),
        pytest.param(KILL("SIGKILL"), 0, 600, 20, [NAME, GONE.format(5), "step 5;"], id="killed-first"),
        pytest.param(KILL("SIGSTOP"), 1, 25, 20, [NAME, GONE.format(5), "step 5;"], id="stopped"),
        pytest.param(KILL("SIGSTOP"), 0, 25, 20, [NAME, GONE.format(5), "step 5;"], id="stopped-first"),
        pytest.param(
            "time.sleep(600)", 1, 15, 40,
            [NAME, "is stuck: it has been at step 5 for 15 seconds in <module> (<string>:1) while others wait for it;"],
            id="stuck",
        ),
        pytest.param(
            "time.sleep(600)", 0, 15, 40,
            [NAME, "is stuck: it has been at step 5 for 15 seconds in <module> (<string>:1) while others wait for it;"],
            id="stuck-first",
        ),
    ],
)  # fmt: skip
def test_a_fault_of_one_process(folder, undisturbed, request, fault, rank, patience, seconds, says):
    name = request.node.callspec.id
    of_fault = {"FAULT": fault, "RANK_WITH_FAULT": str(rank), "CCR_RANK_TIMEOUT": str(patience)}
    status, said, took = fit(folder, name, **of_fault)
    gone = fault.startswith("os.kill") and rank == 0
    assert status == (-signal.SIGKILL if gone else 1), said
    said = [re.sub("at step [45];", "at step 5;", line) for line in said]  # what was heard last may be a second old
    sentences = [line for line in said if line.startswith("error: ")]
    more = ", and with a larger CCR_RANK_TIMEOUT if it was at work." if "sleep" in fault else "."
    assert sentences == [f"{' '.join(says)} {AGAIN.removesuffix('.')}{more}".format(rank)]
    if not fault.startswith("raise"):  # of an error in the code somebody wants to see where it is
        assert said == sentences
    else:
        assert said[0] == "Traceback (most recent call last):"
        assert said[-2:] == ["RuntimeError: two words", *sentences]
        assert len([line for line in said if line.startswith("Traceback")]) == 1
    assert took is not None
    assert took < seconds

    status, said, _ = fit(folder, name)
    assert (status, said) == (0, [])
    run = folder / "runs" / name
    assert losses(run) == losses(undisturbed)
    expected = weights(undisturbed)
    assert weights(run).keys() == expected.keys()
    assert all(torch.equal(tensor, weights(run)[key]) for key, tensor in expected.items())
    found, whole = (json.loads((of / "results.json").read_text()) for of in (run, undisturbed))
    assert found["languages"] == whole["languages"]


def test_a_slow_process_is_waited_for(folder, undisturbed):
    """Longer than the silence that is allowed, shorter than the patience."""
    fault = {"FAULT": "time.sleep(8)", "RANK_WITH_FAULT": "1", "CCR_RANK_TIMEOUT": "25"}
    status, said, took = fit(folder, "slow", **fault)
    assert (status, said) == (0, [])
    assert took is not None
    assert took > 8
    assert losses(folder / "runs" / "slow") == losses(undisturbed)


def test_all_are_suspended(folder, undisturbed):
    """As on a laptop that was closed, or when a scheduler holds a job: that is no fault, however long it takes."""
    flag = folder / "suspended.flag"

    def wake():
        while not flag.exists():
            time.sleep(0.1)
        time.sleep(10)
        os.killpg(int(flag.read_text()), signal.SIGCONT)

    waker = threading.Thread(target=wake, daemon=True)
    waker.start()
    fault = {"FAULT": "os.killpg(0, signal.SIGSTOP)", "RANK_WITH_FAULT": "1", "CCR_RANK_TIMEOUT": "15"}
    status, said, took = fit(folder, "suspended", **fault)
    assert (status, said) == (0, [])
    assert took is not None
    assert took > 10
    assert losses(folder / "runs" / "suspended") == losses(undisturbed)


def test_uneven_data(exact_config, tmp_path, write_tiny_jsonl):
    """The last batch is not full, and the third process has no image to validate and to test."""
    jsonl = write_tiny_jsonl(tmp_path / "data", train=20, val=2, test=2)
    for name, settings in {
        "one": ["--data.batch_size", "6"],
        "three": ["--data.batch_size", "2", "--trainer.devices", "3", "--trainer.strategy", "ddp"],
    }.items():
        source = [f"--data.source.init_args.files.{split}={path}" for split, path in jsonl["files"].items()]
        source.append(f"--data.source.init_args.image_root={jsonl['image_root']}")
        alone = ["--model.matching_weight", "0", "--model.masked_lm_weight", "0"]
        command = [sys.executable, "-m", "ccr_lightning.cli.main", "fit", "--config", str(exact_config), "--name", name]
        command += [*settings, *source, *alone]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    one, three = (tmp_path / "runs" / name for name in ("one", "three"))
    steps, numbers = zip(*losses(three), strict=True)
    expected_steps, expected_numbers = zip(*losses(one), strict=True)
    assert steps == expected_steps
    assert [float(of) for of in numbers] == pytest.approx([float(of) for of in expected_numbers], rel=1e-4)
    expected = weights(one)
    for name, weight in weights(three).items():
        if not name.endswith("attention.key.bias"):  # its gradient is 0 but for rounding, which AdamW makes large
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=5e-4, msg=name)  # a step is of up to 2e-3
    found, whole = (json.loads((of / "results.json").read_text()) for of in (three, one))
    assert found["languages"] == whole["languages"]
    assert all(of["queries"] == 2 for scores in found["languages"].values() for of in scores.values())


@pytest.mark.parametrize("error", [torch.distributed.DistNetworkError("no route"), ValueError("no group")])
def test_a_store_that_cannot_be_reached_at_once(monkeypatch, error):
    """It is tried again: of a process that is never heard nothing could be judged."""
    held, tries = torch.distributed.HashStore(), []

    def store(name):
        tries.append(name)
        if len(tries) < 3:
            raise error
        return torch.distributed.PrefixStore(name, held)

    monkeypatch.setattr(distributed, "store", store)
    watch = WatchOverRanks()
    watch._trainer = SimpleNamespace(global_rank=0, world_size=2)
    thread = threading.Thread(target=watch._talk, daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while 0 not in watch._beats:
            assert time.monotonic() < deadline, "no beat"
            time.sleep(0.05)
        assert watch._has_met
        assert not watch._has_lost_store
        assert json.loads(held.get("ranks/0"))["pid"] == os.getpid()
    finally:
        watch._stopping.set()
        thread.join(10)
    assert not thread.is_alive()


def test_a_timeout_that_is_no_number(folder):
    status, said, _ = fit(folder, "no-number", CCR_RANK_TIMEOUT="soon")
    assert (status, said) == (1, ["error: CCR_RANK_TIMEOUT is 'soon': give a number of seconds, such as 600."])


def test_a_process_that_does_not_come_to_the_start(folder):
    """What fails before the processes meet is said by the one to which it happens."""
    program = folder / "alone.py"
    program.write_text(
        "import os, sys\nif os.environ.get('LOCAL_RANK') == '1':\n    sys.exit('no such device')\n" + FAULTY
    )
    command = [sys.executable, "alone.py", "fit", "--config", "two.yaml", "--name", "alone"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    says = "error: rank 1 of 2 (on this host) ended before all had met, and has said why; go on with --resume auto."
    assert done.stderr.splitlines() == ["no such device", says]
