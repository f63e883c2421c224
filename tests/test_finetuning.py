"""``ccr fit --init_from``: what belongs to the weights is the run's, and nothing else; every shipped configuration."""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from published_layouts import WRITERS, in_languages, init_arguments

from ccr_lightning.cli.main import main

CONFIGS = Path(__file__).parents[1] / "configs" / "finetune"
LAYOUTS = {  # by the name of the configuration
    "multi30k_en": "multi30k-task1",
    "multi30k_de": "multi30k-task1",
    "multi30k_all": "multi30k-task1",
    "flickr30k_en": "flickr30k",
    "xflickrco_few_shot": "xflickrco",
    "wit_en": "wit-table",
    "coco_en": "coco",
    "coco_ja": "coco",
    "coco_zh": "coco-cn",
    "coco_all": "coco",
}
PAPER = {  # the table of the paper's settings: lr (of few-shot a range there), epochs over captions, batch, tokens
    "multi30k": (3e-5, 10, 64, 40),
    "coco": (3e-5, 10, 64, 40),
    "flickr30k": (3e-5, 10, 64, 80),
    "xflickrco": (1e-5, 60, 64, 80),
    "wit": (3e-5, 5, 80, 80),
}
CAPTIONS = {"flickr30k_en": 5, "coco_en": 5, "coco_ja": 5, "coco_all": 5}  # of an image in a language; else one
SMALL = (
    *("--data.batch_size=4", "--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1"),
    *("--trainer.accelerator=cpu", "--data.tokenizer.init_args.max_tokens=40"),
)


def settings_of(name):
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))


def merged(name):
    """The settings of a configuration with those of the parts that it names."""
    settings = settings_of(name)
    for part in ("model", "trainer"):
        if isinstance(settings[part], str):
            settings[part] = yaml.safe_load((CONFIGS / settings[part]).read_text(encoding="utf-8"))
    return settings


def weights(run, which="last"):
    return torch.load(run / "checkpoints" / f"{which}.ckpt", weights_only=True)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ccr"])
    for logger in ("lightning.pytorch", "lightning.fabric"):
        monkeypatch.setattr(logging.getLogger(logger), "level", logging.WARNING)


@pytest.fixture
def of_multi30k(tmp_path, pictures):
    """The arguments that name small data in the layout of Multi30K, in English and German."""
    languages = ("en", "de")
    records = {split: [in_languages(record, languages) for record in of] for split, of in pictures.items()}
    return init_arguments(WRITERS["multi30k-task1"](tmp_path / "multi30k", languages, records).init_args)


@pytest.fixture
def finetune(tmp_path, of_multi30k, trained_run):
    """A function that fine-tunes on small data; it returns status and run folder."""

    def fit(*arguments, config="multi30k_all", start=trained_run):
        given = [*of_multi30k, *SMALL, f"--data.cache_dir={tmp_path / 'cache'}", f"--runs_dir={tmp_path / 'runs'}"]
        command = ["fit", "--init_from", str(start), "--config", str(CONFIGS / f"{config}.yaml")]
        status = main([*command, *given, *map(str, arguments)])
        return status, tmp_path / "runs" / f"{Path(start).name}-{config}"

    return fit


def test_every_configuration_is_here():
    runs = [path.stem for path in CONFIGS.glob("*.yaml") if "source" in settings_of(path.stem)["data"]]
    assert sorted(runs) == sorted(LAYOUTS)


