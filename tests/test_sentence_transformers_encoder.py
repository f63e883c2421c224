"""Pairs of sentence-transformers' models: embeddings and inputs are the library's own, in tests and in training."""

import json
import logging
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sentence_transformers import SentenceTransformer
from tiny_models import POSITIONS, TEXTS
from tiny_sentence_transformers import save_tiny_images, save_tiny_texts

from ccr_lightning.cli.main import main
from ccr_lightning.data.datamodule import CaptionDataModule
from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.errors import CCRError
from ccr_lightning.models.loading import describe, from_pretrained
from ccr_lightning.training.module import RetrievalModule
from ccr_lightning.training.tuning import tune

WITHOUT_FUSION = {"matching_weight": 0.0, "masked_lm_weight": 0.0}
LONG = [*TEXTS, "a red apple on a table " * 20]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return save_tiny_images(tmp_path_factory.mktemp("models") / "tiny-images")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return save_tiny_texts(tmp_path_factory.mktemp("models") / "tiny-texts")


@pytest.fixture(scope="module")
def pair(images, texts):
    return f"sentence-transformers:{images}+{texts}"


def loaded(folder):
    return SentenceTransformer(str(folder), device="cpu")


def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in ((60, 40), (32, 32), (20, 90))]


def normalised(transform, given):
    pixels = np.stack([transform.evaluate(image) for image in given])
    return transform.normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2))


@torch.no_grad()
@pytest.mark.parametrize("is_pair", [True, False])
def test_everything_is_the_librarys_own(images, texts, pair, is_pair):
    of_images, of_texts = loaded(images), loaded(texts if is_pair else images)
    model = from_pretrained(pair if is_pair else f"sentence-transformers:{images}")
    pixels = normalised(model.transform, pictures())
    torch.testing.assert_close(pixels, of_images.preprocess(pictures())["pixel_values"], rtol=0, atol=2e-6)
    expected = torch.from_numpy(of_images.encode(pictures(), normalize_embeddings=True))
    torch.testing.assert_close(model.encode_image(pixels).embeds, expected, rtol=0, atol=1e-6)

    ids, mask = model.tokenizer.encode(LONG)
    tokens = of_texts.preprocess(LONG)
    assert ids.equal(tokens["input_ids"])
    assert mask.equal(tokens["attention_mask"].bool())
    embeds = model.encode_text(ids, mask).embeds
    expected = torch.from_numpy(of_texts.encode(LONG, normalize_embeddings=True))
    torch.testing.assert_close(embeds, expected, rtol=0, atol=1e-6)
    by_language = model.encode_text(ids[:6].view(2, 3, -1), mask[:6].view(2, 3, -1)).embeds
    torch.testing.assert_close(by_language.flatten(0, 1), embeds[:6])
    nothing = model.encode_text(ids[:2], torch.zeros_like(mask[:2])).embeds
    assert nothing.isfinite().all()

    assert model.temperature.item() == pytest.approx(0.01)
    assert model.logit_bias is None
    assert ids.shape[1] == model.max_positions == POSITIONS
    assert model.vocab_size == len(of_texts.tokenizer)
    assert [len(tower) for tower in model.towers()] == [3, 3]
    assert len(model.projections()) == 2


def test_what_is_saved_sentence_transformers_loads(images, pair, tmp_path):
    for name, parts in ((pair, ("image", "text")), (f"sentence-transformers:{images}", ("", ""))):
        model = from_pretrained(name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.25)
        folder = tmp_path / "-".join(["saved", *parts])
        model.save_pretrained(folder)
        assert (folder / "README.md").read_text().startswith("---\n")
        again = from_pretrained(f"sentence-transformers:{folder}")
        with torch.no_grad():
            ids, mask = model.tokenizer.encode(LONG)
            for found, library in (
                (
                    model.encode_image(normalised(model.transform, pictures())),
                    loaded(folder / parts[0]).encode(pictures()),
                ),
                (model.encode_text(ids, mask), loaded(folder / parts[1]).encode(LONG)),
                (again.encode_text(*again.tokenizer.encode(LONG)), loaded(folder / parts[1]).encode(LONG)),
            ):
                expected = torch.nn.functional.normalize(torch.from_numpy(library), dim=-1)
                torch.testing.assert_close(found.embeds, expected, rtol=0, atol=1e-6)
        assert again.tokenizer.identity == model.tokenizer.identity
        assert again.transform.evaluation_settings == model.transform.evaluation_settings
        assert again.temperature.item() == pytest.approx(0.01)  # there is no place for what was learned


