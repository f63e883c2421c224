"""``ccr doctor`` against what the system itself says, and with things amiss."""

import json
import os
import resource
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from ccr_lightning.cli.main import main
from ccr_lightning.doctor import devices, folders, packages
from ccr_lightning.doctor.packages import EXTRAS
from ccr_lightning.memory import available_memory

DOCTOR = [sys.executable, "-m", "ccr_lightning.cli.main", "doctor"]
HOMES = ("HOME", "XDG_CACHE_HOME", "CCR_CACHE_DIR", "HF_HOME", "HF_HUB_CACHE")


def examined(*arguments, without=(), by=(), before=None, **variables):
    """Exit status and findings of the command, in an environment of its own."""
    environment = {name: value for name, value in os.environ.items() if name not in without} | variables
    done = subprocess.run(
        [*by, *DOCTOR, "--json", *map(str, arguments)],
        env=environment, preexec_fn=before, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, {finding["name"]: finding for finding in json.loads(done.stdout)}


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(devices, "_SIGNS_OF_NVIDIA", ())
    monkeypatch.setattr(devices.shutil, "which", lambda _: None)


def test_what_it_says_is_true(tmp_path):
    status, found = examined("--runs_dir", tmp_path / "later", CCR_CACHE_DIR=str(tmp_path / "cache"))
    assert status == 0
    for name in ("torch", "lightning", "numpy"):
        assert found[name]["found"] == metadata.version(name)
    assert found["Python"]["found"].startswith(".".join(map(str, sys.version_info[:3])))
    assert found["cores"]["found"].startswith(f"{len(os.sched_getaffinity(0))} of {os.cpu_count()}")
    assert found["runs"]["found"].startswith(f"{tmp_path / 'later'}, to be made, ")
    assert not (tmp_path / "later").exists()
    said = float(found["cache"]["found"].split(", ")[-1].split()[0].replace(",", "")) * 1e9
    assert said == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert list((tmp_path / "cache").iterdir()) == []
    assert found["open files"]["found"] == f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]} at most"


def test_the_memory_is_that_of_proc():
    total, available = available_memory()
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    assert total <= 1024 * int(lines["MemTotal"].split()[0]) * 1.01
    assert available <= 1024 * int(lines["MemAvailable"].split()[0]) * 1.1


def test_torch_is_not_imported_without_a_gpu(no_gpu):
    code = "import sys; from ccr_lightning.cli.main import main; main(['doctor']); sys.exit('torch' in sys.modules)"
    if devices.has_nvidia():
        pytest.skip("there is a GPU here")
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False).returncode == 0


def test_the_build_of_torch_is_read_without_importing_it():
    import torch

    assert devices.cuda_build() == torch.version.cuda


def test_a_gpu_that_is_hidden(monkeypatch):
    monkeypatch.setattr(devices, "_SIGNS_OF_NVIDIA", (os.devnull,))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (finding,) = [finding for finding in devices.examine() if finding.name == "GPU"]
    assert finding.status == "advice"
    assert "unset CUDA_VISIBLE_DEVICES" in finding.remedy


