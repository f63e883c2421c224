"""The file of a run's metrics, read back with the csv module."""

import csv
import errno
import os

import pytest

from ccr_lightning.errors import CCRError
from ccr_lightning.training.metrics_file import MetricsFile


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.csv"


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: value for name, value in line.items() if value} for line in csv.DictReader(file)]


def write(path, steps, first_step=0):
    metrics = MetricsFile(path, first_step)
    for step in steps:
        metrics.log_metrics({"train/loss": step / 2}, step)


def test_names_that_come_later(path):
    metrics = MetricsFile(path)
    metrics.log_metrics({"train/loss": 2.5}, 0)
    metrics.log_metrics({"val/mrv": 7.0, "epoch": 0}, 1)
    metrics.log_metrics({"train/loss": 1.5}, 1)
    assert read(path) == [
        {"step": "0", "train/loss": "2.5"},
        {"step": "1", "val/mrv": "7.0", "epoch": "0"},
        {"step": "1", "train/loss": "1.5"},
    ]


def test_every_line_is_on_disk_at_once(path):
    metrics = MetricsFile(path)
    for step in range(5):
        metrics.log_metrics({"train/loss": 1.0}, step)
        assert [line["step"] for line in read(path)] == [str(number) for number in range(step + 1)]


def test_nothing_is_lost_before_something_is_logged(path):
    write(path, range(4))
    before = path.read_bytes()
    for first_step in (0, 2):
        metrics = MetricsFile(path, first_step)
        metrics.save()
        metrics.finalize("failed")
        assert path.read_bytes() == before


def test_a_run_that_resumes_keeps_the_lines_before_its_checkpoint(path):
    write(path, range(4))
    write(path, [2, 3, 4], first_step=2)
    assert read(path) == [{"step": str(step), "train/loss": str(step / 2)} for step in range(5)]
    write(path, [0])
    assert [line["step"] for line in read(path)] == ["0"]


def test_a_line_that_a_crash_broke_off(path):
    write(path, range(3))
    path.write_bytes(path.read_bytes() + b"1")
    write(path, [3], first_step=3)
    assert [line["step"] for line in read(path)] == ["0", "1", "2", "3"]


def test_a_full_disk(path, monkeypatch):
    write(path, range(3))
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CCRError, match=r"metrics\.csv: the metrics could not be written \(.*No space.*\); free "):
            MetricsFile(path, 3).log_metrics({"train/loss": 1.0}, 3)
    assert path.read_bytes() == before

    metrics = MetricsFile(path, 3)
    metrics.log_metrics({"train/loss": 1.0}, 3)
    path.unlink()
    path.mkdir()
    with pytest.raises(CCRError, match=r"metrics\.csv: the metrics could not be written"):
        metrics.log_metrics({"train/loss": 1.0}, 4)


@pytest.mark.parametrize(
    "content",
    [
        b"step;loss\n1;2\n",
        b"epoch,step\n1,two\n",
        b"step\n\xff\n",
        b"step,loss\n0,1,2\n",
        b"step,loss\n0," + b"1" * 200_000 + b"\n",
    ],
    ids=["other names", "no step", "no text", "too many values", "a field that is too long"],
)
def test_a_file_of_something_else(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(
        CCRError,
        match=r"metrics\.csv: this is not the metrics\.csv of a run \(\w+: .{1,200}\); move it away: the run goes",
    ):
        MetricsFile(path, 3).log_metrics({"train/loss": 1.0}, 3)
    assert path.read_bytes() == content
