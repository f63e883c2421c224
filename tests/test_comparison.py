"""``ccr results``: the table's numbers are those of the files, in every layout."""

import csv
import io
import json

import pytest

from ccr_lightning.cli.main import main

RECALLS = ("recall@1", "recall@5", "recall@10")


def document(
    dataset, recalls, mrv=None, run="runs/mine", split="test", splits=None, ranking="dual_encoder", folds=None
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
        "source": {"class_path": "x", "init_args": {"splits": splits}},
        "language_means": {name: {"mean_recall": of[2], "interval": None} for name, of in recalls.items()},
        **scores(0),
        "mrv": {"mean": mrv},
        "mrsd": {"mean": mrv and mrv / 2},
        "folds": folds and {"language_means": folds, **scores(0.1)},
    }


def write(folder, name, content):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    multi30k = {"en": (0.5, 0.6, 0.71234), "de": (0.4, 0.5, 0.6)}
    documents = {
        "mine": document("multi30k", multi30k, 3.5),
        "mine-2017": document("multi30k", multi30k, 4.5, splits={"test": "test_2017_flickr"}),
        "mine-xflickrco": document("xflickrco", {"en": (0.3, 0.2, 0), "ja": (0.1, 0.2, 0)}, 9),
        "mine-coco": document("coco", {"en": (0, 0, 0.3)}, folds={"en": 0.9, "ja": 0.8}),
        "other": document("wit", {"en": (0.25, 0.125, 0)}, run="runs/other"),
    }
    folders = [write(tmp_path / name, "results.json", of) for name, of in documents.items()]
    write(tmp_path / "mine", "results-val.json", document("multi30k", {"en": (0, 0, 0)}, split="val"))
    write(
        tmp_path / "mine", "results-reranked.json",
        document("multi30k", {"en": (0.5, 0.6, 0.8)}, 1.0, ranking="re-ranked"),
    )  # fmt: skip
    return folders


EXPECTED = {
    "mine": {
        "xFlickr&CO IR": 20.0,
        "xFlickr&CO TR": 20.0,
        "xFlickr&CO MRV": 9.0,
        "xFlickr&CO MRSD": 4.5,
        "Multi30K en": 71.234,
        "Multi30K de": 60.0,
        "Multi30K MRV": 3.5,
        "Multi30K MRSD": 1.75,
        "Multi30K 2017_flickr en": 71.234,
        "Multi30K 2017_flickr de": 60.0,
        "Multi30K 2017_flickr MRV": 4.5,
        "Multi30K 2017_flickr MRSD": 2.25,
        "COCO en": 90.0,
        "COCO ja": 80.0,
    },
    "mine, re-ranked 128": {"Multi30K en": 80.0, "Multi30K MRV": 1.0, "Multi30K MRSD": 0.5},
    "other": {"WIT IR": 12.5, "WIT TR": 25.0},
}


def test_csv_has_every_number(runs, capsys):
    assert main(["results", *runs, "--format", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    found = {row.pop("model"): {name: float(value) for name, value in row.items() if value} for row in table}
    assert list(found) == list(EXPECTED)
    for name, row in EXPECTED.items():
        assert found[name] == pytest.approx(row, rel=1e-12)
    assert list(table[0]) == [
        *("xFlickr&CO IR", "xFlickr&CO TR", "xFlickr&CO MRV", "xFlickr&CO MRSD", "WIT IR", "WIT TR"),
        *("Multi30K en", "Multi30K de", "Multi30K MRV", "Multi30K MRSD"),
        *(f"Multi30K 2017_flickr {name}" for name in ("en", "de", "MRV", "MRSD")),
        *("COCO en", "COCO ja"),
    ]


@pytest.mark.parametrize("layout", ["table", "markdown", "latex"])
def test_layouts_have_the_rounded_numbers(runs, capsys, layout):
    assert main(["results", *runs, "--format", layout]) == 0
    out = capsys.readouterr().out
    for name, row in EXPECTED.items():
        (line,) = [line for line in out.splitlines() if line.strip("│| ").startswith(f"{name} ")]
        for value in row.values():
            assert f" {value:.2f} " in line
        assert line.count(" - ") == 16 - len(row)
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


def test_help_and_nothing(capsys):
    assert main(["results"]) == main(["results", "--help"]) == 0
    assert capsys.readouterr().out.count("usage: ccr results RUN... [options]") == 2


def test_what_cannot_be_shown(runs, tmp_path, capsys):
    empty, old, broken, partial, again = (tmp_path / name for name in ("empty", "old", "broken", "partial", "again"))
    empty.mkdir()
    write(old, "results.json", {"format": 1})
    write(broken, "results.json", [1])
    write(partial, "results.json", {"format": 2, "split": "test"})
    write(again, "results.json", document("multi30k", {"en": (0, 0, 0.1)}, 3.5))
    for arguments, says in (
        ([empty], "there are no results of a test split here; run ccr test first."),
        ([tmp_path / "nowhere"], "there are no results of a test split here"),
        ([old], "are of another version of this package; run ccr test again."),
        ([broken], "cannot be read as results"),
        ([partial], "something is missing in these results ('checkpoint'); run ccr test again."),
        ([runs[0], again], "differ in Multi30K en of mine; name one of them."),
        ([runs[0], "--format", "excel"], "invalid choice: 'excel'"),
    ):
        assert main(["results", *map(str, arguments)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert says in error
