"""Dual encoders of open_clip: embeddings, pixels and token ids are the library's own, in tests and in training."""

import json
import logging
import shutil
import sys

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import POSITIONS, TEXTS, save_tiny
from tiny_open_clip import KINDS, save_tiny_open_clip

from ccr_lightning.cli.main import main
from ccr_lightning.data.datamodule import CaptionDataModule
from ccr_lightning.data.open_clip_inputs import OpenClipTokenizer, OpenClipTransform
from ccr_lightning.data.open_clip_source import find_open_clip
from ccr_lightning.data.pixels import EncodedPicture
from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.errors import CCRError
from ccr_lightning.models.loading import describe, from_pretrained
from ccr_lightning.models.open_clip_encoder import OpenClipDualEncoder
from ccr_lightning.models.transformers_encoder import TransformersDualEncoder
from ccr_lightning.training.module import RetrievalModule
from ccr_lightning.training.tuning import tune

SIZES = ((60, 40), (32, 32), (20, 90))
FLORES = {"en": "eng_Latn", "de": "deu_Latn", "ja": "jpn_Jpan"}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    made = {}

    def of(kind):
        if kind not in made:
            made[kind] = save_tiny_open_clip(kind, tmp_path_factory.mktemp(kind))
        return str(made[kind])

    return of


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ccr"])
    for logger in ("lightning.pytorch", "lightning.fabric"):
        monkeypatch.setattr(logging.getLogger(logger), "level", logging.WARNING)


def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)) for width, height in SIZES]


def normalised(transform, images):
    pixels = np.stack([transform.evaluate(image) for image in images])
    return transform.normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2))


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_everything_is_the_librarys_own(folder_of, kind):
    name = f"local-dir:{folder_of(kind)}"
    library, _, preprocess = open_clip.create_model_and_transforms(name)
    library.eval()
    ids, pixels = open_clip.get_tokenizer(name)(TEXTS), torch.stack([preprocess(image) for image in pictures()])

    model = from_pretrained(folder_of(kind))
    images = normalised(model.transform, pictures())
    torch.testing.assert_close(images, pixels, rtol=0, atol=2e-6)
    input_ids, mask = model.tokenizer.encode(TEXTS)
    assert input_ids.equal(ids)
    texts = model.encode_text(input_ids, mask).embeds
    torch.testing.assert_close(texts, library.encode_text(ids, normalize=True), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        model.encode_image(images).embeds, library.encode_image(pixels, normalize=True), rtol=0, atol=1e-6
    )
    by_language = model.encode_text(input_ids.view(2, 3, -1), mask.view(2, 3, -1)).embeds
    torch.testing.assert_close(by_language.flatten(0, 1), texts)
    assert model.logit_scale.item() == pytest.approx(np.exp(3.0), rel=1e-6)
    assert (None if model.logit_bias is None else model.logit_bias.item()) == (-4.0 if kind == "siglip" else None)
    assert model.max_positions == model.tokenizer.max_tokens == ids.shape[1] == POSITIONS
    assert [len(tower) for tower in model.towers()] == [6 if kind == "siglip" else 3, 3]
    assert len(model.projections()) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_is_true_up_to_the_last_token(folder_of, kind):
    texts = ["", "a!! cat", "a red apple " * 20]
    ids, mask = OpenClipTokenizer(folder_of(kind)).encode(texts)
    library = open_clip.get_tokenizer(f"local-dir:{folder_of(kind)}")
    assert ids.equal(library(texts))
    padding = 0 if kind == "own" else library.tokenizer.pad_token_id
    for row, its in zip(ids.tolist(), mask.tolist(), strict=True):
        length = sum(its)
        assert its == [True] * length + [False] * (POSITIONS - length)
        assert set(row[length:]) <= {padding}
        assert length == 0 or row[length - 1] != padding
    assert mask[2].sum() >= POSITIONS - 1  # the end of SigLIP's captions is its padding


