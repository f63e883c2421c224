"""``ccr`` whose process may have no more memory: one sentence, wherever it runs out, and what it names fits."""

import errno
import json
import os
import re
import resource
import subprocess
import sys
from itertools import count

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ccr_lightning import memory
from ccr_lightning.data import build, images, store
from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.errors import CCRError, OutOfMemory
from ccr_lightning.memory import available_memory, is_out_of_memory
from ccr_lightning.training import checkpoint_file
from ccr_lightning.training.checkpointing import RunFolder
from ccr_lightning.training.out_of_memory import explain_elsewhere, explain_step
from ccr_lightning.training.watching import WatchOverRanks

# Each command in a process of its own that has the imports already, which take longer than all else. What libraries say
# at the end of an interpreter that has no memory is beyond the command, hence os._exit.
COMMANDS = """
import json, os, resource, sys, threading
from pathlib import Path
import torch
from ccr_lightning.cli import training
from ccr_lightning.cli.main import main
from ccr_lightning.files import atomic_write
from ccr_lightning.training.module import RetrievalModule

def used(name="VmSize"):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

def limit(more):
    resource.setrlimit(resource.RLIMIT_AS, (used() + int(more), -1))

def limit_steps(more):
    note = RetrievalModule.on_train_batch_start
    def on_train_batch_start(module, batch, batch_idx):
        note(module, batch, batch_idx)
        if module.trainer.fit_loop.total_batch_idx == 0:
            limit(more)
    RetrievalModule.on_train_batch_start = on_train_batch_start

def fail(method, allocate):
    setattr(RetrievalModule, method, lambda *_: allocate())

def no_gpu_memory():
    raise torch.OutOfMemoryError("CUDA out of memory.")

def no_thread():
    _, most = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (0, most))
    if os.getuid() == 0:  # for whom there is no such limit
        os.setresuid(65534, 65534, 0)
    try:
        threading.Thread(target=print).start()
    finally:
        if os.getresuid()[2] == 0:
            os.setresuid(0, 0, 0)

def unwritten():
    with atomic_write(Path("there/results.json"), "the results", "look elsewhere"):
        raise OSError(12, os.strerror(12))

def a_mistake():
    raise RuntimeError("a mistake")

for line in sys.stdin:
    before, args = json.loads(line)
    child = os.fork()
    if not child:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        start = used()
        exec(before)
        status = main(args)
        sys.stdout.flush()
        Path("grown").write_text(str(used("VmPeak") - start))
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
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


@pytest.fixture(scope="module")
def fit(folder):
    """A function that runs ``ccr fit`` after some code, and returns its exit status and the lines of its errors."""
    (folder / "commands.py").write_text(COMMANDS)
    command, numbers = [sys.executable, "commands.py"], count()
    with subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def run(before, *settings):
            args = ["fit", "--config", "tiny.yaml", "--name", f"run{next(numbers)}", *map(str, settings)]
            process.stdin.write(json.dumps([before, args]) + "\n")
            process.stdin.flush()
            status = int(process.stdout.readline())
            return status, (folder / "err").read_text().splitlines()

        yield run


def one_line(done):
    status, lines = done
    assert status == 1, lines
    (line,) = lines
    return line


@pytest.mark.parametrize("accumulated", [1, 2])
def test_what_is_named_fits(fit, accumulated):
    steps = ("--trainer.accumulate_grad_batches", accumulated, "--trainer.limit_train_batches", 2)
    limited = ("limit_steps(500e6)", *steps, "--data.batch_size")
    line = one_line(fit(*limited, 40))
    found = re.fullmatch(
        r"error: out of memory in a training step of 40 images \((?P<free>\d+) MB are free beside it\): by estimate a "
        r"batch of (?P<fits>\d+) fits; lower --data\.batch_size, or set --model\.chunk_size 16, say, then go on with "
        r"--resume auto --resume-changed\.",
        line,
    )
    assert found, line
    assert 100 <= int(found["free"]) <= 500
    fits = int(found["fits"])
    assert 8 < fits < 40
    assert fit(*limited, fits) == (0, [])
    if accumulated == 1:
        assert fit(*limited, 40, "--model.chunk_size", 4) == (0, [])


def test_at_any_limit_it_ends_well_or_with_a_sentence(fit, folder):
    settings = ("--data.batch_size", 40, "--trainer.limit_train_batches", 1)
    assert fit("", *settings) == (0, [])
    grown = int((folder / "grown").read_text())
    says = []
    for share in (0.02, 0.1, 0.25, 0.5, 1.1):
        status, lines = fit(f"limit({share * grown})", *settings)
        if any(re.match("memory allocation of|terminate called|OpenBLAS error", line) for line in lines):
            continue  # a library has ended the process
        assert (status, len(lines)) in ((0, 0), (1, 1)), lines
        says += lines
        assert all(re.match("error: (out of memory|no further thread can be started) in ", line) for line in lines)
    assert status == 0  # with more than what the free one took
    assert len(says) >= 2
    assert any("training" in line for line in says)


@pytest.mark.parametrize("megabytes", [200, 1000])
def test_memory_that_does_not_suffice_for_the_imports(folder, megabytes):
    command = [sys.executable, "-m", "ccr_lightning.cli.main", "fit", "--config", "tiny.yaml"]

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 10**6,) * 2)

    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, preexec_fn=limit, check=False)
    assert one_line((done.returncode, done.stderr.splitlines())).startswith("error: out of memory in ccr fit (")


def test_the_start(fit):
    line = one_line(fit("training._prepare_data = lambda *_: bytearray(2**62)"))
    assert re.fullmatch(r"error: out of memory in ccr fit \(\S+ GB are free now\): give it more, .*", line)


@pytest.mark.parametrize(
    ("method", "allocate", "says"),
    [
        ("training_step", "no_gpu_memory", "error: out of memory in a training step of 8"),
        ("validation_step", "lambda: torch.empty(2**60, dtype=torch.uint8)", "error: out of memory in validation "),
        ("test_step", "lambda: bytearray(2**62)", "error: out of memory in the test "),
    ],
)
def test_errors_of_other_devices_and_stages(fit, method, allocate, says):
    line = one_line(fit(f"fail({method!r}, {allocate})", "--trainer.limit_train_batches", 1))
    assert line.startswith(says)
    assert ("--data.batch_size" if method == "training_step" else "--data.eval_batch_size") in line


NO_THREAD = (
    r"error: no further thread can be started in {} \([\d.]+ [GM]B of memory are free now\): raise `ulimit -u` or the "
    r"container's limit of processes, or give it more memory\."
)


@pytest.mark.parametrize(("method", "where"), [("training_step", "training"), ("validation_step", "validation")])
def test_threads_that_the_user_may_not_have(fit, method, where):
    line = one_line(fit(f"fail({method!r}, no_thread)", "--trainer.limit_train_batches", 1))
    assert re.fullmatch(NO_THREAD.format(where), line)


def test_threads_that_the_user_may_not_have_at_the_start(fit):
    assert re.fullmatch(NO_THREAD.format("ccr fit"), one_line(fit("training._prepare_data = lambda *_: no_thread()")))


@pytest.mark.parametrize(
    ("before", "where"),
    [
        ("training._prepare_data = lambda *_: unwritten()", r"ccr fit .+: give it more, .+ or fewer workers"),
        ("fail('test_step', unwritten)", r"the test .+: lower --data\.eval_batch_size, .+"),
    ],
)
def test_what_an_error_says_for_the_user_is_kept(fit, before, where):
    line = one_line(fit(before, "--trainer.limit_train_batches", 1))
    assert re.fullmatch(
        rf"error: out of memory in {where}; what failed: there/results\.json: the results could not be written "
        r"\(\[Errno 12\] Cannot allocate memory\); give it more memory, or look elsewhere\.",
        line,
    )


def test_other_errors_are_left_alone(fit):
    status, lines = fit("fail('training_step', a_mistake)")
    assert status == 1
    assert lines[-1] == "RuntimeError: a mistake"
    assert lines[0].startswith("Traceback")


class Failing(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, item):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))


def test_what_is_out_of_memory():
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(2**60, np.uint8)
    with pytest.raises(OSError, match="Caught OSError in DataLoader worker") as of_worker:
        next(iter(DataLoader(Failing(), num_workers=1)))
    assert of_worker.value.errno is None
    with pytest.raises(CCRError) as outer:
        raise CCRError("the file is damaged") from of_torch.value
    for error in (
        *(of_torch.value, of_numpy.value, of_worker.value, outer.value, OSError(errno.ENOMEM, "")),
        RuntimeError("could not create a primitive"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("unable to mmap 4096 bytes from file </torch_1>: Cannot allocate memory (12)"),
        RuntimeError("can't start new thread"),
        RuntimeError("Resource temporarily unavailable"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ):
        assert is_out_of_memory(error), error
    for error in (
        ValueError("CUDA out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        RuntimeError("could not create a primitive descriptor for a convolution forward propagation primitive"),
        explain_elsewhere("train", MemoryError()),
    ):
        assert not is_out_of_memory(error), error
    assert "lower --data.batch_size or --data.num_workers" in str(explain_elsewhere("train", MemoryError()))


def no_memory(*_, **__):
    return bytearray(2**62)


def test_a_store_that_there_is_no_memory_for_is_not_called_damaged(tmp_path, tiny_jsonl, monkeypatch):
    build.build_store(JsonLines(**tiny_jsonl()), "train", tmp_path / "store")
    monkeypatch.setattr(store.mmap, "mmap", no_memory)
    with pytest.raises(OutOfMemory, match=r"out of memory in reading .+store \(.+\): give it more\.$") as caught:
        store.open_store(tmp_path / "store")
    assert "delete" not in str(caught.value)
    monkeypatch.setattr(store, "load_json", no_memory)
    with pytest.raises(OutOfMemory):
        store.read_manifest(tmp_path / "store")


def test_an_image_that_there_is_no_memory_for_is_not_left_out(tmp_path, tiny_jsonl, monkeypatch):
    monkeypatch.setattr(images, "_to_rgb", no_memory)
    with pytest.raises(MemoryError):
        build.build_store(JsonLines(**tiny_jsonl()), "train", tmp_path / "store", "skip", max_bad_fraction=1.0)


def test_a_checkpoint_that_there_is_no_memory_for_is_not_replaced(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    for file in (folder.last, folder.checkpoints / "previous.ckpt"):
        torch.save({"state_dict": {}, "pytorch-lightning_version": "2", "global_step": 1}, file)
    before = folder.last.read_bytes()
    read = checkpoint_file.torch.load
    monkeypatch.setattr(checkpoint_file.torch, "load", lambda path, *_, **__: no_memory())
    with pytest.raises(OutOfMemory):
        folder.mend()
    monkeypatch.setattr(checkpoint_file.torch, "load", read)
    assert folder.mend() == ""
    assert folder.last.read_bytes() == before


@pytest.mark.parametrize("number", [1, 2])
def test_of_a_batch_of_two_images_nothing_is_estimated(number):
    def losses(_):
        raise AssertionError("it is tried")

    class OfTwo:
        images = [None] * number

    said = str(explain_step(MemoryError(), torch.nn.Linear(1, 1), OfTwo(), losses, True))
    assert re.fullmatch(
        rf"out of memory in a training step of {number} images \(.* free beside it\): make images or model smaller, or "
        r"lower --data\.languages_per_step\.",
        said,
    )


@pytest.mark.parametrize(("may_be_cut", "otherwise"), [(True, ", or set --model.chunk_size 16, say"), (False, "")])
def test_an_estimate_that_the_step_has_contradicted_is_not_stated(may_be_cut, otherwise):
    class OfTwelve:
        images = [None] * 12
        caption_mask = torch.ones(12, 1)

        def _asdict(self):
            return {"images": self.images}

        def _replace(self, **_):
            return self

    said = str(explain_step(MemoryError(), torch.nn.Linear(1, 1), OfTwelve(), lambda _: None, may_be_cut))
    assert re.fullmatch(
        r"out of memory in a training step of 12 images \(.* free beside it\): what fits could not be estimated; try "
        rf"--data\.batch_size 6{re.escape(otherwise)}, then go on with --resume auto --resume-changed\.",
        said,
    )


def test_one_process_of_several_without_a_thread_says_so(monkeypatch):
    monkeypatch.delenv("CCR_TRACEBACK", raising=False)
    watch = WatchOverRanks()
    watch.on_exception(None, None, RuntimeError("can't start new thread"))
    assert re.fullmatch(r"no further thread .+: raise `ulimit -u` or .+ \(RuntimeError: can't .+\)", watch._words)
    assert not watch._traceback


def test_one_process_of_several_says_so_without_a_traceback(monkeypatch):
    monkeypatch.delenv("CCR_TRACEBACK", raising=False)
    watch = WatchOverRanks()
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    watch.on_exception(None, None, caught.value)
    assert watch._words.startswith("out of memory (RuntimeError: ")
    assert not watch._traceback


def test_files_that_a_container_keeps_count_as_available(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("64000000\n")
    (tmp_path / "memory.current").write_text("60000000\n")
    (tmp_path / "memory.stat").write_text("anon 20000000\ninactive_anon 7\ninactive_file 35000000\nactive_file 9\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert available_memory() == (64e6, 39e6)
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory()[0] > 64e6
