"""``ccr results``: the table's numbers are those of the files, in every layout."""

import csv
import io
import json

import pytest

from ccr_lightning.cli.main import main

RECALLS = ("recall@1", "recall@5", "recall@10")


def document(
    dataset,
    recalls,
    mrv=None,
    run="runs/mine",
    split="test",
    ranking="dual_encoder",
    folds=None,
    mrv_languages=None,
    **init_args,
):
    """What ``ccr test`` writes, as far as it is shown; ``recalls`` is language to (i2t R@1, t2i R@1, mean)."""
    mean = [sum(of[i] for of in recalls.values()) / len(recalls) for i in range(2)]

    def scores(shift):
        directions = {"image_to_text": mean[0] + shift, "text_to_image": mean[1] + shift}
        return {"mean_recalls": {name: dict.fromkeys(RECALLS, value) for name, value in directions.items()}}

    return {
        "format": 2,
        "dataset": dataset,
        "split": split,
        "ranking": ranking,
        "protocol": {"rerank_depth": 128, "rerank_by": "matching"},
        "checkpoint": {"path": f"{run}/checkpoints/best.ckpt", "sha256": "x"},
        "source": {"class_path": "x", "init_args": init_args},
        "language_means": {name: {"mean_recall": of[2], "interval": None} for name, of in recalls.items()},
        **scores(0),
        "mrv": {"mean": mrv, "languages": mrv_languages or list(recalls)},
        "mrsd": {"mean": mrv and mrv / 2},
        "folds": folds and {"language_means": folds, **scores(0.1)},
    }


