"""``ccr test`` with every configuration of a benchmark, on the built-in pictures written in its layout."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from published_layouts import WRITERS, in_languages, init_arguments

from ccr_lightning.cli.main import main

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
IMAGES = 20  # of the test split


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


def selected(records, languages, name):
    """Captions as the benchmark has them: of WIT, an image has some of the languages; of COCO, five in each."""

    def of(place, record):
        chosen = languages[place % len(languages) :: 5] if name == "wit" else languages
        return in_languages(record, chosen, 5 if name == "coco" else 1)

    return [of(place, record) for place, record in enumerate(records)]


@pytest.fixture(scope="module")
def command(tmp_path_factory, trained_run, pictures):
    """A function that returns the arguments of ``ccr test`` for a configuration, with the paths of small data."""
    written = {}

    def make(name):
        if name not in written:
            folder, languages = tmp_path_factory.mktemp(name), languages_of(name)
            splits = ("train", "test") if name == "xflickrco" else pictures
            records = {split: selected(pictures[split], languages, name) for split in splits}
            more = settings_of(name)["data"]["source"]["init_args"].get("splits", {})
            published = {"published": more} if LAYOUTS[name] == "multi30k-task1" else {}
            written[name] = WRITERS[LAYOUTS[name]](folder, languages, records, **published)
        init_args = {**written[name].init_args, "languages": languages_of(name)}
        given = init_arguments(init_args)
        return ["test", "--ckpt_path", str(trained_run), "--config", str(CONFIGS / f"{name}.yaml"), *given]

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
    assert document["data"]["images"] == IMAGES
    asked = settings.get("model", {}).get("protocol", {})
    for key in ("mrv_languages", "folds"):
        assert document["protocol"][key] == asked.get(key, {"folds": 1}.get(key))
    assert document["protocol"]["rerank_by"] == "matching_and_similarity"  # of the run
    if name in ("wit", "coco", "coco_cn"):
        assert document["mrv"]["reason"]
    else:
        assert document["mrv"]["languages"] == [of for of in languages if of in asked["mrv_languages"]]
        assert document["mrv"]["instances"] == IMAGES
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
def test_on_one_process(name, command, tmp_path, capsys, monkeypatch, trained_run):
    monkeypatch.setattr(sys, "argv", ["ccr"])
    assert main([*command(name), "--runs_dir", str(tmp_path)]) == 0
    folder = tmp_path / f"{trained_run.name}-{name}"
    document = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    check(document, name, capsys.readouterr().out)
    assert document["source"]["init_args"]["languages"] == languages_of(name)
    assert main(["results", str(folder), "--format", "csv"]) == 0
    header, row = (line.split(",") for line in capsys.readouterr().out.splitlines())
    assert row[0] == trained_run.name
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


@pytest.fixture
def own_copies(command, tmp_path):
    """A function that writes configurations with the paths of small data in them."""

    def write(*names):
        files = []
        for name in names:
            settings = settings_of(name)
            for argument in command(name)[5:]:
                key, _, value = argument.removeprefix("--data.source.init_args.").partition("=")
                settings["data"]["source"]["init_args"][key] = yaml.safe_load(value)
            files.append(tmp_path / f"{name}.yaml")
            files[-1].write_text(yaml.safe_dump(settings), encoding="utf-8")
        return list(map(str, files))

    return write


def test_several_in_one_call(own_copies, trained_run, tmp_path, capfd):
    """Each has its results and a place in the table, where one that fails is missing."""
    wit, coco = own_copies("wit", "coco")
    settings = yaml.safe_load(Path(wit).read_text())
    settings["data"]["source"]["init_args"]["annotations"] = "nowhere"
    Path(wit).write_text(yaml.safe_dump(settings))
    places = ["--runs_dir", str(tmp_path / "runs"), "--model.protocol.rerank_depth=4"]
    several = ["--benchmarks", wit, f"--benchmarks={coco}"]
    assert main(["test", "--ckpt_path", str(trained_run), *several, *places]) == 1
    out, errors = capfd.readouterr()
    assert re.findall(r"^\[\d of 2\] .*$", out, re.MULTILINE) == [f"[1 of 2] {wit}", f"[2 of 2] {coco}"]
    first, last = errors.splitlines()
    assert first.startswith("error: nowhere/test_ar.jsonl")
    assert last == f"error: 1 of 2 have no results, for reasons shown above: {wit}."
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│ tiny")]
    assert [row[0] for row in rows] == ["tiny", "tiny, re-ranked 4 by matching and similarity"]
    for row, document in zip(rows, documents(tmp_path / "runs" / "tiny-coco"), strict=True):
        assert row[1:] == [f"{100 * document['folds']['language_means'][language]:.2f}" for language in ("en", "ja")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--benchmarks names no configuration: give some, such as configs/test/*.yaml."),
        (("nowhere.yaml",), "nowhere.yaml: there is no such file; check the path."),
        (("{xtd}", "{xtd}"), "--benchmarks: 2 files are called xtd, whose results would go to one folder: rename one."),
        (("{xtd}", "--name", "x"), "--name is one folder: leave it out with --benchmarks, whose results go to "),
        (("{xtd}", "--config", "{wit}"), "{wit}: this names a data.source, and so do the benchmarks; pass it with --b"),
        (("{part}",), "{part}: this names no data.source, so it is no benchmark; pass it with --config."),
    ],
)
def test_several_that_cannot_be(arguments, says, trained_run, capsys):
    part = CONFIGS.parent / "finetune" / "at_384px.yaml"
    files = {"xtd": CONFIGS / "xtd.yaml", "wit": CONFIGS / "wit.yaml", "part": part}
    given = [argument.format(**files) for argument in arguments]
    assert main(["test", "--ckpt_path", str(trained_run), "--benchmarks", *given]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {says.format(**files)}")
    assert error.count("\n") == 1


def test_several_are_not_for_torchrun(trained_run, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["test", "--ckpt_path", str(trained_run), "--benchmarks", str(CONFIGS / "xtd.yaml")]) == 1
    assert capsys.readouterr().err.startswith("error: --benchmarks starts its own processes: leave torchrun out, or ")


def test_only_what_was_written_now_is_shown(own_copies, trained_run, tmp_path, capfd):
    """Beside the run, where an earlier test has left re-ranked results; the last --runs_dir counts."""
    (wit,) = own_copies("wit")
    old = tmp_path / "runs" / f"{trained_run.name}-wit"
    old.mkdir(parents=True)
    (old / "results-reranked.json").write_text("{}")
    places = ["--runs_dir", str(tmp_path / "others"), f"--runs_dir={tmp_path / 'runs'}"]
    assert main(["test", *places, "--benchmarks", wit, "--ckpt_path", str(trained_run)]) == 0
    rows = [line for line in capfd.readouterr().out.splitlines() if line.startswith("│ tiny")]
    assert len(rows) == 1


RANK = """
import json, sys
from ccr_lightning.cli.main import main

