"""Damages files of all kinds by chance, and has them read: each is accepted, or refused with the package's own error.

python tests/fuzz.py [--inputs 100000] [--seed 0] [--only NAME...] [--folder runs/fuzz] [--output fuzz.json]

Anything else escapes: another exception, more than 10 seconds, or a gigabyte. What escapes is written to the folder,
and the exit status is 1. Prints a table, and writes its counts as JSON. On Linux only.
"""

import argparse
import json
import platform
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import NamedTuple, NoReturn

from fuzz_targets import Target, quiet, targets
from mutating import mutated

from ccr_lightning.errors import CCRError

SECONDS, MEMORY = 10, 1_000_000_000  # for one input; bytes beyond what the process had
READ, REFUSED = "read", "refused"


class Fuzzed(NamedTuple):
    """What came of the inputs of a target."""

    read: int
    refused: int
    escapes: list[tuple[str, bytes, str]]  # name of the file, its content, the traceback or what else was wrong
    slowest: float  # seconds
    largest: int  # bytes


class TooSlow(BaseException):
    """No Exception, which a reader may take for a fault of the file."""


def _too_slow(signum: int, frame: FrameType | None) -> NoReturn:
    raise TooSlow(f"not read within {SECONDS} s")


def fuzz(target: Target, inputs: int, seed: str) -> Fuzzed:
    """Reads damaged files, each a function of the seed and its number, and puts the good one back after each."""
    good = {path: path.read_bytes() for path in target.files}
    came: Counter[str] = Counter()
    escapes, slowest, largest = [], 0.0, 0
    before = signal.signal(signal.SIGALRM, _too_slow)
    try:
        for number in range(inputs):
            rng = random.Random(f"{seed} {number}")
            path = rng.choice(target.files)
            content = mutated(good[path], rng)
            path.write_bytes(content)
            start, had = time.perf_counter(), _peak_from_now()
            what = _read(target)
            seconds, grown = time.perf_counter() - start, _peak() - had
            path.write_bytes(good[path])
            slowest, largest = max(slowest, seconds), max(largest, grown)
            if what in (READ, REFUSED) and seconds > SECONDS:
                what = f"{what} in {seconds:.1f} s"
            elif what in (READ, REFUSED) and grown > MEMORY:
                what = f"{what} with {grown / 1e6:.0f} MB"
            came[what] += 1
            if what not in (READ, REFUSED):
                escapes.append((path.name, content, what))
    finally:
        signal.signal(signal.SIGALRM, before)
    return Fuzzed(came[READ], came[REFUSED], escapes, slowest, largest)


def _read(target: Target) -> str:
    """Says whether what is there is read or refused, or what escapes."""
    try:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        with quiet(), warnings.catch_warnings(action="ignore"):
            target.read()
    except CCRError as error:
        says = str(error).strip()
        return REFUSED if says and "Traceback" not in says else f"an error that says nothing: {error!r}"
    except KeyboardInterrupt:
        raise
    except BaseException:  # a panic of Rust is no Exception either
        return traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return READ


def _peak_from_now() -> int:
    """Lets the process' peak of memory begin anew, which Linux can; returns it."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


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
    parser.add_argument("--output", type=Path, help="for the counts")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "trained").mkdir()
        made = targets(Path(home) / "made", train(Path(home) / "trained"))
        chosen = {name: of for name, of in made.items() if not args.only or name.startswith(tuple(args.only))}
        each = -(-args.inputs // len(chosen))
        print(
            f"{'target':30} {'inputs':>7} {'read':>8} {'refused':>8} {'escapes':>7} "
            f"{'seconds':>8} {'slowest':>8} {'MB':>6}"
        )
        counted = {}
        for name, target in chosen.items():
            start = time.perf_counter()
            found = fuzz(target, each, f"{args.seed} {name}")
            seconds = time.perf_counter() - start
            counts = {"inputs": each, READ: found.read, REFUSED: found.refused, "escapes": len(found.escapes)}
            counted[name] = counts
            columns = " ".join(f"{count:{width}}" for count, width in zip(counts.values(), (7, 8, 8, 7), strict=True))
            print(f"{name:30} {columns} {seconds:8.1f} {found.slowest:8.3f} {found.largest / 1e6:6.0f}", flush=True)
            for number, (file, content, said) in enumerate(found.escapes[:20]):
                args.folder.mkdir(parents=True, exist_ok=True)
                (args.folder / f"{name}-{number}-{file}").write_bytes(content)
                (args.folder / f"{name}-{number}.txt").write_text(said)
    inputs, escaped = (sum(counts[of] for counts in counted.values()) for of in ("inputs", "escapes"))
    print(f"{inputs} inputs, {escaped} escapes")
    if args.output:
        document = {"inputs": inputs, "escapes": escaped, "seed": args.seed, "only": args.only}
        document |= {"minutes": round((time.monotonic() - began) / 60, 1), "versions": _versions(), "targets": counted}
        args.output.write_text(json.dumps(document, indent=1) + "\n")
    return int(escaped > 0)


def _versions() -> dict[str, str]:
    readers = ("ccr-lightning", "torch", "lightning", "transformers", "tokenizers", "safetensors", "pyarrow", "pillow")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in readers}


if __name__ == "__main__":
    sys.exit(run())