def test_a_driver_that_torch_cannot_use(monkeypatch):
    """Here torch finds no GPU, whatever the driver is."""
    import torch

    monkeypatch.setattr(devices, "_SIGNS_OF_NVIDIA", (os.devnull,))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "cuda_build", lambda: "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (finding,) = [finding for finding in devices.examine() if finding.name == "GPU"]
    assert (finding.status, finding.found) == ("problem", "torch cannot use it (no GPU answers; driver unknown)")
    assert finding.remedy.startswith("install a driver for CUDA 13.0")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that lets a package be installed, in a version, with what it needs; before all others of its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name, version, *requires):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        (folder / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {text}" for text in requires)]) + "\n")

    return install


def test_packages_that_are_too_old_missing_or_at_odds(installed):
    installed("ccr-lightning", "0.1.0", "torch>=2.11", "torchvision>=0.26", "nowhere>=3", "sick>=1; extra == 'lora'")
    installed("torch", "1.0")
    installed("torchvision", "0.27", "torch==2.12")
    found = [finding for finding in packages.examine() if finding.status == "problem"]
    assert [(of.name, of.found, of.remedy) for of in found] == [
        ("torch", "1.0, but >=2.11 is needed", "pip install 'torch>=2.11'"),
        ("nowhere", "missing", "pip install 'nowhere>=3'"),
        ("torchvision", "needs torch==2.12, and 1.0 is installed", "pip install --upgrade torchvision torch"),
    ]


def test_every_extra_has_a_purpose():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert EXTRAS.keys() == project["optional-dependencies"].keys()


def test_an_extra_that_is_missing(installed, tmp_path):
    installed("ccr-lightning", "0.1.0", "nowhere>=3; extra == 'lora'", "ccr-lightning[lora]; extra == 'demo'")
    with (tmp_path / "ccr_lightning-0.1.0.dist-info" / "METADATA").open("a") as file:
        file.write("Provides-Extra: lora\nProvides-Extra: demo\n")
    lora, demo = [finding for finding in packages.examine() if finding.topic == "extras"]
    assert lora.found == "without nowhere: adapters: --model.tuned lora"
    assert lora.remedy == "if you want it: pip install 'ccr-lightning[lora]'"
    assert demo.found.startswith("without nowhere: the built-in pictures")


def test_what_is_amiss_has_a_remedy(tmp_path):
    (tmp_path / "file").touch()
    status, found = examined(
        "--runs_dir", tmp_path / "file" / "runs",
        before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, 2000)),
        CCR_CACHE_DIR=str(tmp_path / "file"), RANK="1", WORLD_SIZE="2", PATH="", HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert status == 1
    assert found["cache"]["status"] == "problem"
    assert f"the folder {tmp_path / 'file'} cannot be written" in found["cache"]["found"]
    assert found["runs"]["found"] == f"{tmp_path / 'file' / 'runs'}: cannot be written (Not a directory)"
    assert found["a job's variables"]["found"] == "RANK=1, WORLD_SIZE=2"
    assert found["a job's variables"]["remedy"].endswith("unset RANK WORLD_SIZE")
    assert (found["open files"]["found"], found["open files"]["remedy"]) == ("200 at most", "ulimit -n 1024")
    assert found["C++ compiler"]["found"] == "none"
    assert found["ccr"]["found"].endswith("not in PATH")
    assert "unset HF_HUB_OFFLINE" in found["HF_HUB_OFFLINE"]["remedy"]
    assert all(finding["remedy"] for finding in found.values() if finding["status"] != "ok")


@pytest.fixture
def stranger():
    """What starts a command for a user without an entry, as ``docker -u 12345`` does, and without rights of root."""
    before = ["unshare", "--map-user=12345"]
    if not shutil.which("unshare") or subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespace can be made here")
    return before


def test_a_user_without_an_entry_and_a_home(stranger, tmp_path):
    status, found = examined("--runs_dir", tmp_path, without=HOMES, by=stranger, TMPDIR=str(tmp_path))
    assert status == 0
    hub = found["models of the hub"]
    assert (hub["status"], hub["remedy"]) == ("advice", "export HF_HOME=DIR")
    assert hub["found"] == "~/.cache/huggingface/hub in the working directory, as nobody knows the home"
    assert found["stores"]["found"] == "0 in the cache, 0 MB"
    assert (tmp_path / "ccr-lightning-12345").is_dir()


