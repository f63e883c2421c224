"""The command line: real processes where it matters, the same ``main`` in this process elsewhere."""

import csv
import errno
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ccr_lightning import __version__
from ccr_lightning.cli.main import main
from ccr_lightning.cli.run_config import find_checkpoint
from ccr_lightning.training.module import RetrievalModule

LANGUAGES = ("en", "de", "ja")
SOURCES = "ccr_lightning.data.sources."


def start(*arguments, **settings):
    """Runs ``ccr`` as a process of its own."""
    command = [sys.executable, "-m", "ccr_lightning.cli.main", *map(str, arguments)]
    env = os.environ | {"PYTHONUTF8": "1"}
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=env, timeout=300, check=False, **settings)


@pytest.fixture
def ccr(monkeypatch, capsys):
    """A function that runs ``ccr`` in this process and returns exit status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["ccr"])
    for name in ("lightning.pytorch", "lightning.fabric"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.WARNING)

    def run(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def expect_error(ccr):
    """Checks that ``ccr`` stops with one sentence on stderr."""

    def check(*arguments, says):
        status, _, errors = ccr(*arguments)
        assert status == 1
        lines = errors.strip().splitlines()
        assert len(lines) == 1, errors
        assert lines[0].startswith("error: ")
        assert re.search(says, lines[0]), errors

    return check


# ---- without torch


def loads_no_torch(*arguments):
    """Output and status of ``main`` in a process that has torch, lightning and transformers made impossible."""
    code = (
        "import sys\n"
        "for name in ('torch', 'lightning', 'transformers', 'timm', 'numpy'): sys.modules[name] = None\n"
        "from ccr_lightning.cli.main import main\n"
        f"sys.exit(main({list(arguments)!r}))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "usage: ccr COMMAND"),
        (["--help"], "ccr fit --config configs/pretrain.yaml"),
        (["--help"], "Set CCR_TRACEBACK=1"),
        (["-h"], "usage: ccr COMMAND"),
        (["--version"], f"ccr-lightning {__version__}\n"),
        (["fit", "--help"], "usage: ccr fit --config CONFIG"),
        (["fit", "--config", "any.yaml", "-h"], "usage: ccr fit --config CONFIG"),
        (["test", "--help"], "usage: ccr test --ckpt_path PATH"),
        (["validate", "--help"], "usage: ccr validate"),
        (["predict", "--help"], "usage: ccr predict"),
        (["convert", "--help"], "usage: ccr convert FILE FOLDER"),
        (["export"], "usage: ccr export MODEL FOLDER [--onnx]"),
        (
            ["test", "--help"],
            "ccr test --ckpt_path runs/pretrain --model.protocol.rerank_depth 16 ",
        ),
        (["predict", "--help"], "ccr predict --ckpt_path runs/pretrain --trainer.devices 1 "),
    ],
)
def test_help_loads_no_torch(arguments, says):
    done = loads_no_torch(*arguments)
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["fti"], "'fti' is not a command: did you mean 'fit'?"),
        (["frobnicate"], "'frobnicate' is not a command: run 'ccr --help' for the list."),
        (
            ["test", "--model.lr", "3"],
            "ccr test needs --ckpt_path: a run such as runs/pretrain, a checkpoint, or a model",
        ),
        (["test", "--ckpt_path", "nowhere"], "--ckpt_path nowhere: there is no checkpoint at nowhere; check the path."),
        (["test", "--ckpt_path"], "ccr test needs --ckpt_path"),
    ],
)
def test_errors_that_need_no_torch(arguments, says):
    done = loads_no_torch(*arguments)
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


# ---- one real run, which the tests below share


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory, write_tiny_jsonl):
    return write_tiny_jsonl(tmp_path_factory.mktemp("cli") / "data")


@pytest.fixture(scope="module")
def config(tmp_path_factory, jsonl, tiny_config):
    """A configuration file, in JSON, which is YAML too."""
    folder = tmp_path_factory.mktemp("config")
    path = folder / "drawn.yaml"
    path.write_text(json.dumps(tiny_config(jsonl, folder / "cache")), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, config):
    """The process that trained, and the folder of its run."""
    folder = tmp_path_factory.mktemp("fit")
    done = start("fit", "--config", config, "--trainer.log_every_n_steps", 1, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done, folder / "runs" / "drawn"


@pytest.fixture
def at_home(fitted, monkeypatch):
    """The run's folder, in whose home the test runs; what tests add to it is taken away again."""
    run = fitted[1]
    monkeypatch.chdir(run.parent.parent)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    yield run
    for path in [path for path in run.rglob("*") if path.is_file() and path not in before]:
        path.unlink()
    for path, content in before.items():
        path.write_bytes(content)


