"""``ccr fit`` on two nodes, started by hand, by torchrun and as by srun, against two processes on one node."""

import json
import os
import socket
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path

import pytest
import torch

from ccr_lightning.cli.main import main

pytestmark = pytest.mark.ddp

RANK_1 = f"error: rank 1 of 2 (on {socket.gethostname()})"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]

DIES_ONCE = """
import os, signal, sys
from pathlib import Path
from ccr_lightning.cli.main import main
from ccr_lightning.training.module import RetrievalModule

step = RetrievalModule.training_step

def die(module, batch, batch_idx):
    if (module.current_epoch, batch_idx, module.global_rank) == (1, 1, 1):
        flag = Path({flag!r})
        if not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return step(module, batch, batch_idx)

RetrievalModule.training_step = die
sys.exit(main())
"""


def fit(config, runs, name, *settings):
    """A run whose batches of 4 images are 8 on both nodes together."""
    batches = ["--trainer.strategy", "ddp", "--data.batch_size", "4"]
    return ["fit", "--config", str(config), "--runs_dir", str(runs), "--name", name, *batches, *settings]


def node(number):
    """A node has a cache of its own, and one process."""
    return ["--trainer.num_nodes", "2", "--trainer.devices", "1", "--data.cache_dir", f"cache-of-node-{number}"]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def by_hand(program, arguments):
    """As docs/several_machines.md says first."""
    port = free_port()
    for number in range(2):
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": str(number)}
        yield [*program, *arguments, *node(number)], where


def by_torchrun(program, arguments):
    port = free_port()
    for number in range(2):
        where = ["--nnodes", "2", "--node-rank", str(number), "--master-addr", "127.0.0.1", "--master-port", port]
        yield [*TORCHRUN, *where, "--no-python", *program, *arguments, *node(number)], {}


def by_srun(program, arguments):
    """The variables that srun would set."""
    port = free_port()
    for number in range(2):
        of_job = {"JOB_ID": "4711", "NTASKS": "2", "NTASKS_PER_NODE": "1", "NNODES": "2", "NODELIST": "127.0.0.1"}
        of_task = {"PROCID": str(number), "NODEID": str(number), "LOCALID": "0"}
        slurm = {f"SLURM_{name}": value for name, value in {**of_job, **of_task}.items()}
        yield [*program, *arguments, *node(number)], {**slurm, "MASTER_PORT": port}


