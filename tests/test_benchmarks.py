"""``ccr test`` with every configuration of a benchmark, on the built-in pictures written in its layout."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import yaml
from published_layouts import WRITERS

from ccr_lightning.cli.main import main
from ccr_lightning.data.sources.openmoji import OpenMoji

CONFIGS = Path(__file__).parents[1] / "configs" / "test"
LAYOUTS = {  # by the name of the configuration
    "multi30k_2016": "multi30k-task1",
    "multi30k_2017": "multi30k-task1",
    "multi30k_2018": "multi30k-task1",
    "multi30k_mscoco": "multi30k-task1",
    "xflickrco": "xflickrco",
    "wit": "wit-table",
    "coco": "coco",
    "coco_cn": "coco-cn",
    "xtd": "xtd",
    "xm3600": "xm3600",
}
IMAGES = {"train": 8, "val": 4, "test": 20}


def settings_of(name):
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))


def languages_of(name):
    source = settings_of(name)["data"]["source"]
    return source["init_args"].get("languages") or list(OTHERS[name])


OTHERS = {  # of sources that have all of theirs by default
    "xtd": ("en", "de", "es", "fr", "it", "ja", "ko", "pl", "ru", "tr", "zh"),
    "xm3600": (
        *("ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fil", "fr", "he", "hi", "hr", "hu", "id", "it"),
        *("ja", "ko", "mi", "nl", "no", "pl", "pt", "quz", "ro", "ru", "sv", "sw", "te", "th", "tr", "uk", "vi", "zh"),
    ),
}


@pytest.fixture(scope="module")
def pictures():
    source = OpenMoji(image_size=24)
    return {split: list(islice(source.records(split), count)) for split, count in IMAGES.items()}


def selected(records, languages, name):
    """The names of the pictures in the languages; where there is none, the English one with the language's code."""

    def caption(record, language):
        return record.captions.get(language, (f"{record.captions['en'][0]} {language}",))

    def of(place, record):
        chosen = languages[place % len(languages) :: 5] if name == "wit" else languages
        texts = {language: caption(record, language) * (5 if name == "coco" else 1) for language in chosen}
        return replace(record, captions=texts)

    return [of(place, record) for place, record in enumerate(records)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_config, pictures):
    """The run of a tiny model, trained for an epoch."""
    home = tmp_path_factory.mktemp("home")
    languages = ("en", "de", "ja")
    layout = WRITERS["jsonl"](
        home / "data", languages, {split: selected(of, languages, "jsonl") for split, of in pictures.items()}
    )
    config = tiny_config(layout.init_args, home / "cache")
    config["trainer"]["max_epochs"] = 1
    config["data"] |= {"languages_per_step": 2, "required_languages": ["en"]}
    config["model"]["protocol"] = {"mrv_languages": ["en", "de"], "rerank_by": "matching_and_similarity"}
    for part in (config["data"]["tokenizer"], config["model"]["retriever"]["init_args"]["text_encoder"]):
        part["init_args"]["vocab_size"] = 1000
    (home / "tiny.yaml").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ccr"])
        for logger in ("lightning.pytorch", "lightning.fabric"):
            patch.setattr(logging.getLogger(logger), "level", logging.WARNING)
        assert main(["fit", "--config", str(home / "tiny.yaml"), "--runs_dir", str(home / "runs")]) == 0
    return home / "runs" / "tiny"


@pytest.fixture(scope="module")
def command(tmp_path_factory, run, pictures):
    """A function that returns the arguments of ``ccr test`` for a configuration, with the paths of small data."""
    written = {}

    def make(name):
        if name not in written:
            folder, languages = tmp_path_factory.mktemp(name), languages_of(name)
            splits = ("train", "test") if name == "xflickrco" else pictures
            records = {split: selected(pictures[split], languages, name) for split in splits}
            written[name] = WRITERS[LAYOUTS[name]](folder, languages, records)
        init_args = {**written[name].init_args, "languages": languages_of(name)}
        if LAYOUTS[name] == "multi30k-task1":
            init_args["splits"] = {"test": "test_2016_flickr"}  # the layout of all of them
        given = [
            f"--data.source.init_args.{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in init_args.items()
        ]
        return ["test", "--ckpt_path", str(run), "--config", str(CONFIGS / f"{name}.yaml"), *given]

    return make


def test_every_configuration_is_tested():
    assert sorted(LAYOUTS) == sorted(path.stem for path in CONFIGS.glob("*.yaml"))
    for name in LAYOUTS:
        header = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
        header = header[: header.index("\ndata:") + 1]
        assert f"#   ccr test --ckpt_path runs/NAME --config configs/test/{name}.yaml\n" in header


