"""Damages files of all kinds by chance, and has them read: each is accepted, or refused with the package's own error.

python tests/fuzz.py [--inputs 100000] [--seed 0] [--only NAME...] [--folder runs/fuzz]

Anything else escapes: another exception, more than some seconds, or much memory. What escapes is written to the folder,
and the exit status is 1. Prints a table.
"""

import argparse
import json
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

from fuzz_targets import Target, quiet, targets
from mutating import mutated

from ccr_lightning.errors import CCRError

SECONDS = 10  # for one input


class Fuzzed(NamedTuple):
    """What came of the inputs of a target."""

    accepted: int
    refused: int
    escapes: list[tuple[str, bytes, str]]  # name of the file, its content, the traceback
    slowest: float  # seconds


def _too_slow(signum: int, frame: FrameType | None) -> NoReturn:
    raise TimeoutError(f"not read within {SECONDS} s")


def fuzz(target: Target, inputs: int, seed: str) -> Fuzzed:
    """Reads damaged files, each a function of the seed and its number, and puts the good one back after each."""
    good = {path: path.read_bytes() for path in target.files}
    came: Counter[str] = Counter()
    escapes, slowest = [], 0.0
    before = signal.signal(signal.SIGALRM, _too_slow)
    try:
        for number in range(inputs):
            rng = random.Random(f"{seed} {number}")
            path = rng.choice(target.files)
            content = mutated(good[path], rng)
            path.write_bytes(content)
            start = time.perf_counter()
            signal.alarm(SECONDS)
            try:
                with quiet(), warnings.catch_warnings(action="ignore"):
                    target.read()
                came["accepted"] += 1
            except CCRError as error:
                came["refused"] += 1
                if not str(error).strip() or "Traceback" in str(error):
                    escapes.append((path.name, content, f"an error that says nothing: {error!r}"))
            except Exception:
                escapes.append((path.name, content, traceback.format_exc()))
            finally:
                signal.alarm(0)
            slowest = max(slowest, time.perf_counter() - start)
            path.write_bytes(good[path])
    finally:
        signal.signal(signal.SIGALRM, before)
    return Fuzzed(came["accepted"], came["refused"], escapes, slowest)


def train(folder: Path) -> Path:
    """A tiny run with its data and cache, in a new folder."""
    from conftest import tiny_config, write_tiny_jsonl

    from ccr_lightning.cli.main import main

    write, configure = (fixture.__wrapped__() for fixture in (write_tiny_jsonl, tiny_config))  # type: ignore[attr-defined]
    config = configure(write(folder / "data"), folder / "cache")
    config["trainer"]["max_epochs"] = 1
    (folder / "tiny.yaml").write_text(json.dumps(config))
    with quiet():
        assert main(["fit", "--config", str(folder / "tiny.yaml"), "--runs_dir", str(folder / "runs")]) == 0
    return folder / "runs" / "tiny"


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=100_000, help="of all targets together")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="targets whose names begin so")
    parser.add_argument("--folder", type=Path, default=Path("runs/fuzz"), help="for what escapes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "trained").mkdir()
        made = targets(Path(home) / "made", train(Path(home) / "trained"))
        chosen = {name: of for name, of in made.items() if not args.only or name.startswith(tuple(args.only))}
        each = -(-args.inputs // len(chosen))
        print(
            f"{'target':30} {'inputs':>7} {'accepted':>8} {'refused':>8} {'escapes':>7} {'seconds':>8} {'slowest':>8}"
        )
        inputs = escaped = 0
        for name, target in chosen.items():
            start = time.perf_counter()
            found = fuzz(target, each, f"{args.seed} {name}")
            inputs, escaped = inputs + each, escaped + len(found.escapes)
            seconds = time.perf_counter() - start
            counts = (each, found.accepted, found.refused, len(found.escapes))
            print(f"{name:30}", *(f"{of:8}" for of in counts), f"{seconds:8.1f} {found.slowest:8.3f}", flush=True)
            for number, (file, content, said) in enumerate(found.escapes[:20]):
                args.folder.mkdir(parents=True, exist_ok=True)
                (args.folder / f"{name}-{number}-{file}").write_bytes(content)
                (args.folder / f"{name}-{number}.txt").write_text(said)
    print(f"{inputs} inputs, {escaped} escapes")
    return int(escaped > 0)


if __name__ == "__main__":
    sys.exit(run())
