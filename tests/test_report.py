"""``ccr report``: every number of the page against the files of real runs, and that it is a page for everybody."""

from __future__ import annotations

import base64
import csv
import io
import json
import logging
import re
import shutil
import statistics
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from browser import chromium, serious_violations, watched_page  # noqa: F401
from pages import Parser, parse, text_of
from PIL import Image
from published_layouts import WRITERS, in_languages

from ccr_lightning.cli import report as command
from ccr_lightning.cli.main import main
from ccr_lightning.data.images import decode_image
from ccr_lightning.evaluation.query_ranks import QueryRanks, RanksFile
from ccr_lightning.report import figures, requirements
from ccr_lightning.report import page as report_page
from ccr_lightning.report.drawing import png, svg
from ccr_lightning.report.instances import instances_of
from ccr_lightning.report.reading import Curve
from ccr_lightning.report.spread import Bin, Spread

matplotlib.use("Agg")

EVIL = """<script>alert("1")</script>'--><b>&amp;$x$"""
RTL = "\u202egnp.fdp"
CONTROL = "red\x07\x1b[31m\x00dot"
CONTROLS = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"
CUTOFFS = ("recall@1", "recall@5", "recall@10")


def shown(page, path):
    return [text_of(element) for element in page.findall(path)]


# ---- real runs


@pytest.fixture(scope="module")
def quiet_main():
    """``main`` as a process would run it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["ccr"])
        for logger in ("lightning.pytorch", "lightning.fabric"):
            patch.setattr(logging.getLogger(logger), "level", logging.WARNING)
        yield main


@pytest.fixture(scope="module")
def run(trained_run, tmp_path_factory, quiet_main):
    """A run of two epochs that was tested over all languages, with re-ranking."""
    settings = ["--runs_dir", str(tmp_path_factory.mktemp("runs")), "--model.protocol.rerank_depth=4"]
    settings += ["--model.protocol.mrv_languages=[en,de,ja]", "--trainer.log_every_n_steps=1", "--trainer.max_epochs=2"]
    assert quiet_main(["fit", "--config", str(trained_run.parent.parent / "tiny.yaml"), *settings]) == 0
    return Path(settings[1]) / "tiny"


@pytest.fixture(scope="module")
def hostile(run, pictures, tmp_path_factory, quiet_main):
    """A mere test of the same model, on data whose names and captions mean harm, some images with two captions."""
    folder = tmp_path_factory.mktemp("hostile")
    records = {
        "test": [in_languages(record, ("en", "ar"), 1 + place % 2) for place, record in enumerate(pictures["test"])]
    }
    init_args = WRITERS["jsonl"](folder / "data", ("en", "ar"), records).init_args
    path = Path(init_args["files"]["test"])
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for place, line in enumerate(lines):
        line["image_id"] = f"{(EVIL, RTL, CONTROL)[place % 3]} {place}"
        for language, texts in line["captions"].items():
            texts = [texts] if isinstance(texts, str) else texts
            line["captions"][language] = [f"{text} {(EVIL, RTL, CONTROL)[place % 3]}" for text in texts]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    source = {"class_path": "ccr_lightning.data.sources.jsonl.JsonLines", "init_args": init_args | {"name": "ev<il"}}
    (folder / "hostile.yaml").write_text(json.dumps({"data": {"source": source}}))
    settings = ["--config", str(folder / "hostile.yaml"), "--runs_dir", str(folder), "--name", "hostile"]
    settings += ["--model.protocol.mrv_languages=null", "--model.protocol.rerank_depth=0"]
    settings += ["--data.cache_dir", str(folder / "cache"), "--data.required_languages=[]"]
    settings += ["--data.languages_per_step=null"]
    assert quiet_main(["test", "--ckpt_path", str(run), *settings]) == 0
    return folder / "hostile"


@pytest.fixture(scope="module")
def written(run, hostile, tmp_path_factory):
    """The page of both runs: the documents and folders by key, the page parsed, and its path."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CCR_CACHE_DIR", str(hostile.parent / "cache"))
        assert main(["report", str(run), str(hostile), "-o", str(path), "--png", str(path.parent / "png")]) == 0
    files = [run / "results.json", run / "results-reranked.json", hostile / "results.json"]
    documents = {str(key): json.loads(file.read_text()) for key, file in enumerate(files, 1)}
    folders = {str(key): file.parent for key, file in enumerate(files, 1)}
    return documents, folders, parse(path), path


@pytest.fixture
def make(tmp_path, capsys):
    """A function that writes a page and returns it parsed, with what the command printed."""

    def write(*arguments):
        capsys.readouterr()
        path = tmp_path / "page.html"
        assert main(["report", *map(str, arguments), "-o", str(path)]) == 0
        return parse(path), capsys.readouterr().out

    return write


