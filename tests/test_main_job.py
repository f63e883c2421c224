"""The program of README's results, with a training that is written by hand."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

RESULTS = {
    "mean_recalls": {"image_to_text": {f"recall@{k}": 0.5 for k in (1, 5, 10)}},
    "mrv": {"mean": 2.0},
    "mrsd": {"mean": 1.0},
}


@pytest.fixture
def main_job():
    path = Path(__file__).parent.parent / "benchmarks" / "main_job.py"
    spec = importlib.util.spec_from_file_location("main_job", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_goes_on_after_an_interruption_and_keeps_the_minutes(main_job, tmp_path, monkeypatch, capsys):
    run = tmp_path / "seed-3"
    clock = [0.0]
    asked = []

    def ccr(command, *arguments):
        asked.append((command, *arguments))
        if command == "fit":
            clock[0] += 90
            if len(asked) == 1:
                raise subprocess.CalledProcessError(1, "ccr")
            (run / "results.json").write_text(json.dumps(RESULTS))
        else:
            (run / "results-reranked.json").write_text(json.dumps(RESULTS))

    monkeypatch.setattr(main_job, "_ccr", ccr)
    monkeypatch.setattr(main_job.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys, "argv", ["main_job", "--seeds", "3", "--runs_dir", str(tmp_path)])
    with pytest.raises(subprocess.CalledProcessError):
        main_job.main()
    for _ in range(2):
        main_job.main()
        assert "\n| 3 | 3.0 | 50.0 | 50.0 | 50.0 | 2.00 | 1.00 | 50.0, 2.00 | 50.0, 2.00 |\n" in capsys.readouterr().out
    assert [command for command, *_ in asked] == ["fit", "fit", "test", "test", "test", "test"]
    for _, *arguments in asked[:2]:
        assert arguments[arguments.index("--resume") + 1] == "auto"
        assert arguments[arguments.index("--name") + 1] == "seed-3"
