"""The group ``ccr data``, and ``ccr data build``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ccr_lightning.cli.data import ACTIONS
from ccr_lightning.cli.main import main
from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.store import open_store, store_folder


@pytest.fixture
def config(tiny_jsonl, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ccr"])
    monkeypatch.setenv("CCR_CACHE_DIR", str(tmp_path / "default"))
    arguments = tiny_jsonl(train=5, val=3, test=4)
    source = {"class_path": "ccr_lightning.data.sources.jsonl.JsonLines", "init_args": arguments}
    path = tmp_path / "data.yaml"
    path.write_text(json.dumps({"data": {"source": source, "batch_size": 3}, "trainer": {"max_epochs": 1}}))
    return path, JsonLines(**arguments)


def test_help_of_the_group_and_of_each_action(capsys):
    assert main(["data"]) == main(["data", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.count("usage: ccr data ACTION") == 2
    for action in ACTIONS:
        assert f"\n  {action} " in text
        assert main(["data", action]) == main(["data", action, "x", "--help"]) == 0
        assert capsys.readouterr().out.count(f"usage: ccr data {action} CONFIG|PATH") == 2


def test_looking_at_data_loads_no_torch(config):
    code = (
        "import sys\nfrom ccr_lightning.cli.main import main\n"
        f"assert main(['data', 'check', {str(config[0])!r}]) == 0\n"
        f"assert main(['data', 'translate', '--help']) == 0\n"
        "assert not {'torch', 'lightning', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["chekc"], "'data chekc' is not a command: did you mean 'check'?"),
        (["x"], "run 'ccr data --help' for the list"),
    ],
)
def test_unknown_actions(arguments, says, capsys):
    assert main(["data", *arguments]) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("action", ["check", "preview", "build"])
def test_paths_that_no_file_can_have(action, capsys):
    for path in ("a" * 300, "a" * 300 + ".yaml", "a\0b"):
        assert main(["data", action, path]) == 1
        assert capsys.readouterr().err.startswith(f"error: {path}: ")


@pytest.mark.parametrize("action", ["check", "preview", "build", "shards", "translate"])
@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["--data.source.init_args.languages", "[en, en]"], "got the languages ['en', 'en']"),
        (["--data.source.init_args.files", "{}"], "got no files"),
        (["--splt", "val"], "unknown option '--splt', did you mean '--split'?"),
    ],
)
def test_what_a_source_refuses_is_one_sentence(config, capsys, action, settings, says):
    needed = {"shards": ["--out", "x"], "translate": ["--model", "x", "--to", "fr", "--out", "x"]}.get(action, [])
    assert main(["data", action, str(config[0]), *needed, *settings]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert says in error


def test_paths_that_are_no_data(config, capsys, tmp_path):
    assert main(["data", "check", ""]) == 1
    assert "the path is empty" in capsys.readouterr().err
    assert main(["data", "check", config[1].files["train"], "--image_root", "nowhere"]) == 1
    assert capsys.readouterr().err.startswith("error: --image_root nowhere: there is no such folder")
    assert main(["data", "check", str(config[0]), "--data.source.init_args.image_size", "-3"]) == 1
    assert "'image_size' is not a setting" in capsys.readouterr().err


def test_output_that_nobody_reads_to_the_end(config):
    script = f"set -o pipefail; {sys.executable} -m ccr_lightning.cli.main data check {config[0]} --json | true"
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert "Traceback" not in run.stderr
    assert "BrokenPipe" not in run.stderr


def test_build(config, capsys, tmp_path):
    path, source = config
    assert main(["data", "build", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for line, (split, images) in zip(lines, (("train", 5), ("val", 3), ("test", 4)), strict=True):
        folder = store_folder(source, split, tmp_path / "default")
        assert line == f"{split}: {images} images, {3 * images} captions, 0 MB in {folder}"
        assert len(open_store(folder)) == images
    assert main(["data", "build", str(path), "--split", "val", "--cache_dir", str(tmp_path / "other")]) == 0
    assert [name.name for name in (tmp_path / "other").iterdir() if name.name[0] != "."] == [
        store_folder(source, "val", tmp_path / "other").name
    ]


def test_a_store_is_not_built_from_a_store(config, capsys, tmp_path):
    assert main(["data", "build", str(config[0]), "--split", "val"]) == 0
    store = str(store_folder(config[1], "val", tmp_path / "default"))
    for command in (["build", store], ["shards", store, "--out", str(tmp_path / "out")]):
        assert main(["data", *command]) == 1
        assert "is a store; give what it was built from" in capsys.readouterr().err


def test_splits_can_be_named_one_by_one(config, capsys):
    assert main(["data", "check", str(config[0]), "--split", "val", "--split", "test", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["splits"]) == ["val", "test"]


def test_an_interrupted_build(config, capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("ccr_lightning.cli.data_build.build_store", interrupt)
    assert main(["data", "build", str(config[0])]) == 130
    assert capsys.readouterr().err == "error: interrupted: start it again; what is finished stays.\n"


def test_training_finds_the_store_that_was_built_ahead(config, tmp_path, tiny_config, capsys):
    path, source = config
    assert main(["data", "build", str(path)]) == 0
    built = store_folder(source, "train", tmp_path / "default")
    before = (built / "manifest.json").stat().st_mtime_ns
    whole = tiny_config(json.loads(path.read_text())["data"]["source"]["init_args"], tmp_path / "default")
    whole["trainer"] |= {"max_epochs": 1, "limit_val_batches": 0}
    whole["data"]["batch_size"] = 4
    (tmp_path / "fit.yaml").write_text(json.dumps(whole))
    assert main(["fit", "--config", str(tmp_path / "fit.yaml"), "--runs_dir", str(tmp_path / "runs")]) == 0
    assert (built / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ([], 1, "train.jsonl:2: not valid JSON"),  # one of 5 is more than 1 %
        (["--max_bad_fraction", "0.3"], 0, "left out of jsonl/train: 1 of 5 records, 0 blank captions; see "),
        (["--max_bad_fraction", "0.3", "--bad_records", "error"], 1, "train.jsonl:2: not valid JSON"),
        (["--data.max_bad_fraction", "0.3"], 0, "left out of jsonl/train: 1 of 5 records"),
        (["--bad_records", "sometimes"], 1, "invalid choice: 'sometimes'"),
        (["--split", "dev"], 1, "jsonl has no split 'dev', only train, val, test"),
    ],
)
def test_bad_records(config, capsys, arguments, status, says):
    path, source = config
    train = Path(source.files["train"])
    lines = train.read_text().split("\n")
    train.write_text("\n".join([lines[0], "{", *lines[2:]]))
    assert main(["data", "build", str(path), *arguments]) == status
    assert says in capsys.readouterr().err


def test_bad_records_of_evaluation_stop(config, capsys):
    path, source = config
    with open(source.files["test"], "a") as file:
        file.write("{\n")
    assert main(["data", "build", str(path), "--max_bad_fraction", "0.5"]) == 1
    assert "test.jsonl:5: not valid JSON" in capsys.readouterr().err
    assert main(["data", "build", str(path), "--max_bad_fraction", "0.5", "--bad_records", "skip"]) == 0