def of_ranks(folder, document):
    """Direction, language and image to the ranks of its queries, and to the mean of them; the variance by image."""
    ranks = {}
    with (folder / document["ranks"]["file"]).open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            name = re.sub(CONTROLS, "\ufffd", line["image"])  # as the page shows it
            ranks.setdefault((line["direction"], line["language"], name), []).append(int(line["rank"]))
    languages, directions = document["mrv"]["languages"], ("image_to_text", "text_to_image")
    means = {key: statistics.mean(of) for key, of in ranks.items()}
    images = {image for _, _, image in ranks}
    variance = {
        image: statistics.mean(statistics.pvariance([means[d, k, image] for k in languages]) for d in directions)
        for image in images
        if all((d, k, image) in means for d in directions for k in languages)
    }
    return ranks, means, variance


def looked_up(document, pointer):
    value = document
    for part in pointer.split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def rounded(value, pointer):
    """How a value of the results is written."""
    if isinstance(value, str):
        return value
    if pointer.startswith(("/mrv", "/mrsd")) and not pointer.endswith(("instances", "left_out")):
        return f"{value:.2f}" if value < 1000 else f"{value:,.0f}"
    if isinstance(value, float):
        return f"{100 * value:.1f}"
    if isinstance(value, bool | None | list) or pointer.startswith(("/seed", "/protocol", "/ran_on", "/versions")):
        return json.dumps(value)
    return f"{value:,}"


# ---- numbers


def test_every_number_from_the_results_is_that_of_the_results(written):
    documents, _, page, _ = written
    places = Counter()
    for element in page.iter("data"):
        key, _, pointer = element.get("data-from").partition(" results#")
        if not pointer:
            continue
        value = looked_up(documents[key], pointer)
        exact = element.get("value")
        assert (exact if isinstance(value, str) else json.loads(exact)) == value, pointer
        assert text_of(element) == rounded(value, pointer), pointer
        places[key, pointer] += 1
    for key, document in documents.items():
        wanted = {
            f"/languages/{language}/{direction}/{recall}"
            for language in document["languages"]
            for direction in ("image_to_text", "text_to_image")
            for recall in CUTOFFS
        }
        wanted |= {f"/{name}/mean" for name in ("mrv", "mrsd", "rank1_agreement")}
        wanted |= {f"/mrv/pairs/{one}/{other}" for one, of in document["mrv"]["pairs"].items() for other in of}
        wanted |= {"/model/sha256", "/data/sha256", "/checkpoint/sha256", "/seed", "/versions/torch"}
        assert wanted <= {pointer for of, pointer in places if of == key}


def test_nothing_else_in_tables_and_tiles_has_a_digit(written):
    page = written[2]
    cells = [*page.iter("td"), *(tile for tile in page.iter("dd"))]
    assert len(cells) > 300
    for cell in cells:
        if cell.get("class") == "text":  # a caption
            continue
        without = text_of(cell)
        for element in cell.iter("data"):
            without = without.replace(text_of(element), "", 1)
        assert not re.search(r"\d", without), without


def test_every_number_from_the_ranks_is_that_of_numpy(written):
    documents, folders, page, _ = written
    kinds = Counter()
    for key, document in documents.items():
        ranks, means, variance = of_ranks(folders[key], document)
        assert statistics.mean(variance.values()) == pytest.approx(document["mrv"]["mean"], rel=1e-12)
        first = document["mrv"]["languages"][0]
        assert first == "en"
        for element in page.iter("data"):
            if not element.get("data-from").startswith(f"{key} ranks#"):
                continue
            kind, _, rest = element.get("data-from").partition("#")[2].partition("/")
            found, kinds[kind] = json.loads(element.get("value")), kinds[kind] + 1
            if kind in ("image_to_text", "text_to_image"):
                language, _, name = rest.partition("/")
                name, number = name.rsplit("/", 1) if kind == "text_to_image" else (name, 0)
                expected = ranks[kind, language, name][int(number)]
            elif kind == "variance":
                expected = pytest.approx(variance[rest], rel=1e-12)
            elif kind == "pairs":
                language, what = rest.split("/")
                both = [(means[d, first, i], of) for (d, k, i), of in means.items() if k == language and i in variance]
                counts = {"same": sum(a == b for a, b in both), "better": sum(a < b for a, b in both)}
                expected = counts.get(what, len(both) - sum(counts.values()))
            elif kind == "histogram":
                low, high = (0, 0) if rest == "0" else map(float, rest.split("–"))
                expected = sum(of == 0 if rest == "0" else low < of <= high for of in variance.values())
            else:
                assert kind == "half"
                largest = sorted(variance.values(), reverse=True)
                expected = next(n for n in range(len(largest) + 1) if 2 * sum(largest[:n]) >= sum(largest))
            assert found == expected, element.attrib
            assert float(text_of(element).replace(",", "")) == pytest.approx(
                found, abs=0.501 if found >= 1000 else 0.00501
            )
        bins = [of for of in page.iter("data") if of.get("data-from").startswith(f"{key} ranks#histogram")]
        assert sum(int(of.get("value")) for of in bins) == document["mrv"]["instances"]
    assert set(kinds) == {"image_to_text", "text_to_image", "variance", "pairs", "histogram", "half"}