def check_document(document, split, n_images, checkpoint):
    assert document["dataset"] == "jsonl"
    assert document["split"] == split
    assert (document["ranking"], document["protocol"]["rerank_depth"]) == ("dual_encoder", 0)
    assert document["seed"] == 0
    assert document["versions"]["torch"] == version("torch")
    assert Path(document["checkpoint"]["path"]).name == checkpoint.name
    assert document["checkpoint"]["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    recalls = []
    assert list(document["languages"]) == list(LANGUAGES)
    for scores in document["languages"].values():
        for direction in ("image_to_text", "text_to_image"):
            of = scores[direction]
            assert of["queries"] == of["gallery"] == n_images
            values = [of[f"recall@{k}"] for k in (1, 5, 10)]
            assert values == sorted(values)
            assert all(value * n_images == pytest.approx(round(value * n_images)) for value in values)
            recalls += values
    assert document["mean_recall"] == pytest.approx(sum(recalls) / 18)
    for statistic in ("mrv", "mrsd"):
        of = document[statistic]
        assert (of["languages"], of["instances"]) == (list(LANGUAGES), n_images)
        assert of["mean"] == pytest.approx((of["image_to_text"] + of["text_to_image"]) / 2)


def test_fit_fills_the_folder_of_the_run(fitted):
    done, run = fitted
    assert sorted(str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()) == [
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "checkpoints/previous.ckpt",
        "config.yaml",
        "metrics.csv",
        "ranks.csv",
        "results.json",
    ]
    best, last = (torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True) for name in ("best", "last"))
    assert (last["epoch"], last["global_step"]) == (1, 4)
    assert best["epoch"] in (0, 1)
    assert best["state_dict"].keys() == last["state_dict"].keys()
    check_document(json.loads((run / "results.json").read_text()), "test", 8, run / "checkpoints" / "best.ckpt")
    assert done.stderr == ""
    assert re.search(r"^training 0\.2 M parameters for 4 steps on 1 x cpu$", done.stdout, re.MULTILINE)
    for text in ("jsonl, test (dual encoder)", "language", "en", "mean", "MRSD", "written to runs/drawn/results.json"):
        assert text in done.stdout


