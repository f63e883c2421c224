"""Training that is hurt again and again, beside the same training that is left alone: does it end with the same result?

python -m benchmarks.soak [--epochs 46] [--folder runs/soak] [--output runs/benchmarks/soak.json]

The main job on one process with two workers, on the built-in pictures as JSON lines, among which are twice as many
broken ones: cut lines, captions that are numbers, pictures that are none or are not there. Meanwhile, at random:
SIGTERM, Ctrl-C, SIGKILL, a last checkpoint that is cut off or has a flipped bit, a full disk while saving, a worker
that is killed, a process that is stopped for some seconds, and steps whose loss is not a number. In the last third
nothing ends the process, so that its memory can be seen over a longer time. Twice a second are noted the memory of all
processes (without the files that they map) and their open files. Writes JSON and a figure. About 30 minutes on 2 cores.
Memory stays level with jemalloc (LD_PRELOAD=libjemalloc.so.2), and grows with the heap of Linux' own C library.
Needs pip install -e '.[bench]', and Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measure import one_or_more
from benchmarks.soak_figure import draw
from ccr_lightning.data.sources.openmoji import OpenMoji

HURTING = """
import os, sys, torch
from ccr_lightning.cli.main import main
from ccr_lightning.training.module import RetrievalModule

step = RetrievalModule.training_step

def training_step(module, batch, batch_idx):
    loss = step(module, batch, batch_idx)
    chance = int.from_bytes(os.urandom(4), "big") / 2**32
    return loss * float("nan") if chance < float(os.environ["NOT_A_NUMBER"]) else loss

RetrievalModule.training_step = training_step
sys.exit(main())
"""
BATCH = 128
NOT_A_NUMBER = 1 / 400  # of the steps
SECONDS_BETWEEN = (15, 90)
ENDING = ("SIGTERM", "SIGINT", "SIGKILL", "truncated checkpoint", "flipped bit", "full disk", "killed worker")
STOPPED = "stopped for 5 s"
DAMAGE = {
    "truncated checkpoint": lambda content: content[: len(content) // 2],
    "flipped bit": lambda content: content[:1000] + bytes([content[1000] ^ 4]) + content[1001:],
}
BROKEN = 2  # records for each that is not


def write_data(folder: Path) -> dict[str, Any]:
    """Write the built-in pictures as JSON lines, broken records among those of training; return the source."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    (pictures / "broken.png").write_bytes(b"no picture")
    files = {}
    for split in ("train", "val", "test"):
        lines = []
        for number, record in enumerate(OpenMoji(split_scheme="composition", image_size=48).records(split)):
            name = f"pictures/{split}-{number}.png"
            assert isinstance(record.image, bytes)
            (folder / name).write_bytes(record.image)
            captions = {language: list(texts) for language, texts in record.captions.items()}
            line = json.dumps({"image": name, "image_id": record.image_id, "captions": captions}, ensure_ascii=False)
            lines.append(line)
            if split == "train":
                lines += [_broken(line, BROKEN * number + which) for which in range(BROKEN)]
        files[split] = str(folder / f"{split}.jsonl")
        Path(files[split]).write_text("\n".join(lines) + "\n", encoding="utf-8")
    source = {"files": files, "image_root": str(folder)}
    return {"class_path": "ccr_lightning.data.sources.jsonl.JsonLines", "init_args": source}


def _broken(line: str, number: int) -> str:
    record = json.loads(line) | {"image_id": f"broken-{number}"}
    kind = number % 4
    if kind == 0:
        return line[: len(line) // 2]
    if kind == 1:
        record["captions"] = 7
    else:
        record["image"] = "pictures/broken.png" if kind == 2 else "pictures/nowhere.png"
    return json.dumps(record)


class Run:
    """A run that goes on until it is done, whatever happens to it."""

    def __init__(self, folder: Path, name: str, script: Path | None, settings: list[str]) -> None:
        self.run = folder / "runs" / name
        program = [sys.executable, *(["-m", "ccr_lightning.cli.main"] if script is None else [str(script)])]
        where = ["--runs_dir", str(folder / "runs"), "--name", name, "--resume", "auto"]
        self._command = [*program, "fit", "--config", str(folder / "soak.yaml"), *where, *settings]
        self._log = folder / f"{name}.log"

    def start(self, largest_file: int | None = None) -> subprocess.Popen[bytes]:
        """Start or go on, with a file system that takes no larger files if wished for."""

        def limit() -> None:
            if largest_file is not None:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NOT_A_NUMBER": str(NOT_A_NUMBER)}
        # Workers could not share their batches, whose memory is a file to the kernel.
        alone = [] if largest_file is None else ["--data.num_workers", "0"]
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [*self._command, *alone],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=limit,
            )

    @property
    def steps(self) -> int:
        """How many it has done, by what it has logged."""
        file = self.run / "metrics.csv"
        lines = file.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()[1:] if file.exists() else []
        steps = [int(line.split(",")[1]) + 1 for line in lines if line.count(",") > 1]
        return max(steps, default=0)

    def results(self) -> dict[str, Any]:
        """What it scored on the test split."""
        document = json.loads((self.run / "results.json").read_text(encoding="utf-8"))
        found = {name: document[name] for name in ("mean_recall", "mean_recall_interval")}
        return {**found, "mrv": document["mrv"]["mean"], "mrv_interval": document["mrv"]["interval"]}


def processes_of(session: int) -> list[Path]:
    """The folders in /proc of the processes of a session."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(path)
    return found


def used_by(session: int) -> tuple[float, int]:
    """MiB of memory of a session's processes that are backed by no file, and the number of their open files."""
    kib, files = 0, 0
    for path in processes_of(session):
        try:
            lines = (path / "smaps_rollup").read_text().splitlines()
            kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon"))
            files += len(list((path / "fd").iterdir()))
        except OSError:
            continue
    return kib / 1024, files