def test_a_step_of_training(pair, images, tiny_jsonl, tmp_path):
    model = from_pretrained(pair)
    data = CaptionDataModule(
        JsonLines(**tiny_jsonl()), model.tokenizer, model.transform, batch_size=8, cache_dir=str(tmp_path)
    )
    data.prepare_data()
    batch = data.normalize(next(iter(data.train_dataloader())))
    module = RetrievalModule(model, **WITHOUT_FUSION)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = []
    for _ in range(2):
        loss = module.losses(batch, data.tokenizer)["contrastive"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert np.isfinite(losses).all()
    assert losses[1] < losses[0]
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    of_images = {name for name, _ in loaded(images).named_parameters()}
    idle = {name for name in of_images if re.search(r"\.(text_model|text_projection|logit_scale)\b", name)}
    assert frozen >= {f"models.0.{name}" for name in idle}  # the captions go through the other model
    assert all(name.startswith("models.0.") for name in frozen)
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        assert parameter.requires_grad == (parameter.grad is not None), name
        if not name.endswith(("k_proj.bias", "k_lin.bias")):  # on which no softmax depends
            assert parameter.requires_grad != parameter.equal(before[name]), name


def test_parts_of_it_are_trained(pair):
    model = from_pretrained(pair)
    idle = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    tune(model, "projections")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"log_logit_scale", "models.0.0.model.visual_projection.weight", "models.1.2.linear.weight"}
    adapted = from_pretrained(pair)
    tune(adapted, "lora", lora_rank=2)
    pixels = normalised(adapted.transform, pictures())
    embeds = [adapted.encode_image(pixels).embeds, adapted.encode_text(*adapted.tokenizer.encode(TEXTS)).embeds]
    torch.stack([of.sum() for of in embeds]).sum().backward()
    adapters = {name: parameter for name, parameter in adapted.named_parameters() if "lora_B" in name}
    assert {name.split(".")[1] for name in adapters} == {"0", "1"}
    assert all(parameter.grad is not None for parameter in adapters.values())  # ddp stops at one without
    assert not any(adapted.get_parameter(name).requires_grad for name in idle)


def test_names_on_the_hub(images, texts, hub):
    hub(images, "sentence-transformers/tiny-images")
    hub(texts, "somebody/tiny-texts")
    name = "sentence-transformers:tiny-images+somebody/tiny-texts"
    model = from_pretrained(name)
    expected = loaded(texts).encode(TEXTS, normalize_embeddings=True)
    with torch.no_grad():
        embeds = model.encode_text(*model.tokenizer.encode(TEXTS)).embeds
    torch.testing.assert_close(embeds, torch.from_numpy(expected), rtol=0, atol=1e-6)
    described = describe(name)
    assert described.tokenizer["init_args"]["name_or_path"] == "somebody/tiny-texts"
    place = {"name_or_path": "sentence-transformers/tiny-images", "subfolder": "0_CLIPModel"}
    assert described.transform["init_args"] == place


