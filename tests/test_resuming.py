"""Runs that go on with other settings, other data, or another number of processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ccr_lightning.cli.main import main
from ccr_lightning.cli.resuming import check_settings
from ccr_lightning.errors import CCRError

# ccr, which also notes the images that each process trains on, and may end itself at a step.
NOTING = """
import json, os, signal, sys
from ccr_lightning.cli.main import main
from ccr_lightning.training.module import RetrievalModule

step = RetrievalModule.training_step
log, end = os.environ["LOG"], int(os.environ["END"])

def training_step(module, batch, batch_idx):
    loss = step(module, batch, batch_idx)
    with open(log, "a") as file:
        file.write(json.dumps([module.global_step, module.global_rank, batch.image_ids.tolist()]) + "\\n")
    if module.global_step == end and module.global_rank == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return loss

RetrievalModule.training_step = training_step
sys.exit(main())
"""


def noting(folder, log, end, *settings):
    """The process of a run that notes its images, and ends itself at a step."""
    (folder / "noting.py").write_text(NOTING)
    command = [sys.executable, "noting.py", "fit", "--config", "tiny.yaml", *settings]
    environment = {**os.environ, "LOG": str(log), "END": str(end)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture
def ccr(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ccr"])

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def begun(tmp_path_factory, write_tiny_jsonl, tiny_config):
    """A run that was stopped within its second epoch, 3 of 5 batches of 8 images in."""
    folder = tmp_path_factory.mktemp("begun")
    config = tiny_config(write_tiny_jsonl(folder / "data", train=40), folder / "cache")
    config["trainer"] |= {"max_epochs": 3, "log_every_n_steps": 1}
    (folder / "tiny.yaml").write_text(json.dumps(config))
    assert noting(folder, os.devnull, 7).returncode == 143
    return folder


@pytest.fixture
def at_home(begun, monkeypatch):
    """The folder of the runs; what the test changes is put right."""
    monkeypatch.chdir(begun)
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file() and "cache" not in path.parts}
    yield begun
    for path in [path for path in begun.rglob("*") if path.is_file() and "cache" not in path.parts]:
        path.unlink()
    for path, content in before.items():
        path.write_bytes(content)


def last(folder):
    return torch.load(folder / "runs" / "tiny" / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["--data.languages", "[en, de]"], ["data.languages was null and is [en, de]"]),
        (
            ["--data.transform.init_args.image_size", 64, "--model.lr", 0.5, "--trainer.precision", "bf16-mixed"],
            [
                "trainer.precision was null and is bf16-mixed",
                "model.lr was 0.002 and is 0.5",
                "data.transform.init_args.image_size was 32 and is 64",
            ],
        ),
        (["--seed_everything", 3], ["seed_everything was 0 and is 3"]),
        (["--data.batch_size", 4], ["batches of all devices together had 8 images and have 4"]),
        (
            ["--data.batch_size", 4, "--trainer.devices", 1],
            ["batches of all devices together had 8 images and have 4"],
        ),
    ],
)
def test_other_settings_are_refused_and_named(at_home, ccr, settings, named):
    before = {path: path.read_bytes() for path in (at_home / "runs").rglob("*") if path.is_file()}
    status, _, errors = ccr("fit", "--config", "tiny.yaml", "--resume", "auto", *settings)
    assert status == 1
    (line,) = errors.splitlines()
    assert all(of in line for of in named)
    assert line.count(" was ") + line.count(" had ") == len(named) + 1
    assert line.endswith("give them as they were, or pass --resume-changed to go on with these.")
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["--model.retriever.init_args.embed_dim", 8], "model.retriever.init_args.embed_dim was 16 and is 8"),
        (
            [
                "--model.retriever.init_args.text_encoder.init_args.heads",
                4,
            ],  # for which the weights have the same shapes
            "model.retriever.init_args.text_encoder.init_args.heads was 2 and is 4",
        ),
        (
            ["--model.retriever.init_args.image_encoder.init_args.name", "test_vit"],
            "model.retriever.init_args.image_encoder.init_args.name was test_convnext and is test_vit",
        ),
    ],
)
@pytest.mark.parametrize("accepts", [[], ["--resume-changed"]], ids=["", "changed"])
def test_another_architecture_is_refused_in_any_case(at_home, ccr, settings, named, accepts):
    status, _, errors = ccr("fit", "--config", "tiny.yaml", "--resume", "auto", *settings, *accepts)
    assert status == 1
    says = "the checkpoint has its own; keep them as they were, or start a new run."
    assert errors == f"error: {named}: {says}\n"


@pytest.mark.parametrize("change", ["a line less", "another picture", "another caption", "one as long", "two swapped"])
def test_other_data_are_refused_and_named(at_home, ccr, change):
    file, size = at_home / "data" / "train.jsonl", 40
    lines = file.read_text().splitlines(keepends=True)
    if change == "a line less":
        del lines[-1]
        size = 39
    elif change == "one as long":
        assert lines[5].count("number") > 0
        lines[5] = lines[5].replace("number", "namber")
    elif change == "two swapped":
        first, second = json.loads(lines[5]), json.loads(lines[6])
        first["captions"], second["captions"] = second["captions"], first["captions"]
        lines[5:7] = [json.dumps(first) + "\n", json.dumps(second) + "\n"]
    elif change == "another picture":
        (at_home / "data" / "pictures" / "3.png").write_bytes((at_home / "data" / "pictures" / "4.png").read_bytes())
    else:
        lines[5] = lines[5].replace("number", "no")
    file.write_text("".join(lines))
    status, _, errors = ccr("fit", "--config", "tiny.yaml", "--resume", "auto")
    assert status == 1
    (line,) = errors.splitlines()
    assert line.startswith("error: the run that is to go on had other data: the split train was 40 images (")
    assert f" and is {size} images (" in line
    status, output, errors = ccr("fit", "--config", "tiny.yaml", "--resume", "auto", "--resume-changed")
    assert (status, errors) == (0, "")
    assert "other data than before: the split train was 40 images (" in output
    assert last(at_home)["global_step"] == (13 if size == 39 else 15)  # 39 images are 4 batches of 8


def test_a_score_of_another_validation_is_forgotten(at_home, ccr):
    """Else the best checkpoint of before would be tested, and all that was trained since thrown away."""
    best = at_home / "runs" / "tiny" / "checkpoints" / "best.ckpt"
    file = at_home / "data" / "val.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    texts = [json.loads(line)["captions"] for line in lines]
    records = [json.loads(line) | {"captions": of} for line, of in zip(lines, texts[1:] + texts[:1], strict=True)]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))  # captions of other pictures
    before = torch.load(best, weights_only=True)["global_step"]
    status, output, errors = ccr("fit", "--config", "tiny.yaml", "--resume", "auto", "--resume-changed")
    assert (status, errors) == (0, "")
    assert "the validation is not that of before: the best score so far is forgotten\n" in output
    assert torch.load(best, weights_only=True)["global_step"] > before == 5


def test_without_another_validation_the_last_checkpoint_is_tested(at_home, ccr):
    changes = ["--data.languages", "[en, de]", "--trainer.check_val_every_n_epoch", 5]
    status, output, errors = ccr("fit", "--config", "tiny.yaml", "--resume", "auto", "--resume-changed", *changes)
    assert (status, errors) == (0, "")
    assert output.count("the best score so far is forgotten") == 1
    says = "no validation like that of now ran, and best.ckpt is of another: the last checkpoint is tested\n"
    assert says in output
    results = json.loads((at_home / "runs" / "tiny" / "results.json").read_text())
    assert Path(results["checkpoint"]["path"]) == Path("runs", "tiny", "checkpoints", "last.ckpt")
    assert last(at_home)["global_step"] == 15


def test_a_score_of_a_part_of_the_validation_is_forgotten(at_home, ccr):
    """A part of the split, another part, and all of it; of all of it the size of batches does not matter."""
    best = at_home / "runs" / "tiny" / "checkpoints" / "best.ckpt"
    part = ["--trainer.limit_val_batches", 1, "--data.eval_batch_size"]
    for epochs, settings, forgets in (
        (3, ["--data.eval_batch_size", 4], 0),
        (4, [*part, 2], 1),
        (5, [*part, 3], 1),
        (6, [], 1),
    ):
        fit = ("fit", "--config", "tiny.yaml", "--resume", "auto", "--resume-changed", "--trainer.max_epochs", epochs)
        status, output, errors = ccr(*fit, *settings)
        assert (status, errors) == (0, "")
        assert output.count("the best score so far is forgotten") == forgets
        if forgets:
            assert torch.load(best, weights_only=True)["global_step"] == 5 * epochs


def test_a_run_that_starts_anew_has_no_changes(at_home, ccr):
    fit = ("fit", "--config", "tiny.yaml", "--resume", "auto")
    assert ccr(*fit, "--resume-changed", "--model.lr", 1e-3)[0] == 0
    config = at_home / "runs" / "tiny" / "config.yaml"
    assert "\n# changed: from step 8 on, " in config.read_text()
    shutil.rmtree(at_home / "runs" / "tiny" / "checkpoints")
    status, output, errors = ccr(*fit, "--trainer.max_epochs", 1)
    assert (status, errors) == (0, "")
    assert "has no checkpoint: the run starts anew\n" in output
    assert config.read_text().startswith("# What made this run; ")
    assert "# changed" not in config.read_text()


def test_data_that_have_moved_are_the_same(at_home, ccr):
    (at_home / "data").rename(at_home / "moved")
    config = json.loads((at_home / "tiny.yaml").read_text().replace(str(at_home / "data"), str(at_home / "moved")))
    (at_home / "tiny.yaml").write_text(json.dumps(config))
    status, output, errors = ccr("fit", "--config", "tiny.yaml", "--resume", "auto", "--data.num_workers", 1)
    (at_home / "moved").rename(at_home / "data")
    assert (status, errors) == (0, "")
    assert "other settings than before: data.num_workers was 0 and is 1\n" in output
    assert last(at_home)["global_step"] == 15


def test_a_change_that_is_accepted_is_made(at_home, ccr):
    """The learning rate and its schedule, the averages' decay, languages and size of the batch."""
    changes = [
        *("--model.lr", 1e-3, "--model.betas", "[0.8, 0.9]", "--model.weight_decay", 0.5, "--trainer.max_epochs", 4),
        *("--data.batch_size", 4, "--data.languages", "[de, ja]"),
    ]
    status, output, errors = ccr("fit", "--config", "tiny.yaml", "--resume", "auto", "--resume-changed", *changes)
    assert (status, errors) == (0, "")
    assert "model.lr was 0.002 and is 0.001" in output
    checkpoint = last(at_home)
    groups = checkpoint["optimizer_states"][0]["param_groups"]
    assert {group["initial_lr"] for group in groups} == {1e-3}
    assert {group["weight_decay"] for group in groups} == {0.5, 0.0}
    assert {tuple(group["betas"]) for group in groups} == {(0.8, 0.9)}
    assert checkpoint["global_step"] == 8 + 7 + 2 * 10  # the rest of an epoch of ten batches, of which three are past
    config = (at_home / "runs" / "tiny" / "config.yaml").read_text()
    first, note, *_ = config.splitlines()
    assert first.startswith("# What this run goes on with; repeat it with: ccr fit --config runs/tiny/config.yaml ")
    assert note.startswith("# changed: from step 8 on, other settings than before: ")
    assert "model.lr was 0.002 and is 0.001" in note
    assert "lr: 0.001" in config
    assert "max_epochs: 4" in config


