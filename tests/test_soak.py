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
JEMALLOC = find_library("jemalloc")  # the heap of Linux' own C library gets holes, and grows


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    """What the soak has noted."""
    folder = tmp_path_factory.mktemp("soak")
    command = [sys.executable, "-m", "benchmarks.soak", "--epochs", "46", "--seed", "4", "--folder", folder / "runs"]
    environment = {**os.environ, **({"LD_PRELOAD": JEMALLOC} if JEMALLOC else {})}
    subprocess.run([*command, "--output", folder / "soak.json"], cwd=ROOT, env=environment, check=True)
    return json.loads((folder / "soak.json").read_text(encoding="utf-8"))


@pytest.mark.soak
def test_a_run_that_is_hurt_ends_as_one_that_is_not(document):
    hurt, clean = document["hurt"], document["clean"]
    assert document["tracebacks"] == 0
    assert len(document["faults"]) > 15
    assert document["passed_over"] > 0
    for name in ("mean_recall", "mrv"):
        (low, high), (lowest, highest) = hurt[f"{name}_interval"], clean[f"{name}_interval"]
        assert low < highest, name
        assert lowest < high, name


@pytest.mark.soak
@pytest.mark.parametrize(
    ("column", "growth"),
    [
        pytest.param(
            2, 1.15, id="memory", marks=pytest.mark.skipif(JEMALLOC is None, reason="needs jemalloc, see README")
        ),
        pytest.param(3, 1.0, id="files"),
    ],
)
def test_nothing_grows_at_the_end(document, column, growth):
    """In the last third nothing ends the process."""
    of_last = [row for row in document["watched"] if row[1] == document["processes"]]
    half = of_last[len(of_last) // 2 :]
    before, after = half[: len(half) // 2], half[len(half) // 2 :]
    assert statistics.median(row[column] for row in after) <= growth * statistics.median(row[column] for row in before)
