"""The built-in pictures in every published layout: they are read back as they were, and ``ccr`` runs on them."""

import json
import logging
import sys
from collections import Counter
from dataclasses import dataclass, replace
from itertools import islice

import pytest
import torch
from published_layouts import WRITERS

from ccr_lightning.cli.main import main
from ccr_lightning.data.check import check_source
from ccr_lightning.data.sources.openmoji import OpenMoji

COUNTS = {"train": 40, "val": 12, "test": 16}
CAPTIONS_IN_LINES = ("{}", "{} ", "\u00a0{}", "{0}\u2028{0}", "{}\t#2")  # all that a line can hold is kept
CAPTIONS_IN_JSON = ("{}", " {0}\n{0}\n", '"{}"', "{0}\u2028{0}", "{}\\")
FIT, TEST = ("train", "val", "test"), ("test",)


@dataclass(frozen=True)
class Contents:
    """What is written in a layout: languages, captions of an image, and splits."""

    languages: str
    captions: tuple[str, ...] = ("{}",)
    numbers: tuple[int, ...] = (1,)  # of captions, image by image
    splits: tuple[str, ...] = FIT
    train_languages: str | None = None  # of training and validation, where they are not those of the test
    is_scattered: bool = False  # over the languages, one or two to a test image
    parallel: bool = True

    def of(self, split):
        """The languages of a split."""
        return (self.languages if split == "test" else self.train_languages or self.languages).split()

    def settings(self, split):
        """What a source is told beside the layout's own ``init_args``, which are those of the test."""
        return {} if self.train_languages is None else {"languages": self.of(split)}


ALL = "en es ja ko pt it fr de fa id zh ru tr ar"
PAPER = "de en es fr id ja ru tr zh"
IN_WIT = Contents(
    "ar en id ja ko tr", CAPTIONS_IN_JSON, (1, 2, 1), train_languages="en", is_scattered=True, parallel=False
)
LAYOUTS = {
    "multi30k-task1": Contents("en de fr"),
    "multi30k-task1-gz": Contents("fr de en"),
    "multi30k-task2": Contents("en de", CAPTIONS_IN_LINES, (5,), parallel=False),
    "xflickrco": Contents("en de es id ja ru tr zh", splits=("train", "test"), train_languages="de es id ja ru tr zh"),
    "flickr30k": Contents("en", CAPTIONS_IN_JSON, (5,), parallel=False),
    "wit-lines": IN_WIT,
    "wit-table": IN_WIT,
    "coco": Contents("en zh ja", CAPTIONS_IN_LINES, (5, 4), parallel=False),
    "coco-cn": Contents("zh", CAPTIONS_IN_LINES, (1, 2), parallel=False),
    "xtd": Contents("en es it ko ru tr zh de fr ja", splits=TEST),
    "xm3600": Contents(ALL, CAPTIONS_IN_JSON, (2, 1, 3), splits=TEST),
    "cclm-coco": Contents("en ja zh", CAPTIONS_IN_JSON, (5, 4), parallel=False),
    "cclm-multi30k": Contents("en de fr"),
    "pretrain-paths": Contents(PAPER),
    "pretrain-image": Contents(PAPER),
    "pretrain-binary": Contents(PAPER, CAPTIONS_IN_JSON, (1, 3)),
    "jsonl": Contents(ALL, CAPTIONS_IN_JSON, (1, 2)),
}
# By the line, these say that a caption is missing, and of each split one image lacks a language.
BLANK = {"multi30k-task1": 1, "multi30k-task1-gz": 1, "multi30k-task2": 5, "xflickrco": 1, "xtd": 1}


def selected(records, contents, split):
    """The records with the captions of the layout; the second one lacks the last of several languages."""
    of_split, result = contents.of(split), []
    for place, record in enumerate(records):
        languages = of_split[:-1] if place == 1 and len(of_split) > 1 else of_split
        if contents.is_scattered and split == "test":
            languages = [of_split[(place + more) % len(of_split)] for more in range(1 + place % 2)]
        texts = contents.captions[: contents.numbers[place % len(contents.numbers)]]
        captions = {name: tuple(text.format(record.captions[name][0]) for text in texts) for name in languages}
        result.append(replace(record, captions=captions))
    return result


@pytest.fixture(scope="module")
def openmoji():
    source = OpenMoji(image_size=24)
    return {split: list(islice(source.records(split), count)) for split, count in COUNTS.items()}


@pytest.fixture(scope="module")
def written(tmp_path_factory, openmoji):
    """Name to the records and the layout that they were written in."""
    assert LAYOUTS.keys() == WRITERS.keys()
    made = {}
    for name, contents in LAYOUTS.items():
        records = {split: selected(openmoji[split], contents, split) for split in contents.splits}
        made[name] = records, WRITERS[name](tmp_path_factory.mktemp(name), contents.of("test"), records)
    return made


def test_the_built_in_pictures_are_worth_the_trip(openmoji):
    everything = [record for records in openmoji.values() for record in records]
    assert len({record.image for record in everything}) == len(everything)
    for language in ALL.split():
        assert len({record.captions[language] for record in everything}) == len(everything)


@pytest.mark.parametrize(
    ("name", "split"), [(name, split) for name, contents in LAYOUTS.items() for split in contents.splits]
)
def test_what_was_written_is_read_back(written, name, split):
    records, layout = written[name]
    source = layout.source(**LAYOUTS[name].settings(split))
    ids, expected = layout.ids[split], {record.image_id: record for record in records[split]}
    found = list(source.records(split))
    assert [record.image_id for record in found] == list(ids)
    assert sorted(ids.values()) == sorted(expected)
    for record in found:
        original = expected[ids[record.image_id]]
        assert record.captions == original.captions
        assert (record.image if isinstance(record.image, bytes) else record.image.read_bytes()) == original.image
    assert (source.parallel, split in source.splits) == (LAYOUTS[name].parallel, True)


