"""Embedding pictures into an index, and finding them: against numpy, the library's embeddings, and damage."""

import json
import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import save_tiny

from ccr_lightning.cli.main import main


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    for kind in ("Siglip", "Siglip2", "CLIP", "AltCLIP"):
        save_tiny(kind, home / kind.lower())
    rng = np.random.default_rng(0)
    (home / "pictures" / "more").mkdir(parents=True)
    for number in range(12):
        folder = home / "pictures" / ("more" if number % 3 == 0 else "")
        Image.fromarray(rng.integers(0, 256, (30 + number, 40, 3), np.uint8)).save(folder / f"{number:02}.png")
    (home / "pictures" / "broken.jpg").write_bytes(b"no picture")
    (home / "pictures" / "notes.txt").write_text("no picture either, and not named as one")
    return home


@pytest.fixture
def ccr(home, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["ccr"])
    shutil.copytree(home, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    for name in ("lightning.pytorch", "lightning.fabric"):
        monkeypatch.setattr(logging.getLogger(name), "level", logging.WARNING)

    def run(*arguments):
        capsys.readouterr()
        status = main([str(argument) for argument in arguments])
        return status, *capsys.readouterr()

    return run


@torch.no_grad()
@pytest.mark.parametrize("kind", ["siglip", "siglip2", "clip", "altclip"])
def test_it_finds_what_the_librarys_embeddings_find(ccr, kind):
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    status, said, errors = ccr("embed", "pictures", "-o", "index", "--ckpt_path", kind)
    assert (status, errors) == (0, "")
    assert said == "12 pictures embedded, 0 dropped, 1 left out; 12 in index\n"
    (left_out,) = map(json.loads, Path("index/left_out.jsonl").read_text().splitlines())
    assert left_out["name"] == os.path.abspath("pictures/broken.jpg")
    assert "not a picture that Pillow can open" in left_out["reason"]

    texts = ["a red apple", "ein roter Apfel", "a cat"]
    paths = sorted({*(str(path) for path in Path("pictures").rglob("*.png"))})
    images = [Image.open(path).convert("RGB") for path in paths]
    model, tokenizer = AutoModel.from_pretrained(kind).eval(), AutoTokenizer.from_pretrained(kind)
    made = AutoImageProcessor.from_pretrained(kind)(images=images, return_tensors="pt")
    padding = "max_length" if kind.startswith("siglip") else True
    tokens = tokenizer(texts, padding=padding, truncation=True, max_length=24, return_tensors="pt")
    of_images, of_texts = (
        model.get_image_features(**made).pooler_output,
        model.get_text_features(**tokens).pooler_output,
    )
    cosines = torch.nn.functional.cosine_similarity(of_texts[:, None], of_images[None], dim=-1)

    status, said, errors = ccr("search", "index", *texts, "-k", 4, "--json")
    assert (status, errors) == (0, "")
    found = [json.loads(line) for line in said.splitlines()]
    assert [hit["query"] for hit in found] == [text for text in texts for _ in range(4)]
    for text, of in zip(texts, cosines, strict=True):
        hits = [hit for hit in found if hit["query"] == text]
        assert [hit["place"] for hit in hits] == [1, 2, 3, 4]
        best = of.topk(4)
        np.testing.assert_allclose([hit["similarity"] for hit in hits], best.values, atol=1e-6)
        np.testing.assert_allclose([of[paths.index(hit["path"])] for hit in hits], best.values, atol=1e-6)


def test_a_picture_finds_itself(ccr):
    assert ccr("embed", "pictures/*.png", "pictures/more", "-o", "index", "--ckpt_path", "clip")[0] == 0
    status, said, _ = ccr("search", "index", "--image", "pictures/04.png", "pictures/more/09.png", "-k", 1)
    assert status == 0
    assert [line.split()[-1] for line in said.splitlines()] == [
        *("pictures/04.png", "pictures/04.png", "pictures/more/09.png", "pictures/more/09.png")
    ]


def test_only_what_is_new_is_embedded_again(ccr, monkeypatch):
    from ccr_lightning.search import embed

    assert ccr("embed", "pictures", "-o", "index", "--ckpt_path", "clip")[0] == 0
    before = {path: hit for path, hit in all_hits(ccr).items()}
    opened = []
    open_image = embed.open_image
    monkeypatch.setattr(embed, "open_image", lambda path, where: opened.append(str(path)) or open_image(path, where))
    os.remove("pictures/01.png")
    shutil.copy("pictures/02.png", "pictures/copy.png")
    Image.new("RGB", (20, 20), "red").save("pictures/04.png")
    status, said, _ = ccr("embed", "pictures", "-o", "index")
    assert (status, said) == (0, "2 pictures embedded, 2 dropped, 1 left out; 12 in index\n")
    assert sorted(map(os.path.relpath, opened)) == ["pictures/04.png", "pictures/broken.jpg", "pictures/copy.png"]
    after = all_hits(ccr)
    assert after.keys() == before.keys() - {"pictures/01.png"} | {"pictures/copy.png"}
    assert after["pictures/copy.png"] == pytest.approx(before["pictures/02.png"], abs=1e-6)
    assert after["pictures/02.png"] == pytest.approx(before["pictures/02.png"], abs=1e-6)
    assert after["pictures/04.png"] != pytest.approx(before["pictures/04.png"], abs=1e-3)
    assert ccr("embed", "pictures", "-o", "index")[1] == "0 pictures embedded, 0 dropped, 1 left out; 12 in index\n"


def all_hits(ccr):
    hits = map(json.loads, ccr("search", "index", "a cat", "-k", 99, "--json")[1].splitlines())
    return {hit["path"]: hit["similarity"] for hit in hits}


def test_from_another_folder_it_is_the_same_index(ccr, monkeypatch, tmp_path):
    assert ccr("embed", "pictures", "-o", "index", "--ckpt_path", tmp_path / "home" / "clip")[0] == 0
    monkeypatch.chdir(tmp_path)
    said = ccr("embed", tmp_path / "home" / "pictures", "-o", "home/index")[1]
    assert said == "0 pictures embedded, 0 dropped, 1 left out; 12 in home/index\n"
    (tmp_path / "home" / "pictures" / "more").rename(tmp_path / "elsewhere")  # a disk that is not there
    said = ccr("embed", "home/pictures", "-o", "home/index")[1]
    assert said == "0 pictures embedded, 0 dropped, 1 left out; 12 in home/index\n"


def test_an_index_names_no_files_but_its_own(ccr, tmp_path):
    assert ccr("embed", "pictures", "-o", "index", "--ckpt_path", "clip")[0] == 0
    manifest = json.loads(Path("index/index.json").read_text())
    for parts in ({"../victim-1": {}}, {"part-000000": {}}, {"part-000000": {"part-000000.jsonl": "0"}}, []):
        Path("index/index.json").write_text(json.dumps({**manifest, "parts": parts}))
        assert_refused(ccr("embed", "pictures", "-o", "index"), "index.json: this is no index")
    del manifest["model"]
    Path("index/index.json").write_text(json.dumps(manifest))
    assert_refused(ccr("search", "index", "a"), "index.json: this is no index")


def test_what_was_embedded_before_an_interruption_stays(ccr, monkeypatch):
    from ccr_lightning.search import embed

    open_image = embed.open_image

    def interrupted(path, where):
        if path.name == "08.png":
            raise KeyboardInterrupt
        return open_image(path, where)

    monkeypatch.setattr(embed, "open_image", interrupted)
    arguments = ("embed", "pictures", "-o", "index", "--ckpt_path", "clip", "--batch_size", 2)
    status, _, errors = ccr(*arguments)
    assert status == 130
    assert errors == "error: interrupted: start it again; what is finished stays.\n"
    kept = all_hits(ccr)
    assert 0 < len(kept) < 12
    monkeypatch.setattr(embed, "open_image", open_image)
    status, said, _ = ccr(*arguments)
    assert said == f"{12 - len(kept)} pictures embedded, 0 dropped, 1 left out; 12 in index\n"
    whole = all_hits(ccr)
    assert {path: whole[path] for path in kept} == pytest.approx(kept, abs=1e-6)


def truncate(file):
    os.truncate(file, os.path.getsize(file) // 2)


def flip(file):
    with open(file, "r+b") as opened:
        opened.seek(-3, os.SEEK_END)
        byte = opened.read(1)
        opened.seek(-3, os.SEEK_END)
        opened.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda: truncate("index/part-000000.safetensors"), "part-000000.safetensors: the file is missing or damaged"),
        (lambda: flip("index/part-000000.safetensors"), "part-000000.safetensors: the file is missing or damaged"),
        (lambda: flip("index/part-000000.jsonl"), "part-000000.jsonl: the file is missing or damaged"),
        (lambda: os.remove("index/part-000000.jsonl"), "part-000000.jsonl: the file is missing or damaged"),
        (lambda: truncate("index/index.json"), "index.json: cannot be read"),
        (lambda: Path("index/index.json").write_text("[]"), "index.json: this is no index"),
        (lambda: Path("index/index.json").write_text('{"format": 9}'), "this is no index of this version"),
        (lambda: shutil.rmtree("index"), "index: there is no index; make one with ccr embed"),
    ],
)
def test_a_damaged_index_is_refused(ccr, damage, says):
    assert ccr("embed", "pictures", "-o", "index", "--ckpt_path", "clip")[0] == 0
    damage()
    assert_refused(ccr("search", "index", "a cat"), says)