def test_metrics_of_each_step_and_validation(fitted):
    with (fitted[1] / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    trained = [line for line in lines if line["train/loss"]]
    assert [int(line["step"]) for line in trained] == [0, 1, 2, 3]
    for line in trained:
        total = sum(float(line[f"train/{name}"]) for name in ("contrastive", "matching", "masked_lm"))
        assert float(line["train/loss"]) == pytest.approx(total, rel=1e-5)
    validated = [line for line in lines if line["val/mean_recall"]]
    assert [int(line["step"]) for line in validated] == [1, 3]
    pattern = r"step (\d)/4 · loss (.+) · val R@1 text→image (.+) % · image→text (.+) % · MRV (.+) · [\d.]+ min left"
    expected = [
        (
            str(step),
            f"{float(trained[step - 1]['train/loss']):.2f}",
            f"{100 * float(line['val/t2i/recall@1']):.1f}",
            f"{100 * float(line['val/i2t/recall@1']):.1f}",
            f"{float(line['val/mrv']):.2f}",
        )
        for step, line in zip((2, 4), validated, strict=True)
    ]
    assert re.findall(pattern, fitted[0].stdout) == expected
    best = torch.load(fitted[1] / "checkpoints/best.ckpt", weights_only=True)
    scores = [float(line["val/mean_recall"]) for line in validated]
    assert best["epoch"] == scores.index(max(scores))


def test_the_saved_config_says_everything(fitted, ccr, capsys):
    text = (fitted[1] / "config.yaml").read_text()
    assert text.startswith(
        "# What made this run; repeat it with: ccr fit --config runs/drawn/config.yaml --name NAME\n"
    )
    assert "weight_decay: 0.01" in text  # a default
    with pytest.raises(SystemExit, match="0"):
        ccr("fit", "--config", fitted[1] / "config.yaml", "--name", "again", "--print_config")
    printed = capsys.readouterr().out
    again = (
        re.sub("name: again", "name: drawn", printed)
        .replace("resume: null\n", "")
        .replace("resume_changed: false\n", "")
    )
    assert again.splitlines()[1:] == text.splitlines()[2:]


def test_the_results_can_be_had_again(at_home, ccr):
    before = json.loads((at_home / "results.json").read_text())
    (at_home / "results.json").unlink()
    status, output, errors = ccr("test", "--ckpt_path", at_home)
    assert (status, errors) == (0, "")
    assert "jsonl, test (dual encoder)" in output
    again = json.loads((at_home / "results.json").read_text())
    check_document(again, "test", 8, at_home / "checkpoints" / "best.ckpt")
    for document in (before, again):
        del document["checkpoint"]["path"]
    assert again == before


@pytest.mark.parametrize("with_config_of_run", [False, True])
def test_other_data(at_home, ccr, tiny_jsonl, tmp_path, with_config_of_run):
    """A source in a configuration takes the place of the run's, of which nothing remains; the run stays as it is."""
    arguments = tiny_jsonl(test=7, languages=("ja", "en"), folder="other")
    source = {"class_path": "ccr_lightning.data.sources.jsonl.JsonLines", "init_args": arguments}
    (tmp_path / "seven.yaml").write_text(json.dumps({"data": {"source": source}}))
    before = (at_home / "results.json").read_bytes()
    configs = [f"--config={at_home / 'config.yaml'}"] if with_config_of_run else []
    status, _, errors = ccr("test", "--ckpt_path", at_home, *configs, "-c", tmp_path / "seven.yaml")
    assert (status, errors) == (0, "")
    assert (at_home / "results.json").read_bytes() == before
    results = json.loads((at_home.parent / "drawn-seven" / "results.json").read_text())
    assert list(results["languages"]) == ["ja", "en"]  # the new source's
    assert results["languages"]["ja"]["image_to_text"]["queries"] == 7
    shutil.rmtree(at_home.parent / "drawn-seven")


def test_changes_to_the_configuration_of_a_run(at_home, ccr, tmp_path):
    (tmp_path / "change.yaml").write_text("data: {languages: [ja, en], eval_batch_size: 3}")
    status, _, errors = ccr("test", "--ckpt_path", at_home, "--config", tmp_path / "change.yaml", "--name", "changed")
    assert (status, errors) == (0, "")
    results = json.loads((at_home.parent / "changed" / "results.json").read_text())
    assert list(results["languages"]) == ["ja", "en"]


def check_ranks(run, embeds, tensors):
    """The ranks beside the results are those of plain numpy, and the document names their file."""
    content = (run / "ranks.csv").read_bytes()
    named = json.loads((run / "results.json").read_text())["ranks"]
    assert named == {"file": "ranks.csv", "sha256": hashlib.sha256(content).hexdigest()}
    lines = list(csv.reader(content.decode().splitlines()))
    assert lines[0] == ["direction", "language", "image", "caption", "rank"]
    expected = []
    for direction in ("image_to_text", "text_to_image"):
        for k, language in enumerate(LANGUAGES):
            similarity = embeds["text"][(tensors["text_languages"] == k).numpy()] @ embeds["image"].T
            similarity = similarity.T if direction == "image_to_text" else similarity
            caption = "" if direction == "image_to_text" else "0"
            for number, row in enumerate(similarity):
                expected.append([direction, language, str(22 + number), caption, str((row >= row[number]).sum())])
    assert lines[1:] == expected


def test_validate(at_home, ccr):
    status, output, errors = ccr("validate", "--ckpt_path=runs/drawn")
    assert (status, errors) == (0, "")
    assert "jsonl, val (dual encoder)" in output
    document = json.loads((at_home / "results-val.json").read_text())
    check_document(document, "val", 6, at_home / "checkpoints" / "best.ckpt")
    assert document["ranks"]["file"] == "ranks-val.csv"
    best = torch.load(at_home / "checkpoints" / "best.ckpt", weights_only=True)
    (state,) = [state for state in best["callbacks"].values() if state.get("monitor") == "val/mean_recall"]
    assert state["best_model_score"].item() == pytest.approx(document["mean_recall"], rel=1e-6)


def test_rerank(at_home, ccr):
    dual = json.loads((at_home / "results.json").read_text())
    (at_home / "results.json").unlink()
    status, output, errors = ccr("test", "--ckpt_path", "runs/drawn", "--model.protocol.rerank_depth", 3)
    assert (status, errors) == (0, "")
    assert "jsonl, test (re-ranked, best 3 by matching)" in output
    document = json.loads((at_home / "results-reranked.json").read_text())
    assert document["ranking"] == "re-ranked"
    assert [document["protocol"][key] for key in ("rerank_depth", "rerank_by")] == [3, "matching"]
    for language, scores in document["languages"].items():
        for direction in ("image_to_text", "text_to_image"):  # nothing moves in or out of the first 3
            for k in (5, 10):
                assert scores[direction][f"recall@{k}"] == dual["languages"][language][direction][f"recall@{k}"]
    assert json.loads((at_home / "results.json").read_text()) == dual
    check_recalls(at_home, document)


def check_recalls(run, document):
    """Recalls from the ranks beside the results alone are those of the results."""
    with (run / document["ranks"]["file"]).open(newline="") as file:
        lines = list(csv.DictReader(file))
    for language, scores in document["languages"].items():
        for direction, of in scores.items():
            ranks = [int(x["rank"]) for x in lines if (x["direction"], x["language"]) == (direction, language)]
            for k in (1, 5, 10):
                assert sum(rank <= k for rank in ranks) / len(ranks) == of[f"recall@{k}"]


def test_a_run_that_has_moved(at_home, ccr, tmp_path, monkeypatch):
    moved = tmp_path / "deep" / "other"
    shutil.copytree(at_home, moved)
    (moved / "results.json").unlink()
    monkeypatch.chdir(moved / "checkpoints")
    for path in ("..", "best.ckpt"):
        status, _, errors = ccr("test", "--ckpt_path", path, "--model.protocol.rerank_depth", 3)
        assert (status, errors) == (0, "")
        (moved / "results.json").unlink()
        assert not list((moved / "checkpoints").glob("runs*"))


def test_fit_writes_both_results(ccr, config, tmp_path):
    status, *_ = ccr(
        "fit", "--config", config, "--runs_dir", tmp_path, "--name", "both", "--model.protocol.rerank_depth", 3,
        "--trainer.max_epochs", 1,
    )  # fmt: skip
    assert status == 0
    rankings = [json.loads((tmp_path / f"both/{name}.json").read_text()) for name in ("results", "results-reranked")]
    assert [(of["ranking"], of["protocol"]["rerank_depth"]) for of in rankings] == [
        ("dual_encoder", 0),
        ("re-ranked", 3),
    ]


def test_a_crashed_run_resumes_without_repeating_its_metrics(ccr, config, tmp_path, monkeypatch):
    """It crashes in the second epoch, after a checkpoint within it."""
    monkeypatch.setattr("ccr_lightning.cli.training.STEPS_BETWEEN_CHECKPOINTS", 3)
    run = ("fit", "--config", config, "--runs_dir", tmp_path, "--name", "x", "--trainer.log_every_n_steps", 1)
    crash = RetrievalModule.on_validation_epoch_end

    def fail(module):
        if module.trainer.global_step == 4:
            raise TypeError("a mistake in a program")
        crash(module)

    with monkeypatch.context() as patch:
        patch.setattr(RetrievalModule, "on_validation_epoch_end", fail)
        with pytest.raises(TypeError, match="a mistake in a program"):
            ccr(*run)
    assert torch.load(tmp_path / "x/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    with (tmp_path / "x/metrics.csv").open(newline="") as file:
        assert [line["step"] for line in csv.DictReader(file) if line["train/loss"]][-1] == "3"
    assert ccr(*run, "--resume", "auto")[0] == 0
    with (tmp_path / "x/metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["step"]) for line in lines if line["train/loss"]] == [0, 1, 2, 3]
    assert [int(line["step"]) for line in lines if line["val/mean_recall"]] == [1, 3]


def test_predict(at_home, ccr, jsonl):
    status, output, errors = ccr("predict", "--ckpt_path", at_home / "checkpoints" / "best.ckpt")
    assert (status, errors) == (0, "")
    assert "8 images and 24 captions written to" in output
    tensors = load_file(at_home / "embeddings.safetensors")
    names = json.loads((at_home / "embeddings.json").read_text())
    assert names == {"image_ids": [str(number) for number in range(22, 30)], "languages": list(LANGUAGES)}
    assert tensors["image_embeds"].shape == (8, 16)
    assert tensors["text_embeds"].shape == (24, 16)
    for embeds in (tensors["image_embeds"], tensors["text_embeds"]):
        torch.testing.assert_close(embeds.norm(dim=1), torch.ones(len(embeds)))
    assert tensors["image_ids"].tolist() == list(range(8))

    check_ranks(at_home, {kind: tensors[f"{kind}_embeds"].double().numpy() for kind in ("image", "text")}, tensors)

    # recall@1 from the file alone is that of results.json
    document = json.loads((at_home / "results.json").read_text())
    for k, language in enumerate(LANGUAGES):
        chosen = tensors["text_languages"] == k
        text_ids = tensors["text_image_ids"][chosen]
        assert sorted(text_ids.tolist()) == list(range(8))
        nearest = (tensors["text_embeds"][chosen] @ tensors["image_embeds"].T).argmax(1)
        hits = (nearest == text_ids).double().mean().item()
        assert document["languages"][language]["text_to_image"]["recall@1"] == hits


def test_the_command_line_wins_over_checkpoint_and_config(at_home, ccr):
    status, output, errors = ccr(
        "test", "--ckpt_path", at_home, "--data.languages", "[ja, en]", "--model.protocol.mrv_languages", "[ja, en]",
        "--name", "fewer", "--runs_dir", "elsewhere", "--seed_everything", 5,
    )  # fmt: skip
    assert (status, errors) == (0, "")
    assert output.startswith(
        "other settings than the run's: seed_everything was 0 and is 5, model.protocol.mrv_languages was null and is "
        "[ja, en], data.languages was null and is [ja, en]\n"
    )
    document = json.loads(Path("elsewhere/fewer/results.json").read_text())
    assert list(document["languages"]) == ["ja", "en"]
    assert document["mrv"]["languages"] == ["ja", "en"]
    assert document["seed"] == 5


def test_a_run_is_not_overwritten(at_home, expect_error, config):
    before = {path: path.stat().st_mtime_ns for path in at_home.rglob("*")}
    expect_error(
        "fit", "--config", config, says="runs/drawn already holds a run: pass --resume auto to continue it, or"
    )
    assert before == {path: path.stat().st_mtime_ns for path in at_home.rglob("*")}


def test_resume(at_home, ccr, config, expect_error):
    expect_error("fit", "--config", config, "--name", "new", "--resume", "must", says=r"runs/new has no .*last\.ckpt")
    expect_error("fit", "--config", config, "--resume", "nowhere.ckpt", says=r"nowhere\.ckpt: there is no such check")
    expect_error(
        "fit", "--config", config, "--resume", "auto", "--model.masked_lm_weight", 0,
        says=r"other settings: model\.masked_lm_weight was 1\.0 and is 0\.0; give them as they were, or pass",
    )  # fmt: skip
    expect_error(
        "fit", "--config", config, "--resume", "auto", "--model.lr", 0.5,
        says=r"other settings: model\.lr was 0\.002 and is 0\.5; give them as they were, or pass --resume-changed",
    )  # fmt: skip
    expect_error(
        "fit", "--config", config, "--resume", "auto", "--resume-changed", "--model.masked_lm_weight", 0,
        says="switch the same losses on as then",
    )  # fmt: skip
    status, output, errors = ccr(
        "fit", "--config", config, "--resume", "auto", "--resume-changed", "--trainer.max_epochs", 3,
        "--trainer.log_every_n_steps", 1,
    )  # fmt: skip
    assert (status, errors) == (0, "")
    assert "step 6/6" in output
    assert "step 2/" not in output
    assert "step 4/" not in output
    last = torch.load(at_home / "checkpoints" / "last.ckpt", weights_only=True)
    assert (last["epoch"], last["global_step"]) == (2, 6)
    with (at_home / "metrics.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [int(line["step"]) for line in lines if line["train/loss"]] == [0, 1, 2, 3, 4, 5]
    assert [int(line["step"]) for line in lines if line["val/mean_recall"]] == [1, 3, 5]


def test_the_last_checkpoint_is_the_last_one(ccr, config, tmp_path):
    """Also when it is not better than the best one: here the model barely learns, and the first one stays the best."""
    status, _, _ = ccr(
        "fit", "--config", config, "--runs_dir", tmp_path, "--name", "slow", "--model.lr", 1e-12,
        "--trainer.max_epochs", 3,
    )  # fmt: skip
    assert status == 0
    best, last = (
        torch.load(tmp_path / f"slow/checkpoints/{name}.ckpt", weights_only=True) for name in ("best", "last")
    )
    assert (best["epoch"], last["epoch"]) == (0, 2)


def test_a_checkpoint_outside_of_a_run(expect_error, tmp_path):
    for name, says in (
        ("x.ckpt", r"there is no .*config\.yaml, which a run has; pass a ch"),
        ("x.txt", r"x\.txt: this is no checkpoint of a run; one that the authors of CCR\^k or CCLM published is made"),
    ):
        (tmp_path / name).write_text("no checkpoint")
        expect_error("test", "--ckpt_path", tmp_path / name, says=says)


def test_an_interruption_during_the_imports(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ccr_lightning.cli.main._dispatch", interrupt)
    assert main(["fit", "--name", "x"]) == 130
    assert capsys.readouterr().err.startswith("error: interrupted: start it again; ")


def test_without_a_validation_the_last_checkpoint_is_tested(ccr, config, tmp_path):
    status, output, _ = ccr(
        "fit", "--config", config, "--runs_dir", tmp_path, "--name", "short", "--trainer.max_epochs", 1,
        "--trainer.check_val_every_n_epoch", 5,
    )  # fmt: skip
    assert status == 0
    assert "\nno validation ran, hence there is no best checkpoint: the last one is tested\n" in output
    document = json.loads((tmp_path / "short" / "results.json").read_text())
    check_document(document, "test", 8, tmp_path / "short" / "checkpoints" / "last.ckpt")
    status, output, _ = ccr("test", "--ckpt_path", tmp_path / "short")
    assert status == 0
    assert re.search(r"no best checkpoint: .*last\.ckpt is taken\n", output)


@pytest.mark.parametrize("steps", [0, 3], ids=["before a checkpoint", "after a checkpoint"])
def test_an_interrupted_run_says_how_to_go_on(ccr, config, tmp_path, monkeypatch, steps):
    """The command goes on as it is, with the settings of the run and from any checkpoint that there is."""
    step = RetrievalModule.training_step

    def interrupt(module, *batch):
        if module.trainer.global_step == steps:
            raise KeyboardInterrupt
        return step(module, *batch)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(RetrievalModule, "training_step", interrupt)
        try:
            status, _, errors = ccr(
                "fit", "--config", config, "--runs_dir", tmp_path / "my runs", "--name", "mine", "--model.lr", 0.003
            )
        finally:
            signal.signal(signal.SIGINT, handler)
    assert status == 130
    says = "interrupted: continue it" if steps else "interrupted before its first checkpoint: start anew"
    (command,) = re.findall(rf"^error: the run was {says} with ccr (.+)$", errors.strip())
    status, output, _ = ccr(*shlex.split(command))
    assert status == 0
    assert ("step 2/4" in output) == (steps == 0)
    assert "step 4/4" in output
    assert "lr: 0.003" in (tmp_path / "my runs" / "mine" / "config.yaml").read_text()


def test_a_fast_run_for_developers_writes_no_results(ccr, config, tmp_path):
    status, output, _ = ccr(
        "fit", "--config", config, "--runs_dir", tmp_path, "--name", "dev", "--trainer.fast_dev_run", "true"
    )
    assert status == 0
    assert "\nfast_dev_run tries a few batches only: no checkpoint and no results are written\n" in output
    assert [path.name for path in (tmp_path / "dev").iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_a_fast_run_for_developers_overwrites_no_results(at_home, ccr, command):
    before = {path: path.read_bytes() for path in at_home.rglob("*") if path.is_file()}
    status, output, errors = ccr(command, "--ckpt_path", at_home, "--trainer.fast_dev_run", "true")
    assert (status, errors) == (0, "")
    assert re.fullmatch(r"fast_dev_run tries a few batches only: no (results|embeddings) are written\n", output)
    assert {path: path.read_bytes() for path in at_home.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("limit", ["0", "1", "0.5"])
@pytest.mark.parametrize(("command", "split"), [("test", "test"), ("validate", "val"), ("predict", "predict")])
def test_a_part_of_a_split_is_not_scored(at_home, expect_error, command, split, limit):
    before = {path: path.read_bytes() for path in at_home.rglob("*") if path.is_file()}
    expect_error(
        command, "--ckpt_path", at_home, f"--trainer.limit_{split}_batches", limit,
        says=rf"limit_{split}_batches is {limit}, .* pass --trainer\.limit_{split}_batches 1\.0\.$",
    )  # fmt: skip
    assert {path: path.read_bytes() for path in at_home.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("limit", ["0", "1"])
def test_fit_does_not_test_a_part_of_the_split(ccr, config, tmp_path, limit):
    status, output, errors = ccr(
        "fit", "--config", config, "--runs_dir", tmp_path, "--name", "x", "--trainer.max_epochs", 1,
        "--trainer.limit_test_batches", limit,
    )  # fmt: skip
    assert (status, errors) == (0, "")
    assert not (tmp_path / "x" / "results.json").exists()
    (command,) = re.findall(
        rf"^not tested: limit_test_batches is {limit}, .*; to test it all the same: ccr (.+)$", output, re.MULTILINE
    )
    assert ccr(*command.split())[0] == 0
    check_document(
        json.loads((tmp_path / "x" / "results.json").read_text()), "test", 8, tmp_path / "x/checkpoints/best.ckpt"
    )


def test_a_run_that_overfits_a_batch_can_be_validated(ccr, config, tmp_path):
    """The setting limits the validation of training; ``ccr validate`` scores the split."""
    ccr("fit", "--config", config, "--runs_dir", tmp_path, "--name", "x", "--trainer.overfit_batches", 1)
    assert ccr("validate", "--ckpt_path", tmp_path / "x")[0] == 0


def test_validation_before_training(ccr, config, tmp_path):
    status, output, errors = ccr(
        "fit", "--config", config, "--runs_dir", tmp_path, "--name", "x", "--trainer.max_epochs", 1,
        "--trainer.num_sanity_val_steps", 1, "--data.eval_batch_size", 4, "--model.protocol.mrv_languages", "[en, ja]",
    )  # fmt: skip
    assert (status, errors) == (0, "")
    assert re.findall(r"^step (\d)/2", output, re.MULTILINE) == ["2"]


@pytest.mark.parametrize("setting", ["--trainer.max_epochs", "--trainer.max_steps", "--trainer.limit_train_batches"])
def test_a_run_that_trains_nothing(expect_error, config, tmp_path, setting):
    expect_error(
        "fit", "--config", config, "--runs_dir", tmp_path, "--name", "x", setting, 0,
        says=r"^error: nothing was trained, and there is nothing to test: raise --trainer\.max_epochs, max_steps, ",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trainer.devices", "0"),
        ("trainer.devices", "-2"),
        ("trainer.strategy", "foo"),
        ("trainer.max_time", "foo"),
        ("trainer.val_check_interval", "100"),
        ("model.masked_lm_weight", "0"),
    ],
)
def test_a_start_that_fails_leaves_the_run_as_it_was(at_home, ccr, config, name, value):
    before = {path: path.read_bytes() for path in at_home.rglob("*") if path.is_file()}
    status, *_ = ccr("fit", "--config", config, "--resume", "auto", f"--{name}", value)
    assert status == 1
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_that_has_moved_knows_its_best_score(ccr, config, tmp_path):
    """The model barely learns: no later epoch is better than the first, and best.ckpt stays that of the first."""
    fit = ("fit", "--config", config, "--runs_dir", tmp_path, "--model.lr", 1e-12, "--resume-changed")
    assert ccr(*fit[:-1], "--name", "a", "--trainer.max_epochs", 1)[0] == 0
    for name in ("moved", "without-best"):
        shutil.copytree(tmp_path / "a", tmp_path / name)
    (tmp_path / "without-best" / "checkpoints" / "best.ckpt").unlink()
    shutil.rmtree(tmp_path / "a")

    def epoch_of_best(name, resume, epochs=2):
        assert ccr(*fit, "--name", name, "--trainer.max_epochs", epochs, "--resume", resume)[0] == 0
        return torch.load(tmp_path / name / "checkpoints" / "best.ckpt", weights_only=True)["epoch"]

    assert epoch_of_best("moved", "must") == 0
    assert epoch_of_best("without-best", "must") == 1
    (tmp_path / "moved").rename(tmp_path / "elsewhere")
    assert epoch_of_best("moved", tmp_path / "elsewhere" / "checkpoints" / "last.ckpt", epochs=3) == 2


@pytest.fixture
def full_disk(monkeypatch):
    """Nothing more can be synced to disk."""

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk(at_home, expect_error, config):
    (at_home / "embeddings.safetensors").write_bytes(b"earlier ones")
    before = {path: path.read_bytes() for path in at_home.rglob("*") if path.is_file()}
    fit = ("fit", "--config", config, "--resume", "auto", "--resume-changed", "--trainer.max_epochs", 3)
    for arguments, says in (
        (fit, r"config\.yaml: the configuration could not be written \(.*No space"),
        (
            ("predict", "--ckpt_path", at_home),
            r"embeddings\.safetensors: the embeddings could not be written \(.*No sp",
        ),
    ):
        expect_error(*arguments, says=says)
        assert {path: path.read_bytes() for path in at_home.rglob("*") if path.is_file()} == before


# ---- settings, data and checkpoints that are wrong


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["--data.batchsize", "3"], "'data.batchsize' is not a setting: did you mean 'data.batch_size'"),
        (["--batch_size", "3"], "'batch_size' is not a setting: did you mean 'data.batch_size'"),
        (["--lr=3"], "'lr' is not a setting: did you mean 'model.lr'"),
        (["--trainer.max_epoch", "3"], "did you mean 'trainer.max_epochs'"),  # not taken for an abbreviation
        (["--modle.objective", "one_to_k"], "did you mean 'model.objective'"),
        (["--model.learning_speed", "3"], "'model.learning_speed' is not a setting: 'ccr COMMAND --help_all' lists"),
        (["--model.retriever.init_args.embed_dims", "3"], "'embed_dims' is not a setting: did you mean 'embed_dim'"),
        (["drawn.yaml"], "'drawn.yaml' is not a setting: pass a configuration with --config"),
        (["--data.batch_size", "three"], r"^error: 'data\.batch_size' is 'three': give an int\.$"),
        (["--data.languages_per_step", "few"], r"'data\.languages_per_step' is 'few': give an int or null\.$"),
        (["--model.objective", "two"], r"'model\.objective' is 'two': choose one of one_to_k, one_to_k_sigmoid, one"),
        (["--model.retriever.init_args.embed_dim", "x"], r"'model\.retriever\.init_args\.embed_dim' is 'x': give an i"),
        (["--data.source", "3"], r"'data\.source' is '3': give the class_path of a suitable class and its init_arg"),
        (["--trainer.val_check_interval", "100"], r"the trainer refuses: `val_check_interval` \(100\) must be less"),
        (["--data.batch_size", "1"], "batch_size is 1, but a batch of one image has no negatives"),
        (["--data.batch_size", "17"], "too few for a batch of 17"),
        (["--data.languages", "[en, fr]"], "languages has 'fr', but there are only en, de, ja"),
        (["--model.protocol.mrv_languages", "[en, fr]"], "mrv_languages names 'fr'"),
        (["--data.tokenizer.init_args.vocab_size", "201"], "201 tokens but the text encoder only 200"),
        (["--data.transform.init_args.crop_scale", "[0.5, 2]"], r"crop_scale \(0\.5, 2\.0\)"),
        (["--model.retriever.init_args.fusion", "null"], "need a fusion encoder"),
        (["--trainer.max_epochs", "-1"], "set --trainer.max_epochs"),
        (["--trainer.accelerator", "abacus"], "the trainer cannot be built: .*abacus"),
        (["--trainer.devices", "0"], "the trainer cannot be built: "),
        (["--trainer.check_val_every_n_epoch", "0"], r"check_val_every_n_epoch is 0: give a number above 0\.$"),
        (["--trainer.accumulate_grad_batches", "0"], r"accumulate_grad_batches is 0: give a number above 0\.$"),
        (["--trainer.val_check_interval", "0"], r"trainer\.val_check_interval is 0: give a number above 0\.$"),
        (["--trainer.gradient_clip_val", "-1"], r"trainer\.gradient_clip_val is -1: give 0 or more\.$"),
        (["--seed_everything", "-1"], "--seed_everything: -1 is not in bounds"),
        (["--config", "nowhere.yaml"], r"nowhere\.yaml: there is no such file; check the path\.$"),
        (["--data.source.init_args.files", "abc"], r"args\.files' is 'abc': give a mapping such as {name: value}\.$"),
        (["--data.source", SOURCES + "jsonl.JsonLine"], rf"did you mean '{SOURCES}jsonl\.JsonLines'\?$"),
        (["--data.source", SOURCES + "json.JsonLines"], rf"did you mean '{SOURCES}jsonl\.JsonLines'\?$"),
        (["--data.source", "JsonLines"], rf"'data\.source' is 'JsonLines': did you mean '{SOURCES}jsonl\.J"),
        (["--data.source", "mine.Source"], r"'data\.source' is 'mine\.Source': give the class_path of a suitable"),
        (["--data.source", "ccr_lightning.models.vision.ImageEncoder"], r"ImageEncoder': give the class_path of a su"),
        (["--data.source.class_pat", SOURCES + "jsonl.JsonLines"], "'class_pat' is not a setting: did you mean 'class"),
        (["--data.source.init_args.files", "{train: nowhere.jsonl}"], "nowhere.jsonl: the captions of split 'train'"),
    ],
)  # fmt: skip
def test_settings_that_are_wrong(expect_error, config, tmp_path, settings, says):
    expect_error("fit", "--config", config, "--runs_dir", tmp_path / "runs", "--name", "x", *settings, says=says)


def renamed(tree, old, new):
    """The nested dictionary with one key renamed, wherever it is."""
    if not isinstance(tree, dict):
        return tree
    return {new if key == old else key: renamed(value, old, new) for key, value in tree.items()}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("trainer", "trainner", "'trainner.max_epochs' is not a setting: did you mean 'trainer.max_epochs'"),
        ("lr", "lrr", "'model.lrr' is not a setting: did you mean 'model.lr'"),
        ("batch_size", "batchsize", "'data.batchsize' is not a setting: did you mean 'data.batch_size'"),
        ("embed_dim", "embed_dims", "'embed_dims' is not a setting: did you mean 'embed_dim'"),
        ("max_positions", "max_position", "'max_position' is not a setting: did you mean 'max_positions'"),
        ("image_root", "image_rot", "'image_rot' is not a setting: did you mean 'image_root'\\?$"),
    ],
)
def test_misspelt_keys_of_a_config(expect_error, config, tmp_path, old, new, says):
    path = tmp_path / "misspelt.yaml"
    path.write_text(json.dumps(renamed(json.loads(config.read_text()), old, new)))
    expect_error("fit", "--config", path, "--runs_dir", tmp_path / "runs", says=says)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("data: [", r"broken\.yaml, line 1, column 8: this is no YAML \(.+\); mend it\.$"),
        ("model:\n  lr: 1\n bad: 2", r"broken\.yaml, line 3, column 2: this is no YAML \(.+\); mend it\.$"),
        ("\tmodel: 3", r"broken\.yaml, line 1, column 1: this is no YAML \(.+\); mend it\.$"),
        ("\x00", r"broken\.yaml, character 1: this is no YAML \(.+\); mend it\.$"),
        ("[" * 3000, r"broken\.yaml: this is no YAML that can be read \(nested too deeply\); mend it\.$"),
        ("just words", r"broken\.yaml: this is no configuration; it must have the keys model, data and trainer\.$"),
        ("- a\n- b", r"broken\.yaml: this is no configuration; it must have the keys"),
        ("", r"broken\.yaml: this is no configuration; it must have the keys"),
        ("data: {source: 3}", r"'data\.source' is '3': give the class_path of a suitable class and its init_args\.$"),
    ],
)
def test_configs_that_are_no_configs(expect_error, tmp_path, text, says):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    expect_error("fit", "--config", path, "--runs_dir", tmp_path / "runs", says=says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('model: {lr: "é"}'.encode("latin-1"), r"broken\.yaml, byte 14: this is no UTF-8; save the file as UTF-8\.$"),
        ("model: {lr: 1}".encode("utf-16"), r"broken\.yaml, byte 1: this is no UTF-8"),
    ],
)
def test_configs_in_another_encoding(expect_error, tmp_path, content, says):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    expect_error("fit", "--config", path, "--runs_dir", tmp_path / "runs", says=says)


