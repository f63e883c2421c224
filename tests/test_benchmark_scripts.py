"""The benchmarks compare ways to the same numbers, and run on small sizes."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import communication, loss, negatives, ranks, reranking
from benchmarks.measure import peak_mebibytes
from ccr_lightning.functional.contrastive import one_to_k_contrastive_loss


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


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (ranks, ["--images", "60", "--rounds", "1"]),
        (loss, ["--batches", "20", "--rounds", "1"]),
        (negatives, ["--batches", "8", "--rounds", "1"]),
    ],
)
def test_commands_write_a_table_and_json(module, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments, "-o", str(tmp_path / "out.json")])
    module.main()
    out = capsys.readouterr().out
    document = json.loads((tmp_path / "out.json").read_text())
    assert document.pop("machine")["threads"] == 1
    for title, measured in document.items():
        assert title in out
        assert all(of["seconds"] >= 0 for name, of in measured.items() if name != "gradient_errors")


def test_re_ranking(monkeypatch, capsys):
    sizes = ["--images", "10", "--depth", "4", "--layers", "2", "--queries", "2", "--repeats", "1"]
    monkeypatch.setattr(sys, "argv", ["benchmark", *sizes])
    reranking.main()
    out = capsys.readouterr().out
    assert "160 pairs asked for" in out
    assert "by distinct pairs" in out


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