def test_folders_that_may_not_be_entered(stranger, tmp_path):
    """Neither the folders above runs and models, nor a store in the cache."""
    for name in ("closed", "cache", "cache/store"):
        (tmp_path / name).mkdir()
    (tmp_path / "cache" / "store" / "manifest.json").touch()
    (tmp_path / "closed").chmod(0)
    (tmp_path / "cache" / "store").chmod(0)
    runs, hub = tmp_path / "closed" / "a" / "runs", tmp_path / "closed" / "hub"
    places = {"HF_HOME": str(hub), "CCR_CACHE_DIR": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    status, found = examined("--runs_dir", runs, by=stranger, without=HOMES, **places)
    assert status == 1
    for name, path, remedy in (
        ("runs", runs, "pass --runs_dir DIR"),
        ("models of the hub", hub / "hub", "export HF_HOME=DIR"),
    ):
        assert found[name]["found"] == f"{path}: cannot be written (Permission denied)"
        assert (found[name]["status"], found[name]["remedy"]) == ("problem", remedy)
    stores = found["stores"]
    assert (stores["status"], stores["found"]) == (
        "advice",
        "0 in the cache, 0 MB, store cannot be read (Permission denied)",
    )
    assert "chmod u+rwx" in stores["remedy"]
    (tmp_path / "cache").chmod(0o300)  # it can be written, but not listed
    found = examined("--runs_dir", tmp_path, by=stranger, without=HOMES, **places)[1]
    assert found["stores"]["found"].endswith(f"{tmp_path / 'cache'} cannot be listed (Permission denied)")


def test_no_folder_for_temporary_files(tmp_path):
    """No file may have a byte; hence nothing else can be written either."""

    def empty():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    status, found = examined("--runs_dir", tmp_path, before=empty, without=HOMES, HOME="/dev/null/x")
    assert status == 1
    assert found["temporary files"]["found"].startswith("none (No usable temporary directory found in [")
    assert (found["temporary files"]["status"], found["temporary files"]["remedy"]) == ("problem", "export TMPDIR=DIR")
    assert found["cache"]["found"].startswith(
        "neither /dev/null/x/.cache/ccr-lightning nor a temporary folder can be written (No usable temporary"
    )
    assert found["runs"]["found"] == f"{tmp_path}: cannot be written (File too large)"


def test_it_takes_a_moment():
    """CPU seconds, as the machine may be busy."""
    if devices.has_nvidia():
        pytest.skip("torch, which takes some seconds to import, is asked for the GPU here")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    examined()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert 0 < after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_a_terminal_that_cannot_show_captions():
    variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    status, found = examined(without=["LANG", "PYTHONIOENCODING"], **variables)
    assert status == 0
    assert found["text"]["status"] == "advice"
    assert "export PYTHONUTF8=1" in found["text"]["remedy"]


@pytest.mark.parametrize(("free", "status"), [(1e9, "advice"), (1e8, "problem")])
def test_a_disk_that_is_nearly_full(monkeypatch, tmp_path, free, status):
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: usage)
    (finding,) = [finding for finding in folders.examine(tmp_path / "runs") if finding.name == "runs"]
    assert (finding.status, finding.remedy) == (status, "free some space, or pass --runs_dir DIR")


def test_a_file_system_without_links(monkeypatch, tmp_path):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    (finding,) = [finding for finding in folders.examine(tmp_path) if finding.name == "runs"]
    assert finding.found.endswith(", without hard links (previous.ckpt)")
    assert list(tmp_path.iterdir()) == []


def test_stores_are_counted(monkeypatch, tmp_path):
    monkeypatch.setenv("CCR_CACHE_DIR", str(tmp_path))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "manifest.json").write_bytes(bytes(3_000_000))
    (finding,) = [finding for finding in folders.examine(tmp_path) if finding.name == "stores"]
    assert finding.found == "1 in the cache, 3 MB"


def test_what_it_prints(monkeypatch, capsys):
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    assert main(["doctor"]) == 1
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 100
    problems = output.partition("\nproblems\n")[2]
    assert problems.startswith(
        "  - a job's variables: MASTER_ADDR=10.0.0.1\n    -> ccr takes itself for one of several"
    )
    assert output.endswith("\n1 problem\n")
    assert "\033" not in output
    assert main(["doctor", "--help"]) == 0
    assert "ccr doctor --json" in capsys.readouterr().out
    assert main(["doctor", "--jsn"]) == 1
    assert "'ccr doctor --help' explains" in capsys.readouterr().err
