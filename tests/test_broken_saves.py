"""Runs whose files cannot be written, or that are killed while they write: the last good checkpoint stays, and is used.

The real ``ccr fit`` runs in processes that are forked from one that has imported it. Which write fails is chosen by
its file; the fault itself is the kernel's: a limit on the size of files, with its signal or without.
"""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FORKS = """
import json, os, shutil, signal, sys, traceback
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_CORE, RLIMIT_FSIZE, setrlimit

from ccr_lightning.cli import training
from ccr_lightning.cli.main import main

def act(do, bytes=0, at="", **_):
    if do in ("kill", "no space"):
        setrlimit(RLIMIT_CORE, (0, RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if do == "kill" else signal.SIG_IGN)
        setrlimit(RLIMIT_FSIZE, (bytes, RLIM_INFINITY))
    elif do == "read-only":
        Path(at).chmod(0o555)
    else:
        shutil.rmtree(at)
        if do == "file":
            Path(at).touch()

def inject(file, time=1, before_rename=False, **fault):
    seen = []
    def wrapped(does, name_of):
        def do(path, *arguments, **named):
            if name_of(path, *arguments) == file:
                seen.append(path)
                if len(seen) == time:
                    if before_rename:
                        os.kill(os.getpid(), signal.SIGKILL)
                    act(**fault)
            return does(path, *arguments, **named)
        return do
    if before_rename:
        Path.replace = wrapped(Path.replace, lambda path, target: Path(target).name)
    else:
        def written(path, mode="r", *_):
            return path.name.removeprefix(".").removesuffix(f".{os.getpid()}") if set(mode) & set("wa+") else None
        Path.open = wrapped(Path.open, written)

def record(to):
    events, fsync, replace = [], os.fsync, os.replace
    def add(*event):
        events.append(event)
        Path(to).write_text(json.dumps(events))
    def recorded_fsync(number):
        fsync(number)
        add("fsync", os.readlink(f"/proc/self/fd/{number}"))
    def recorded_replace(source, target):
        replace(source, target)
        add("rename", os.path.abspath(source), os.path.abspath(target))
    os.fsync, os.replace = recorded_fsync, recorded_replace

for line in sys.stdin:
    fault, arguments = json.loads(line)
    read, write = os.pipe()
    if not (child := os.fork()):
        status = 99
        try:
            os.dup2(write, 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            if "record" in fault:
                record(fault["record"])
            elif fault:
                inject(**fault)
            sys.argv = ["ccr"]
            status = main(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(write)
    with open(read) as errors:
        said = errors.read()
    print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said]), flush=True)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_tiny_jsonl, tiny_config):
    folder = tmp_path_factory.mktemp("broken")
    config = tiny_config(write_tiny_jsonl(folder / "data"), folder / "cache")
    config["trainer"] |= {"max_epochs": 3, "log_every_n_steps": 1, "deterministic": True}
    (folder / "drawn.yaml").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def fit(folder):
    """A function that runs ``ccr fit --resume auto`` with a fault; returns its status and what it said on stderr."""
    command = [sys.executable, "-c", FORKS]
    if os.geteuid() == 0 and shutil.which("setpriv"):  # who may do everything would write to a read-only folder
        command = ["setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override", *command]
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as forks:

        def run(name, runs_dir="runs", **fault):
            arguments = ["fit", "--config", "drawn.yaml", "--name", name, "--runs_dir", runs_dir, "--resume", "auto"]
            forks.stdin.write(json.dumps([fault, arguments]) + "\n")
            forks.stdin.flush()
            return tuple(json.loads(forks.stdout.readline()))

        yield run
        forks.stdin.close()


@pytest.fixture(scope="module")
def whole(folder, fit):
    """A run that nothing happened to."""
    assert fit("whole", record=str(folder / "events.json")) == (0, "")
    return folder / "runs" / "whole"


def losses(run):
    lines = csv.DictReader((run / "metrics.csv").open(encoding="utf-8"))
    return [(line["step"], line["train/loss"], line["val/mean_recall"], line["test/mean_recall"]) for line in lines]


def step_of(checkpoint):
    return torch.load(checkpoint, weights_only=True)["global_step"]


def assert_nothing_is_cut_off(run):
    for path in run.rglob("*"):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix == ".ckpt":
            assert step_of(path) > 0
        elif path.suffix == ".csv":
            assert path.read_text(encoding="utf-8").endswith("\n")
        elif path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))


def assert_same(run, whole):
    assert losses(run) == losses(whole)
    weights, expected = (
        torch.load(of / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for of in (run, whole)
    )
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
    scores = [json.loads((of / "results.json").read_text())["languages"] for of in (run, whole)]
    assert scores[0] == scores[1]
    assert (run / "ranks.csv").read_bytes() == (whole / "ranks.csv").read_bytes()


def remains(run):
    return [path for path in run.rglob(".*") if path.name != ".lock"]


def test_a_power_loss_finds_the_content_before_the_name(folder, whole):
    events = json.loads((folder / "events.json").read_text())
    renamed = [(number, *paths) for number, (kind, *paths) in enumerate(events) if kind == "rename"]
    own = [(number, Path(source), Path(target)) for number, source, target in renamed if str(whole) in target]
    names = {path.name for path in whole.rglob("*") if path.is_file()} - {"previous.ckpt"}  # once it was last.ckpt
    assert {target.name for _, _, target in own} - {"previous.ckpt"} == names
    assert len(own) > 3 * 2 + len(names)
    for number, source, target in own:
        assert source.parent == target.parent
        if target.name != "previous.ckpt":
            assert ["fsync", str(source)] in events[:number]
            assert ["fsync", str(target.parent)] in events[number:]
    assert ["fsync", str(whole.parent)] in events  # the name of the new folder
    lines = [place for place, event in enumerate(events) if event == ["fsync", str(whole / "metrics.csv")]]
    assert len(lines) > 3


def test_kills_while_files_are_written(folder, fit, whole):
    run = folder / "runs" / "killed"
    last = run / "checkpoints" / "last.ckpt"
    kills = [  # and the step of last.ckpt then
        ({"file": "last.ckpt", "bytes": 0}, 0),
        ({"file": "best.ckpt", "bytes": 1_000_000}, 0),
        ({"file": "last.ckpt", "time": 2, "bytes": 2_000_000}, 2),
        ({"file": "last.ckpt", "before_rename": True}, 2),
        ({"file": "results.json", "bytes": 100}, 6),
    ]
    for fault, step in kills:
        before = set(remains(run))
        expected = -signal.SIGKILL if "before_rename" in fault else -signal.SIGXFSZ
        assert fit("killed", do="kill", **fault)[0] == expected
        assert_nothing_is_cut_off(run)
        assert (step_of(last) if last.exists() else 0) == step
        (left,) = remains(run)  # those of the runs before are removed
        assert left not in before
        assert left.name.startswith(f".{fault['file']}.")
    assert fit("killed") == (0, "")
    assert not remains(run)
    assert_same(run, whole)


def test_disks_without_space(folder, fit, whole):
    run = folder / "runs" / "no space"
    faults = [  # what is written where, the time that the file is opened, room in bytes, and the step of last.ckpt then
        ("the configuration", "config.yaml", 1, 1000, 0),
        ("the metrics", "metrics.csv", 1, 100, 0),
        ("the metrics", "metrics.csv", 2, 350, 0),
        ("the checkpoint", "checkpoints/best.ckpt", 1, 1_000, 0),
        ("the checkpoint", "checkpoints/last.ckpt", 2, 2_000_000, 2),
        ("the checkpoint", "checkpoints/last.ckpt", 2, 0, 4),
        ("the ranks", "ranks.csv", 1, 100, 6),
        ("the results", "results.json", 1, 100, 6),
    ]
    last = run / "checkpoints" / "last.ckpt"
    for what, file, time, room, step in faults:
        status, says = fit("no space", do="no space", file=Path(file).name, time=time, bytes=room)
        assert status == 1
        (line,) = says.splitlines()
        assert f"runs/no space/{file}: {what} could not be written ([Errno 27] File too large); free some" in line
        assert line.startswith("error: ")
        assert_nothing_is_cut_off(run)
        assert not remains(run)
        assert (step_of(last) if last.exists() else 0) == step
    assert fit("no space") == (0, "")
    assert_same(run, whole)


IN_A_SMALL_DISK = """
mkdir -p disk/runs kept && mount -t tmpfs -o size=$1 none disk && cp -a kept/. disk/ || exit 99
"$2" -m ccr_lightning.cli.main fit --config drawn.yaml --name small --runs_dir disk/runs --resume auto
status=$?
rm -r kept && cp -a disk/. kept && exit $status
"""


def has_own_mounts():
    command = ["unshare", "--mount", "sh", "-c", "mount -t tmpfs none /mnt"]
    return shutil.which("unshare") and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not has_own_mounts(), reason="a small disk takes a mount of one's own")
def test_a_disk_that_is_full(folder, whole):
    size = (whole / "checkpoints" / "last.ckpt").stat().st_size

    def fit(room):
        command = ["unshare", "--mount", "sh", "-c", IN_A_SMALL_DISK, "sh", str(room), sys.executable]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)

    done, run = fit(int(2.5 * size)), folder / "kept" / "runs" / "small"
    assert done.returncode == 1
    assert re.search(
        r"^disk/runs/small/checkpoints: .+ free, and the checkpoints of this run will need ", done.stdout, re.M
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "last.ckpt: the checkpoint could not be written ([Errno 28] No space left on device); free some spa" in line
    assert_nothing_is_cut_off(run)
    assert step_of(run / "checkpoints" / "last.ckpt") == 2
    done = fit(10 * size)
    assert (done.returncode, done.stderr) == (0, "")
    assert_same(run, whole)


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root writes to read-only folders, too")
@pytest.mark.parametrize(
    ("do", "at", "says"),
    [
        ("read-only", "checkpoints", ".ckpt: the checkpoint could not be written ([Errno 13] Permission"),
        ("file", "checkpoints", ".ckpt: the checkpoint could not be written ([Errno 17] File exists"),
        ("read-only", "", "metrics.csv: the metrics could not be written ([Errno 13] Permission"),
        ("removed", "", "metrics.csv: the metrics could not be written ([Errno 2] No such file"),
    ],
)
def test_folders_that_change_while_a_run_writes_to_them(folder, fit, whole, do, at, says):
    name = f"{do} {at or 'all'}"
    run = folder / "runs" / name
    first = {"file": "last.ckpt"} if do == "read-only" and not at else {"file": "metrics.csv", "time": 4}
    status, errors = fit(name, **first, do=do, at=str(run / at))
    assert status == 1
    (line,) = errors.splitlines()
    assert line.startswith("error: ")
    assert f"runs/{name}/" in line
    assert says in line
    if do == "read-only":
        (run / at).chmod(0o755)
    elif do == "file":
        (run / at).unlink()
    assert fit(name) == (0, "")
    assert_same(run, whole)
