"""``ccr data check`` against data whose every fault is known, because it was planted."""

import base64
import gzip
import io
import json
import os

import pytest
from PIL import Image

from ccr_lightning.cli.main import main
from ccr_lightning.data.build import build_store
from ccr_lightning.data.check import check_source
from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.sources.pretrain_jsonl import PretrainJsonLines
from ccr_lightning.data.sources.wit import WIT


def picture(number, form="PNG"):
    buffer = io.BytesIO()
    image = Image.new("RGB", (24, 24), "white")
    image.paste((number % 256, number // 256, 77), (4, 4, 20, 20))
    image.save(buffer, form)
    return buffer.getvalue()


def write_split(root, split, lines):
    text = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    (root / f"{split}.jsonl").write_bytes(text + b"\n")


@pytest.fixture
def clean(tmp_path):
    """Three splits without a fault: 6, 3 and 4 images in English and German."""
    number = 0
    splits = {}
    for split, count in (("train", 6), ("val", 3), ("test", 4)):
        splits[split] = []
        for _ in range(count):
            (tmp_path / f"{number}.png").write_bytes(picture(number))
            captions = {"en": [f"image {number}", f"picture {number}"], "de": f"Bild {number}"}
            splits[split].append({"image": f"{number}.png", "image_id": f"id{number}", "captions": captions})
            number += 1
        write_split(tmp_path, split, splits[split])
    return tmp_path, splits


def run(capsys, *arguments):
    status = main(["data", "check", *map(str, arguments)])
    return status, capsys.readouterr().out


def findings(capsys, *arguments):
    """Status, and the findings by split and kind."""
    status, output = run(capsys, *arguments, "--json")
    report = json.loads(output)
    assert (status == 1) == report["has_faults"] == any(finding["is_fault"] for finding in report["findings"])
    return status, {(finding["split"], finding["kind"]): finding for finding in report["findings"]}


def test_clean_data(clean, capsys):
    root, _ = clean
    status, output = run(capsys, root)
    assert status == 0
    assert output.endswith("no kinds of faults, no kinds of remarks\n")
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]
    assert rows == [
        ["en", "12 (6)", "6 (3)", "8 (4)"],
        ["de", "6 (6)", "3 (3)", "4 (4)"],
        ["images", "6", "3", "4"],
    ]
    status, output = run(capsys, root, "--json")
    assert json.loads(output) == {
        "source": root.name,
        "languages": ["en", "de"],
        "splits": {
            split: {
                "images": count,
                "captions": {"en": 2 * count, "de": count},
                "images_with_caption": {"en": count, "de": count},
            }
            for split, count in (("train", 6), ("val", 3), ("test", 4))
        },
        "findings": [],
        "has_faults": False,
    }


def big_picture():
    buffer = io.BytesIO()
    Image.new("1", (9000, 6000)).save(buffer, "PNG")
    return buffer.getvalue()


def line(**changes):
    """A line with an image of its own, new.png, changed."""
    return {"image": "new.png", "image_id": "new", "captions": {"en": "a new one", "de": "ein neues"}} | changes


# what is planted as line 7 of train, which file it adds, and what must be found: its kind, and a word of the sentence
RECORD_FAULTS = {
    "no JSON": (b'{"image": "new.png", "captions"', {}, "unreadable record", "not valid JSON"),
    "no object": (b"[1, 2]", {}, "unreadable record", "not a JSON object"),
    "not UTF-8": (b'{"image": "new.png", "captions": {"en": "\xff"}}', {}, "unreadable record", "not UTF-8"),
    "half a surrogate": (b'{"image": "new.png", "captions": {"en": "\\ud83d"}}', {}, "unreadable record", "half of an"),
    "no image": ({"captions": {"en": "x"}}, {}, "unreadable record", "the key 'image' is missing"),
    "no captions": ({"image": "new.png"}, {}, "unreadable record", "the key 'captions' is missing"),
    "unknown key": (line(caption="x"), {}, "unreadable record", "unknown key 'caption'"),
    "caption is a number": (line(captions={"en": [3]}), {}, "unreadable record", "a caption in 'en' is 3"),
    "id is a list": (line(image_id=["new"]), {}, "unreadable record", "image_id is ['new']"),
    "empty caption": (line(captions={"en": ""}), {}, "blank caption", "a caption in 'en' is ''"),
    "white space": (line(captions={"en": "x", "de": " \t\n"}), {}, "blank caption", "a caption in 'de'"),
    "no-break space": (line(captions={"de": "\u00a0\u200b"}), {}, "blank caption", "a caption in 'de'"),
    "absolute path": (line(image="/etc/hostname"), {}, "unsafe image path", "is absolute"),
    "parent folder": (line(image="../new.png"), {}, "unsafe image path", "has '..'"),
    "URL": (line(image="https://example.org/new.png"), {}, "unsafe image path", "is a URL"),
    "link out": (line(image="link.png"), {}, "unsafe image path", "is a link out of"),
    "missing file": (line(image="nowhere.png"), {}, "missing image", "there is no such file"),
    "a folder": (line(image="folder"), {}, "missing image", "this is no regular file"),
    "zero bytes": (line(), {"new.png": b""}, "unreadable image", "zero bytes"),
    "truncated": (line(), {"new.png": picture(99, "JPEG")[:-200]}, "unreadable image", "damaged"),
    "no picture": (line(), {"new.png": b"<svg/>"}, "unreadable image", "not a picture"),
    "git-LFS pointer": (
        line(),
        {"new.png": b"version https://git-lfs.github.com/spec/v1\n"},
        "unreadable image",
        "git-LFS pointer",
    ),
    "web page": (line(), {"new.png": b"\n <!DOCTYPE html><p>404"}, "unreadable image", "is a web page"),
    "zip archive": (line(), {"new.png": b"PK\x03\x04"}, "unreadable image", "zip archive"),
    "54 Mpixel": (line(), {"new.png": big_picture()}, "unreadable image", "9000 x 6000 pixels, more than"),
    "id of another image": (line(image_id="id2"), {"new.png": picture(99)}, "repeated image", "image_id 'id2'"),
}


@pytest.mark.parametrize("fault", RECORD_FAULTS)
def test_a_planted_fault_is_found_with_file_and_line(clean, capsys, fault):
    root, splits = clean
    planted, files, kind, says = RECORD_FAULTS[fault]
    os.symlink("/etc/hostname", root / "link.png")
    (root / "folder").mkdir()
    for name, content in files.items():
        (root / name).write_bytes(content)
    write_split(root, "train", [*splits["train"], planted])
    status, found = findings(capsys, root)
    assert status == 1
    assert set(found) == {("train", kind)}
    assert found["train", kind]["count"] == 1
    (place,) = found["train", kind]["places"]
    assert place.startswith(f"{root}/train.jsonl:7: ")
    assert says in place


def test_all_faults_at_once(clean):
    """One file with every fault of a record: each is found on its line, and none hides another."""
    root, splits = clean
    os.symlink("/etc/hostname", root / "link.png")
    (root / "folder").mkdir()
    lines = [*splits["train"]]
    for number, (planted, files, _, _) in enumerate(RECORD_FAULTS.values()):
        if files:
            (root / f"new{number}.png").write_bytes(next(iter(files.values())))
            planted = planted | {"image": f"new{number}.png"}
        if isinstance(planted, dict) and planted.get("image_id") == "new":
            planted = planted | {"image_id": f"new{number}"}
        lines.append(planted)
    write_split(root, "train", lines)
    report = check_source(JsonLines({"train": str(root / "train.jsonl")}, str(root)))
    assert report.has_faults
    assert {finding.kind: finding.count for finding in report.findings} == {
        kind: sum(other == kind for _, _, other, _ in RECORD_FAULTS.values())
        for kind in {kind for _, _, kind, _ in RECORD_FAULTS.values()}
    }
    assert report.splits["train"].images == 6
    assert all(1 <= len(finding.places) <= 5 for finding in report.findings)


def test_an_image_in_two_splits_by_its_id_or_its_content(clean, capsys):
    root, splits = clean
    (root / "copy.png").write_bytes(picture(1))
    by_content = line(image="copy.png", image_id="another")
    by_id = splits["train"][3] | {"captions": {"en": "seen before", "de": "schon da"}}
    write_split(root, "test", [*splits["test"], by_content, by_id])
    status, found = findings(capsys, root)
    assert status == 1
    assert set(found) == {("test", "image in two places")}
    assert found["test", "image in two places"]["places"] == [
        f"{root}/test.jsonl:5: the image is in the split 'train' too ({root}/train.jsonl:2).",
        f"{root}/test.jsonl:6: the image is in the split 'train' too ({root}/train.jsonl:4).",
    ]
    _, found = findings(capsys, root, "--skip_images")
    assert found["test", "image in two places"]["places"] == [
        f"{root}/test.jsonl:6: the image is in the split 'train' too ({root}/train.jsonl:4)."
    ]
    status, found = findings(capsys, root, "--split", "test")
    assert (status, found) == (0, {})


@pytest.mark.parametrize(("code", "status"), [("DE", 1), ("en_US", 0), ("de-AT", 0), ("fr", 0)])
def test_a_language_under_two_codes(clean, capsys, code, status):
    root, splits = clean
    write_split(root, "val", [*splits["val"], line(captions={code: "mine", "en": "x", "de": "y"})])
    (root / "new.png").write_bytes(picture(99))
    _, found = findings(capsys, root, "--split", "val")
    if code == "fr":
        assert ("val", "two codes of one language") not in found
    else:
        finding = found["val", "two codes of one language"]
        assert finding["is_fault"] is bool(status)
        assert finding["count"] == 1
        assert finding["places"][0].startswith(f"{root}/val.jsonl:4: {code!r}, of which there are 1 captions, and '")


def test_a_jpeg_that_is_damaged_in_part(clean, capsys):
    root, splits = clean
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "JPEG")
    whole = buffer.getvalue()
    (root / "new.png").write_bytes(whole[: 2 * len(whole) // 3] + b"\xff\xd9")
    Image.open(root / "new.png").convert("RGB")  # which passes, the rest in grey
    write_split(root, "train", [*splits["train"], line()])
    status, found = findings(capsys, root)
    assert status == 0
    assert set(found) == {("train", "damaged JPEG")}
    assert found["train", "damaged JPEG"]["places"][0].startswith(f"{root}/train.jsonl:7: the JPEG is damaged (")


def test_more_places(clean, capsys):
    root, splits = clean
    write_split(root, "train", [*splits["train"], *(b"{" for _ in range(9))])
    for options, count in (((), 5), (("--places", "7"), 7), (("--places", "99"), 9)):
        _, found = findings(capsys, root, *options)
        assert found["train", "unreadable record"]["count"] == 9
        assert len(found["train", "unreadable record"]["places"]) == count


def test_images_of_other_data(clean, capsys, tmp_path_factory):
    root, _ = clean
    other = tmp_path_factory.mktemp("other")
    (other / "same.png").write_bytes(picture(11))
    write_split(other, "train", [line(image="same.png")])
    status, found = findings(capsys, root, "--against", other)
    assert status == 1
    assert found["test", "image in two places"]["places"] == [
        f"{root}/test.jsonl:3: the image is in {other}, split 'train', too ({other}/train.jsonl:1)."
    ]


def test_other_data_that_cannot_be_read_are_no_reassurance(clean, capsys, tmp_path_factory):
    root, _ = clean
    other = tmp_path_factory.mktemp("other")
    (other / "same.png").write_bytes(picture(11))
    write_split(other, "train", [line(image="same.png"), *(line(image=f"{n}.png", image_id=n) for n in range(7)), b"{"])
    status, found = findings(capsys, root, "--against", other)
    assert status == 1
    assert found["test", "image in two places"]["count"] == 1
    not_compared = found[f"{other}, train", "not compared"]
    assert (not_compared["count"], len(not_compared["places"])) == (8, 5)
    assert not_compared["places"][0].startswith(f"{other}/train.jsonl:2: cannot read the image {other}/0.png")


@pytest.mark.parametrize(("split", "status"), [("test", 1), ("train", 0)])
def test_a_picture_under_two_ids(clean, capsys, split, status):
    root, splits = clean
    first = splits[split][1]
    (root / "copy.png").write_bytes((root / first["image"]).read_bytes())
    write_split(root, split, [*splits[split], line(image="copy.png")])
    number = len(splits[split]) + 1
    exit_status, found = findings(capsys, root)
    assert exit_status == status  # in training it is a remark
    assert set(found) == {(split, "repeated picture")}
    place = f"{root}/{split}.jsonl:{number}: the picture is that of {root}/{split}.jsonl:2 under another id."
    assert found[split, "repeated picture"]["places"] == [place]


def test_captions_of_several_images_and_missing_languages_are_remarks(clean, capsys):
    root, splits = clean
    (root / "new.png").write_bytes(picture(99))
    splits["train"][4]["captions"] = {"en": ["a dog", "a dog"]}
    write_split(root, "train", [*splits["train"], line(captions={"en": " a dog "})])
    status, found = findings(capsys, root)
    assert status == 0
    assert set(found) == {("train", kind) for kind in ("repeated caption", "caption twice", "image without de")}
    assert found["train", "caption twice"]["places"] == [
        f"{root}/train.jsonl:5: the image has a caption in 'en' twice."
    ]
    assert found["train", "repeated caption"]["places"] == [
        f"{root}/train.jsonl:7: the caption in 'en' is also that of {root}/train.jsonl:5."
    ]
    assert found["train", "image without de"]["places"] == [
        f"{root}/train.jsonl:5: no caption in 'de'.",
        f"{root}/train.jsonl:7: no caption in 'de'.",
    ]


def test_a_language_that_a_split_lacks(clean, capsys):
    root, splits = clean
    write_split(root, "val", [{**one, "captions": {"en": one["captions"]["en"]}} for one in splits["val"]])
    status, found = findings(capsys, root)
    assert status == 1
    assert set(found) == {("val", "language without captions")}
    assert found["val", "language without captions"]["places"] == ["val: no image has a caption in 'de'."]


def test_a_split_without_images(clean, capsys):
    root, _ = clean
    (root / "val.jsonl").write_text("\n\n")
    status, found = findings(capsys, root)
    assert status == 1
    assert set(found) == {("val", "empty split")}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git-LFS pointer"),
        (b"PK\x03\x04", "zip archive"),
        (gzip.compress(json.dumps(line()).encode(), mtime=0)[:-9], "cannot be read"),
    ],
    ids=["empty", "pointer", "zip", "truncated gzip"],
)
def test_a_split_that_cannot_be_read(clean, capsys, content, says):
    root, _ = clean
    (root / "val.jsonl").write_bytes(content)
    files = {split: str(root / f"{split}.jsonl") for split in ("train", "val", "test")}
    report = check_source(JsonLines(files, str(root), languages=["en"]))
    (finding,) = report.findings
    assert (finding.split, finding.kind, finding.is_fault) == ("val", "unreadable split", True)
    assert f"{root}/val.jsonl" in finding.places[0]
    assert says in finding.places[0]
    assert report.splits["test"].images == 4