@pytest.mark.parametrize("part", ["data.source", "model.retriever", "model.retriever.init_args.image_encoder"])
@pytest.mark.parametrize(("old", "new"), [("class_path", "class_pat"), ("init_args", "init_arg")])
def test_misspelt_keys_of_a_class(expect_error, config, tmp_path, part, old, new):
    content = json.loads(config.read_text())
    of = content
    for name in part.split("."):
        of = of[name]
    of[new] = of.pop(old)
    path = tmp_path / "misspelt.yaml"
    path.write_text(json.dumps(content))
    expect_error(
        "fit", "--config", path, "--runs_dir", tmp_path / "runs",
        says=rf"^error: '{part}\.{new}' is not a setting: did you mean '{old}'\?$",
    )  # fmt: skip


def test_a_class_of_a_config_that_does_not_exist(expect_error, config, tmp_path):
    path = tmp_path / "misspelt.yaml"
    path.write_text(config.read_text().replace("vision.ImageEncoder", "vision.ImageEncodr"))
    expect_error(
        "fit", "--config", path, "--runs_dir", tmp_path / "runs",
        says=r"^error: 'model\.retriever\.init_args\.image_encoder' is .*: did you mean '.*\.vision\.ImageEncoder'\?$",
    )  # fmt: skip


def test_validation_does_not_re_rank(at_home, expect_error):
    expect_error(
        "validate", "--ckpt_path", at_home, "--model.protocol.rerank_depth", 3,
        says=r"ccr validate does not re-rank: pass --model\.protocol\.rerank_depth 0, or re-rank with ccr test",
    )  # fmt: skip


