"""Embedding pictures into an index, and finding them: against numpy, the library's embeddings, and damage."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import save_tiny

from ccr_lightning.cli.main import main
from ccr_lightning.errors import CCRError


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
def library_embeds(kind, images, texts):
    """What transformers itself makes of pictures and captions, normalised."""
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(kind).eval(), AutoTokenizer.from_pretrained(kind)
    made = AutoImageProcessor.from_pretrained(kind)(images=images, return_tensors="pt")
    padding = "max_length" if kind.startswith("siglip") else True
    tokens = tokenizer(texts, padding=padding, truncation=True, max_length=24, return_tensors="pt")
    found = model.get_image_features(**made).pooler_output, model.get_text_features(**tokens).pooler_output
    return [torch.nn.functional.normalize(of, dim=1) for of in found]


@pytest.mark.parametrize("kind", ["siglip", "siglip2", "clip", "altclip"])
def test_it_finds_what_the_librarys_embeddings_find(ccr, kind):
    status, said, errors = ccr("embed", "pictures", "-o", "index", "--ckpt_path", kind)
    assert (status, errors) == (0, "")
    assert said == "12 pictures embedded, 0 dropped, 1 left out (left_out.jsonl says why); 12 in index\n"
    (left_out,) = map(json.loads, Path("index/left_out.jsonl").read_text().splitlines())
    assert left_out["name"] == os.path.abspath("pictures/broken.jpg")
    assert "not a picture that Pillow can open" in left_out["reason"]

    texts = ["a red apple", "ein roter Apfel", "a cat"]
    paths = sorted({*(str(path) for path in Path("pictures").rglob("*.png"))})
    of_images, of_texts = library_embeds(kind, [Image.open(path).convert("RGB") for path in paths], texts)
    cosines = of_texts @ of_images.T

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
    assert (status, said) == (0, "2 pictures embedded, 2 dropped, 1 left out (left_out.jsonl says why); 12 in index\n")
    assert sorted(map(os.path.relpath, opened)) == ["pictures/04.png", "pictures/broken.jpg", "pictures/copy.png"]
    after = all_hits(ccr)
    assert after.keys() == before.keys() - {"pictures/01.png"} | {"pictures/copy.png"}
    assert after["pictures/copy.png"] == pytest.approx(before["pictures/02.png"], abs=1e-6)
    assert after["pictures/02.png"] == pytest.approx(before["pictures/02.png"], abs=1e-6)
    assert after["pictures/04.png"] != pytest.approx(before["pictures/04.png"], abs=1e-3)
    same = "0 pictures embedded, 0 dropped, 1 left out (left_out.jsonl says why); 12 in index\n"
    assert ccr("embed", "pictures", "-o", "index")[1] == same


def all_hits(ccr):
    hits = map(json.loads, ccr("search", "index", "a cat", "-k", 99, "--json")[1].splitlines())
    return {hit["path"]: hit["similarity"] for hit in hits}


def test_from_another_folder_it_is_the_same_index(ccr, monkeypatch, tmp_path):
    assert ccr("embed", "pictures", "-o", "index", "--ckpt_path", "clip")[0] == 0
    monkeypatch.chdir(tmp_path)
    same = "0 pictures embedded, 0 dropped, 1 left out (left_out.jsonl says why); 12 in home/index\n"
    assert ccr("embed", tmp_path / "home" / "pictures", "-o", "home/index")[1] == same
    assert ccr("embed", "home/index/../pictures", "-o", "home/index")[1] == same
    assert ccr("search", "home/index", "a cat", "-k", 1)[0] == 0
    (tmp_path / "home" / "pictures").rename(tmp_path / "elsewhere")  # a disk that is not there
    (tmp_path / "home" / "other").mkdir()
    shutil.copy(tmp_path / "elsewhere" / "01.png", tmp_path / "home" / "other")
    said = ccr("embed", "home/other", "-o", "home/index")[1]
    assert said == "1 pictures embedded, 0 dropped, 0 left out; 13 in home/index\n"
    (tmp_path / "home" / "clip").rename(tmp_path / "home" / "moved")
    says = f"home/index: its model is not at {tmp_path / 'home' / 'clip'} any more: name it with --ckpt_path."
    assert_refused(ccr("search", "home/index", "a cat"), says)


def test_a_folder_that_is_gone_from_a_named_one(ccr):
    assert ccr("embed", "pictures", "-o", "index", "--ckpt_path", "clip")[0] == 0
    shutil.rmtree("pictures/more")
    assert ccr("embed", "pictures", "-o", "index")[1].startswith("0 pictures embedded, 4 dropped, ")


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
    assert said.startswith(f"{12 - len(kept)} pictures embedded, 0 dropped, 1 left out")
    assert said.endswith("; 12 in index\n")
    whole = all_hits(ccr)
    assert {path: whole[path] for path in kept} == pytest.approx(kept, abs=1e-6)


@pytest.fixture
def captioned(ccr, tiny_jsonl, tmp_path):
    """Two splits of drawn pictures with captions in three languages, as JSON lines and as a configuration."""
    source = tiny_jsonl("home/data", train=5, val=4, test=7, size=32)
    class_path = "ccr_lightning.data.sources.jsonl.JsonLines"
    config = {"data": {"source": {"class_path": class_path, "init_args": {**source, "name": "drawn"}}}}
    Path("data.yaml").write_text(json.dumps(config))
    return [json.loads(line) for split in ("val", "test") for line in Path(f"data/{split}.jsonl").open()]


def test_captions_are_found_by_pictures(ccr, captioned):
    command = ("embed", "data.yaml", "--split", "val", "test", "-o", "index", "--ckpt_path", "clip")
    status, said, errors = ccr(*command)
    assert (status, errors) == (0, "")
    assert said == "11 pictures embedded, 0 dropped, 0 left out; 11 with 33 captions in index\n"
    captions = [(language, text) for line in captioned for language, [text] in line["captions"].items()]
    images = [Image.open(f"data/{line['image']}").convert("RGB") for line in captioned]
    of_images, of_texts = library_embeds("clip", images, [text for _, text in captions])
    for number, line in enumerate(captioned[:2]):
        said = ccr("search", "index", "--image", f"data/{line['image']}", "--captions", "-k", 4, "--json")[1]
        found = [json.loads(line) for line in said.splitlines()]
        best = (of_texts @ of_images[number]).topk(4)
        assert [(hit["language"], hit["caption"]) for hit in found] == [captions[of] for of in best.indices]
        np.testing.assert_allclose([hit["similarity"] for hit in found], best.values, atol=1e-6)
        described = [captioned[of // 3] for of in best.indices.tolist()]
        assert [hit["path"] for hit in found] == [f"data/{of['image']}" for of in described]
        ids = [f"{'val' if captioned.index(of) < 4 else 'test'}/{of['image_id']}" for of in described]
        assert [hit["name"] for hit in found] == [f"drawn/{of}" for of in ids]


def test_ranks_of_a_picture_for_every_query(ccr, captioned):
    assert ccr("embed", "data.yaml", "-o", "index", "--ckpt_path", "clip")[0] == 0
    texts = ["ein roter Apfel", "a cat", "りんごが赤い"]
    every = {}
    for text in texts:
        hits = map(json.loads, ccr("search", "index", text, "-k", 99, "--json")[1].splitlines())
        every[text] = [hit["name"] for hit in hits]
    said = ccr("search", "index", *texts, "-k", 2, "--compare", "--json")[1]
    found = [json.loads(line) for line in said.splitlines()]
    assert [hit["query"] for hit in found] == [text for text in texts for _ in range(2)]
    for hit in found:
        assert hit["ranks"] == [1 + every[text].index(hit["name"]) for text in texts]
        assert hit["ranks"][texts.index(hit["query"])] == hit["place"]
    table = ccr("search", "index", *texts, "-k", 2, "--compare")[1]
    for hit in found:
        (row,) = (line for line in table.splitlines() if f"{hit['name']} " in line)
        assert [int(cell) for cell in row.split("│")[2:5]] == hit["ranks"]


def test_records_that_are_gone_or_have_changed(ccr, captioned):
    command = ("embed", "data.yaml", "-o", "index", "--ckpt_path", "clip")
    assert ccr(*command)[1] == "16 pictures embedded, 0 dropped, 0 left out; 16 with 48 captions in index\n"
    lines = Path("data/test.jsonl").read_text().splitlines()
    changed = json.loads(lines[1])
    changed["captions"]["de"] = ["ein ganz anderer Text", "und noch einer"]
    Path("data/test.jsonl").write_text("\n".join([lines[0], json.dumps(changed), *lines[3:]]) + "\n")
    os.remove(f"data/{json.loads(lines[4])['image']}")
    assert ccr(*command[:-2], "--split", "test")[1] == (
        "1 pictures embedded, 3 dropped, 1 left out (left_out.jsonl says why); 14 with 43 captions in index\n"
    )
    (left_out,) = map(json.loads, Path("index/left_out.jsonl").read_text().splitlines())
    assert "test.jsonl:4" in left_out["reason"]
    said = ccr("search", "index", "und noch einer", "--captions", "-k", 1, "--json")[1]
    hit = json.loads(said)
    assert (hit["language"], hit["caption"], hit["name"]) == (
        "de",
        "und noch einer",
        f"drawn/test/{changed['image_id']}",
    )
    assert hit["similarity"] == pytest.approx(1, abs=1e-6)
    again = ccr(*command[:-2])[1]
    assert again.startswith("0 pictures embedded, 0 dropped, 1 left out (")
    assert again.endswith("; 14 with 43 captions in index\n")


@pytest.mark.parametrize("part", [2, 4096])
def test_pictures_that_are_no_files_are_kept(ccr, captioned, monkeypatch, part):
    from ccr_lightning import Index
    from ccr_lightning.search import embed

    monkeypatch.setattr(embed, "_PART", part)
    assert ccr("data", "build", "data.yaml", "--split", "test", "--cache_dir", "stores")[0] == 0
    (store,) = {path.parent for path in Path().rglob("manifest.json")}
    pixels = {line["image_id"]: np.asarray(Image.open(f"data/{line['image']}").convert("RGB")) for line in captioned}
    shutil.rmtree("data")
    assert ccr("embed", store, "-o", "index", "--ckpt_path", "clip", "--batch_size", 1)[0] == 0
    index = Index("index")
    assert len(list(Path("index").glob("*.safetensors"))) <= 3  # parts as small as each other are merged
    assert len(index) == 7
    assert {picture.path for picture in index.pictures()} == {None}
    for number, picture in enumerate(index.pictures()):
        np.testing.assert_array_equal(np.asarray(index.open(number)), pixels[picture.name.rpartition("/")[2]])


def test_in_a_program(ccr):
    from ccr_lightning import Index, embed_pictures, from_pretrained

    model = from_pretrained("clip").train()
    index = embed_pictures("index", ["pictures"], model, "clip")
    assert model.training
    picture = Image.open("pictures/more/03.png")
    words, _, like = model.search(index, ["a cat", picture, "a cat"], k=3)
    assert words == like
    assert model.search(index, [picture], k=1)[0][0].picture.path == os.path.abspath("pictures/more/03.png")
    hits = [json.loads(line) for line in ccr("search", "index", "a cat", "-k", 3, "--json")[1].splitlines()]
    assert [os.path.relpath(hit.picture.path) for hit in words] == [hit["path"] for hit in hits]
    assert [hit.similarity for hit in words] == pytest.approx([hit["similarity"] for hit in hits], abs=1e-6)
    np.testing.assert_array_equal(np.asarray(index.open(words[0].number)), np.asarray(Image.open(hits[0]["path"])))
    Image.new("RGB", (9, 9)).save(hits[0]["path"])
    with pytest.raises(CCRError, match=r"is gone or has changed since it was embedded; embed it again\.$"):
        index.open(words[0].number)
    for number in (-1, 12):
        with pytest.raises(CCRError, match=f"there is no picture {number}; there are 12"):
            index.open(number)
    with pytest.raises(CCRError, match="made by another model, clip"):
        from_pretrained("siglip").search(Index("index"), ["a cat"])
    for queries in ("a cat", []):
        with pytest.raises(CCRError, match="takes a list of queries"):
            model.search(index, queries)
    with torch.no_grad():
        model.projections()[0].weight.fill_(torch.nan)
    with pytest.raises(CCRError, match="not finite"):
        embed_pictures("other", ["pictures"], model)


@pytest.fixture
def few_cells(monkeypatch):
    from ccr_lightning.search import approximate

    monkeypatch.setattr(approximate, "LEAST", 12)
    monkeypatch.setattr(approximate, "_PICTURES_PER_CELL", 3)
    monkeypatch.setattr(approximate, "_BEST", 3)


def test_approximate_search_says_what_it_finds(ccr, few_cells):
    from ccr_lightning import Index, from_pretrained
    from ccr_lightning.search.approximate import ApproximateSearch

    assert ccr("embed", "pictures", "-o", "index", "--ckpt_path", "clip")[0] == 0
    status, said, errors = ccr("search", "index", "a cat", "--approximate", "-k", 12, "--json")
    assert status == 0
    assert "dividing 12 pictures into cells, once" in errors
    search = ApproximateSearch(Index("index"))
    of = search.approximation
    assert (of.cells, of.queries, of.asked) == (4, 12, "pictures")
    assert f"approximate: {100 * of.recall:.1f} % of the 3 best of exact search, measured with 12 pictures" in errors
    exact = all_hits(ccr)
    found = {hit["path"]: hit["similarity"] for hit in map(json.loads, said.splitlines())}
    assert {path: exact[path] for path in found} == pytest.approx(found, abs=1e-6)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    paths = sorted(Path("pictures").rglob("*.png"))
    embeds = from_pretrained("clip").embed_images([Image.open(path) for path in paths])
    nearest = np.argsort(-(embeds @ embeds.T).numpy(), axis=1)[:, :3]
    hits = [[Path(hit.picture.path).name for hit in hits] for hits in search.search(embeds, 3)]
    shares = [len({paths[of].name for of in row} & set(own)) / 3 for row, own in zip(nearest, hits, strict=True)]
    assert np.mean(shares) == pytest.approx(of.recall)
    assert of.recall >= 0.95

    assert "dividing" not in ccr("search", "index", "a cat", "--approximate")[2]
    flip("index/approximate.faiss")
    assert "dividing" in ccr("search", "index", "a cat", "--approximate")[2]
    shutil.copy("pictures/02.png", "pictures/copy.png")
    assert ccr("embed", "pictures", "-o", "index")[0] == 0
    assert "dividing 13 pictures" in ccr("search", "index", "a cat", "--approximate")[2]


def test_approximate_search_is_for_large_indexes(ccr, monkeypatch):
    assert ccr("embed", "pictures", "-o", "index", "--ckpt_path", "clip")[0] == 0
    assert_refused(
        ccr("search", "index", "a cat", "--approximate"), "index has 12 pictures, of which exact search takes"
    )
    assert_refused(ccr("search", "index", "a cat", "--approximate", "--compare"), "--approximate finds pictures")
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert_refused(ccr("search", "index", "a cat", "--approximate"), "pip install 'ccr-lightning[faiss]'")


def test_one_process_at_a_time_writes(ccr):
    from ccr_lightning.search.writing import open_to_write

    command = ("embed", "pictures", "-o", "index", "--ckpt_path", "clip")
    with open_to_write("index"):
        assert_refused(ccr(*command), "index: another process embeds pictures into it; start again when that is done.")
    assert not os.path.exists("index")
    assert ccr(*command)[0] == 0
    index = all_hits(ccr)
    with open_to_write("index"):
        assert all_hits(ccr) == index
        assert_refused(ccr(*command), "another process embeds pictures into it")
    Path("file").touch()
    says = "file/index: the folder cannot be written (Not a directory); name another one."
    assert_refused(ccr(*command[:3], "file/index", *command[4:]), says)
    os.mkdir("mine")
    Path("mine/notes.txt").touch()
    assert_refused(ccr(*command[:3], "mine", *command[4:]), "mine: this is no index, and there is something in it")
    assert os.listdir("mine") == ["notes.txt"]


def test_an_open_index_stays_as_it_was(ccr, captioned):
    from ccr_lightning import Index, from_pretrained

    assert ccr("data", "build", "data.yaml", "--split", "test", "--cache_dir", "stores")[0] == 0
    (store,) = {path.parent for path in Path().rglob("manifest.json")}
    assert ccr("embed", store, "-o", "index", "--ckpt_path", "clip")[0] == 0
    index, model = Index("index"), from_pretrained("clip")
    before = [np.asarray(index.open(number)) for number in range(7)], model.search(index, ["a cat"], 7)
    for file in Path("index").iterdir():
        file.unlink()
    np.testing.assert_array_equal([np.asarray(index.open(number)) for number in range(7)], before[0])
    assert model.search(index, ["a cat"], 7) == before[1]


def test_other_data_of_the_same_name_do_not_replace_it(ccr, captioned):
    for folder in ("one", "two"):
        shutil.copytree("data", folder)
    assert ccr("embed", "one/test.jsonl", "-o", "index", "--ckpt_path", "clip")[0] == 0
    assert_refused(ccr("embed", "two/test.jsonl", "-o", "index"), "index has pictures of test/test from other data")
    assert ccr("embed", "one/test.jsonl", "-o", "index")[1].startswith("0 pictures embedded, 0 dropped, 0 left out; 7 ")
    assert ccr("embed", "two/val.jsonl", "-o", "index")[1].startswith("4 pictures embedded, 0 dropped, 0 left out; 11 ")


def test_an_interruption_of_a_merge_loses_nothing(ccr, monkeypatch):
    from ccr_lightning.search import embed, index

    monkeypatch.setattr(embed, "_PART", 2)
    joined, merges = index.joined, []

    def interrupted(contents):
        merges.append(len(contents))
        if len(merges) == 2:
            raise KeyboardInterrupt
        return joined(contents)

    monkeypatch.setattr(index, "joined", interrupted)
    command = ("embed", "pictures", "-o", "index", "--ckpt_path", "clip", "--batch_size", 1)
    assert ccr(*command)[0] == 130
    monkeypatch.setattr(index, "joined", joined)
    kept = all_hits(ccr)
    assert len(kept) >= 6  # two parts that were merged, and a third
    Path("index/part-000099.jsonl").touch()  # as is left where the process is killed between writing and deleting
    assert ccr(*command)[1].startswith(f"{12 - len(kept)} pictures embedded, 0 dropped, 1 left out")
    whole = all_hits(ccr)
    assert len(whole) == 12
    assert {path: whole[path] for path in kept} == pytest.approx(kept, abs=1e-6)
    in_manifest = json.loads(Path("index/index.json").read_text())["parts"]
    assert {path.name.partition(".")[0] for path in Path("index").glob("part-*")} == set(in_manifest)


def test_an_index_that_is_written_to_while_it_is_opened(ccr, monkeypatch):
    from ccr_lightning import Index
    from ccr_lightning.search.part import Part

    assert ccr("embed", "pictures/01.png", "-o", "index", "--ckpt_path", "clip")[0] == 0
    open_part, calls = Part.open, []

    def meanwhile(part, files):
        calls.append(part.name)
        if len(calls) == 1:  # the part that was about to be opened is merged with another
            assert ccr("embed", "pictures", "-o", "index")[0] == 0
        return open_part(part, files)

    monkeypatch.setattr(Part, "open", meanwhile)
    assert len(Index("index")) == 12
    assert calls[0] == "part-000000"


def test_a_model_that_learns_is_another_model(ccr):
    from ccr_lightning import embed_pictures, from_pretrained

    model = from_pretrained("clip")
    index = embed_pictures("index", ["pictures"], model)
    model.search(index, ["a cat"])
    with torch.no_grad():
        model.projections()[0].weight.mul_(1.01)
    with pytest.raises(CCRError, match="made by another model"):
        model.search(index, ["a cat"])


def test_an_index_without_pictures_is_nobodys(ccr):
    assert_refused(ccr("embed", "pictures/broken.jpg", "-o", "none", "--ckpt_path", "clip"), "none of the 1 pictures")
    assert ccr("embed", "pictures", "-o", "none", "--ckpt_path", "siglip2")[0] == 0


def test_calls_that_make_no_sense(ccr):
    from ccr_lightning import embed_pictures, from_pretrained

    model = from_pretrained("clip")
    index = embed_pictures("index", ["pictures"], model)
    queries = model.embed_captions(["a cat"])
    for wrong, k in ((queries, 0), (queries, -1), (queries[:0], 3), (queries[0], 3), (queries[:, :5], 3)):
        with pytest.raises(CCRError):
            index.search(wrong, k)
    assert index.ranks(queries, []) == [[]]
    with pytest.raises(CCRError, match="there is no picture 12; there are 12, from 0 on"):
        index.ranks(queries, [3, 12])
    with pytest.raises(CCRError, match="batch_size is 0"):
        embed_pictures("index", ["pictures"], model, batch_size=0)
    for query in ("", " ", None, 3):
        with pytest.raises(CCRError, match="pass captions that say something, and pictures of Pillow"):
            model.search(index, ["a cat", query])


def test_no_similarity_is_above_one(ccr):
    from ccr_lightning import Index

    assert ccr("embed", "pictures", "-o", "index", "--ckpt_path", "clip")[0] == 0
    index = Index("index")
    for part in index.image_embeds():
        for hits in index.search(torch.cat([1.0001 * part, -1.0001 * part])):
            assert all(-1 <= hit.similarity <= 1 for hit in hits)


def test_a_picture_that_would_fill_the_memory(ccr):
    os.mkdir("long")
    Image.new("1", (1, 2_000_000)).save("long/line.png")
    Image.new("RGB", (30, 30)).save("long/square.png")
    said = ccr("embed", "long", "-o", "index", "--ckpt_path", "clip")[1]
    assert said.startswith("1 pictures embedded, 0 dropped, 1 left out")
    assert "1 x 2000000 pixels, one side more than 200 times" in Path("index/left_out.jsonl").read_text()


def test_terminals_that_cannot_show_every_text(ccr, monkeypatch):
    assert ccr("embed", "pictures/01.png", "-o", "index", "--ckpt_path", "clip")[0] == 0
    command = [sys.executable, "-m", "ccr_lightning.cli.main", "search", "index", "赤 می\u200cخواهم"]
    shown = {}
    for encoding in ("utf-8", "ascii"):
        for options in ([], ["--json"]):
            environment = {**os.environ, "PYTHONIOENCODING": encoding}
            done = subprocess.run([*command, *options], env=environment, capture_output=True, check=False)
            assert (done.returncode, done.stderr) == (0, b"")
            shown[encoding, bool(options)] = done.stdout.decode(encoding)
    assert shown["utf-8", False].startswith("赤 می\u200cخواهم\n")
    assert shown["ascii", False].startswith("\\u8d64 \\u0645")
    assert json.loads(shown["utf-8", True]) == json.loads(shown["ascii", True])


def truncate(file):
    os.truncate(file, os.path.getsize(file) // 2)


def edit(key, value):
    manifest = json.loads(Path("index/index.json").read_text())
    Path("index/index.json").write_text(json.dumps({**manifest, key: value}))


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
        (lambda: Path("index/index.json").write_text("[" * 100_000), "index.json: cannot be read"),
        (lambda: edit("pictures", 99_999), "index.json: this is no index"),
        (lambda: edit("parts", {}), "index.json: this is no index"),
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
    assert_refused(ccr("embed", "~nobody-of-this-name/a", "-o", "i", "--ckpt_path", "clip"), "there is no such user")
    assert_refused(ccr("embed", "x" * 300, "-o", "i", "--ckpt_path", "clip"), "there is no picture there")
    assert_refused(ccr("embed", "", "-o", "i", "--ckpt_path", "clip"), "a path is empty")
    assert_refused(ccr("embed", "pictures", "-o", "i", "--ckpt_path", "clip", "--device", "meta"), "--device meta: ")
    assert_refused(ccr("embed", "pictures"), "the following arguments are required: -o/--output")
    assert ccr("embed", "pictures", "-o", "index", "--ckpt_path", "clip")[0] == 0
    assert_refused(ccr("embed", "pictures", "-o", "index", "--ckpt_path", "siglip2"), "home/clip, and ")
    assert_refused(ccr("search", "index", "a cat", "--ckpt_path", "siglip2"), "home/clip, and ")
    assert_refused(ccr("search", "index"), "there is no query")
    assert_refused(ccr("search", "index", " "), "a query is empty")
    assert_refused(ccr("search", "index", "a", "-k", 0), "-k is 0")
    assert_refused(ccr("search", "index", "a", "--captions"), "index: its pictures have no captions")
    assert_refused(ccr("search", "index", "a", "--captions", "--compare"), "--compare shows ranks of pictures")
    assert_refused(ccr("search", "index", "a", "b", "--languages", "en"), "2 captions and 1 --languages: name each")
    assert_refused(ccr("embed", "pictures", "-o", "index", "--split", "test"), "--data settings are for captioned")
    assert_refused(ccr("embed", "pictures", "-o", "index", "--splits", "test"), "'--splits', did you mean '--split'?")
    assert_refused(
        ccr("search", "index", "--image", "pictures/broken.jpg"),
        "--image: the image pictures/broken.jpg is not a picture",
    )
    assert_refused(ccr("embed", "pictures/broken.jpg", "-o", "none", "--ckpt_path", "clip"), "none of the 1 pictures")
    assert ccr("embed", "pictures/01.png", "-o", "none", "--ckpt_path", "clip")[0] == 0  # the folder can still be used
    assert_refused(ccr("embed", "pictures", "-o", "new", "--ckpt_path", "clip", "--device", "tpu"), "--device tpu: ")
    assert_refused(ccr("search", "index", "--image", "nothing.png"), "there is no such file")
    assert_refused(ccr("search", "index", "a\udcffcat"), r"a text has '\udcff', which is no character")


def test_queries_and_names_that_are_hostile(ccr):
    names = ["<img src=x onerror=alert(1)>.png", "\u202egnp.exe.png", os.fsdecode(b"\xff\x1b[31m.png"), "a\nb.png"]
    os.mkdir("hostile")
    for name in names:
        shutil.copy("pictures/02.png", f"hostile/{name}")
    assert ccr("embed", "hostile", "-o", "index", "--ckpt_path", "clip")[0] == 0
    queries = ["x" * 100_000, "‮\u0000\n", "<script>alert(1)</script>"]  # the first is cut to what the model reads
    status, said, errors = ccr("search", "index", *queries)
    assert (status, errors) == (0, "")
    assert len(said.splitlines()) == 15
    assert all(line.isprintable() for line in said.splitlines())
    status, said, errors = ccr("search", "index", *queries, "--json")
    assert (status, errors) == (0, "")
    assert {json.loads(line)["path"] for line in said.splitlines()} == {f"hostile/{name}" for name in names}
    assert all(line.isprintable() for line in said.splitlines())