def write(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    multi30k = {"en": (0.5, 0.6, 0.71234), "de": (0.4, 0.5, 0.6), "fr": (0, 0, 0.5), "cs": (0, 0, 0.4)}
    eight = dict.fromkeys(("de", "en", "es", "id", "ja", "ru"), (0.3, 0.2, 0)) | dict.fromkeys(("tr", "zh"), (0, 0, 0))
    eleven = dict.fromkeys(("ar", "bg", "da", "el", "en", "et", "id", "ja", "ko", "tr", "vi"), (0.25, 0.125, 0))
    paper = ["en", "de", "ja", "zh"]
    documents = {
        "mine": document("multi30k-task1", multi30k, 3.5),
        "mine-2017": document("multi30k-task1", multi30k, 4.5, splits={"test": "test_2017_flickr"}),
        "mine-xflickrco": document("xflickrco", eight, 9, mrv_languages=paper),
        "mine-all": document("xflickrco", eight, 12, mrv_languages=["en", "tr"]),
        "mine-de": document("xflickrco-train_100", {"de": (0.7, 0.6, 0)}),
        "mine-coco": document("coco", {"en": (0, 0, 0.3), "ja": (0, 0, 0.3)}, folds={"en": 0.9, "ja": 0.8}),
        "mine-whole": document("coco", {"en": (0, 0, 0.3)}),
        "mine-zh": document("coco", {"zh": (0, 0, 0.7)}, lists={"test": "coco-cn_test.txt"}),
        "other": document("wit", eleven, run="runs/other"),
        "other-en": document("wit", {"en": (0.5, 0.75, 0)}, run="runs/other"),
    }
    folders = [write(tmp_path / name, "results.json", of) for name, of in documents.items()]
    write(tmp_path / "mine", "results-val.json", document("multi30k-task1", {"en": (0, 0, 0)}, split="val"))
    write(
        tmp_path / "mine", "results-reranked.json",
        document("multi30k-task1", {"en": (0.5, 0.6, 0.8)}, 1.0, ranking="re-ranked"),
    )  # fmt: skip
    return folders


EXPECTED = {
    "mine": {
        "xFlickr&CO IR": 15.0,
        "xFlickr&CO TR": 22.5,
        "xFlickr&CO MRV": 9.0,
        "xFlickr&CO MRV en tr": 12.0,
        "xFlickr&CO MRSD": 4.5,
        "xFlickr&CO MRSD en tr": 6.0,
        "xFlickr&CO de IR": 60.0,
        "xFlickr&CO de TR": 70.0,
        "Multi30K en": 71.234,
        "Multi30K de": 60.0,
        "Multi30K fr": 50.0,
        "Multi30K cs": 40.0,
        "Multi30K MRV": 3.5,
        "Multi30K MRSD": 1.75,
        "Multi30K 2017_flickr en": 71.234,
        "Multi30K 2017_flickr de": 60.0,
        "Multi30K 2017_flickr fr": 50.0,
        "Multi30K 2017_flickr cs": 40.0,
        "Multi30K 2017_flickr MRV": 4.5,
        "Multi30K 2017_flickr MRSD": 2.25,
        "COCO en": 90.0,
        "COCO ja": 80.0,
        "COCO zh": 70.0,
        "COCO in one gallery en": 30.0,
    },
    "mine, re-ranked 128": {"Multi30K en": 80.0, "Multi30K MRV en": 1.0, "Multi30K MRSD en": 0.5},
    "other": {"WIT IR": 12.5, "WIT TR": 25.0, "WIT en IR": 75.0, "WIT en TR": 50.0},
}


def test_csv_has_every_number(runs, capsys):
    assert main(["results", *runs, "--format", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    found = {row.pop("model"): {name: float(value) for name, value in row.items() if value} for row in table}
    assert list(found) == list(EXPECTED)
    for name, row in EXPECTED.items():
        assert found[name] == pytest.approx(row, rel=1e-12)
    assert list(table[0]) == [
        *(f"xFlickr&CO {name}" for name in ("IR", "TR", "MRV", "MRV en tr", "MRSD", "MRSD en tr", "de IR", "de TR")),
        *("WIT IR", "WIT TR", "WIT en IR", "WIT en TR"),
        *(f"Multi30K {name}" for name in ("en", "de", "fr", "cs", "MRV", "MRV en", "MRSD", "MRSD en")),
        *(f"Multi30K 2017_flickr {name}" for name in ("en", "de", "fr", "cs", "MRV", "MRSD")),
        *("COCO en", "COCO zh", "COCO ja", "COCO in one gallery en"),
    ]


@pytest.mark.parametrize("layout", ["table", "markdown", "latex"])
def test_layouts_have_the_rounded_numbers(runs, capsys, layout):
    assert main(["results", *runs, "--format", layout]) == 0
    out = capsys.readouterr().out
    for name, row in EXPECTED.items():
        (line,) = [line for line in out.splitlines() if line.strip("│| ").startswith(f"{name} ")]
        for value in row.values():
            assert f" {value:.2f} " in line
        assert line.count(" - ") == 30 - len(row)
    if layout == "latex":
        assert r"\toprule" in out
        assert r"xFlickr\&CO IR" in out


def test_published_rows_are_those_of_the_paper(runs, capsys):
    assert main(["results", runs[0], "--published", "--format", "csv"]) == 0
    table = {row["model"]: row for row in csv.DictReader(io.StringIO(capsys.readouterr().out))}
    assert len(table) == 9 + 2
    best = table["CCR^10-E (published)"]
    assert (best["xFlickr&CO IR"], best["Multi30K MRV"], best["COCO zh"]) == ("73.3", "2.53", "91.4")
    assert table["CCLM-3M (published)"]["WIT IR"] == ""


def test_models_of_one_name_have_rows_of_their_own(tmp_path, capsys):
    """The best and the last checkpoint of a run, or the run of another folder."""
    one = document("wit", {"en": (0.5, 0.25, 0)}, run="old/base") | {"model": {"sha256": "abcdef12"}}
    two = document("coco", {"en": (0, 0, 0.5)}, run="new/base") | {"model": {"sha256": "12abcdef"}}
    folders = [write(tmp_path / name, "results.json", of) for name, of in (("one", one), ("two", two))]
    assert main(["results", *folders, "--format", "csv"]) == 0
    rows = [line.split(",") for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["model", "WIT en IR", "WIT en TR", "COCO in one gallery en"]
    assert rows[1:] == [["base (abcdef)", "25.0", "50.0", ""], ["base (12abcd)", "", "", "50.0"]]


def test_a_rounding_is_no_difference(tmp_path, capsys):
    """English alone at the end of a fine-tuning, and beside three languages in the benchmark."""
    alone = document("multi30k-task1", {"en": (0, 0, 0.5166666666666667)})
    beside = document("multi30k-task1", {"en": (0, 0, 0.5166666666666666), "de": (0, 0, 0.5)}, 1.0)
    folders = [write(tmp_path / name, "results.json", of) for name, of in (("a", alone), ("b", beside))]
    assert main(["results", *folders, "--format", "markdown"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("| mine    |         51.67 |         50.00 |")


def test_folders_without_a_test_are_passed_over(runs, tmp_path, capsys):
    (tmp_path / "interrupted").mkdir()
    assert main(["results", *runs, "--format", "csv"]) == 0
    expected = capsys.readouterr().out
    assert main(["results", str(tmp_path / "interrupted"), *runs, "--format", "csv"]) == 0
    assert capsys.readouterr().out == expected


def test_help_and_nothing(capsys):
    assert main(["results"]) == main(["results", "--help"]) == 0
    assert capsys.readouterr().out.count("usage: ccr results RUN... [options]") == 2


def test_names_of_blanks_are_shown(tmp_path, capsys):
    folder = write(tmp_path / "blank", "results.json", document("\n", {" ": (0.25, 0.5, 0)}))
    assert main(["results", str(folder), "--format", "csv"]) == 0
    assert "25.0" in capsys.readouterr().out


def test_what_cannot_be_shown(runs, tmp_path, capsys):
    empty, old, broken, partial, again, text = (
        tmp_path / name for name in ("empty", "old", "broken", "partial", "again", "text")
    )
    empty.mkdir()
    write(old, "results.json", {"format": 1})
    write(broken, "results.json", [1])
    write(partial, "results.json", {"format": 2, "split": "test"})
    write(again, "results.json", document("multi30k-task1", {"en": (0, 0, 0.1)}, 3.5))
    of_text = document("multi30k-task1", {"en": (0, 0, 0.1)}, 3.5)
    write(text, "results.json", of_text | {"mrv": of_text["mrv"] | {"mean": "3.5"}})
    for arguments, says in (
        ([empty], "there are no results of a test split here; run ccr test first."),
        ([tmp_path / "nowhere"], "nowhere: there is no such run or file; check the path."),
        ([old], "are of another version of this package; run ccr test again."),
        ([broken], "cannot be read as results"),
        ([partial], "something is missing in these results ('ranking'); run ccr test again."),
        ([text], "something is missing in these results ('3.5' is no number)"),
        ([runs[0], again], "differ in Multi30K en of mine; name one of them."),
        ([runs[0], "--format", "excel"], "invalid choice: 'excel'"),
    ):
        assert main(["results", *map(str, arguments)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert says in error