def test_blank_captions_and_images_without_any_of_a_published_file(tmp_path):
    rows = [("u/1.png", "eins"), ("u/1.png", "\u00a0"), ("u/2.png", " ")]
    lines = [
        {
            "image_url": url,
            "caption_reference_description": text,
            "image_content": base64.b64encode(url.encode()).decode(),
        }
        for url, text in rows
    ]
    write_split(tmp_path, "test_de", lines)
    report = check_source(WIT(str(tmp_path), languages=["de"]), ["test"], images=False)
    found = {finding.kind: finding for finding in report.findings}
    assert set(found) == {"blank caption", "image without captions"}
    assert [place.split(": ")[0] for place in found["blank caption"].places] == [
        f"{tmp_path}/test_de.jsonl:2 (de)",
        f"{tmp_path}/test_de.jsonl:3 (de)",
    ]
    assert found["image without captions"].places[0].startswith(f"{tmp_path}/test_de.jsonl:3: ")


def test_a_split_that_is_there_twice(clean, capsys):
    root, _ = clean
    (root / "train.jsonl.gz").write_bytes(gzip.compress((root / "train.jsonl").read_bytes()))
    assert main(["data", "check", str(root)]) == 1
    assert "a split is there twice, as .jsonl and as .jsonl.gz; keep one" in capsys.readouterr().err


