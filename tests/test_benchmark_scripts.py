"""The benchmarks compare ways to the same numbers, and run on small sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import communication, gpu, growth, loss, negatives, ranks, reranking, scaling
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
    """Of a cost that is counted here: 1 GFLOP and 1 MB an image, 10 M parameters; 1 TFLOP/s and 1 GB/s."""
    table = dict((row[0], row[1:]) for row in scaling.step_table(scaling.Counted(1e9, 4e8, 3e8, 1e6, 10**7), 1, 1))
    assert table["images on each GPU"] == ["8,192", "1,024", "128"]
    assert table["encoders, fusion, both passes"] == ["8.2 s", "1 s", "0.13 s"]
    assert table["gathered embeddings, and their gradient"] == ["1.48 GB"] * 3  # 2 x 65,536 x 11 x 256 x 4
    assert table["gradients of the parameters, all-reduced"][0] == "0.1 GB, 0.07 s"  # 2 x 40 MB x 7 / 8
    assert table["kept for the backward pass, all at once"] == ["4 GB", "1 GB", "0 GB"]
    assert table["parameters, gradients, AdamW's averages"] == ["0.2 GB"] * 3


@pytest.mark.ddp
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_communication_is_what_the_formulas_say(strategy, tiny_config, tmp_path, monkeypatch, capsys):
    config = tiny_config({}, tmp_path)
    swin = {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "window_size": 4}
    parts = config["model"]["retriever"]["init_args"]
    parts["image_encoder"]["init_args"] |= {"name": "swin_tiny_patch4_window7_224", "model_args": swin}
    parts["fusion"]["init_args"]["image_width"] = 32
    (tmp_path / "tiny.yaml").write_text(json.dumps(config))
    arguments = ["--processes", "2", "--images", "6", "--languages", "3", "--strategy", strategy]
    places = ["--config", str(tmp_path / "tiny.yaml"), "-o", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments, *places])
    communication.main()
    out = capsys.readouterr().out
    title, document = json.loads((tmp_path / "out.json").read_text()).popitem()
    assert title in out
    rows = {row["for"]: row for row in document["collectives"]}
    assert "buffers" not in rows  # Swin's are constants
    for row in rows.values():
        tolerance = 0.02 if row["for"] in ("parameters", "gradients of the parameters") and strategy == "fsdp2" else 0
        assert [row["contributed"], row["received"]] == pytest.approx(
            row["formula"], rel=tolerance
        )  # shards are padded
    assert ("gradients on their way" in out) == (strategy == "ddp")
    if strategy == "ddp":
        assert sum(bucket["bytes"] for bucket in document["buckets"]) == 4 * document["parameters"]