def test_the_documents_compute_mrv_from_the_ranks(run, tmp_path, monkeypatch, capsys):
    shutil.copytree(run, tmp_path / "runs" / "NAME")
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    exec(re.search(r"^```python\n(import pandas.*?)^```$", text, re.DOTALL | re.MULTILINE)[1], {})
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines()[1:3])
    mrv = json.loads((run / "results.json").read_text())["mrv"]
    assert len(printed) == 2
    for direction, value in printed.items():
        assert float(value) == pytest.approx(mrv[direction], rel=1e-4)


def test_every_number_from_the_training_is_that_of_the_metrics(written):
    _, folders, page, _ = written
    with (folders["1"] / "metrics.csv").open(newline="") as file:
        logged = {(name, line["step"]): value for line in csv.DictReader(file) for name, value in line.items() if value}
    found = [of for of in page.iter("data") if " metrics#" in of.get("data-from")]
    assert {of.get("data-from").split()[0] for of in found} == {"1"}  # a section of the run has them
    names = set()
    for element in found:
        name, _, step = element.get("data-from").partition("#")[2].rpartition("@")
        names.add(name)
        assert float(element.get("value")) == float(logged[name, step])
        assert text_of(element) == f"{float(logged[name, step]):.3f}"
    assert names == {
        *(f"train/{name}" for name in ("loss", "contrastive", "matching", "masked_lm")),
        *("val/mean_recall", "val/i2t/recall@1", "val/t2i/recall@1", "val/mrv"),
    }


def test_the_table_of_runs_is_that_of_the_results(written):
    documents, _, page, _ = written
    expected = {}
    for name, key in (("tiny", "1"), ("tiny, re-ranked 4 by matching and similarity", "2"), ("hostile", "3")):
        document = documents[key]
        assert document["ranking"] == ("re-ranked" if "re-ranked" in name else "dual_encoder")
        of_name = "tiny" if name == "hostile" else name  # a model is named after its run, and has one row
        columns = {
            "IR": 100 * document["mean_recalls"]["text_to_image"]["recall@1"],
            "TR": 100 * document["mean_recalls"]["image_to_text"]["recall@1"],
            "MRV": document["mrv"]["mean"],
            "MRSD": document["mrsd"]["mean"],
        }
        expected |= {f"{of_name}/{document['dataset']} {column}": value for column, value in columns.items()}
    found = [of for of in page.iter("data") if of.get("data-from").startswith("table#")]
    assert {of.get("data-from").removeprefix("table#") for of in found} == set(expected)
    for element in found:
        value = expected[element.get("data-from").removeprefix("table#")]
        assert json.loads(element.get("value")) == pytest.approx(value, rel=1e-12)
        assert text_of(element) == f"{value:.2f}"


# ---- figures


@pytest.fixture
def axes():
    from matplotlib.figure import Figure

    return Figure().subplots()


def test_bars_and_whiskers_are_the_recalls_and_their_intervals(written, axes):
    document = written[0]["1"]
    figure = figures.recall_bars(document)
    assert [panel.title for panel in figure.panels] == ["image → text", "text → image"]
    figure.panels[1].draw(axes)
    of_languages = [of["text_to_image"] for of in document["languages"].values()]
    assert [text.get_text() for text in axes.get_yticklabels()] == list(document["languages"])
    widths = [bar.get_width() for bar in axes.patches]
    expected = [100 * of[recall] for recall in reversed(CUTOFFS) for of in of_languages]
    assert widths == pytest.approx(expected, rel=1e-12)
    ends = [line.get_xdata() for line in axes.lines[1::2]]  # each upon a wider one that sets it off
    assert np.allclose(ends, [[100 * end for end in of["intervals"]["recall@1"]] for of in of_languages])
    assert [text.get_text() for text in axes.texts] == [f"{100 * of['recall@1']:.1f}" for of in of_languages]