def test_the_page_shows_every_configuration_with_its_settings():
    page = (CONFIGS.parents[1] / "docs" / "finetuning.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]
    shown = {name: row for row in rows for name in re.findall(r"`(\w+)\.yaml`", row[0])}
    assert shown.keys() == LAYOUTS.keys()
    for name, (_, _, _, lr, epochs, batch, tokens, _) in shown.items():
        settings = merged(name)
        given = settings["data"].get("tokenizer", {}).get("init_args", {}).get("max_tokens", "the run's")
        assert (float(lr), int(batch), tokens) == (settings["model"]["lr"], settings["data"]["batch_size"], str(given))
        assert str(settings["trainer"]["max_epochs"]) in re.findall(r"\d+", epochs)


@pytest.mark.parametrize("name", LAYOUTS)
def test_settings_are_the_papers(name):
    settings = merged(name)
    lr, epochs, batch, tokens = PAPER[name.split("_")[0]]
    assert settings["model"] == {"masked_lm_weight": 0.0, "lr": lr}  # else contrastive and matching, weight 1
    assert settings["trainer"]["max_epochs"] == epochs * CAPTIONS.get(name, 1)
    assert settings["trainer"]["max_epochs"] % settings["trainer"].get("check_val_every_n_epoch", 1) == 0
    assert (settings["trainer"]["devices"], settings["data"]["batch_size"]) == (1, batch)
    given = settings["data"].get("tokenizer", {}).get("init_args", {}).get("max_tokens")
    assert given == (None if tokens == 40 or name == "xflickrco_few_shot" else tokens)  # few-shot: of the run before
    header = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")
    start = "runs/NAME(-flickr30k_en|-multi30k_en|-coco_en)?"
    assert re.search(f"^#   ccr fit --init_from {start} --config configs/finetune/{name}.yaml$", header, re.MULTILINE)


@pytest.mark.parametrize("name", LAYOUTS)
def test_configurations_run(name, trained_run, pictures, tmp_path, capsys):
    languages = settings_of(name)["data"]["source"]["init_args"].get("languages", ["en"])
    splits = ("train", "test") if name == "xflickrco_few_shot" else ("train", "val", "test")
    written = ("en", "ja", "zh") if LAYOUTS[name] == "coco" else languages
    records = {
        split: [in_languages(record, written, CAPTIONS.get(name, 1)) for record in pictures[split]] for split in splits
    }
    layout = WRITERS[LAYOUTS[name]](tmp_path / "data", written, records)
    init_args = {**layout.init_args, "languages": languages}
    if name == "flickr30k_en":
        del init_args["languages"]
    held_out = []
    if name in ("coco_en", "coco_all"):
        held_out = list(layout.ids["train"])[:2]
        (tmp_path / "held_out.txt").write_text("\n".join(held_out))
        init_args["held_out"] = [str(tmp_path / "held_out.txt")]
    command = ["fit", "--init_from", str(trained_run), "--config", str(CONFIGS / f"{name}.yaml")]
    places = [f"--runs_dir={tmp_path}", f"--data.cache_dir={tmp_path / 'cache'}"]
    assert main([*command, *init_arguments(init_args), *SMALL, *places]) == 0
    run, out = tmp_path / f"{trained_run.name}-{name}", capsys.readouterr().out
    assert f"weights of {trained_run / 'checkpoints' / 'best.ckpt'}\n" in out
    assert (run / "checkpoints" / "best.ckpt").is_file() == (name != "xflickrco_few_shot")
    if name == "coco_all":
        assert "not tested" in out
        stores = [json.loads(path.read_text()) for path in (tmp_path / "cache").glob("*/manifest.json")]
        assert sorted(manifest["images"] for manifest in stores) == [4, 8 - len(held_out), 20]
        test = ["test", "--ckpt_path", str(run), f"--runs_dir={tmp_path}", "--name=tested"]
        assert main(test) == 0
        run = tmp_path / "tested"
    assert list(json.loads((run / "results.json").read_text())["languages"]) == languages


def test_the_weights_and_the_tokeniser_are_the_runs(finetune, trained_run, tmp_path):
    """With a learning rate of 0 nothing changes, whatever was drawn."""
    status, run = finetune("--model.lr=0")
    assert status == 0
    before, after = weights(trained_run, "best"), weights(run)
    assert before["state_dict"].keys() == after["state_dict"].keys()
    assert all(torch.equal(tensor, after["state_dict"][name]) for name, tensor in before["state_dict"].items())
    assert before["CaptionDataModule"]["tokenizer"] == after["CaptionDataModule"]["tokenizer"]
    assert not list((tmp_path / "cache").glob("*tokenizer*")), "none was trained"
    assert after["global_step"] == 2  # 8 images in batches of 4: a schedule of its own
    assert after["epoch"] == 0


def test_training_goes_on_from_there(finetune, trained_run):
    status, run = finetune("--model.lr=1e-3")
    assert status == 0
    before, after = weights(trained_run, "best")["state_dict"], weights(run)["state_dict"]
    moved = [(after[name] - before[name]).abs().max().item() for name in before if before[name].is_floating_point()]
    assert 0 < max(moved) < 0.01  # AdamW moves a weight by about the learning rate at each of the two steps


def test_a_run_repeats_from_its_configuration(finetune, tmp_path):
    _, run = finetune("--model.lr=1e-3")
    config = ["fit", "--config", str(run / "config.yaml"), f"--runs_dir={tmp_path}"]
    assert main([*config, "--name=again"]) == 0
    first, again = weights(run)["state_dict"], weights(tmp_path / "again")["state_dict"]
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())


