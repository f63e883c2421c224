"""Dual encoders of transformers through the command: tested, trained in part or whole, and exported."""

import json
import logging
import re
import shutil
import subprocess
import sys

import pytest
import torch
from tiny_models import save_tiny

from ccr_lightning import from_pretrained
from ccr_lightning.cli.main import main
from ccr_lightning.errors import CCRError
from ccr_lightning.models.transformers_encoder import TransformersDualEncoder
from ccr_lightning.training.tuning import merge_adapters, tune

FIT_CLIP = ("fit", "--init_from", "clip", "--config", "tiny.yaml")


@pytest.fixture(scope="module")
def home(tmp_path_factory, write_tiny_jsonl):
    home = tmp_path_factory.mktemp("home")
    for kind in ("Siglip", "Siglip2", "CLIP", "AltCLIP"):
        save_tiny(kind, home / kind.lower())
    source = {
        "class_path": "ccr_lightning.data.sources.jsonl.JsonLines",
        "init_args": write_tiny_jsonl(home / "data", size=40),
    }
    data = {"source": source, "batch_size": 8, "cache_dir": str(home / "cache")}
    trainer = {"max_epochs": 2, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1}
    (home / "tiny.yaml").write_text(json.dumps({"data": data, "trainer": trainer, "model": {"lr": 1e-3}}))
    return home