def assert_refused(result, says):
    status, _, errors = result
    assert status == 1
    assert errors.startswith("error: ")
    assert says in errors
    assert errors.count("\n") == 1


def test_what_is_refused(ccr):
    assert_refused(ccr("embed", "pictures", "-o", "index"), "a new index needs --ckpt_path")
    assert_refused(
        ccr("embed", "nothing/*.png", "-o", "index", "--ckpt_path", "clip"), "nothing/*.png: there is no picture"
    )
    assert_refused(
        ccr("embed", "pictures", "-o", "pictures", "--ckpt_path", "clip"), "pictures: this is no index, and there"
    )
    assert_refused(ccr("embed", "pictures/**.png", "-o", "i", "--ckpt_path", "clip"), "pictures/**.png: ")
    assert_refused(ccr("embed", "pictures"), "the following arguments are required: -o/--output")
    assert ccr("embed", "pictures", "-o", "index", "--ckpt_path", "clip")[0] == 0
    assert_refused(ccr("embed", "pictures", "-o", "index", "--ckpt_path", "siglip2"), "was made by another model, clip")
    assert_refused(ccr("search", "index", "a cat", "--ckpt_path", "siglip2"), "was made by another model, clip")
    assert_refused(ccr("search", "index"), "there is no query")
    assert_refused(ccr("search", "index", " "), "a query is empty")
    assert_refused(ccr("search", "index", "a", "-k", 0), "-k is 0")
    assert_refused(
        ccr("search", "index", "--image", "pictures/broken.jpg"),
        "--image: the image pictures/broken.jpg is not a picture",
    )
    assert_refused(ccr("embed", "pictures/broken.jpg", "-o", "none", "--ckpt_path", "clip"), "none of the 1 pictures")
    assert ccr("embed", "pictures/01.png", "-o", "none", "--ckpt_path", "clip")[0] == 0  # the folder can still be used
    assert_refused(ccr("embed", "pictures", "-o", "new", "--ckpt_path", "clip", "--device", "tpu"), "--device tpu: ")
    assert_refused(ccr("search", "index", "--image", "nothing.png"), "there is no such file")
    assert ccr("search", "index", "x" * 100_000, "‮\u0000\n")[0] == 0  # cut to what the model reads
