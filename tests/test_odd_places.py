"""Every command where a home, a locale, a terminal, a network or a plain path is missing; each as a process."""

import codecs
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from functools import partial

import pytest

CCR = [sys.executable, "-m", "ccr_lightning.cli.main"]
SEVERAL = """
import json, os, sys, traceback
if "NO_USER" in os.environ:
    import pwd
    def getpwuid(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")
    pwd.getpwuid = getpwuid
from ccr_lightning.cli.main import main

statuses = []
for command in json.loads(sys.argv[1]):
    sys.argv = ["ccr"]
    try:
        statuses.append(main(command))
    except BaseException as error:
        traceback.print_exc()
        statuses.append(repr(error))
with open(os.environ["STATUSES"], "w") as file:
    json.dump(statuses, file)
"""
COUNTED = """
names, numbers = (line.split() for line in open("/proc/net/snmp") if line.startswith("Ip:"))
open(os.environ["STATUSES"] + ".calls", "w").write(numbers[names.index("OutNoRoutes")])
"""
ALONE = ["unshare", "--map-current-user", "--net"]  # with a loopback that is down
# What a shell, a glob pattern, a format, YAML, a URL or an option would take for something else.
ODD = '-o\'d "d" %s %20 #1 [ab]* $HOME\n🐘 ' + unicodedata.normalize("NFD", "Bücher")


def can_be_alone():
    return shutil.which("unshare") and not subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode


def process(commands, folder, before=(), **environment):
    """Runs commands one after the other in one process, started by ``before``; returns statuses, stdout and stderr."""
    places = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "OMP_NUM_THREADS") if name in os.environ}
    places["PYTHONPATH"] = os.pathsep.join([os.getcwd(), places.get("PYTHONPATH", "")])
    statuses = folder / "statuses.json"
    done = subprocess.run(
        [
            *before,
            sys.executable,
            "-c",
            SEVERAL + COUNTED * (before == ALONE),
            json.dumps([list(map(str, command)) for command in commands]),
        ],
        cwd=environment.pop("cwd", folder),
        env=places | {"STATUSES": str(statuses), "TMPDIR": str(folder)} | environment,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
        check=False,
    )
    return json.loads(statuses.read_text()), done.stdout, done.stderr


def unanswered(folder):
    """Calls for which the kernel had no route, whatever made them, in a network namespace that a process had alone."""
    return int((folder / "statuses.json.calls").read_text())


def all_commands(config, runs, name):
    """All of them that a user of a new run needs."""
    run = f"{runs}/{name}"
    return [
        ["data", "check", config],
        ["fit", f"--config={config}", f"--runs_dir={runs}", f"--name={name}"],
        ["test", "--ckpt_path", run],
        ["results", run],
        ["doctor"],
        ["report", run, "--output", f"{runs}/report.html"],
        ["export", run, f"{runs}/model"],
        ["embed", config, "-o", f"{runs}/an.index", "--ckpt_path", f"{runs}/model"],
        ["search", f"{runs}/an.index", "赤い丸", "ein roter Kreis"],
        ["search", f"{runs}/an.index", "grün", "--json"],
    ]


@pytest.fixture(scope="module")
def config(write_tiny_jsonl, tiny_config):
    """A function that writes data and a configuration into a folder, and returns the name of the configuration."""

    def write(folder, name="tiny", **trainer):
        content = tiny_config(write_tiny_jsonl(folder / f"{name} data"), folder / f"{name} cache")
        content["data"]["source"]["init_args"] |= {
            "files": {split: f"{name} data/{split}.jsonl" for split in ("train", "val", "test")},
            "image_root": f"{name} data",
        }
        content["trainer"] |= {"max_epochs": 1, "log_every_n_steps": 1, **trainer}
        content["data"]["cache_dir"] = f"{name} cache"
        path = folder / f"{name}.yaml"
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return path.name

    return write


def test_no_home_no_user_no_network(tmp_path, config):
    """And an unknown locale, hence ASCII, a dumb and narrow terminal, and no cache folder of any library."""
    name = config(tmp_path)
    content = json.loads((tmp_path / name).read_text())
    del content["data"]["cache_dir"]
    (tmp_path / name).write_text(json.dumps(content))
    commands = all_commands(name, "runs", "mine")
    odd = {
        "LC_ALL": "xx_YY.UTF-8",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "TERM": "dumb",
        "COLUMNS": "20",
        "TZ": ":/no/where",
        "NO_USER": "1",
    }
    alone = can_be_alone()
    statuses, out, errors = process(commands, tmp_path, ALONE if alone else (), **odd)
    assert statuses == [0] * len(commands), errors.decode()
    fallback = tmp_path / f"ccr-lightning-{os.getuid()}"
    assert fallback.is_dir()
    (line,) = errors.decode().splitlines()
    assert line == (
        f"warning: ~/.cache/ccr-lightning cannot be written; prepared data goes to {fallback}, set CCR_CACHE_DIR."
    )
    assert "| language | i2t R@1 |" in out.decode(
        "ascii"
    )  # not as narrow as the terminal, which would hide the numbers
    if not alone:
        pytest.skip("no network namespace can be made here: all but the network was tested")
    assert unanswered(tmp_path) == 0


@pytest.mark.parametrize(
    "call",
    [
        "import socket; socket.socket().connect_ex(('192.0.2.1', 80))",
        "import urllib.request as of; of.urlopen('https://192.0.2.1')",
        "import socket; socket.getaddrinfo('example.org', 80)",
    ],
)
def test_a_call_that_is_hidden_is_counted(tmp_path, call):
    if not can_be_alone():
        pytest.skip("no network namespace can be made here")
    program = f"try:\n    {call}\nexcept Exception:\n    pass\nimport os\n{COUNTED}"
    command = [*ALONE, sys.executable, "-c", program]
    subprocess.run(command, env=os.environ | {"STATUSES": str(tmp_path / "statuses.json")}, check=True)
    assert unanswered(tmp_path) > 0