def results_of(commands, *folders):
    """Exit status, output and errors of each of the commands, run at the same time in the folder or folders."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    common = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen(command, env={**common, **variables}, cwd=folder, **pipes)
        for (command, variables), folder in zip(commands, cycle(folders))
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.terminate()  # an agent ends its processes then
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def said(errors):
    """What ccr said, without torchrun's report of it."""
    return [line for line in errors.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def one_node(exact_config, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    command = [
        sys.executable,
        "-m",
        "ccr_lightning.cli.main",
        *fit(exact_config, runs, "one", "--trainer.devices", "2"),
    ]
    assert results_of([(command, {})], runs)[0][0] == 0
    return runs / "one"


def assert_same_run(one, other):
    for name in ("best", "last"):
        weights, expected = (
            torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"] for run in (other, one)
        )
        assert weights.keys() == expected.keys()
        assert all(weights[key].equal(expected[key]) for key in expected)
    assert (other / "metrics.csv").read_text() == (one / "metrics.csv").read_text()
    document, expected = (json.loads((run / "results.json").read_text()) for run in (other, one))
    for of in (document, expected):
        del of["checkpoint"]
    assert document == expected


@pytest.mark.parametrize("start", [by_hand, by_torchrun, by_srun])
def test_two_nodes_do_what_one_does(exact_config, one_node, tmp_path, monkeypatch, start):
    nodes = results_of(start(["ccr"], fit(exact_config, tmp_path, "two")), tmp_path)
    assert [status for status, *_ in nodes] == [0, 0]
    (_, output, _), (_, silence, _) = nodes
    assert output.count("written to") == output.count("training 0.2 M parameters for 4 steps on 2 x cpu") == 1
    assert silence == "node 1 of 2 waits for the others, 2 processes in all\n"
    for *_, errors in nodes:  # of torchrun's agents the one that ends last may complain that the other has gone
        assert (said(errors) if start is by_torchrun else errors.splitlines()) == []
    assert_same_run(one_node, tmp_path / "two")
    assert (tmp_path / "cache-of-node-1").is_dir()

    monkeypatch.setattr(sys, "argv", ["ccr"])  # later on one machine: how many there were is no matter
    here = ["--trainer.devices", "1", "--trainer.strategy", "auto", "--name", "again"]
    monkeypatch.chdir(tmp_path)
    assert main(["test", "--ckpt_path", str(tmp_path / "two"), *here]) == 0


def test_a_process_that_dies_ends_both_and_the_same_commands_go_on(exact_config, one_node, tmp_path):
    program = tmp_path / "dies.py"
    program.write_text(DIES_ONCE.format(flag=str(tmp_path / "died")))
    arguments = fit(exact_config, tmp_path, "again", "--resume", "auto")
    nodes = results_of(by_torchrun([sys.executable, str(program)], arguments), tmp_path)
    assert [status for status, *_ in nodes] == [1, 1]
    gone = (
        f"{RANK_1} was killed or stopped, or its machine is lost: nothing was heard of it for 5 seconds, and "
        "before that it was "
    )
    (says,), silence = (said(errors) for *_, errors in nodes)
    assert says.startswith(gone)
    assert says.endswith("; go on with --resume auto.")
    assert silence == []
    nodes = results_of(by_torchrun([sys.executable, str(program)], arguments), tmp_path)
    assert [status for status, *_ in nodes] == [0, 0]
    assert_same_run(one_node, tmp_path / "again")


def test_nodes_that_do_not_share_the_runs(exact_config, tmp_path):
    """Their checkpoints could not be read by the other one: said before anything is trained, and it ends both."""
    folders = [tmp_path / name for name in ("here", "there")]
    for folder in folders:
        folder.mkdir()
    nodes = results_of(by_torchrun(["ccr"], fit(exact_config, "runs", "apart")), *folders)
    assert [status for status, *_ in nodes] == [1, 1]
    lost = (
        f"{RANK_1} stopped before the first batch: runs/apart: this node does not see what the first one wrote there; "
        "give a --runs_dir that all share; mend that and go on with --resume auto."
    )
    assert [said(errors) for *_, errors in nodes] == [[lost], []]


def test_nodes_with_different_settings(exact_config, tmp_path):
    first, (command, variables) = by_hand(["ccr"], fit(exact_config, tmp_path, "apart"))
    nodes = results_of([first, ([*command, "--data.batch_size", "2"], variables)], tmp_path)
    assert [status for status, *_ in nodes] == [1, 1]
    differs = (
        f"{RANK_1} stopped before the first batch: data.batch_size is 4 on the first node and 2 on this node: start "
        "all nodes with the same settings; mend that and go on with --resume auto."
    )
    assert [said(errors) for *_, errors in nodes] == [[differs], []]


def test_an_error_that_all_find_is_said_by_the_first(exact_config, tmp_path):
    program = tmp_path / "patient.py"
    program.write_text("import sys; from ccr_lightning.cli import main; main.SECONDS_FOR_THE_FIRST = 60\nmain.main()")
    arguments = fit(exact_config, tmp_path, "bad", "--trainer.max_epochs", "many")
    first, second = by_srun([sys.executable, str(program)], arguments)
    with subprocess.Popen(second[0], env={**os.environ, **second[1]}, stderr=subprocess.PIPE, text=True) as other:
        *_, errors = results_of([first], tmp_path)[0]
        assert errors == "error: 'trainer.max_epochs' is 'many': give an int or null.\n"
        other.terminate()  # as srun does when a task fails
        assert other.communicate()[1] == ""


def test_nodes_that_nobody_starts(exact_config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ccr"])
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert main(fit(exact_config, tmp_path, "alone", "--trainer.num_nodes", "2", "--trainer.devices", "1")) == 1
    assert "nothing says which node this is: set MASTER_ADDR, MASTER_PORT and NODE_RANK" in capsys.readouterr().err


def test_a_node_that_never_comes(exact_config, tmp_path):
    program = tmp_path / "hasty.py"
    program.write_text("import sys; from ccr_lightning.cli import main; from ccr_lightning.training import watching\n")
    with program.open("a") as file:
        file.write("watching.TO_MEET = 4\nsys.exit(main.main())")
    (command, variables), _ = by_hand([sys.executable, str(program)], fit(exact_config, tmp_path, "half"))
    begun = time.monotonic()
    ((status, _, errors),) = results_of([(command, {**variables, "CCR_RANK_TIMEOUT": "1"})], tmp_path)
    assert time.monotonic() - begun < 60
    assert status == 1
    (says,) = errors.splitlines()
    assert says.startswith("error: the 2 processes of this run did not meet: ")
    assert "1/2 clients joined" in says
    assert says.endswith(
        "; start ccr on all 2 nodes, with one MASTER_ADDR and MASTER_PORT, and a number for each node."
    )
