"""Captioned pictures written to disk in the layouts of the published data sets, independently of what reads them.

A writer takes a folder, languages and records by split, whose images are bytes and whose captions are as many as the
layout demands. It writes captions and images under the names and with the oddities of the published files.
"""

import base64
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from ccr_lightning.types import ImageCaptions

Records = Mapping[str, Sequence[ImageCaptions]]
Named = dict[str, list[tuple[str, ImageCaptions]]]


class Layout(NamedTuple):
    """What was written, as a configuration names it, and how its images are called."""

    class_path: str
    init_args: dict[str, Any]
    ids: dict[str, dict[str, str]]  # by split, in the order of reading: image id in the layout to that of the record

    def source(self, **init_args: Any) -> Any:
        module, _, name = self.class_path.rpartition(".")
        return getattr(import_module(module), name)(**self.init_args | init_args)


def in_languages(record: ImageCaptions, languages: Sequence[str], times: int = 1) -> ImageCaptions:
    """The record with a caption in each language, several times; where there is none, the English with its code."""
    captions = {
        language: record.captions.get(language, (f"{record.captions['en'][0]} {language}",)) * times
        for language in languages
    }
    return replace(record, captions=captions)


def init_arguments(init_args: Mapping[str, Any]) -> list[str]:
    """The arguments of a command that give the source these settings."""
    return [
        f"--data.source.init_args.{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in init_args.items()
    ]


Writer = Callable[..., Layout]


# ---- Multi30K


def multi30k_task_1(
    folder: Path,
    languages: Sequence[str],
    records: Records,
    ending: str = "",
    published: Mapping[str, str] | None = None,
) -> Layout:
    """Aligned lines; a language that an image lacks is a line of white space."""
    published = {"train": "train", "val": "val", "test": "test_2016_flickr"} | dict(published or {})
    named = _named(records, _flickr_name)
    for split, of in named.items():
        _write(folder / f"task1/image_splits/{published[split]}.txt", _lines(name for name, _ in of))
        for language in languages:
            texts = _lines(" ".join(record.captions.get(language, (" ",))) for _, record in of)
            _write(folder / f"task1/raw/{published[split]}.{language}{ending}", texts)
    images = _images(folder / "flickr30k-images", named)
    settings = {"root": str(folder), "image_root": images, "languages": list(languages)}
    return _layout("multi30k.Multi30K", settings, named)


def multi30k_task_2(folder: Path, languages: Sequence[str], records: Records) -> Layout:
    """Five files of aligned lines in each language."""
    published = {"train": "train", "val": "val", "test": "test_2016"}
    named = _named(records, _flickr_name)
    for split, of in named.items():
        _write(folder / f"task2/image_splits/{published[split]}_images.txt", _lines(name for name, _ in of))
        for language in languages:
            for number in range(5):
                texts = _lines(record.captions.get(language, ("",) * 5)[number] for _, record in of)
                _write(folder / f"task2/raw/{published[split]}.{number + 1}.{language}.gz", texts)
    images = _images(folder / "flickr30k-images", named)
    settings = {"root": str(folder), "image_root": images, "task": 2, "languages": list(languages)}
    return _layout("multi30k.Multi30K", settings, named)


# ---- IGLUE: xFlickr&CO, Flickr30k, WIT


def xflickrco(folder: Path, languages: Sequence[str], records: Records) -> Layout:
    """The test half Flickr30k, half COCO, in one order; the few-shot lines in an order of each language."""
    n_test = len(records["test"])

    def name(number: int, split: str, place: int) -> str:
        is_coco = split == "test" and place >= n_test // 2
        return f"COCO_val2014_{number:012d}.jpg" if is_coco else _flickr_name(number, split, place)

    named = _named(records, name)
    files = {"train": "train_50.jsonl", "test": "test.jsonl"}
    for split, of in named.items():
        for k, language in enumerate(language for language in languages if language in of[0][1].captions):
            lines = [_iglue_line(name, record.captions.get(language, ("",))) for name, record in of]
            if split == "train":
                lines = lines[k:] + lines[:k]
            _write(folder / "datasets" / "xFlickrCO" / "annotations" / language / files[split], _jsonl(lines))
    of_coco = {
        split: [(f"val2014/{name}", record) for name, record in of if "COCO" in name] for split, of in named.items()
    }
    of_flickr = {split: [(name, record) for name, record in of if "COCO" not in name] for split, of in named.items()}
    settings = {
        "root": str(folder / "datasets"),
        "flickr_root": _images(folder / "flickr30k-images", of_flickr),
        "coco_root": _images(folder / "coco", of_coco),
        "languages": list(languages),
        "few_shot": "train_50",
    }
    return _layout("xflickrco.XFlickrCO", settings, named)