@pytest.fixture
def ccr(home, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ccr"])
    monkeypatch.chdir(home)
    for name in ("lightning.pytorch", "lightning.fabric"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.WARNING)

    def run(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


def weights_of(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["siglip", "siglip2", "clip", "altclip"])
def test_its_score_is_that_of_the_librarys_embeddings(ccr, home, kind):
    """Recall@1 of the 8 test images in each language, from the library's own pipeline."""
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    status, _, errors = ccr("test", "--ckpt_path", kind, "--config", "tiny.yaml")
    assert (status, errors) == (0, "")
    document = json.loads((home / "runs" / f"{kind}-tiny" / "results.json").read_text())
    lines = [json.loads(line) for line in (home / "data" / "test.jsonl").read_text().splitlines()]
    images = [Image.open(home / "data" / line["image"]).convert("RGB") for line in lines]
    model, tokenizer = AutoModel.from_pretrained(kind).eval(), AutoTokenizer.from_pretrained(kind)
    made = AutoImageProcessor.from_pretrained(kind)(images=images, return_tensors="pt")
    of_images = model.get_image_features(**made).pooler_output
    for language in ("en", "de", "ja"):
        texts = [line["captions"][language][0] for line in lines]
        padding = "max_length" if kind.startswith("siglip") else True
        tokens = tokenizer(texts, padding=padding, truncation=True, max_length=24, return_tensors="pt")
        of_texts = model.get_text_features(**tokens).pooler_output
        cosines = torch.nn.functional.cosine_similarity(of_images[:, None], of_texts[None], dim=-1)
        for direction, scores in (("image_to_text", cosines), ("text_to_image", cosines.T)):
            ranks = (scores >= scores.diagonal()[:, None]).sum(1)
            found = document["languages"][language][direction]["recall@1"]
            assert found == pytest.approx((ranks == 1).float().mean().item())
    assert document["checkpoint"]["path"] == kind
    assert document["model"]["parameters"] == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("kind", "tuned", "moved", "kept"),
    [
        ("siglip2", "all", r"model\..*\.layers\.0\.|model\..*\.embeddings\.|log_logit_scale|logit_bias", r"^$"),
        ("clip", "all", r"model\..*\.layers\.0\.|log_logit_scale|_projection", r"^$"),
        ("clip", "last_layers", r"\.layers\.[12]\.|_projection|log_logit_scale", r"\.layers\.0\.|embeddings"),
        ("siglip", "all", r"model\..*\.layers\.0\.|log_logit_scale|logit_bias", r"^$"),
        ("altclip", "all", r"vision_model\..*\.layers\.0\.|log_logit_scale|_projection", r"^$"),
        ("siglip2", "projections", r"\.head\.|log_logit_scale|logit_bias", r"\.layers\.|embeddings"),
    ],
)
def test_what_is_tuned_moves_and_nothing_else(ccr, home, kind, tuned, moved, kept):
    name = f"{kind}-{tuned}"
    status, _output, errors = ccr(
        "fit", "--init_from", kind, "--config", "tiny.yaml", "--name", name, "--model.tuned", tuned
    )
    assert (status, errors) == (0, "")
    start = {f"retriever.{key}": of for key, of in TransformersDualEncoder(kind).state_dict().items()}
    end = weights_of(home / "runs" / name)
    assert start.keys() == end.keys()
    changed = {key for key in start if not start[key].equal(end[key])}
    assert all(key in changed for key in start if re.search(moved, key))
    assert not any(re.search(kept, key) for key in changed)
    config = (home / "runs" / name / "config.yaml").read_text()
    assert f"objective: {'one_to_k_sigmoid' if kind.startswith('siglip') else 'one_to_k'}\n" in config


@pytest.mark.ddp
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
@pytest.mark.parametrize("kind", ["AltCLIP", "Siglip2"])
def test_two_processes_train_it(home, tmp_path, kind, strategy):
    """ddp stops at parameters that get no gradient, of which AltCLIP has some."""
    model = save_tiny(kind, tmp_path / "model")
    arguments = ["--init_from", str(model), "--config", str(home / "tiny.yaml"), "--name", "two"]
    devices = ["--trainer.devices", "2", "--trainer.strategy", strategy, "--data.batch_size", "4"]
    command = [sys.executable, "-m", "ccr_lightning.cli.main", "fit", *arguments, *devices]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    start = {f"retriever.{key}": of for key, of in TransformersDualEncoder(str(model)).state_dict().items()}
    end = weights_of(tmp_path / "runs" / "two")
    assert start.keys() == end.keys()
    assert not any(start[key].equal(end[key]) for key in start if "layers.0.mlp.fc1.weight" in key)


def test_a_trained_run_is_exported_and_scores_alike(ccr, home):
    assert ccr(*FIT_CLIP, "--name", "trained")[0] == 0
    assert ccr("export", "runs/trained", "exported")[0] == 0
    assert ccr("test", "--ckpt_path", "exported", "--config", "tiny.yaml", "--name", "again")[0] == 0
    ours, theirs = (json.loads((home / "runs" / name / "results.json").read_text()) for name in ("again", "trained"))
    for document in (ours, theirs):
        del document["checkpoint"]
    assert ours == theirs
    assert ccr("test", "--ckpt_path", "runs/trained")[0] == 0  # without the weights that it started from


def test_a_run_needs_its_own_folder_only(ccr, home, tmp_path):
    """The model that it started from may change or go: its tokeniser and preprocessing are the run's."""
    model = save_tiny("CLIP", tmp_path / "model")
    settings = ["--init_from", model, "--config", "tiny.yaml", "--name", "alone", "--runs_dir", tmp_path / "runs"]
    assert ccr("fit", *settings, "--trainer.max_epochs", 1)[0] == 0
    before = json.loads((tmp_path / "runs" / "alone" / "results.json").read_text())
    config = json.loads((model / "preprocessor_config.json").read_text())
    (model / "preprocessor_config.json").write_text(json.dumps(config | {"image_mean": [0.1, 0.1, 0.1]}))
    assert ccr("test", "--ckpt_path", tmp_path / "runs" / "alone")[0] == 0
    assert json.loads((tmp_path / "runs" / "alone" / "results.json").read_text()) == before
    shutil.rmtree(model)
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert ccr("test", "--ckpt_path", tmp_path / "moved" / "alone")[0] == 0
    after = json.loads((tmp_path / "moved" / "alone" / "results.json").read_text())
    for document in (before, after):
        del document["checkpoint"]
    assert after == before
    assert ccr("export", tmp_path / "moved" / "alone", tmp_path / "exported")[0] == 0
    (tmp_path / "moved").rename(tmp_path / "runs")
    for resume in (settings, ["--config", tmp_path / "runs" / "alone" / "config.yaml", *settings[4:]]):
        status, _, errors = ccr(
            "fit", *resume, "--resume", "auto", "--resume-changed", "--trainer.max_epochs", 2 + (resume is not settings)
        )
        assert (status, errors) == (0, "")
    saved = (tmp_path / "runs" / "alone" / "config.yaml").read_text()
    assert saved.count(f"name_or_path: {model}\n") == 3  # it still says what it started from, and can be repeated
    assert "pretrained: true" in saved


def test_a_run_goes_on_from_the_run_of_a_dual_encoder(ccr, home):
    assert ccr("fit", "--init_from", "siglip2", "--config", "tiny.yaml", "--name", "first")[0] == 0
    status, _, errors = ccr("fit", "--init_from", "runs/first", "--config", "tiny.yaml", "--name", "second")
    assert (status, errors) == (0, "")
    config = (home / "runs" / "second" / "config.yaml").read_text()
    assert "objective: one_to_k_sigmoid\n" in config


def test_whatever_type_the_weights_had_a_run_is_float32(ccr, home, tmp_path):
    """A configuration names the type of the weights beside it, which a run's own are not of."""
    model = save_tiny("CLIP", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    for pretrained in (True, False):
        encoder = TransformersDualEncoder(str(model), pretrained=pretrained)
        assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


def test_tuning_again_keeps_the_adapters_in_training(home):
    model = TransformersDualEncoder(str(home / "clip"))
    tune(model, "lora", lora_rank=4)
    once = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    tune(model, "lora", lora_rank=4)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == once
    assert any(".lora_A." in name for name in once)


def test_a_tokeniser_in_python_is_known_wherever_it_lies(tmp_path):
    """The first SigLIP's has no file that says all of it."""
    save_tiny("Siglip", tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    here, there = (TransformersDualEncoder(str(tmp_path / name)).tokenizer.identity for name in ("here", "there"))
    assert here == there
    assert set(here["vocabulary"]) == {"spiece.model"}


def test_adapters_change_nothing_at_first_and_can_be_merged(home):
    plain, model = (TransformersDualEncoder(str(home / "clip")).eval() for _ in range(2))
    tune(model, "lora", lora_rank=4)
    input_ids, mask = plain.tokenizer.encode(["a red apple", "a cat"])
    assert model.encode_text(input_ids, mask).embeds.equal(plain.encode_text(input_ids, mask).embeds)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {re.sub(r".*lora_[AB].*", "adapter", name) for name in trained} == {
        *("adapter", "log_logit_scale", "model.visual_projection.weight", "model.text_projection.weight")
    }
    adapters = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    assert len(adapters) == 2 * 2 * 3 * 6  # two matrices for six linear maps in three layers of two encoders
    with torch.no_grad():
        for parameter in adapters:
            parameter.normal_(std=0.1)
    adapted = model.encode_text(input_ids, mask).embeds
    assert not torch.allclose(adapted, plain.encode_text(input_ids, mask).embeds, atol=1e-3)
    merge_adapters(model)
    assert model.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(model.encode_text(input_ids, mask).embeds, adapted, rtol=0, atol=1e-5)


def test_a_run_with_adapters_resumes_is_tested_and_exported(ccr, home):
    settings = ["--init_from", "siglip2", "--config", "tiny.yaml", "--name", "lora", "--model.tuned", "lora"]
    assert ccr("fit", *settings, "--trainer.max_epochs", 1)[0] == 0
    assert ccr("fit", *settings, "--resume", "must", "--resume-changed")[0] == 0
    assert ccr("test", "--ckpt_path", "runs/lora")[0] == 0
    assert ccr("export", "runs/lora", "merged")[0] == 0
    start, end = (
        TransformersDualEncoder(str(home / "siglip2")).state_dict(),
        from_pretrained(home / "merged").state_dict(),
    )
    assert start.keys() == end.keys()
    assert not start["model.text_model.encoder.layers.0.mlp.fc1.weight"].equal(
        end["model.text_model.encoder.layers.0.mlp.fc1.weight"]
    )
    assert start["model.text_model.encoder.layers.0.mlp.fc1.bias"].equal(
        end["model.text_model.encoder.layers.0.mlp.fc1.bias"]
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("test", "--ckpt_path", "clip"), "--ckpt_path clip: a model brings no data: pass --config with a data.source"),
        (
            (*FIT_CLIP, "--model.objective", "one_to_k_sigmoid"),
            "objective one_to_k_sigmoid needs a model with a logit_bias, such as SigLIP",
        ),
        (
            (*FIT_CLIP, "--model.matching_weight", 1),
            "matching, masked-LM and re-ranking need a fusion encoder",
        ),
        (
            (
                "fit",
                "--init_from",
                "clip",
                "--config",
                "tiny.yaml",
                "--model.tuned",
                "last_layers",
                "--model.tuned_layers",
                9,
            ),
            "tuned_layers is 9, and an encoder has only 3 layers",
        ),
        (
            (
                "fit",
                "--init_from",
                "clip",
                "--config",
                "tiny.yaml",
                "--data.tokenizer.init_args.name_or_path",
                "siglip2",
            ),
            "the data's tokeniser is not the one that the model was trained with",
        ),
        (
            (
                "fit",
                "--init_from",
                "clip",
                "--config",
                "tiny.yaml",
                "--data.transform.init_args.name_or_path",
                "siglip2",
            ),
            "the data's transform is not the one that the model was trained with",
        ),
        (
            ("test", "--ckpt_path", "no/model", "--config", "tiny.yaml"),
            "no/model: there is no such folder here, and",
        ),
    ],
)
def test_what_does_not_go_together(ccr, monkeypatch, arguments, says):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    status, _, errors = ccr(*arguments)
    assert status == 1
    assert errors.startswith("error: ")
    assert says in errors
    assert errors.count("\n") == 1


def test_models_that_are_none_of_these(home, tmp_path):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained(tmp_path / "bert")
    with pytest.raises(CCRError, match="BertModel is no dual encoder with a learned temperature"):
        TransformersDualEncoder(str(tmp_path / "bert"))
    config = json.loads((home / "clip" / "config.json").read_text())
    (tmp_path / "remote").mkdir()
    code = {"auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}, "model_type": "its-own"}
    (tmp_path / "remote" / "config.json").write_text(json.dumps(config | code))
    (tmp_path / "remote" / "own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(CCRError, match="it needs code of its own, which is not run"):
        TransformersDualEncoder(str(tmp_path / "remote"))
    from safetensors.torch import load_file, save_file

    broken = save_tiny("CLIP", tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(CCRError, match=r"the weights lack 'visual_projection\.weight'; fetch them again"):
        TransformersDualEncoder(str(broken))
    weights["visual_projection.weight"] = torch.ones(3, 3)
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(CCRError, match=r"'visual_projection\.weight' is \(3, 3\) where \(16, 32\) would fit"):
        TransformersDualEncoder(str(broken))


def test_a_saved_dual_encoder_with_a_flipped_bit(home, tmp_path):
    TransformersDualEncoder(str(home / "clip")).save_pretrained(tmp_path / "saved")
    assert from_pretrained(tmp_path / "saved").tokenizer.encode(["a"])[0].numel() == 3
    for name in ("model.safetensors", "tokenizer.json", "preprocessor_config.json"):
        content = (tmp_path / "saved" / name).read_bytes()
        (tmp_path / "saved" / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        with pytest.raises(CCRError, match=rf"{name}: the file is not the one that was saved"):
            from_pretrained(tmp_path / "saved")
        (tmp_path / "saved" / name).write_bytes(content)