def test_cells_of_the_heat_map_are_the_pairs(axes):
    pairs = {"en": {"de": 0.5, "ja": 2.0}, "de": {"ja": 1.0}}
    figures.heat_map(["en", "de", "ja"], pairs).panels[0].draw(axes)
    cells = {(round(text.get_position()[1] - 0.5), round(text.get_position()[0] - 0.5)): text for text in axes.texts}
    written = {place: text.get_text() for place, text in cells.items()}
    expected = {(0, 1): ".50", (0, 2): "2.0", (1, 2): "1.0"}
    assert written == expected | {(j, i): text for (i, j), text in expected.items()}
    (mesh,) = axes.collections
    mesh.update_scalarmappable()
    colours = {tuple(mesh.get_facecolors()[3 * i + j]) for i, j in ((0, 1), (0, 2), (1, 2))}
    assert len(colours) == 3
    blueness = [mesh.get_facecolors()[3 * i + j][0] for i, j in ((0, 1), (1, 2), (0, 2))]
    assert blueness == sorted(blueness, reverse=True)  # the stronger, the less red is in it


def test_points_of_the_scatter_are_the_ranks(axes):
    ranks = np.array([[[1, 1], [2, 7], [2, 7]], [[1, 1], [5, 1], [400, 401]]], dtype=float)
    found = Spread(["en", "de"], np.arange(3), ranks, ranks.var(2).mean(0))
    (panel,) = figures.scatter(found, "en").panels
    panel.draw(axes)
    drawn = {}
    for line in axes.lines[1:]:
        drawn |= {point: line.get_markersize() for point in zip(*line.get_data(), strict=True)}
    assert sorted(drawn) == [(1, 1), (2, 7), (5, 1), (422, 422)]  # 400 and 401 cannot be told apart
    assert drawn[1, 1] == drawn[2, 7] > drawn[5, 1] == drawn[422, 422]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("en", "de")
    assert axes.get_xscale() == axes.get_yscale() == "log"


def test_panels_of_many_ranks_are_small():
    generator = np.random.default_rng(0)
    ranks = np.round(np.exp(generator.uniform(0, np.log(5000), (2, 5000, 2))))
    figure = figures.scatter(Spread(["en", "de"], np.arange(5000), ranks, ranks.var(2).mean(0)), "en")
    drawn = svg(figure, 0, "ranks")
    assert 300 < drawn.count("<use") < len(drawn) / 40
    assert len(drawn) < 80_000


def test_bars_of_the_variance_and_curves_are_what_they_are_of(axes):
    figures.variance_bars([Bin(None, 0.0, 3), Bin(0.1, 0.3, 1)]).panels[0].draw(axes)
    assert [bar.get_height() for bar in axes.patches] == [75, 25]
    assert [text.get_text() for text in axes.texts] == ["3", "1"]
    axes.clear()
    curves = [Curve("val/mrv", [9, 19], [3.5, 2.5]), Curve("val/mean_recall", [9, 19], [0.5, 0.75])]
    recall, mrv = figures.curve_figures(curves)
    recall.panels[0].draw(axes)
    assert axes.lines[0].get_xdata().tolist() == [9, 19]
    assert axes.lines[0].get_ydata().tolist() == [50, 75]
    assert (recall.name, mrv.name) == ("validation_recall", "validation_mrv")
    assert figures.curve_figures([Curve("lr", [0], [1.0])]) == []


def test_dots_of_runs_have_their_intervals(axes):
    estimates = [figures.Estimate("a" * 50, 0.5, [0.4, 0.6]), figures.Estimate("b", 0.25, None)]
    figure = figures.runs_compared({"image_to_text": estimates, "text_to_image": estimates}, [])
    assert len(figure.panels) == 2
    figure.panels[0].draw(axes)
    assert [list(line.get_xdata()) for line in axes.lines] == [[40, 60], [50], [25, 25], [25]]
    assert [len(text.get_text()) for text in axes.get_yticklabels()] == [28, 1]


def test_the_same_scored_twice_is_told_apart(run, make, tmp_path):
    again = shutil.copytree(run, tmp_path / "again" / "later")
    page, _ = make(run / "results.json", Path(again) / "results.json")
    assert shown(page, ".//h2") == ["Side by side", "tiny in tiny", "tiny in later"]
    assert len(page.findall(".//table[@class='main']/tbody/tr")) == 1


# ---- images


def cards(page, key):
    section = page.find(f".//section[@aria-labelledby='results-{key}']")
    return section.findall(".//li[@class='card']")