def flickr30k(folder: Path, languages: Sequence[str], records: Records) -> Layout:
    """English only, all captions of an image in its line."""
    published = {"train": "train_ann.jsonl", "val": "valid_ann.jsonl", "test": "test_ann.jsonl"}
    (english,) = languages
    named = _named(records, _flickr_name)
    for split, of in named.items():
        written = [_iglue_line(name, record.captions[english]) for name, record in of]
        _write(folder / "datasets" / "flickr30k" / "annotations" / published[split], _jsonl(written))
    settings = {"root": str(folder / "datasets"), "image_root": _images(folder / "flickr30k-images", named)}
    return _layout("flickr30k.Flickr30k", settings, named)


def _iglue_line(name: str, sentences: Sequence[str]) -> dict[str, Any]:
    number = name.removesuffix(".jpg").rpartition("_")[2]
    return {"sentences": list(sentences), "id": int(number) if "COCO" in name else number, "img_path": name}


def wit(folder: Path, languages: Sequence[str], records: Records, in_lines: bool) -> Layout:
    """A line for each caption; images in the lines or in a table of all splits, which begins with one of none."""

    def url(number: int, split: str, place: int) -> str:
        return f"https://upload.wikimedia.org/wikipedia/commons/{number % 16:x}/Picture_{number}.png"

    named = _named(records, url)
    ids: dict[str, dict[str, str]] = {split: {} for split in named}
    for split, of in named.items():
        for language in languages:
            written = []
            for place, (name, record) in enumerate(of):
                for text in record.captions.get(language, ()):
                    line: dict[str, Any] = {"language": language, "page_url": "https://example.org/wiki"}
                    line |= {"image_url": name, "caption_reference_description": text, "wit_ix": f"wit-{len(written)}"}
                    if split == "test":
                        line |= {"image_idx": place // 2, "meta_url": "http://example.org/meta"}  # no identity
                    if in_lines:
                        line["image_content"] = _base64(record)
                    written.append(line)
                    ids[split].setdefault(name, record.image_id)
            if written:
                _write(folder / f"annotations/{split}_{language}.jsonl", _jsonl(written))
    settings: dict[str, Any] = {"annotations": str(folder / "annotations"), "languages": list(languages)}
    if in_lines:
        return Layout("ccr_lightning.data.sources.wit.WIT", settings, ids)
    rows = [(name, _base64(record)) for of in named.values() for name, record in of]
    rows = [("https://example.org/other.png", rows[0][1]), *rows]
    _write(folder / "images.tsv", _lines("\t".join(row) for row in rows))
    return _layout("wit.WIT", settings | {"images": str(folder / "images.tsv")}, named)


# ---- COCO: Karpathy's splits with STAIR and COCO-CN, XTD


def coco(folder: Path, languages: Sequence[str], records: Records) -> Layout:
    """English in Karpathy's file, where every fourth training image is of "restval"; Japanese and Chinese beside it."""

    def path(number: int, split: str, place: int) -> str:
        return _coco_path(number, "train2014" if split == "train" and place % 4 else "val2014")

    named = _named(records, path)
    everything = [
        (name, record, "restval" if split == "train" and name.startswith("val2014") else split)
        for split, of in named.items()
        for name, record in of
    ]
    _write(folder / "dataset_coco.json", _karpathy(everything))
    stair = {part: folder / f"stair_captions_v1.2_{part}_tokenized.json" for part in ("train", "val")}
    for part, file in stair.items():
        chosen = [(name, record) for name, record, _ in everything if name.startswith(part)]
        annotations = [
            {"image_id": _cocoid(name), "id": _cocoid(name) * 10 + n, "caption": text, "tokenized_caption": text}
            for n in range(5)  # the captions of an image do not follow each other
            for name, record in chosen
            for text in record.captions.get("ja", ())[n : n + 1]
        ]
        images = [{"id": _cocoid(name), "file_name": Path(name).name} for name, _ in chosen]
        _write(file, json.dumps({"info": {}, "images": images, "annotations": annotations}, ensure_ascii=False))
    _write(folder / "coco-cn.txt", _coco_cn(everything))
    settings = {
        "coco_root": _images(folder / "coco", named),
        "karpathy": str(folder / "dataset_coco.json"),
        "captions": {"ja": [str(file) for file in stair.values()], "zh": [str(folder / "coco-cn.txt")]},
        "languages": list(languages),
    }
    return _layout("coco.Coco", settings, _by_file_name(named))


def coco_cn(folder: Path, languages: Sequence[str], records: Records) -> Layout:
    """Chinese in the splits of COCO-CN; Karpathy's file has the images in another order and other splits."""
    named = _named(records, lambda number, split, place: _coco_path(number, "val2014" if number % 2 else "train2014"))
    everything = [
        (name, record, "test" if split == "train" else "train") for split, of in named.items() for name, record in of
    ]
    _write(folder / "dataset_coco.json", _karpathy(everything[::-1]))
    _write(folder / "imageid.human-written-caption.txt", _coco_cn(everything[::-1]))
    lists = {split: folder / f"coco-cn_{split}.txt" for split in named}
    for split, of in named.items():
        _write(lists[split], _lines(Path(name).stem for name, _ in of))
    settings = {
        "coco_root": _images(folder / "coco", named),
        "karpathy": str(folder / "dataset_coco.json"),
        "captions": {"zh": [str(folder / "imageid.human-written-caption.txt")]},
        "languages": list(languages),
        "lists": {split: str(file) for split, file in lists.items()},
    }
    return _layout("coco.Coco", settings, _by_file_name(named))


def xtd(folder: Path, languages: Sequence[str], records: Records) -> Layout:
    """Aligned lines in three folders; those of seven languages end with CR LF, the last one with nothing."""
    named = _named(records, lambda number, split, place: _coco_path(number, "val2014" if number % 5 else "train2014"))
    of = named["test"]
    _write(folder / "XTD10/test_image_names.txt", _lines(Path(name).name for name, _ in of))
    for language in languages:
        place = {"ja": "STAIR", "de": "MIC", "fr": "MIC"}.get(language, "XTD10")
        code = "jp" if language == "ja" else language
        texts = [" ".join(record.captions.get(language, ())) for _, record in of]
        has_crlf = language in ("es", "it", "ko", "pl", "ru", "tr", "zh")
        _write(folder / place / f"test_1kcaptions_{code}.txt", "\r\n".join(texts) if has_crlf else _lines(texts))
    settings = {"root": str(folder), "coco_root": _images(folder / "coco", named), "languages": list(languages)}
    return _layout("xtd.XTD", settings, _by_file_name(named))


def _coco_path(number: int, part: str) -> str:
    return f"{part}/COCO_{part}_{number:012d}.jpg"


def _cocoid(path: str) -> int:
    return int(Path(path).stem.rpartition("_")[2])


def _by_file_name(named: Named) -> Named:
    return {split: [(Path(name).name, record) for name, record in of] for split, of in named.items()}


def _karpathy(everything: Iterable[tuple[str, ImageCaptions, str]]) -> str:
    images = []
    for path, record, split in everything:
        folder, name = path.split("/")
        sentences = [
            {"raw": text, "tokens": text.split(), "imgid": len(images), "sentid": n}
            for n, text in enumerate(record.captions.get("en", ("a picture",)))
        ]
        image = {"filepath": folder, "filename": name, "imgid": len(images), "split": split, "sentences": sentences}
        images.append(image | {"sentids": list(range(len(sentences))), "cocoid": _cocoid(path)})
    return json.dumps({"images": images, "dataset": "coco"}, ensure_ascii=False)


def _coco_cn(everything: Iterable[tuple[str, ImageCaptions, str]]) -> str:
    return _lines(
        f"{Path(name).stem}#{number}\t{text}"
        for name, record, _ in everything
        for number, text in enumerate(record.captions.get("zh", ()))
    )


# ---- Crossmodal-3600


def xm3600(folder: Path, languages: Sequence[str], records: Records) -> Layout:
    """A line for each image, the captions in their languages beside their tokens."""
    named = _named(records, lambda number, split, place: f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}")
    lines = []
    for key, record in named["test"]:
        line: dict[str, Any] = {"image/key": key, "image/locale": languages[len(lines) % len(languages)]}
        for language, texts in record.captions.items():
            tokens = [text.split() for text in texts]
            line[language] = {"caption": list(texts), "caption/tokenized": tokens}
            line[language]["caption/tokenized/lowercase"] = tokens
        lines.append(line)
    _write(folder / "captions.jsonl", _jsonl(lines))
    images = _images(folder / "images", {"test": [(f"{key}.jpg", record) for key, record in named["test"]]})
    settings = {"captions": str(folder / "captions.jsonl"), "image_root": images, "languages": list(languages)}
    return _layout("xm3600.XM3600", settings, named)


# ---- CCLM and CCRK


def cclm_json(folder: Path, languages: Sequence[str], records: Records) -> Layout:
    """The files of COCO: captions row by row in train, a list in val and test."""
    named = _named(records, lambda number, split, place: f"coco/val2014/COCO_val2014_{number:012d}.jpg")
    for split, of in named.items():
        for language in languages:
            rows = [
                {"caption": list(record.captions[language]), "image": name, "image_id": _cocoid(name)}
                for name, record in of
                if language in record.captions
            ]
            if split == "train":  # the first captions of all images, then the second ones
                most = max(len(row["caption"]) for row in rows)
                rows = [
                    row | {"caption": text} for n in range(most) for row in rows for text in row["caption"][n : n + 1]
                ]
            _write(folder / f"{language}.{split}.json", json.dumps(rows, ensure_ascii=False))
    settings = {
        "folder": str(folder),
        "image_root": _images(folder / "images", named),
        "languages": list(languages),
        "parallel": False,
    }
    return _layout("cclm_json.CclmJson", settings, named)


def cclm_json_of_multi30k(folder: Path, languages: Sequence[str], records: Records) -> Layout:
    """The files of Multi30K: their names have the split first, and that of the test is another."""
    published = {"train": "train", "val": "val", "test": "test_2016_flickr"}
    named = _named(records, lambda *place: f"flickr30k-images/{_flickr_name(*place)}")
    for split, of in named.items():
        for language in languages:
            rows = [
                {"caption": texts[0] if split == "train" else list(texts), "image": name, "image_id": place}
                for place, (name, record) in enumerate(of)
                if (texts := record.captions.get(language))
            ]
            _write(folder / f"{published[split]}.{language}.json", json.dumps(rows))
    settings = {
        "folder": str(folder),
        "image_root": _images(folder / "images", named),
        "languages": list(languages),
        "files": "{split}.{language}.json",
        "splits": published,
    }
    return _layout("cclm_json.CclmJson", settings, named)


def pretrain_jsonl(folder: Path, languages: Sequence[str], records: Records, key: str) -> Layout:
    """Two files for each split; ``key`` is ``image_path``, or ``image`` or ``binary`` for images in base64."""
    named = _named(records, lambda number, split, place: f"{number % 7}/{number}.jpg")
    settings: dict[str, Any] = {
        "folders": {split: str(folder / split) for split in named},
        "languages": list(languages),
    }
    if key == "image_path":
        settings["image_root"] = _images(folder / "images", named)
    for split, of in named.items():
        half = len(of) // 2
        for part, chosen in ((0, slice(half)), (1, slice(half, None))):
            lines = [
                {"caption": _pretrain_captions(record), key: name if key == "image_path" else _base64(record)}
                for name, record in of[chosen]
            ]
            _write(folder / split / f"part_{part}.data", _jsonl(lines))
            if key != "image_path":
                of[chosen] = [(f"{split}/part_{part}.data:{n}", record) for n, (_, record) in enumerate(of[chosen], 1)]
    return _layout("pretrain_jsonl.PretrainJsonLines", settings, named)


def _pretrain_captions(record: ImageCaptions) -> Any:
    most = max(len(texts) for texts in record.captions.values())
    several = [
        {language: texts[n] for language, texts in record.captions.items() if n < len(texts)} for n in range(most)
    ]
    return several if most > 1 else several[0]


# ---- The package's own lines


def json_lines(folder: Path, languages: Sequence[str], records: Records) -> Layout:
    """A caption or a list of them, and every second image without an id of its own."""
    named: Named = {}
    for split, of in _named(records, lambda number, split, place: f"{split}/{number}.png").items():
        lines, named[split] = [], []
        for place, (name, record) in enumerate(of):
            captions = {
                language: texts[0] if len(texts) == 1 else list(texts) for language, texts in record.captions.items()
            }
            line: dict[str, Any] = {"image": name, "captions": captions}
            if place % 2:
                line["image_id"] = int(Path(name).stem)
            lines.append(line)
            named[split].append((str(line.get("image_id", name)), record))
            _write(folder / "pictures" / name, record.image)
        _write(folder / f"{split}.jsonl", _jsonl(lines))
    files = {split: str(folder / f"{split}.jsonl") for split in named}
    settings = {"files": files, "image_root": str(folder / "pictures"), "languages": list(languages)}
    return _layout("jsonl.JsonLines", settings, named)


WRITERS: dict[str, Writer] = {
    "multi30k-task1": multi30k_task_1,
    "multi30k-task1-gz": partial(multi30k_task_1, ending=".gz"),
    "multi30k-task2": multi30k_task_2,
    "xflickrco": xflickrco,
    "flickr30k": flickr30k,
    "wit-lines": partial(wit, in_lines=True),
    "wit-table": partial(wit, in_lines=False),
    "coco": coco,
    "coco-cn": coco_cn,
    "xtd": xtd,
    "xm3600": xm3600,
    "cclm-coco": cclm_json,
    "cclm-multi30k": cclm_json_of_multi30k,
    "pretrain-paths": partial(pretrain_jsonl, key="image_path"),
    "pretrain-image": partial(pretrain_jsonl, key="image"),
    "pretrain-binary": partial(pretrain_jsonl, key="binary"),
    "jsonl": json_lines,
}


# ---- what the writers share


def _named(records: Records, name: Callable[[int, str, int], str]) -> Named:
    """The records of each split with names, made from a number of the image, its split and its place there."""
    numbers: Iterator[int] = iter(range(1, 10**6))
    return {
        split: [(name(next(numbers), split, place), record) for place, record in enumerate(of)]
        for split, of in records.items()
    }


def _flickr_name(number: int, split: str, place: int) -> str:
    return f"{1000092795 + 7919 * number}.jpg"


def _layout(class_name: str, init_args: dict[str, Any], named: Named) -> Layout:
    ids = {split: {name: record.image_id for name, record in of} for split, of in named.items()}
    return Layout(f"ccr_lightning.data.sources.{class_name}", init_args, ids)


def _images(folder: Path, named: Named) -> str:
    for of in named.values():
        for name, record in of:
            _write(folder / name, record.image)
    return str(folder)


def _base64(record: ImageCaptions) -> str:
    return base64.b64encode(_bytes(record.image)).decode()


def _bytes(content: object) -> bytes:
    assert isinstance(content, bytes)
    return content


def _lines(texts: Iterable[str]) -> str:
    return "".join(f"{text}\n" for text in texts)


def _jsonl(records: Iterable[Mapping[str, Any]]) -> str:
    return _lines(json.dumps(record, ensure_ascii=False) for record in records)


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else _bytes(content)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