def test_a_run_resumes_without_what_it_started_from(finetune, tmp_path, trained_run, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(trained_run, copy)
    status, whole = finetune("--model.lr=1e-3", "--trainer.max_epochs=3", start=copy)
    assert status == 0
    config = ["fit", "--config", str(whole / "config.yaml"), f"--runs_dir={tmp_path}", "--name=parts"]

    from ccr_lightning.training.module import RetrievalModule

    step = RetrievalModule.training_step

    def interrupted(self, batch, batch_idx):
        if self.trainer.global_step == 4:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(RetrievalModule, "training_step", interrupted)
        assert main(config) == 130
    shutil.rmtree(copy)
    shutil.rmtree(tmp_path / "cache")
    assert main([*config, "--resume=must"]) == 0
    once, twice = weights(whole)["state_dict"], weights(tmp_path / "parts")["state_dict"]
    assert all(torch.equal(tensor, twice[name]) for name, tensor in once.items())
    assert not list((tmp_path / "cache").glob("*tokenizer*"))
    # The command that it was started with does it too, here with nothing left to train.
    status, run = finetune("--model.lr=1e-3", "--trainer.max_epochs=3", "--resume=auto", start=copy)
    assert status == 0
    assert run == whole


@pytest.mark.parametrize("asked_for", [{"pretrained_file": "gone.pt"}, {"pretrained": True}])
def test_weights_of_timm_are_not_asked_for_again(asked_for, finetune, trained_run, tmp_path, capsys, monkeypatch):
    """Nor do all other parts count as new beside them."""
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *_, **__: pytest.fail("weights were asked for"))
    copy = tmp_path / "pretrained"
    shutil.copytree(trained_run, copy)
    config = yaml.safe_load((copy / "config.yaml").read_text(encoding="utf-8"))
    config["model"]["retriever"]["init_args"]["image_encoder"]["init_args"] |= asked_for
    (copy / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    status, run = finetune("--model.lr=1e-3", start=copy)
    assert status == 0
    assert {group["initial_lr"] for group in weights(run)["optimizer_states"][0]["param_groups"]} == {1e-3}
    assert main(["test", "--ckpt_path", str(copy), f"--runs_dir={tmp_path}", "--name=tested"]) == 0
    capsys.readouterr()


def test_images_may_have_another_size(finetune):
    encoder = "--model.retriever.init_args.image_encoder.init_args"
    status, run = finetune("--data.transform.init_args.image_size=64", f"{encoder}.image_size=64")
    assert status == 0
    assert yaml.safe_load((run / "config.yaml").read_text())["data"]["transform"]["init_args"]["image_size"] == 64


@pytest.mark.parametrize(
    ("start", "arguments", "says"),
    [
        ("nowhere", (), "--init_from nowhere: there is no checkpoint at nowhere; check the path."),
        (
            None,
            ("--model.retriever.init_args.embed_dim=8",),
            r"--init_from .*best\.ckpt: the checkpoint is of another architecture: 4 of \d+ tensors differ, first "
            r"'retriever.image_projection.weight' \(8, 64\) in the model and \(16, 64\) in the checkpoint",
        ),
        (
            None,
            ("--data.tokenizer.init_args.max_tokens=80",),
            "positions: pass --data.tokenizer.init_args.max_tokens 40",
        ),
        (
            "",
            (),
            "--init_from : there is neither a run nor a model there: no checkpoints/best.ckpt, and no config.json.",
        ),
    ],
)
def test_what_does_not_fit(start, arguments, says, finetune, trained_run, capsys):
    status, run = finetune(*arguments, start=trained_run if start is None else start)
    error = capsys.readouterr().err
    assert status == 1
    assert re.search(says, error)
    assert error.count("\n") == 1
    assert not run.exists()


def test_checkpoints_that_are_damaged_or_alone(finetune, trained_run, tmp_path, capsys):
    path = tmp_path / "damaged" / "checkpoints" / "best.ckpt"
    shutil.copytree(trained_run, path.parents[1])
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 3, len(content) // 3 + 8):
        content[place] ^= 0xFF
    path.write_bytes(content)
    assert finetune(start=path.parents[1])[0] == 1
    assert "best.ckpt: the checkpoint cannot be read (BadZipFile), it is damaged" in capsys.readouterr().err
    alone = tmp_path / "alone.ckpt"
    shutil.copy(trained_run / "checkpoints" / "best.ckpt", alone)
    assert finetune(start=alone)[0] == 1
    error = capsys.readouterr().err
    assert re.search(
        r"--init_from .*alone\.ckpt: there is no .*config\.yaml, which a run has; pass a run, a check", error
    )
    whole = yaml.safe_load((trained_run / "config.yaml").read_text(encoding="utf-8"))
    data = {name: whole["data"][name] for name in ("tokenizer", "transform")}
    (tmp_path / "model.yaml").write_text(json.dumps({"model": whole["model"], "data": data}))
    assert finetune("--config", tmp_path / "model.yaml", "--model.protocol.mrv_languages=null", start=alone)[0] == 0


def test_another_run_is_not_resumed_at_the_same_time(finetune, trained_run, capsys):
    status, _ = finetune("--resume", trained_run / "checkpoints" / "last.ckpt")
    assert status == 1
    assert "--init_from starts anew and --resume " in capsys.readouterr().err


def test_swin_is_fine_tuned_at_384_pixels(finetune, tiny_config, of_multi30k, tmp_path, capsys):
    """By at_384px.yaml, from a run at 224: the tables of relative positions grow, all else is the run's."""
    (jsonl,) = (argument.partition("=")[2] for argument in of_multi30k if ".root=" in argument)
    config = tiny_config({}, tmp_path / "cache")
    config["data"]["source"] = {
        "class_path": "ccr_lightning.data.sources.multi30k.Multi30K",
        "init_args": {"root": jsonl, "image_root": f"{jsonl}/flickr30k-images", "languages": ["en", "de"]},
    }
    retriever = config["model"]["retriever"]["init_args"]
    sizes = {"depths": [1, 1, 1, 1], "embed_dim": 8, "num_heads": [1, 1, 1, 1]}
    retriever["image_encoder"]["init_args"] = {
        "name": "swin_base_patch4_window7_224",
        "image_size": 224,
        "model_args": sizes,
    }
    config["data"]["transform"]["init_args"] = {"image_size": 224}
    config["data"]["batch_size"] = 4
    config["trainer"] |= {"max_epochs": 1, "limit_test_batches": 0}
    (tmp_path / "swin.yaml").write_text(json.dumps(config))
    assert main(["fit", "--config", str(tmp_path / "swin.yaml"), "--runs_dir", str(tmp_path / "runs")]) == 0
    at_384 = ["--config", CONFIGS / "at_384px.yaml", "--trainer.limit_test_batches=0", "--model.lr=0"]
    status, run = finetune(*at_384, f"--name=swin-{CONFIGS.stem}", start=tmp_path / "runs" / "swin")
    assert status == 0
    assert "best.ckpt, 4 tensors of the image encoder resampled to its image size\n" in capsys.readouterr().out
    before, after = (
        weights(of)["state_dict"] for of in (tmp_path / "runs" / "swin", run.with_name(f"swin-{CONFIGS.stem}"))
    )
    for name, tensor in before.items():
        if name.endswith("relative_position_bias_table"):
            assert (tensor.shape[0], after[name].shape[0]) == (13**2, 23**2)
            torch.testing.assert_close(after[name][23**2 // 2], tensor[13**2 // 2])  # the offset of 0
        else:
            assert after[name].equal(tensor)


def test_a_configuration_without_a_run_to_start_from(of_multi30k, tmp_path, capsys):
    assert main(["fit", "--config", str(CONFIGS / "multi30k_all.yaml"), *of_multi30k]) == 1
    error = capsys.readouterr().err
    assert error == (
        "error: 'model.retriever' is missing: pass --init_from RUN to take it from a run, or a configuration that has "
        "it, such as configs/pretrain.yaml.\n"
    )


def test_init_from_is_of_fit(trained_run, capsys):
    assert main(["test", "--ckpt_path", str(trained_run), "--init_from", str(trained_run)]) == 1
    assert capsys.readouterr().err.startswith("error: --init_from is for ccr fit: ccr test scores the weights")