def test_the_most_inconsistent_images_are_shown_with_their_captions(written):
    documents, folders, page, _ = written
    _, means, variance = of_ranks(folders["1"], documents["1"])
    found = cards(page, "1")
    names = [text_of(card.find("h4")) for card in found]
    largest = sorted(variance.values(), reverse=True)[:12]
    assert [variance[name] for name in names] == pytest.approx(largest, rel=1e-12)
    assert len(set(names)) == 12
    source = documents["1"]["source"]["init_args"]
    lines = map(json.loads, Path(source["files"]["test"]).read_text(encoding="utf-8").splitlines())
    by_name = {str(line.get("image_id", line["image"])): line for line in lines}
    for card, name in zip(found, names, strict=True):
        rows = [
            (text_of(row.find("th/span")), text_of(row.find("td[@class='text']")), row.find("td[@class='text']"))
            for row in card.findall(".//tbody/tr")
        ]
        captions = {language: text for language, text, _ in rows}
        assert captions == {
            language: texts if isinstance(texts, str) else texts[0]
            for language, texts in by_name[name]["captions"].items()
        }
        assert all((cell.get("lang"), cell.get("dir")) == (language, "auto") for language, _, cell in rows)
        order = [sum(means[d, language, name] for d in ("image_to_text", "text_to_image")) for language, *_ in rows]
        assert order == sorted(order)
        kind, data = card.find(".//img").get("src").split(",")
        assert kind == "data:image/jpeg;base64"
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), dtype=float)
        original = np.asarray(
            decode_image((Path(source["image_root"]) / by_name[name]["image"]).read_bytes(), "x"), dtype=float
        )
        assert picture.shape == original.shape
        assert np.abs(picture - original).mean() < 6
    assert shown(page, ".//section[@aria-labelledby='results-1']//p[@class='remark']") == []


def test_languages_of_an_image_are_ordered_by_the_mean_of_both_directions():
    """English is best from image to text and worst from text to image, where it has two captions."""
    queries = [
        QueryRanks("image_to_text", language, np.array([1]), None, np.array([rank]))
        for language, rank in (("en", 1), ("de", 2), ("ja", 3))
    ]
    to_image = (("en", [2, 14]), ("de", [1]), ("ja", [1]))
    queries += [
        QueryRanks("text_to_image", of, np.array([1] * len(ranks)), np.arange(len(ranks)), np.array(ranks))
        for of, ranks in to_image
    ]
    ranks = RanksFile(["other", "mine"], queries)
    (found,) = instances_of([("mine", 2.5)], ranks, ["en", "de", "ja"], {})
    assert [(row.language, row.mean) for row in found.languages] == [("de", 1.5), ("ja", 2), ("en", 4.5)]
    assert [(caption.number, caption.rank) for caption in found.languages[-1].captions] == [(0, 2), (1, 14)]


def test_every_caption_of_an_image_has_its_rank(written):
    documents, folders, page, _ = written
    ranks, *_ = of_ranks(folders["3"], documents["3"])
    numbers = set()
    for card in cards(page, "3"):
        name = next(of for of in card.iter("data") if "#variance/" in of.get("data-from")).get("data-from")
        name = name.partition("#variance/")[2]
        for language in ("en", "ar"):
            of = [
                json.loads(data.get("value"))
                for data in card.iter("data")
                if data.get("data-from").startswith(f"3 ranks#text_to_image/{language}/{name}/")
            ]
            assert of == ranks["text_to_image", language, name]
            numbers.add(len(of))
    assert numbers == {1, 2}


# ---- whatever comes from data


def test_whatever_comes_from_data_is_text(written):
    _, _, page, path = written
    assert not {element.tag for element in page.iter()} & {"script", "b", "iframe", "object", "form", "link", "base"}
    names = [text_of(card.find("h4")) for card in cards(page, "3")]
    assert any(name.startswith(EVIL) for name in names)
    assert any(name.startswith(RTL) for name in names)
    assert any(name.startswith("red\ufffd\ufffd[31m\ufffddot") for name in names)
    assert all(card.find("h4").get("dir") == "auto" for card in cards(page, "3"))
    text = path.read_text(encoding="utf-8")
    assert not re.search(CONTROLS, text)
    assert shown(page, ".//section[@aria-labelledby='results-3']/p[@class='counts']/data")[0] == "ev<il"