def test_an_epoch_that_is_over_by_then_ends(at_home, ccr):
    """Three batches of 8 images are past, and of 16 images an epoch has two."""
    status, _, errors = ccr(
        "fit", "--config", "tiny.yaml", "--resume", "auto", "--resume-changed", "--data.batch_size", 16
    )
    assert (status, errors) == (0, "")
    assert last(at_home)["global_step"] == 8 + 0 + 2


def test_what_is_for_resuming_only(at_home, ccr):
    status, _, errors = ccr("fit", "--config", "tiny.yaml", "--name", "new", "--resume-changed")
    assert (status, errors) == (
        1,
        "error: --resume-changed is for a run that goes on: give --resume auto, must or a path, too.\n",
    )


def test_a_tokeniser_is_the_checkpoints(at_home, ccr):
    for more in ([], ["--resume-changed"]):
        status, _, errors = ccr(
            "fit", "--config", "tiny.yaml", "--resume", "auto", "--data.tokenizer.init_args.vocab_size", 300, *more
        )
        assert status == 1
        says = "data.tokenizer.init_args.vocab_size was 200 and is 300: the checkpoint has its own; keep"
        assert errors.startswith(f"error: {says}")


def test_settings_that_may_change():
    free = {"trainer": {"devices": 1}, "data": {"num_workers": 0, "source": {"init_args": {"root": "a"}}}, "name": "a"}
    now = {"trainer": {"devices": 2}, "data": {"num_workers": 2, "source": {"init_args": {"root": "b"}}}, "name": "b"}
    says = "other settings than before: trainer.devices was 1 and is 2, data.num_workers was 0 and is 2"
    assert check_settings(free, now, accepts_changes=False) == says
    assert check_settings(free, free, accepts_changes=False) == ""
    one, two = ({"trainer": {"devices": "auto"}, "data": {"batch_size": size}} for size in (64, 32))  # a GPU, then two
    assert check_settings(one, two, accepts_changes=False) == (
        "other settings than before: data.batch_size was 64 and is 32"
    )
    with pytest.raises(CCRError, match=r"other settings: model\.a was null and is true; give"):
        check_settings({"model": {}}, {"model": {"a": True}}, accepts_changes=False)