def test_texts_are_cleaned_as_open_clip_does(folder_of):
    odd = ["  A   red\n apple &amp; more  ", "It's RED, isn't_it?"]
    clean = ["a red apple more", "its red isnt it"]
    own, siglip, xlm_r = (OpenClipTokenizer(folder_of(kind)) for kind in ("own", "siglip", "xlm_r"))
    assert siglip.encode(odd)[0].equal(siglip.encode(clean)[0])  # without capitals and signs
    assert own.encode(odd[:1])[0].equal(own.encode(["a red apple & more"])[0])
    assert xlm_r.encode(odd[:1])[0].equal(xlm_r.encode(["A red apple & more"])[0])
    assert not xlm_r.encode(["A red"])[0].equal(xlm_r.encode(["a red"])[0])


@pytest.mark.parametrize(
    "preprocess",
    [
        {"resize_mode": "shortest", "interpolation": "bicubic"},
        {"resize_mode": "squash", "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3},
        {"resize_mode": "longest", "interpolation": "bicubic", "fill_color": 200},
    ],
)
def test_pixels_are_those_of_the_models_settings(tmp_path, preprocess):
    folder = save_tiny_open_clip("xlm_r", tmp_path / "model", preprocess)
    _, _, library = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    transform = OpenClipTransform(str(folder))
    expected = torch.stack([library(image) for image in pictures()])
    torch.testing.assert_close(normalised(transform, pictures()), expected, rtol=0, atol=2e-6)
    pictures()[0].save(tmp_path / "picture.png")
    encoded = EncodedPicture((tmp_path / "picture.png").read_bytes(), "here")
    assert np.array_equal(transform.train(encoded, seed=1), transform.evaluate(pictures()[0]))
    cropped = OpenClipTransform(str(folder), crop_scale=(0.3, 0.5))
    assert cropped.train(encoded, seed=1).shape == (32, 32, 3)
    assert not np.array_equal(cropped.train(encoded, seed=1), cropped.train(encoded, seed=2))
    assert cropped.evaluation_settings == transform.evaluation_settings


def test_nllb_clip_is_told_the_language_of_each_caption(folder_of, tiny_jsonl, tmp_path):
    library = open_clip.get_tokenizer(f"local-dir:{folder_of('nllb')}")

    def expected(text, language):
        library.tokenizer.src_lang = FLORES[language]
        return library([text])[0]

    first = {language: library.tokenizer.convert_tokens_to_ids(code) for language, code in FLORES.items()}
    tokenizer = OpenClipTokenizer(folder_of("nllb"))
    asked = [("a cat", "en"), ("a cat", "de"), ("りんご", "ja"), ("a cat", "en")]
    ids, _ = tokenizer.encode(*zip(*asked, strict=True))
    assert ids.equal(torch.stack([expected(text, language) for text, language in asked]))
    assert ids[:, 0].tolist() == [first[language] for _, language in asked]
    assert tokenizer.encode(["a cat"])[0][0, 0] == first["en"]  # as in open_clip, where nothing else is said
    with pytest.raises(CCRError, match=r"cannot read 'fr', it knows de, en, ja; choose"):
        tokenizer.encode(["un chat"], ["fr"])

    data = CaptionDataModule(
        JsonLines(**tiny_jsonl()),
        tokenizer,
        OpenClipTransform(folder_of("nllb")),
        languages=["ja", "en", "de"],
        batch_size=4,
        cache_dir=str(tmp_path / "cache"),
    )
    data.prepare_data()
    batch = next(iter(data.train_dataloader()))
    assert batch.input_ids[:, :, 0].tolist() == [[first["ja"], first["en"], first["de"]]] * 4
    _, captions = data.test_dataloader()
    for batch in captions:
        told = [first[data.languages[number]] for number in batch.languages]
        assert batch.input_ids[:, 0].tolist() == told
    again = next(data.reader("test", lambda batch: batch).captions([[0, 20]]))
    assert again.input_ids[:, 0].tolist() == [first["ja"], first["de"]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_the_tokeniser(folder_of, kind, tmp_path, tiny_jsonl):
    copy = shutil.copytree(folder_of(kind), tmp_path / "copy")
    tokenizer = OpenClipTokenizer(str(copy))
    expected = tokenizer.encode(TEXTS)[0]
    source = JsonLines(**tiny_jsonl())
    torch.save(CaptionDataModule(source, tokenizer).state_dict(), tmp_path / "state")
    shutil.rmtree(copy)
    data = CaptionDataModule(source, OpenClipTokenizer(str(copy), POSITIONS))
    data.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert data.tokenizer.encode(TEXTS)[0].equal(expected)
    assert data.tokenizer.identity == OpenClipTokenizer(folder_of(kind)).identity
    others = [OpenClipTokenizer(folder_of(other)).identity for other in KINDS if other != kind]
    assert data.tokenizer.identity not in others


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_open_clip_loads(folder_of, kind, tmp_path):
    model = from_pretrained(folder_of(kind))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.125)
    model.save_pretrained(tmp_path / "mine")
    library = open_clip.create_model_from_pretrained(f"local-dir:{tmp_path / 'mine'}", return_transform=False)
    before = open_clip.create_model_from_pretrained(f"local-dir:{folder_of(kind)}", return_transform=False)
    after = library.state_dict()
    for name, parameter in before.named_parameters():
        torch.testing.assert_close(after[name], parameter.detach() + 0.125)
    again = from_pretrained(tmp_path / "mine")
    assert again.tokenizer.identity == model.tokenizer.identity
    assert again.transform.evaluation_settings == model.transform.evaluation_settings
    assert (tmp_path / "mine" / "README.md").read_text().startswith("---\n")
    assert describe(str(tmp_path / "mine")).training == {
        "matching_weight": 0.0,
        "masked_lm_weight": 0.0,
        "objective": "one_to_k_sigmoid" if kind == "siglip" else "one_to_k",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_training(folder_of, kind, tiny_jsonl, tmp_path):
    model = from_pretrained(folder_of(kind)).train()
    training = describe(folder_of(kind)).training
    data = CaptionDataModule(
        JsonLines(**tiny_jsonl()), model.tokenizer, model.transform, batch_size=8, cache_dir=str(tmp_path)
    )
    data.prepare_data()
    batch = data.normalize(next(iter(data.train_dataloader())))
    module = RetrievalModule(model, **training)
    losses = []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.eval()  # without dropout, that the second loss is of the same function
    for _ in range(2):
        loss = module.losses(batch, data.tokenizer)["contrastive"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert np.isfinite(losses).all()
    assert losses[1] < losses[0]
    assert all(p.requires_grad == (p.grad is not None) for p in model.parameters())
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all(), name
        if not name.endswith(("key.bias", "k_proj.bias")):  # on which no softmax depends
            assert parameter.requires_grad != parameter.equal(before[name]), name


def test_a_row_without_tokens_is_finite(folder_of):
    for kind in KINDS:
        model = from_pretrained(folder_of(kind))
        ids = torch.full((2, POSITIONS), model.tokenizer.pad_token_id)
        assert model.encode_text(ids, torch.zeros_like(ids, dtype=torch.bool)).embeds.isfinite().all()


@pytest.mark.parametrize("kind", ["own", "xlm_r"])
def test_parts_of_it_are_trained(folder_of, kind):
    of_layers = {"own": "model.transformer.resblocks.", "xlm_r": "model.text.transformer.encoder.layer."}[kind]
    of_projections = {"own": "model.text_projection", "xlm_r": "model.text.proj."}[kind]
    model = from_pretrained(folder_of(kind))
    tune(model, "last_layers", 1)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    allowed = ("log_logit_scale", "model.visual.proj", of_projections)
    allowed += (f"{of_layers}2.", "model.visual.transformer.resblocks.2.")
    assert trained
    assert all(name.startswith(allowed) for name in trained)
    assert {part for part in allowed if any(name.startswith(part) for name in trained)} == set(allowed)

    adapted = from_pretrained(folder_of(kind))
    tune(adapted, "lora", lora_rank=2)
    images = torch.randn(2, 3, 32, 32)
    embeds = [adapted.encode_image(images).embeds, adapted.encode_text(*adapted.tokenizer.encode(TEXTS)).embeds]
    torch.stack([of.sum() for of in embeds]).sum().backward()
    adapters = [parameter for name, parameter in adapted.named_parameters() if "lora_B" in name]
    assert adapters
    assert all(parameter.grad is not None for parameter in adapters)  # ddp stops at one without


def test_names_on_the_hub(folder_of, tmp_path, hub):
    folder = shutil.copytree(folder_of("xlm_r"), tmp_path / "copy")
    path = folder / "open_clip_config.json"
    path.write_text(path.read_text().replace('"itself"', '"somebody/tiny"'))
    hub(folder, "somebody/tiny")
    model = from_pretrained("somebody/tiny")
    expected = from_pretrained(folder_of("xlm_r"))
    assert all(map(torch.equal, model.state_dict().values(), expected.state_dict().values()))
    assert model.tokenizer.identity == expected.tokenizer.identity
    assert describe("somebody/tiny").retriever["init_args"] == {"name_or_path": "somebody/tiny"}
    weights = "open_clip_model.safetensors"
    hub(folder, "somebody/without").joinpath(weights).unlink()
    assert OpenClipDualEncoder("somebody/without", pretrained=False).vocab_size == expected.vocab_size
    with pytest.raises(CCRError, match=r"^somebody/without: open_clip cannot load this model \("):
        from_pretrained("somebody/without")
    with pytest.raises(CCRError, match=r"^somebody/nothing: there is no such folder here, and the Hugging Face hub "):
        from_pretrained("somebody/nothing")


def test_names_of_open_clips_own_weights():
    source = find_open_clip("open_clip:ViT-B-32/openai")
    assert (source.name, source.tag) == ("ViT-B-32", "openai")
    assert source.model["quick_gelu"] is True  # with which OpenAI trained
    assert find_open_clip("open_clip:ViT-B/32/laion2b_s34b_b79k").model.get("quick_gelu") is None
    siglip = find_open_clip("open_clip:ViT-B-16-SigLIP-i18n-256/webli")
    expected = open_clip.get_pretrained_cfg("ViT-B-16-SigLIP-i18n-256", "webli")
    assert {key: siglip.preprocess[key] for key in ("mean", "std", "interpolation", "resize_mode")} == {
        key: expected[key] for key in ("mean", "std", "interpolation", "resize_mode")
    }
    assert (siglip.preprocess["size"], siglip.context_length) == (256, 64)
    for name, says in (
        ("open_clip:ViT-B-32/none", "open_clip has no weights 'none' of this architecture; choose among openai, "),
        ("open_clip:ViT-B-33/openai", "open_clip has no architecture 'ViT-B-33'; give open_clip:ARCHITECTURE/TAG "),
        ("open_clip:openai", "open_clip has no architecture ''"),
    ):
        with pytest.raises(CCRError, match=f"^{name}: {says}"):
            from_pretrained(name)


def test_a_folder_that_transformers_reads_too(tmp_path):
    folder = save_tiny("CLIP", tmp_path / "both")
    (folder / "open_clip_config.json").write_text("{}")
    assert isinstance(from_pretrained(folder), TransformersDualEncoder)


def test_damaged_folders(folder_of, tmp_path, monkeypatch):
    def changed(change):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(folder_of("xlm_r"), folder)
        change(folder)
        with pytest.raises(CCRError) as error:
            from_pretrained(folder)
        assert "\n" not in str(error.value)
        return str(error.value).removeprefix(f"{folder}")

    def of_config(content):
        return lambda folder: (folder / "open_clip_config.json").write_text(content)

    def without(name):
        return lambda folder: (folder / name).unlink()

    def without_a_tensor(folder):
        weights = load_file(folder / "open_clip_model.safetensors")
        del weights["text.proj.0.weight"]
        save_file(weights, folder / "open_clip_model.safetensors")

    def of_another(folder):
        shutil.copy(f"{folder_of('own')}/open_clip_model.safetensors", folder)

    def asks_for_code(folder):
        path = folder / "open_clip_config.json"
        content = json.loads(path.read_text())
        content["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = {"trust_remote_code": True}
        path.write_text(json.dumps(content))
        (folder / "own.py").write_text("raise SystemExit('code of the model ran')")
        own = {"auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}, "tokenizer_class": "Own"}
        (folder / "tokenizer_config.json").write_text(json.dumps(own))

    assert changed(of_config("{")).startswith("/open_clip_config.json: cannot be read (Expecting property name")
    assert changed(of_config('{"model_cfg": {}}')) == (
        "/open_clip_config.json: cannot be read ('vision_cfg'); fetch or save the model again."
    )
    assert "a part of it is no mapping" in changed(of_config('{"model_cfg": {"vision_cfg": 1, "text_cfg": {}}}'))
    assert "could not be loaded" in changed(without("open_clip_model.safetensors"))
    assert 'Missing key(s) in state_dict: "text.proj.0.weight"' in changed(without_a_tensor)
    assert "open_clip cannot load this model" in changed(of_another)
    assert "has no vocabulary; complete its files." in changed(without("tokenizer.json"))
    assert "the tokeniser cannot be loaded" in changed(asks_for_code)
    with pytest.raises(CCRError, match=r"reads 24, neither more nor fewer: pass --data.tokenizer.init_args.max_tokens"):
        OpenClipTokenizer(folder_of("xlm_r"), max_tokens=12).encode(["a"])
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(CCRError, match=r"need open_clip_torch: pip install 'ccr-lightning\[open_clip\]'\.$"):
        from_pretrained(folder_of("own"))


@pytest.mark.parametrize("kind", ["xlm_r", "siglip"])
def test_ccr_tests_and_trains_it(folder_of, kind, tiny_jsonl, tmp_path, capsys, quiet):
    source = {"class_path": "ccr_lightning.data.sources.jsonl.JsonLines", "init_args": tiny_jsonl()}
    config = {"data": {"source": source, "batch_size": 4, "cache_dir": str(tmp_path / "cache")}}
    config |= {"trainer": {"accelerator": "cpu", "max_epochs": 1}, "runs_dir": str(tmp_path / "runs")}
    (tmp_path / "tiny.yaml").write_text(json.dumps(config))
    copy = shutil.copytree(folder_of(kind), tmp_path / f"of.{kind}")
    given = ["--config", str(tmp_path / "tiny.yaml")]
    assert main(["test", "--ckpt_path", str(copy), *given]) == 0
    results = json.loads((tmp_path / "runs" / f"of.{kind}-tiny" / "results.json").read_text())
    assert list(results["languages"]) == ["en", "de", "ja"]
    assert results["languages"]["en"]["text_to_image"]["recall@1"] == recall_at_1(copy, source["init_args"])

    assert main(["fit", "--init_from", str(copy), *given, "--name=trained", "--model.lr=1e-4"]) == 0
    assert main(["fit", "--init_from", str(copy), *given, "--name=as-before", "--model.lr=0"]) == 0
    same = json.loads((tmp_path / "runs" / "as-before" / "results.json").read_text())
    assert same["mean_recall"] == results["mean_recall"]
    shutil.rmtree(copy)  # the run has all that it needs
    assert main(["test", "--ckpt_path", str(tmp_path / "runs" / "as-before"), "--name=again"]) == 0
    again = json.loads((tmp_path / "runs" / "again" / "results.json").read_text())
    assert again["languages"] == same["languages"]
    capsys.readouterr()


@torch.no_grad()
def recall_at_1(folder, jsonl):
    """Of English captions of the test split, by open_clip alone."""
    library, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    library.eval()
    with open(jsonl["files"]["test"], encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    opened = [Image.open(f"{jsonl['image_root']}/{line['image']}").convert("RGB") for line in lines]
    images = library.encode_image(torch.stack([preprocess(image) for image in opened]), normalize=True)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    texts = library.encode_text(tokenizer([line["captions"]["en"][0] for line in lines]), normalize=True)
    return ((texts @ images.T).argmax(1) == torch.arange(len(lines))).float().mean().item()