def test_folders_that_cannot_be_written(expect_error, config, tmp_path):
    (tmp_path / "file").touch()
    expect_error("fit", "--config", config, "--runs_dir", tmp_path / "file", says="the folder cannot be made")


def broken_line(root, lines):
    lines[2] = '{"image": "pictures/2.png", '


def empty_caption(root, lines):
    lines[2] = lines[2].replace("a blue cross number 2", " ")


def unknown_key(root, lines):
    lines[2] = lines[2].replace('"captions"', '"caption"')


def truncated_image(root, lines):
    picture = root / "pictures" / "2.png"
    picture.write_bytes(picture.read_bytes()[:60])


def missing_image(root, lines):
    (root / "pictures" / "2.png").unlink()


def no_picture(root, lines):
    (root / "pictures" / "2.png").write_text("a red apple")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (broken_line, "not valid JSON"),
        (empty_caption, "a caption in 'en' is ' '"),
        (unknown_key, "'captions' is missing"),
        (truncated_image, "damaged and cannot be decoded"),
        (missing_image, r"pictures/2\.png \(there is no such file\)"),
        (no_picture, "not a picture that Pillow can open"),
    ],
)
def test_data_that_are_broken(expect_error, tiny_jsonl, tiny_config, tmp_path, spoil, says):
    init_args = tiny_jsonl()
    file, root = Path(init_args["files"]["train"]), Path(init_args["image_root"])
    lines = file.read_text(encoding="utf-8").splitlines()
    spoil(root, lines)
    file.write_text("\n".join(lines), encoding="utf-8")
    path = tmp_path / "broken.yaml"
    path.write_text(json.dumps(tiny_config(init_args, tmp_path / "cache")))
    expect_error("fit", "--config", path, "--runs_dir", tmp_path / "runs", says=rf"train\.jsonl:3: .*{says}")
    assert not (tmp_path / "runs").exists()