sys.argv = ["ccr"]
sys.exit(max(main(arguments) for arguments in json.load(sys.stdin)))
"""


def documents(folder):
    kinds = ("results", "results-reranked")
    return [json.loads((folder / f"{kind}.json").read_text(encoding="utf-8")) for kind in kinds]


def depth(name):
    return f"--model.protocol.rerank_depth={2 if name == 'wit' else 4}"  # a language of WIT has few captions


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, command):
    """The folder of what two real ranks found, started as torchrun does and testing each configuration in turn."""
    folder = tmp_path_factory.mktemp("two")
    how = [f"--runs_dir={folder}", "--trainer.devices=2", "--trainer.strategy=ddp"]
    commands = json.dumps([[*command(name), *how, depth(name)] for name in LAYOUTS])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "NODE_RANK": "0"}
    env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK], stdin=subprocess.PIPE, text=True, env={**env, "LOCAL_RANK": str(rank)}
        )
        for rank in range(2)
    ]
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write(commands)
        rank.stdin.close()
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    return folder


@pytest.mark.ddp
@pytest.mark.parametrize("name", LAYOUTS)
def test_two_ranks_find_what_one_finds(name, command, two_ranks, tmp_path, monkeypatch, trained_run):
    """The dual encoder's numbers and the re-ranked ones; embeddings are those of the same batches."""
    monkeypatch.setattr(sys, "argv", ["ccr"])
    assert main([*command(name), "--runs_dir", str(tmp_path), depth(name)]) == 0
    folder = f"{trained_run.name}-{name}"
    for alone, together in zip(documents(tmp_path / folder), documents(two_ranks / folder), strict=True):
        assert (alone.pop("ran_on")["devices"], together.pop("ran_on")["devices"]) == (1, 2)
        assert alone == together


@pytest.mark.ddp
def test_results_of_all_of_them_are_one_table(two_ranks, trained_run, capsys):
    """Each benchmark has columns of its own, those of the paper's table if it is in it."""
    folders = [str(two_ranks / f"{trained_run.name}-{name}") for name in LAYOUTS]
    assert main(["results", *folders, "--published", "--format", "csv"]) == 0
    header, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    for cells in rows:
        row = dict(zip(header, cells, strict=True))
        if row["model"].startswith("CCR^10-E"):
            paper = {name for name, value in row.items() if value}
        if row["model"] == trained_run.name:
            mine = {name for name, value in row.items() if value}
    assert paper < mine == set(header)
    for name, place in (("multi30k_2016", "Multi30K cs"), ("multi30k_2018", "Multi30K 2018_flickr cs")):
        (document, _) = documents(two_ranks / f"{trained_run.name}-{name}")
        row = next(cells for cells in rows if cells[0] == trained_run.name)
        assert float(row[header.index(place)]) == pytest.approx(100 * document["language_means"]["cs"]["mean_recall"])


@pytest.mark.ddp
def test_the_command_starts_two_processes(command, tmp_path, trained_run, two_ranks):
    how = [f"--runs_dir={tmp_path}", "--trainer.devices=2", "--trainer.strategy=ddp", depth("coco")]
    ccr = [sys.executable, "-m", "ccr_lightning.cli.main", *command("coco"), *how]
    subprocess.run(ccr, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    folder = f"{trained_run.name}-coco"
    assert documents(tmp_path / folder) == documents(two_ranks / folder)