def check(document, name, out):
    """The numbers are of the data, as the configuration says, and the table's are those of the document."""
    languages, settings = languages_of(name), settings_of(name)
    assert list(document["languages"]) == languages
    assert document["data"]["images"] == IMAGES["test"]
    asked = settings.get("model", {}).get("protocol", {})
    for key in ("mrv_languages", "folds"):
        assert document["protocol"][key] == asked.get(key, {"folds": 1}.get(key))
    assert document["protocol"]["rerank_by"] == "matching_and_similarity"  # of the run
    if name in ("wit", "coco", "coco_cn"):
        assert document["mrv"]["reason"]
    else:
        assert document["mrv"]["languages"] == [of for of in languages if of in asked["mrv_languages"]]
        assert document["mrv"]["instances"] == IMAGES["test"]
    assert (document["folds"] is None) == (name != "coco")
    rows = {}
    for line in out.splitlines():
        if cells := [cell.strip() for cell in line.split("│")[1:-1]]:
            rows.setdefault(cells[0], cells[1:])
    for language in languages:
        recalls = [
            document["languages"][language][direction][f"recall@{k}"]
            for direction in ("image_to_text", "text_to_image")
            for k in (1, 5, 10)
        ]
        assert rows[language] == [f"{100 * recall:.1f}" for recall in recalls]
    shown = re.search(r"mean recall (\S+) ", out)[1]
    assert shown == f"{100 * document['mean_recall']:.1f}"


@pytest.mark.parametrize("name", LAYOUTS)
def test_on_one_process(name, command, tmp_path, capsys, monkeypatch, run):
    monkeypatch.setattr(sys, "argv", ["ccr"])
    assert main([*command(name), "--runs_dir", str(tmp_path)]) == 0
    document = json.loads((tmp_path / f"{run.name}-{name}" / "results.json").read_text(encoding="utf-8"))
    check(document, name, capsys.readouterr().out)
    assert document["source"]["init_args"]["languages"] == languages_of(name)
    assert main(["results", str(tmp_path / f"{run.name}-{name}"), "--format", "csv"]) == 0
    header, row = (line.split(",") for line in capsys.readouterr().out.splitlines())
    assert row[0] == run.name
    if name == "xtd":
        recall = document["mean_recalls"]["text_to_image"]["recall@1"]
        assert float(row[header.index("xtd IR")]) == pytest.approx(100 * recall, rel=1e-12)
    if name == "coco":
        mean = document["folds"]["language_means"]["ja"]
        assert float(row[header.index("COCO ja")]) == pytest.approx(100 * mean, rel=1e-12)


@pytest.mark.parametrize("name", ["coco", "wit", "xm3600"])
def test_a_trial_of_some_batches(name, command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ccr"])
    settings = ["--trainer.fast_dev_run=1", "--data.eval_batch_size=4", "--model.protocol.rerank_depth=16"]
    assert main([*command(name), "--runs_dir", str(tmp_path), *settings]) == 0
    assert "no results are written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("rerank_depth=21", "rerank_depth is 21, but the gallery of 'en' has 20 items: give at most 20"),
        ("folds=3", "20 images, which cannot be split into 3 equal folds"),
        ("mrv_languages=[]", "mrv_languages is empty"),
    ],
)
def test_protocols_that_do_not_fit_stop_before_anything_is_encoded(
    setting, says, command, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["ccr"])
    monkeypatch.setattr("ccr_lightning.training.module.RetrievalModule.test_step", lambda *_: pytest.fail("encoded"))
    assert main([*command("multi30k_2016"), "--runs_dir", str(tmp_path), f"--model.protocol.{setting}"]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


@pytest.mark.ddp
@pytest.mark.parametrize("name", ["coco", "wit"])
def test_two_processes_find_what_one_finds(name, command, tmp_path, run):
    """The dual encoder's numbers and the re-ranked ones; embeddings are those of the same batches."""
    documents = []
    for devices in (1, 2):
        place = [f"--runs_dir={tmp_path / str(devices)}", f"--trainer.devices={devices}"]
        depth = 2 if name == "wit" else 4  # a language of WIT has few captions
        how = [f"--model.protocol.rerank_depth={depth}", *(["--trainer.strategy=ddp"] if devices == 2 else [])]
        ccr = [sys.executable, "-m", "ccr_lightning.cli.main", *command(name), *place, *how]
        subprocess.run(ccr, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        folder = tmp_path / str(devices) / f"{run.name}-{name}"
        documents.append(
            [json.loads((folder / f"{kind}.json").read_text()) for kind in ("results", "results-reranked")]
        )
    for alone, together in zip(*documents, strict=True):
        assert (alone.pop("ran_on")["devices"], together.pop("ran_on")["devices"]) == (1, 2)
        assert alone == together