def test_names_that_look_like_markup(clean, capsys):
    root, splits = clean
    write_split(root, "train", [{**one, "captions": {"[/b]": "x", "[red]": "y"}} for one in splits["train"]])
    _, output = run(capsys, root, "--split", "train")
    assert "│ [/b] " in output
    assert "│ [red] " in output


def test_pictures_in_lines_are_not_compared_without_images(tmp_path):
    binary = base64.b64encode(b"the same").decode()
    rows = [{"image_path": f"{n}.png", "caption": {"en": f"{n}"}} for n in range(2)]
    rows += [{"binary": binary, "caption": {"en": f"more {n}"}} for n in range(2)]
    (tmp_path / "a.data").write_text("\n".join(map(json.dumps, rows)))
    source = PretrainJsonLines({"train": str(tmp_path)}, str(tmp_path), ["en"])
    assert check_source(source, images=False).findings == []


def test_only_the_first_places_are_shown(clean, capsys):
    root, splits = clean
    write_split(root, "train", [*splits["train"], *[b"{"] * 1234])
    status, output = run(capsys, root)
    assert status == 1
    report = output[output.index("FAULT") :].splitlines()
    assert report[0] == "FAULT: train: unreadable record, 1,234"
    assert [text.split(": ")[0] for text in report[1:6]] == [f"  {root}/train.jsonl:{n}" for n in range(7, 12)]
    assert report[6:] == ["  ... and 1,229 more (--places 1234)", "1 kind of faults, no kinds of remarks"]