def test_languages_that_mean_harm_are_text_in_figures(axes):
    figure = figures.heat_map([EVIL, "run-0.123456 #ffffff"], {EVIL: {"run-0.123456 #ffffff": 1.0}})
    drawn = svg(figure, 0, EVIL)
    parser = Parser()
    parser.feed(drawn)
    tree = parser.builder.close()
    assert tree.get("aria-label") == EVIL
    assert not {element.tag for element in tree.iter()} & {"script", "b", "style", "image"}
    texts = [text_of(text) for text in tree.iter("text")]
    assert texts.count(EVIL) == texts.count("run-0.123456 #ffffff") == 2
    assert png(figure).startswith(b"\x89PNG")


# ---- the page


def test_the_page_needs_nothing_else(written):
    _, _, page, path = written
    policy = page.find("head/meta[@http-equiv='Content-Security-Policy']").get("content")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    targets = [
        value
        for element in page.iter()
        for name, value in element.items()
        if name in ("src", "href", "srcset", "action")
    ]
    assert all(target.startswith(("data:image/jpeg;base64,", "#")) for target in targets)
    anchors = Counter(element.get("id") for element in page.iter() if element.get("id"))
    assert max(anchors.values()) == 1
    assert {target[1:] for target in targets if target.startswith("#")} <= set(anchors)
    assert not [name for element in page.iter() for name in element.attrib if name.startswith("on")]
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?:|url\((?!#)|@import|<\?xml", text)
    assert path.stat().st_size < 5_000_000
    assert set(re.findall(r"var\((--[\w-]+)\)", text)) <= set(re.findall(r"(--[\w-]+):", text))


def test_headings_are_in_order_and_figures_are_described(written):
    page = written[2]
    levels = [int(element.tag[1]) for element in page.iter() if re.fullmatch("h[1-6]", element.tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in page.iter("svg"))
    assert all(text_of(figure.find("figcaption")).strip() for figure in page.iter("figure"))
    assert len({svg.get("aria-label") for svg in page.iter("svg")}) > 10


def test_the_command_says_what_it_wrote(run, make, tmp_path, monkeypatch):
    page, out = make(run / "results.json")
    assert out == f"{tmp_path / 'page.html'}: written, {(tmp_path / 'page.html').stat().st_size / 1e6:.1f} MB; " + (
        "open it in a browser\n"
    )
    assert shown(page, ".//h2") == ["tiny"]
    assert page.find(".//nav") is None
    configuration = text_of(page.find(".//pre"))
    assert configuration == (run / "config.yaml").read_text(encoding="utf-8")
    first = (tmp_path / "page.html").read_bytes()
    make(run / "results.json")
    assert (tmp_path / "page.html").read_bytes() == first
    monkeypatch.setattr(command, "_LARGE", 1000)
    assert make(run / "results.json")[1].splitlines()[1].startswith("the page is above 0 MB: name fewer runs")


def test_figures_for_papers(written):
    folder = written[3].parent / "png"
    names = {path.name for path in folder.iterdir()}
    again = "tiny-re-ranked-4-by-matching-and-similarity-2"
    of_all = {f"{run}-{name}.png" for run in ("tiny-1", again, "tiny-3") for name in ("recall", "agreement", "ranks")}
    assert of_all <= names
    assert {"runs-1.png", "tiny-1-losses.png", "tiny-1-validation_recall.png"} <= names
    for path in folder.iterdir():
        with Image.open(path) as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
            assert 300 < image.width < 300 * 7.5


# ---- what is missing, changed or damaged


@pytest.fixture
def copy(run, tmp_path):
    return Path(shutil.copytree(run, tmp_path / "copy" / "tiny"))


def rewrite(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_results_of_an_older_version_make_a_page(copy, make):
    for path in copy.glob("results*.json"):
        rewrite(path, lambda document: (document.pop("ranks"), document["mrv"].pop("pairs")))
    page, _ = make(copy)
    remarks = shown(page, ".//p[@class='remark']")
    assert len(remarks) == 4
    assert "did not compare two languages" in remarks[0]
    assert remarks[1].startswith("These results are of a version of this package that did not keep ranks")
    assert page.find(".//img") is None
    assert len(page.findall(".//figure")) == 6  # runs, twice recall, three of training


def test_ranks_that_are_not_there_make_a_page_and_others_do_not(copy, make, capsys):
    (copy / "ranks.csv").unlink()
    page, _ = make(copy / "results.json")
    assert "The ranks of these results, ranks.csv, are not beside them" in shown(page, ".//p[@class='remark']")[0]
    shutil.copy(copy / "ranks-reranked.csv", copy / "ranks.csv")
    assert main(["report", str(copy), "-o", str(copy / "page.html")]) == 1
    assert "ranks.csv: these are not the ranks that results.json was made of" in capsys.readouterr().err


def test_data_that_are_not_there_leave_names_and_ranks(copy, make, tmp_path):
    def move(document):
        document["source"]["init_args"]["files"]["test"] = str(tmp_path / "gone.jsonl")

    rewrite(copy / "results.json", move)
    page, _ = make(copy / "results.json")
    (remark,) = shown(page, ".//p[@class='remark']")
    assert remark.startswith("Without pictures and captions, for the data cannot be read: ")
    assert "gone.jsonl" in remark
    assert page.find(".//img") is None
    assert {text_of(cell) for cell in page.findall(".//td[@class='text']")} == {"–"}
    assert len(page.findall(".//li[@class='card']")) == 12


def test_data_that_have_changed_are_not_shown(copy, make):
    rewrite(copy / "results.json", lambda document: document["data"].update(sha256="0" * 64))
    page, _ = make(copy / "results.json")
    assert shown(page, ".//p[@class='remark']")[0].startswith("The data have changed since they were scored")
    assert page.find(".//img") is None


def test_files_of_captions_serve_where_there_is_no_store(copy, make, tmp_path, monkeypatch):
    (copy / "config.yaml").unlink()
    monkeypatch.setenv("CCR_CACHE_DIR", str(tmp_path / "empty"))
    page, _ = make(copy / "results.json")
    assert shown(page, ".//p[@class='remark']")[0].endswith("their hash was not compared.")
    assert len(page.findall(".//img")) == 12
    assert page.find(".//pre") is None


def test_pictures_that_cannot_be_decoded_have_their_sentence(copy, make, tmp_path, monkeypatch):
    source = json.loads((copy / "results.json").read_text())["source"]["init_args"]
    shutil.copytree(source["image_root"], tmp_path / "images")
    for path in (tmp_path / "images").rglob("*"):
        if path.is_file() and path.suffix != ".jsonl":
            path.write_bytes(b"x")
    rewrite(
        copy / "results.json",
        lambda document: document["source"]["init_args"].update(image_root=str(tmp_path / "images")),
    )
    monkeypatch.setenv("CCR_CACHE_DIR", str(tmp_path / "empty"))
    (copy / "config.yaml").unlink()
    page, _ = make(copy / "results.json")
    sentences = shown(page, ".//p[@class='none']")
    assert len(sentences) == 12
    assert all("is not a picture that Pillow can open" in sentence for sentence in sentences)


def test_a_source_that_cannot_be_built_is_said(copy, make):
    rewrite(copy / "results.json", lambda document: document["source"].update(class_path="ccr_lightning.No"))
    page, _ = make(copy / "results.json")
    remark = shown(page, ".//p[@class='remark']")[0]
    assert "for the data cannot be read: " in remark
    assert "'ccr_lightning.No' cannot be imported" in remark


def test_results_without_mrv_intervals_and_training(copy, make):
    def change(document):
        for name in ("mrv", "mrsd", "rank1_agreement"):
            document[name] |= dict.fromkeys(("mean", "interval", "image_to_text", "text_to_image"))
            document[name] |= {"reason": "the captions are no translations", "pairs": None}
        for of in document["languages"].values():
            for direction in of.values():
                direction["intervals"] = dict.fromkeys(CUTOFFS)

    rewrite(copy / "results.json", change)
    (copy / "metrics.csv").write_text("step,lr\n0,0.5\n")
    page, _ = make(copy / "results.json")
    assert shown(page, ".//p[@class='remark']") == ["There is no MRV: the captions are no translations."]
    assert len(page.findall(".//figure")) == 1
    assert "Training" not in shown(page, ".//h3")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("results.json", "{", "results.json: cannot be read as results"),
        (
            "results.json",
            '{"format": 2, "split": "test", "ranking": "dual_encoder"}',
            "results.json: something is missing",
        ),
        ("results.json", '{"format": 1}', "these results are of another version of this package"),
        ("metrics.csv", "a,b\n1,2\n", "metrics.csv: this is not the metrics.csv of a run"),
        ("metrics.csv", "step,train/loss\n1,x\n", "metrics.csv: this is not the metrics.csv of a run"),
        ("ranks.csv", "direction", "ranks.csv: these are not the ranks that results.json was made of"),
        ("config.yaml", b"\xff", "config.yaml: cannot be read"),
    ],
)
def test_damaged_files_are_one_sentence(file, content, says, copy, capsys):
    (copy / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["report", str(copy), "-o", str(copy / "page.html")]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (copy / "page.html").exists()


@pytest.mark.parametrize(
    "place",
    [
        "model.parameters",
        "model.sha256",
        "data.sha256",
        "data.images",
        "checkpoint.path",
        "checkpoint.sha256",
        "source.class_path",
        "source.init_args",
        "left_out.bad_records",
        "mrv.mean",
        "mrv.languages",
        "mrv.left_out",
        "mrsd.interval",
        "rank1_agreement.text_to_image",
        "languages.de.image_to_text",
        "languages.de.image_to_text.tied_queries",
        "languages.de.text_to_image.intervals.recall@5",
        "language_means.de.interval",
        "mean_recalls.text_to_image.intervals",
        "worst_language.mean_recall.value",
        "split",
    ],
)
def test_results_that_lack_something_are_one_sentence(place, copy, capsys):
    *within, last = place.split(".")

    def lacking(document):
        for name in within:
            document = document[name]
        del document[last]

    (copy / "results-reranked.json").unlink()
    rewrite(copy / "results.json", lacking)
    assert main(["report", str(copy), "-o", str(copy / "page.html")]) == 1
    assert capsys.readouterr().err == (
        f"error: {copy / 'results.json'}: something is missing in these results ('{last}'); run ccr test again.\n"
    )
    assert not (copy / "page.html").exists()


@pytest.mark.parametrize("changed", [{"mrv": 3}, {"checkpoint": "x"}, {"languages": []}, {"model": None}])
def test_results_of_another_shape_are_one_sentence(changed, copy, capsys):
    rewrite(copy / "results.json", lambda document: document.update(changed))
    assert main(["report", str(copy), "-o", str(copy / "page.html")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {copy / 'results.json'}: something is missing in these results (")
    assert error.count("\n") == 1


def test_a_run_that_is_named_twice_is_shown_once(run, make):
    page, _ = make(run, run, run / "results.json")
    assert len(page.findall(".//section[h2]")) == 3  # side by side, and both results


def test_figures_of_names_that_are_alike_are_files_of_their_own(run, tmp_path, monkeypatch, capsys):
    names = iter(["a", "a", "a-1"])
    monkeypatch.setattr(report_page, "png", lambda figure: b"x")
    copies = []
    for place in range(3):
        copies.append(tmp_path / str(place))
        shutil.copytree(run, copies[-1])
        (copies[-1] / "results-reranked.json").unlink()
    read_scored = report_page.read_scored
    monkeypatch.setattr(
        report_page, "read_scored", lambda results: [of._replace(name=next(names)) for of in read_scored(results)]
    )
    assert main(["report", *map(str, copies), "-o", str(tmp_path / "a.html"), "--png", str(tmp_path / "png")]) == 0
    told = int(re.search(r"(\d+) figures written", capsys.readouterr().out)[1])
    assert len(list((tmp_path / "png").iterdir())) == told


def test_what_cannot_be_reported(run, tmp_path, capsys):
    (tmp_path / "mine.html").write_text("mine")
    (tmp_path / "file").touch()
    for arguments, says in (
        (["--output", "x.html"], "required: RUN"),
        ([tmp_path / "nowhere"], "nowhere: there is no such run or file"),
        ([tmp_path], "there are no results of a test split here; run ccr test first"),
        ([run, "-o", tmp_path / "mine.html"], "mine.html is there, and no page"),
        ([run, "-o", tmp_path / "file" / "a.html"], "the report could not be written"),
        ([run, "-o", tmp_path / "a.html", "--png", tmp_path / "file"], "the figure could not be written"),
        ([run, "--pgn", "x"], "unrecognized arguments: --pgn x; 'ccr report --help' explains"),
    ):
        assert main(["report", *map(str, arguments)]) == 1
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
    assert (tmp_path / "mine.html").read_text() == "mine"


def test_help_and_missing_libraries(run, monkeypatch, capsys, tmp_path):
    assert main(["report"]) == main(["report", "--help"]) == 0
    assert capsys.readouterr().out.count("usage: ccr report RUN... [-o PAGE] [--png DIR]") == 2
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name == "matplotlib" else name)
    assert main(["report", str(run), "-o", str(tmp_path / "page.html")]) == 1
    assert capsys.readouterr().err == "error: a report needs matplotlib: pip install 'ccr-lightning[report]'.\n"


# ---- in a browser


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_in_a_browser(mode, written, chromium):  # noqa: F811
    """Nothing is refused or missing, nothing runs over the edge of a phone, and axe finds nothing serious."""
    with watched_page(chromium, width=360, height=800, scheme=mode) as page:
        page.goto(written[3].as_uri())
        assert page.faults == []
        assert [url for url in page.asked if not url.startswith("data:")] == [written[3].as_uri()]
        for width in (360, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
        for details in page.query_selector_all("details"):
            details.evaluate("element => element.open = true")
        assert serious_violations(page) == []