def test_broken_test_data_are_found_before_training(expect_error, tiny_jsonl, tiny_config, tmp_path):
    init_args = tiny_jsonl()
    Path(init_args["files"]["test"]).unlink()
    path = tmp_path / "broken.yaml"
    path.write_text(json.dumps(tiny_config(init_args, tmp_path / "cache")))
    expect_error(
        "fit", "--config", path, "--runs_dir", tmp_path / "runs", says=r"test\.jsonl: the captions of split 'te"
    )


def test_checkpoints_that_do_not_fit(at_home, expect_error, tmp_path):
    expect_error(
        "test", "--ckpt_path", at_home, "--model.retriever.init_args.embed_dim", 8,
        says=r"another architecture: .*'retriever\.image_projection\.weight' \(8, 64\) in the model and \(16, 64\) in",
    )  # fmt: skip
    config, best = at_home / "config.yaml", at_home / "checkpoints" / "best.ckpt"
    expect_error(
        "fit", "--config", config, "--resume", best, "--resume-changed", "--name", "new",
        "--model.retriever.init_args.fusion", "null",
        "--model.matching_weight", 0, "--model.masked_lm_weight", 0,
        says=r"init_args\.fusion was \S+FusionEncoder and is null: the checkpoint has its own; keep",
    )  # fmt: skip
    whole = best.read_bytes()
    contents = {"garbage": b"garbage", "empty": b"", "truncated": whole[: len(whole) // 2]}
    for name, content in contents.items():
        path = tmp_path / f"{name}.ckpt"
        path.write_bytes(content)
        says = rf"{name}\.ckpt: the checkpoint cannot be read"
        expect_error("test", "--ckpt_path", path, "--config", config, says=says)
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.ckpt")
    expect_error("test", "--ckpt_path", tmp_path / "other.ckpt", "--config", config, says="not the checkpoint of a run")
    expect_error(
        "test", "--ckpt_path", tmp_path, says=r"there is neither a run nor a model there: no .*checkpoints/best\.ckpt"
    )
    alone = tmp_path / "alone.ckpt"
    alone.write_bytes(whole)
    expect_error("test", "--ckpt_path", alone, says=r"alone\.ckpt: there is no .*config\.yaml, which a run has")


def test_help_all_and_print_config(ccr, config, capsys):
    with pytest.raises(SystemExit, match="0"):
        ccr("fit", "--help_all")
    listed = capsys.readouterr().out
    for setting in ("--model.objective", "--data.batch_size", "--trainer.max_epochs", "--resume", "--name"):
        assert setting in listed
    with pytest.raises(SystemExit, match="0"):
        ccr("fit", "--config", config, "--print_config", "--data.batch_size", 5)
    printed = capsys.readouterr().out
    assert "batch_size: 5" in printed
    assert "max_epochs: 2" in printed
    with pytest.raises(SystemExit, match="0"):
        ccr("test", "--help_all")


def test_a_traceback_can_be_asked_for(monkeypatch, capsys):
    monkeypatch.setenv("CCR_TRACEBACK", "1")
    with pytest.raises(ValueError, match="'fti' is not a command"):
        main(["fti"])
    assert "error: 'fti'" in capsys.readouterr().err


def test_that_the_last_checkpoint_is_taken_is_said_by_the_first_process(tmp_path, monkeypatch, capsys):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    for number, said in (("0", 1), ("1", 0)):
        monkeypatch.setenv("SLURM_PROCID", number)
        assert find_checkpoint("--ckpt_path", str(tmp_path))[0].name == "last.ckpt"
        assert capsys.readouterr().out.count("no validation ran") == said
