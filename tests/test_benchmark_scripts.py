"""The benchmarks compare ways to the same numbers, and run on small sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import gpu, growth, loss, negatives, ranks, reranking, scaling
from benchmarks.__main__ import COMPARISONS
from benchmarks.growth_figure import figure
from benchmarks.measure import in_process, peak_mebibytes
from ccr_lightning.functional.contrastive import one_to_k_contrastive_loss

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def threads():
    """The commands set one thread for the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("trained", [True, False])
def test_ways_to_recalls_agree(trained):
    sides = ranks.embeddings(120, trained=trained)
    expected = ranks.numpy_argsort(*sides)
    assert expected[2] > 0
    for way in (ranks.ours, *ranks.OTHERS.values()):
        assert way(*sides) == pytest.approx(expected)


def test_ways_to_the_loss_agree():
    sides = loss.embeddings(40)
    for is_tiled in (True, False):
        found = one_to_k_contrastive_loss(*sides, is_tiled=is_tiled)
        torch.testing.assert_close(found, loss.with_labels(*sides), rtol=1e-5, atol=1e-6)


def test_the_loop_draws_negatives():
    images, texts = torch.eye(6), torch.eye(6)[:, None].expand(6, negatives.LANGUAGES, 6)
    language, negative_image, negative_text = negatives.loop(images, texts)
    assert ((language >= 0) & (language < negatives.LANGUAGES)).all()
    assert (negative_image != torch.arange(6)).all()
    assert (negative_text // negatives.LANGUAGES != torch.arange(6)).all()


def test_peak_of_a_process():
    assert 60 < peak_mebibytes(lambda: torch.ones(2**24)) < 90  # 64 MiB
    assert peak_mebibytes(lambda: None) < 10


def test_a_process_gives_its_result_or_an_error(capfd):
    held = torch.zeros(1)
    assert in_process(lambda: held.add_(1).item()) == 1
    assert held.item() == 0
    with pytest.raises(RuntimeError, match="forked process failed"):
        in_process(lambda: held.view(7))
    assert "shape '[7]' is invalid" in capfd.readouterr().err


def run(*arguments):
    command = [sys.executable, "-m", "benchmarks", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_all_comparisons_write_tables_and_json(tmp_path):
    done = run("--small", "-o", tmp_path)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.json" for name in COMPARISONS}
    for name in COMPARISONS:
        assert f"{name}: wrote {tmp_path / name}.json" in done.stdout
        document = json.loads((tmp_path / f"{name}.json").read_text())
        assert document.pop("machine")["threads"] == 1
        assert document
        assert all(title in done.stdout for title in document)


def test_a_comparison_that_fails(tmp_path):
    (tmp_path / "loss.json").mkdir()  # cannot be written
    done = run("loss", "negatives", "--small", "-o", tmp_path)
    assert done.returncode == 1
    assert "loss: failed, exit status 1" in done.stdout
    assert "IsADirectoryError" in done.stderr
    assert f"negatives: wrote {tmp_path / 'negatives.json'}" in done.stdout


def check_figure(document):
    """What is drawn is the numbers of the document, in its order."""
    axes = figure(document).axes
    assert len(axes) == 4
    for axis, (work, of) in zip(
        axes, [(work, of) for of in ("seconds", "mebibytes") for work in ("ranks", "loss")], strict=True
    ):
        assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
        ways = document[work]["ways"]
        for line, (name, series) in zip(axis.lines, ways.items(), strict=True):
            assert name in line.get_label()
            assert line.get_xydata().tolist() == [
                list(point) for point in zip(series["sizes"], series[of], strict=True)
            ]
            low, high = axis.get_ylim()
            assert all(low < value < high for value in series[of])


def test_growth(tmp_path, monkeypatch, capsys):
    path = tmp_path / "growth.json"
    arguments = ["growth", "--images", "20", "40", "--batches", "6", "12", "--rounds", "1", "-o", str(path)]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setitem(growth.LARGEST, "torch argsort", 20)
    monkeypatch.setitem(growth.LARGEST, "dense", 6)
    growth.main()
    document = json.loads(path.read_text())
    check_figure(document)
    assert document["ranks"]["ways"][ranks.OURS]["sizes"] == [20, 40]
    assert document["loss"]["ways"][loss.FLOOR]["ratio"] == [1, 1]
    for work, name in (("ranks", "torch argsort"), ("loss", "dense")):
        series = document[work]["ways"][name]
        assert len(series["sizes"]) == 1
        assert series["next"]["size"] == 2 * series["sizes"][0]
        assert series["next"]["seconds"] == 4 * series["seconds"][0]

    with Image.open(path.with_suffix(".png")) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert picture.width > 900
    drawn = path.with_suffix(".png").read_bytes()
    path.with_suffix(".png").unlink()
    monkeypatch.setattr(sys, "argv", [*arguments, "--plot_only"])
    capsys.readouterr()
    growth.main()
    assert path.with_suffix(".png").read_bytes() == drawn
    assert json.loads(path.read_text()) == document
    assert "CPU s" not in capsys.readouterr().out


def test_the_figure_that_readme_shows():
    check_figure(json.loads((ROOT / "docs" / "growth.json").read_text()))
    with Image.open(ROOT / "docs" / "growth.png") as picture:
        picture.load()
    assert (ROOT / "docs" / "growth.png").stat().st_size < 120_000


def test_re_ranking(monkeypatch, capsys):
    sizes = ["--images", "10", "--depth", "4", "--layers", "2", "--queries", "2", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["benchmark", *sizes])
    reranking.main()
    out = capsys.readouterr().out
    assert "160 pairs asked for" in out
    assert "by distinct pairs" in out


@pytest.mark.parametrize("name", ["ranks", "million", "losses"])
def test_what_a_gpu_would_run(name, capsys):
    getattr(gpu, name)(torch.device("cpu"), 40)
    assert "40" in capsys.readouterr().out


def test_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match="there is no CUDA GPU here"):
        gpu.main()


def test_carrying_costs_to_many_gpus():
    """Of a cost that is counted here: 1 GFLOP and 100 MB an image, 10 M parameters; 1 TFLOP/s and 1 GB/s."""
    cost = scaling.Counted(1e9, 4e8, 3e8, 1e8, 10**7)
    assert scaling.memory(cost, 128, 128) == 160e6 + 2 * 65536 * 11 * 256 * 4 + 12.8e9 + 3 * 128 * 128 * 10 * 4
    in_chunks = 160e6 + 2 * 65536 * 11 * 256 * 4 + 0.8e9 + 3 * 128 * 128 * 10 * 4
    states = 4 * 1024 * (50 + 400 + 3 * 90)  # of an image, ten captions of 40 tokens, and three pairs
    assert scaling.memory(cost, 128, 8) == in_chunks + 2 * 128 * states
    table = dict((row[0], row[1:]) for row in scaling.step_table(cost, 1, 1))
    assert table["images on each GPU"] == ["8,192", "1,024", "128"]
    assert table["largest chunk_size that fits, and the memory"] == ["128: 71 GB", "512: 59 GB", "128: 14 GB"]
    assert table["encoders and fusion in such chunks"] == ["11 s", "1.4 s", "0.13 s"]  # a third more in chunks
    assert table["gradients of the parameters, all-reduced"][0] == "0.1 GB, 0.07 s"  # 2 x 40 MB x 7 / 8
    assert table["not hidden behind the backward pass"] == ["0.07 s", "0.079 s", "0 s"]


def test_ways_to_the_loss_on_another_device(monkeypatch):
    """A tensor on the meta device does not go together with one of the CPU."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know the meta device
    sides = tuple(of.detach().to("meta").requires_grad_() for of in loss.embeddings(8))
    for way in (loss.with_labels, partial(one_to_k_contrastive_loss, is_tiled=True)):
        loss.trained(way, sides)
        assert all(of.grad is not None for of in sides)
