"""Half an hour of training with faults at random, beside the same training without: run with ``-m soak``."""

import json
import os
import statistics
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def check(document, *, has_jemalloc):
    """What benchmarks.soak has noted: the same result, no traceback, at the end no more files and not much more memory.

    Captions of many lengths leave holes in the heap of Linux' C library, and fewer in that of jemalloc.
    """
    hurt, clean = document["hurt"], document["clean"]
    assert document["tracebacks"] == 0
    assert len(document["faults"]) > 15
    for name in ("mean_recall", "mrv"):
        (low, high), (lowest, highest) = hurt[f"{name}_interval"], clean[f"{name}_interval"]
        assert low < highest, name
        assert lowest < high, name
    last = document["processes"]  # in the last third nothing ends it
    of_last = [row for row in document["watched"] if row[1] == last]
    half = of_last[len(of_last) // 2 :]
    before, after = half[: len(half) // 2], half[len(half) // 2 :]
    for column, growth in ((2, 1.25 if has_jemalloc else 1.5), (3, 1.0)):
        assert statistics.median(row[column] for row in after) <= growth * statistics.median(
            row[column] for row in before
        )


@pytest.mark.soak
def test_a_run_that_is_hurt_ends_as_one_that_is_not(tmp_path):
    output = tmp_path / "soak.json"
    command = [sys.executable, "-m", "benchmarks.soak", "--epochs", "60", "--folder", tmp_path / "soak"]
    jemalloc = find_library("jemalloc")
    environment = {**os.environ, "LD_PRELOAD": jemalloc} if jemalloc else None
    subprocess.run([*command, "--output", output], cwd=ROOT, env=environment, check=True)
    check(json.loads(output.read_text(encoding="utf-8")), has_jemalloc=jemalloc is not None)