@pytest.mark.ddp
def test_another_number_of_processes_goes_on_in_the_same_order(tmp_path, write_tiny_jsonl, tiny_config):
    """The global batch is the same, and so are the losses, but for the order of sums of floating-point numbers."""
    config = tiny_config(write_tiny_jsonl(tmp_path / "data", train=40), tmp_path / "cache")
    for part in ("text_encoder", "fusion"):
        config["model"]["retriever"]["init_args"][part]["init_args"]["dropout"] = 0.0
    config["model"] |= {"matching_weight": 0, "masked_lm_weight": 0}  # of which each process draws its own
    config["data"]["transform"]["init_args"]["crop_scale"] = [1.0, 1.0]
    config["data"]["languages_per_step"] = 2
    config["trainer"] |= {"max_epochs": 3, "log_every_n_steps": 1}
    (tmp_path / "tiny.yaml").write_text(json.dumps(config))

    def fit(name, end, *settings):
        log = tmp_path / f"{name}.log"
        done = noting(tmp_path, log, end, "--name", name, "--resume", "auto", *settings)
        assert done.returncode == (0 if end < 0 else 143), done.stderr
        return [json.loads(line) for line in log.read_text().splitlines()]

    two = ("--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "4", "--data.num_workers", "2")
    expected = fit("whole", -1)
    fit("changing", 3)
    fit("changing", 7, *two)
    found = fit("changing", -1, "--data.num_workers", "1")
    seen = {}
    for step, _, images in sorted(found):
        seen.setdefault(step, []).extend(images)
    assert seen == {step: images for step, _, images in expected}
    assert {step for step, rank, _ in found if rank == 1} == set(range(4, 8))
    whole, changing = (
        torch.load(tmp_path / "runs" / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "changing")
    )
    for name, weight in whole.items():
        if not name.endswith("attention.key.bias"):  # whose gradient is zero but for rounding
            torch.testing.assert_close(changing[name], weight, rtol=0, atol=1e-4, msg=name)