def test_a_store_is_checked_with_its_files(clean, capsys, tmp_path):
    root, _ = clean
    source = JsonLines({"train": str(root / "train.jsonl")}, str(root))
    build_store(source, "train", tmp_path / "store")
    status, output = run(capsys, tmp_path / "store")
    assert status == 0
    assert "│ en     │ 12 (6) │" in output
    arrow = tmp_path / "store" / "data-00000.arrow"
    content = bytearray(arrow.read_bytes())
    content[-100] ^= 1
    arrow.write_bytes(content)
    assert main(["data", "check", str(tmp_path / "store")]) == 1
    assert "data-00000.arrow: is not as it was written; delete" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "nowhere: there is no such file or folder"),
        (["."], ".: no files *.jsonl and no store"),
        (["a.jsonl", "--splt", "x"], "unknown option '--splt'"),
        (["a.yaml"], "a.yaml: there is no such file"),
        (["b.yaml"], "b.yaml: there is no data.source"),
        (["b.yaml", "--image_root", "."], "with a configuration, no other path and no --image_root"),
        (["b.yaml", "--data.source", "JsonLine"], "did you mean 'ccr_lightning.data.sources.jsonl.JsonLines'"),
        (["b.yaml", "--data.cachedir", "x"], "did you mean 'data.cache_dir'"),
    ],
)
def test_mistakes_in_the_command(arguments, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["ccr"])
    (tmp_path / "b.yaml").write_text("model: {lr: 1}\n")
    assert main(["data", "check", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1


def test_a_configuration_with_a_model_and_settings(clean, capsys, monkeypatch):
    root, _ = clean
    monkeypatch.setattr("sys.argv", ["ccr"])
    source = {"class_path": "ccr_lightning.data.sources.jsonl.JsonLines"}
    files = {"files": {"test": str(root / "test.jsonl")}, "image_root": "nowhere"}
    config = {"model": {"unknown": 1}, "data": {"source": source | {"init_args": files}, "batch_size": 3}}
    (root / "a.yaml").write_text(json.dumps(config))
    status, found = findings(capsys, root / "a.yaml")
    assert status == 1
    assert found["test", "missing image"]["count"] == 4
    status, found = findings(capsys, root / "a.yaml", "--data.source.init_args.image_root", root)
    assert (status, found) == (0, {})