def test_names_and_folders_that_do_not_do(images, texts, tmp_path, monkeypatch, hub):

    def says(name):
        with pytest.raises(CCRError) as error:
            from_pretrained(f"sentence-transformers:{name}")
        assert "\n" not in str(error.value)
        return str(error.value)

    give = "give sentence-transformers:IMAGE_MODEL+TEXT_MODEL, or sentence-transformers:MODEL for a model of both."
    assert says(f"{images}+").endswith(give)
    assert says("").endswith(give)
    assert "embeds no images; name one that does" in says(texts)
    narrow = save_tiny_texts(tmp_path / "narrow", width=12)
    assert "images get 16 numbers and captions 12, so they share no space" in says(f"{images}+{narrow}")
    assert "the model 'nobody/nothing' cannot be loaded" in says("nobody/nothing")
    assert "the model 'sentence-transformers/nothing' cannot be loaded" in says("nothing")

    lower = shutil.copytree(texts, tmp_path / "lower")
    settings = json.loads((lower / "sentence_bert_config.json").read_text())
    (lower / "sentence_bert_config.json").write_text(json.dumps({**settings, "do_lower_case": True}))
    settings = json.loads((lower / "tokenizer_config.json").read_text())
    (lower / "tokenizer_config.json").write_text(json.dumps({**settings, "do_lower_case": False}))
    assert "captions are prepared in a way that is not supported" in says(f"{images}+{lower}")
    prompted = shutil.copytree(texts, tmp_path / "prompted")
    settings = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    (prompted / "config_sentence_transformers.json").write_text(json.dumps(settings))
    assert "captions are prepared in a way that is not supported" in says(f"{images}+{prompted}")

    for name, content in (("modules.json", "{"), ("modules.json", "{}"), ("config.json", "[")):
        damaged = shutil.copytree(texts, tmp_path / "damaged", dirs_exist_ok=True)
        (damaged / name).write_text(content)
        assert str(damaged) in says(f"{images}+{damaged}")
        with pytest.raises(CCRError):
            describe(f"sentence-transformers:{images}+{damaged}")
    without = shutil.copytree(texts, tmp_path / "without")
    (without / "model.safetensors").unlink()
    assert "cannot be loaded" in says(f"{images}+{without}")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert says("a+b").endswith("pip install 'ccr-lightning[sentence_transformers]'.")


def test_ccr_tests_and_trains_it(images, texts, pair, tiny_jsonl, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ccr"])
    for logger in ("lightning.pytorch", "lightning.fabric"):
        monkeypatch.setattr(logging.getLogger(logger), "level", logging.WARNING)
    source = {"class_path": "ccr_lightning.data.sources.jsonl.JsonLines", "init_args": tiny_jsonl()}
    config = {"data": {"source": source, "batch_size": 4, "cache_dir": str(tmp_path / "cache")}}
    config |= {"trainer": {"accelerator": "cpu", "max_epochs": 1}, "runs_dir": str(tmp_path / "runs")}
    (tmp_path / "tiny.yaml").write_text(json.dumps(config))
    given = ["--config", str(tmp_path / "tiny.yaml")]
    assert main(["test", "--ckpt_path", pair, *given]) == 0
    scored = tmp_path / "runs" / "tiny-images+tiny-texts-tiny" / "results.json"
    results = json.loads(scored.read_text())
    assert results["languages"]["en"]["text_to_image"]["recall@1"] == recall_at_1(images, texts, source["init_args"])

    shutil.rmtree(scored.parent)
    assert main(["fit", "--init_from", pair, *given, "--model.lr=0"]) == 0
    run = scored.parent
    assert json.loads((run / "results.json").read_text())["mean_recall"] == results["mean_recall"]
    assert main(["fit", "--init_from", pair, *given, "--name=trained", "--model.lr=1e-3"]) == 0
    weights = torch.load(tmp_path / "runs" / "trained" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    start = {f"retriever.{name}": tensor for name, tensor in from_pretrained(pair).state_dict().items()}
    assert weights.keys() == start.keys()
    assert not weights["retriever.models.1.2.linear.weight"].equal(start["retriever.models.1.2.linear.weight"])
    assert weights["retriever.models.0.0.model.logit_scale"].equal(start["retriever.models.0.0.model.logit_scale"])
    assert main(["test", "--ckpt_path", str(tmp_path / "runs" / "trained"), "--name=again"]) == 0
    first, again = (json.loads((tmp_path / "runs" / of / "results.json").read_text()) for of in ("trained", "again"))
    assert first["languages"] == again["languages"]
    capsys.readouterr()


def recall_at_1(images, texts, jsonl):
    """Of English captions of the test split, by sentence-transformers alone."""
    with open(jsonl["files"]["test"], encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    opened = [Image.open(f"{jsonl['image_root']}/{line['image']}").convert("RGB") for line in lines]
    of_images = loaded(images).encode(opened, normalize_embeddings=True)
    of_texts = loaded(texts).encode([line["captions"]["en"][0] for line in lines], normalize_embeddings=True)
    return ((of_texts @ of_images.T).argmax(1) == np.arange(len(lines))).mean()