def test_a_home_that_cannot_be_written_and_closed_streams(tmp_path, config):
    """A file that took the number of standard output would get what is printed."""
    content = json.loads((tmp_path / config(tmp_path)).read_text())
    del content["data"]["cache_dir"]
    (tmp_path / "tiny.yaml").write_text(json.dumps(content))
    nowhere = {name: "/dev/null/x" for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")}
    closed = ["sh", "-c", 'exec "$@" <&- >&-', "sh"]
    statuses, _, errors = process([["fit", "--config", "tiny.yaml"]], tmp_path, closed, **nowhere)
    assert statuses == [0]
    (line,) = errors.decode().splitlines()
    assert line.startswith("warning: /dev/null/x/ccr-lightning cannot be written; prepared data goes to ")
    assert json.loads((tmp_path / "runs" / "tiny" / "results.json").read_text())["split"] == "test"


def test_odd_paths_in_a_terminal_with_few_characters(tmp_path, config):
    """And Windows line ends and byte order marks in what the user writes."""
    folder = tmp_path / ODD
    folder.mkdir()
    name = config(folder, ODD)
    for path in (folder / name, *(folder / f"{ODD} data").glob("*.jsonl")):
        path.write_bytes(codecs.BOM_UTF8 + path.read_bytes().replace(b"\n", b"\r\n"))
    commands = all_commands(f"./{name}", f"./{ODD} runs", ODD)
    few = {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"}
    statuses, out, errors = process(commands, tmp_path, cwd=folder, HOME=str(tmp_path), **few)
    assert statuses == [0] * len(commands), errors.decode()
    assert errors == b""
    text = out.decode("latin-1")
    assert "loss" in text
    assert json.loads(text.splitlines()[-1])["query"] == "grün"
    assert sorted(of.name for of in folder.iterdir()) == sorted(
        [name, *(f"{ODD} {kind}" for kind in ("cache", "data", "runs"))]
    )


def test_the_command_that_goes_on_can_be_pasted(tmp_path, config):
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "ccr").write_text(f'#!/bin/sh\nexec {shlex.join(CCR)} "$@"\n')
    (folder / "ccr").chmod(0o755)
    name = config(tmp_path, ODD, max_epochs=12, check_val_every_n_epoch=6)
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": os.getcwd()}
    command = ["ccr", "fit", f"--config={name}", f"--name={ODD}", f"--runs_dir={ODD}"]
    metrics = tmp_path / ODD / ODD / "metrics.csv"
    with subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not metrics.is_file():
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        said = process.stderr.read().decode()
    assert process.returncode == 143, said
    pasted = said.partition("the run was interrupted: continue it with ")[2]
    done = subprocess.run(
        ["sh", "-c", pasted],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert (metrics.parent / "results.json").is_file()


@pytest.mark.ddp
def test_two_processes_with_nothing_but_loopback(tmp_path, config):
    name = config(tmp_path, devices=2, strategy="ddp")
    alone = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here")
    env = os.environ | {"PYTHONPATH": os.getcwd()}
    command = [*alone, *CCR, "fit", "--config", name]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert all("[c10d] The hostname of the client socket" in line for line in done.stderr.splitlines()), done.stderr
    assert json.loads((tmp_path / "runs" / "tiny" / "results.json").read_text())["ran_on"]["devices"] == 2


@pytest.mark.parametrize("unbuffered", ["1", ""])
def test_output_that_cannot_be_written(tmp_path, unbuffered):
    env = os.environ | {"PYTHONPATH": os.getcwd(), "PYTHONUNBUFFERED": unbuffered}
    for arguments in (["--help"], ["search", "--help"], ["results", "--published", __file__]):
        with open("/dev/full", "w") as full:
            done = subprocess.run(
                [*CCR, *arguments], env=env, stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        if arguments[0] != "results":
            assert line == "error: standard output cannot be written (No space left on device); send it elsewhere."
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (100, 100))  # bytes of a file, as on a full disk
    with (tmp_path / "help").open("w") as full:
        done = subprocess.run(
            [*CCR, "--help"], env=env, stdout=full, stderr=-1, text=True, preexec_fn=limit, check=False
        )
    told = "error: standard output cannot be written (File too large); send it elsewhere.\n"
    assert (done.returncode, done.stderr) == (1, told)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*CCR, "--help"], env=env, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *CCR]
    assert subprocess.run([*closed, "--help"], env=env, check=False).returncode == 0


@pytest.mark.parametrize("unbuffered", ["1", ""])
def test_a_read_that_fails_writes_nothing(unbuffered):
    """It is an OSError as those of output are. At the address 0 of its memory no process has anything."""
    program = (
        "from ccr_lightning.cli import doctor, main\n"
        "doctor.run = lambda args: open('/proc/self/mem', 'rb', buffering=0).read(1)\n"
        "main.main(['doctor', '--json'])"
    )
    env = os.environ | {"PYTHONPATH": os.getcwd(), "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("OSError: [Errno 5] Input/output error\n")


def test_a_working_directory_that_is_gone(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    env = os.environ | {"PYTHONPATH": os.getcwd()}
    command = ["sh", "-c", f'rmdir {shlex.quote(str(gone))}; exec "$@"', "sh", *CCR, "results", "runs"]
    done = subprocess.run(command, cwd=gone, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the working directory cannot be used (No such file or directory); change to another")