class Watch:
    """Notes the memory and the open files of whichever process is at work."""

    def __init__(self) -> None:
        self.session = 0
        self.rows: list[tuple[float, int, float, int]] = []  # minute, number of the process, MiB, files
        self.number = 0
        self._begin = time.monotonic()
        threading.Thread(target=self._note, daemon=True).start()

    @property
    def minute(self) -> float:
        """Since it was made."""
        return (time.monotonic() - self._begin) / 60

    def _note(self) -> None:
        while True:
            if self.session:
                mebibytes, files = used_by(self.session)
                if files:
                    self.rows.append((round(self.minute, 3), self.number, round(mebibytes, 1), files))
            time.sleep(0.5)


def hurt(run: Run, total: int, seed: int) -> dict[str, Any]:
    """Train to the end with faults; return what happened."""
    draws, watch, happened = random.Random(seed), Watch(), []
    last_fault = ""
    while True:
        process = run.start(largest_file=300_000 if last_fault == "full disk" else None)
        watch.session, watch.number = process.pid, watch.number + 1
        while process.poll() is None:
            if last_fault == "full disk":  # it ends by itself, at its next checkpoint
                time.sleep(0.2)
                continue
            step, deadline = run.steps, time.monotonic() + draws.uniform(*SECONDS_BETWEEN)
            while process.poll() is None and (time.monotonic() < deadline or run.steps == step):
                time.sleep(0.2)
            if process.poll() is None:
                goes_on = run.steps > total * 2 / 3 or draws.random() < 0.2
                last_fault = STOPPED if goes_on else draws.choice(ENDING)
                happened.append({"minute": round(watch.minute, 2), "step": run.steps, "fault": last_fault})
                print(f"minute {watch.minute:.1f}, step {run.steps} of {total}: {last_fault}", flush=True)
                inject(last_fault, process, draws)
        watch.session, status = 0, process.wait()
        if status == 0:
            return {"faults": happened, "watched": watch.rows, "processes": watch.number}
        print(f"  ended with status {status}", flush=True)
        happened[-1].setdefault("statuses", []).append(status)
        if last_fault == "full disk" and len(happened[-1]["statuses"]) > 1:
            last_fault = ""
        path = run.run / "checkpoints" / "last.ckpt"
        if last_fault in DAMAGE and path.with_name("previous.ckpt").exists():
            path.write_bytes(DAMAGE[last_fault](path.read_bytes()))


def inject(fault: str, process: subprocess.Popen[bytes], draws: random.Random) -> None:
    """Do something to a process, and wait until it has ended if it should end of that."""
    if fault == STOPPED:
        os.killpg(process.pid, signal.SIGSTOP)
        time.sleep(5)
        os.killpg(process.pid, signal.SIGCONT)
        return
    if fault == "killed worker":
        workers = [path.name for path in processes_of(process.pid) if path.name != str(process.pid)]
        if workers:
            os.kill(int(draws.choice(workers)), signal.SIGKILL)
    elif fault in ("SIGTERM", "SIGINT"):
        process.send_signal(signal.Signals[fault])
    else:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=300)


def main() -> None:
    """Write the data, train both, compare, write JSON and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=one_or_more, default=46)
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--folder", type=Path, default=Path("runs/soak"), help="of data and runs; it is made anew")
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks/soak.json"))
    args = parser.parse_args()
    shutil.rmtree(args.folder, ignore_errors=True)
    config = yaml.safe_load(Path("configs/pretrain.yaml").read_text(encoding="utf-8"))
    config["data"] |= {"source": write_data(args.folder / "data"), "batch_size": BATCH, "max_bad_fraction": 0.7}
    config["data"]["cache_dir"] = str(args.folder / "cache")
    trainer = {"accelerator": "cpu", "devices": 1, "strategy": "auto", "deterministic": True}
    config["trainer"] = {**trainer, "max_epochs": args.epochs, "check_val_every_n_epoch": 10}
    (args.folder / "soak.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (args.folder / "hurting.py").write_text(HURTING, encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "ccr_lightning.cli.main", "data", "build", args.folder / "soak.yaml"], check=True
    )
    clean = Run(args.folder, "clean", None, [])
    hurt_run = Run(args.folder, "hurt", args.folder / "hurting.py", ["--data.num_workers", "2"])
    good = len(Path(config["data"]["source"]["init_args"]["files"]["train"]).read_text(encoding="utf-8").splitlines())
    total = args.epochs * (good // (1 + BROKEN) // BATCH)
    left_alone = clean.start()
    found = hurt(hurt_run, total, args.seed)
    if left_alone.wait() != 0:
        raise SystemExit(f"the clean run failed: see {args.folder / 'clean.log'}")
    said = (args.folder / "hurt.log").read_text(encoding="utf-8", errors="replace")
    document = {
        "epochs": args.epochs,
        "steps": total,
        "clean": clean.results(),
        "hurt": hurt_run.results(),
        "passed_over": said.count("is passed over: the gradient is"),
        "tracebacks": said.count("Traceback (most recent call last)"),
        **found,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(document, indent=1), encoding="utf-8")
    draw(document, args.output.with_suffix(".png"))
    print(f"{dict(Counter(of['fault'] for of in found['faults']))}, {document['passed_over']} steps passed over")
    for name in ("clean", "hurt"):
        print(f"{name}: {document[name]}")
    print(f"wrote {args.output} and {args.output.with_suffix('.png')}")


if __name__ == "__main__":
    main()
