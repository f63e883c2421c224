"""The program of README's results, with a training that is written by hand."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest


def results(recall, mrv):
    directions = {"image_to_text": recall, "text_to_image": recall - 0.2}
    return {
        "mean_recalls": {name: {f"recall@{k}": of for k in (1, 5, 10)} for name, of in directions.items()},
        "mrv": {"mean": mrv},
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
    scores = {"matching": results(0.7, 3.0), "matching_and_similarity": results(0.8, 4.0)}
    clock = [0.0]
    asked = []

    def ccr(command, *arguments):
        asked.append((command, *arguments))
        if command == "fit":
            clock[0] += 90
            if len(asked) == 1:
                raise subprocess.CalledProcessError(1, "ccr")
            (run / "results.json").write_text(json.dumps(results(0.6, 2.0)))
        else:
            given = dict(zip(arguments[::2], arguments[1::2], strict=True))
            assert (given["--ckpt_path"], given["--trainer.devices"]) == (str(run), "1")
            assert given["--model.protocol.rerank_depth"] == "16"
            (run / "results-reranked.json").write_text(json.dumps(scores[given["--model.protocol.rerank_by"]]))

    monkeypatch.setattr(main_job, "_ccr", ccr)
    monkeypatch.setattr(main_job.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys, "argv", ["main_job", "--seeds", "3", "--runs_dir", str(tmp_path)])
    with pytest.raises(subprocess.CalledProcessError):
        main_job.main()
    for _ in range(2):
        main_job.main()
        assert "\n| 3 | 3.0 | 50.0 | 50.0 | 50.0 | 2.00 | 1.00 | 60.0, 3.00 | 70.0, 4.00 |\n" in capsys.readouterr().out
    assert [command for command, *_ in asked] == ["fit", "fit", "test", "test", "test", "test"]
    for _, *arguments in asked[:2]:
        assert arguments[arguments.index("--resume") + 1] == "auto"
        assert arguments[arguments.index("--name") + 1] == "seed-3"