@pytest.mark.parametrize("name", LAYOUTS)
def test_nothing_is_wrong_with_what_was_written(written, name):
    """Of the faults that a check knows, only the blank captions by which some layouts say that there is none."""
    records, layout = written[name]
    settings = {json.dumps(LAYOUTS[name].settings(split)): split for split in records}
    for split in settings.values():  # all at once, where all splits have the same settings
        chosen = list(records) if len(settings) == 1 else [split]
        report = check_source(layout.source(**LAYOUTS[name].settings(split)), chosen)
        faults = {(finding.kind, finding.split, finding.count) for finding in report.findings if finding.is_fault}
        assert faults == {("blank caption", one, BLANK[name]) for one in chosen if name in BLANK}
        for one in chosen:
            captions = Counter()
            for record in records[one]:
                captions.update({language: len(texts) for language, texts in record.captions.items()})
            assert report.splits[one].captions == captions
            assert report.splits[one].images == len(records[one])


# ---- ccr fit and ccr test


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """On a busy machine, threads that wait for each other make so small a model many times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def ccr(*arguments):
    """Runs ``ccr`` in this process, which must succeed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ccr"])
        for name in ("lightning.pytorch", "lightning.fabric"):
            patch.setattr(logging.getLogger(name), "level", logging.WARNING)
        assert main([str(argument) for argument in arguments]) == 0


def write_source(path, layout, settings):
    source = {"class_path": layout.class_path, "init_args": layout.init_args | settings}
    path.write_text(json.dumps({"data": {"source": source}}), encoding="utf-8")
    return path


def options(init_args):
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in init_args.items()}
    return [f"--data.source.init_args.{key}={text}" for key, text in texts.items()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, written, tiny_config):
    """A function that returns the run of a layout, which is trained once: a model's config, then that of the data."""
    home, runs = tmp_path_factory.mktemp("trained"), {}

    def run(name, *settings):
        if name not in runs:
            config = tiny_config({}, home / "cache")
            config["trainer"]["max_epochs"] = 1
            config["data"]["tokenizer"]["init_args"]["vocab_size"] = 1000
            config["model"]["retriever"]["init_args"]["text_encoder"]["init_args"]["vocab_size"] = 1000
            del config["data"]["source"]
            (home / "tiny.yaml").write_text(json.dumps(config))
            source = write_source(home / f"{name}.yaml", written[name][1], LAYOUTS[name].settings("train"))
            ccr("fit", "--config", home / "tiny.yaml", "--config", source, "--runs_dir", home / "runs", *settings)
            runs[name] = home / "runs" / name
        return runs[name]

    return run


def check_results(folder, records, languages, parallel):
    """The numbers of images and captions are those of the records, and MRV is there if it means something."""
    document = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert document["split"] == "test"
    assert list(document["languages"]) == languages
    for language, scores in document["languages"].items():
        texts = sum(len(record.captions.get(language, ())) for record in records)
        images = sum(language in record.captions for record in records)
        of = {direction: (of["queries"], of["gallery"]) for direction, of in scores.items()}
        assert of == {"image_to_text": (images, texts), "text_to_image": (texts, images)}
    whole = sum(record.captions.keys() >= set(languages) for record in records)
    for statistic in (document["mrv"], document["mrsd"]):
        numbers = [statistic[key] for key in ("image_to_text", "text_to_image", "mean")]
        if parallel and len(languages) > 1:
            assert statistic["instances"] == whole == len(records) - 1
            assert min(numbers) >= 0
        else:
            assert numbers == [None, None, None]
            assert statistic["reason"]


@pytest.mark.parametrize(
    ("name", "settings"),
    [pytest.param(name, [], id=name) for name, contents in LAYOUTS.items() if contents.splits == FIT]
    + [pytest.param("xflickrco", ["--trainer.limit_val_batches", 0], id="xflickrco")],
)
def test_fit_then_test(written, trained, name, settings):
    records, contents = written[name][0]["test"], LAYOUTS[name]
    run = trained(name, *settings)
    check_results(run, records, contents.of("train"), contents.parallel)
    columns = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    validates = "val" in contents.splits
    assert ("val/mean_recall" in columns) == validates
    assert ("val/mrv" in columns) == (validates and contents.parallel and len(contents.of("val")) > 1)

    (run / "results.json").unlink()
    ccr("test", "--ckpt_path", run, *options(contents.settings("test")))
    check_results(run, records, contents.of("test"), contents.parallel)


@pytest.mark.parametrize("is_in_config", [True, False], ids=["config", "options"])
@pytest.mark.parametrize("name", ["xflickrco", "xtd", "xm3600"])
def test_a_model_on_the_test_of_another_data_set(written, trained, tmp_path, name, is_in_config):
    (records, layout), contents, run = written[name], LAYOUTS[name], trained("multi30k-task1")
    if is_in_config:
        source = ["--config", write_source(tmp_path / "other.yaml", layout, {})]
    else:
        source = ["--data.source", layout.class_path, *options(layout.init_args)]
    before = (run / "results.json").read_bytes()
    ccr("test", "--ckpt_path", run, *source, "--runs_dir", tmp_path)
    assert (run / "results.json").read_bytes() == before
    place = f"{run.name}-{'other' if is_in_config else layout.class_path.rpartition('.')[2].lower()}"
    check_results(tmp_path / place, records["test"], contents.of("test"), contents.parallel)
