"""The JSON document and the table: schema, numbers against loops over ranks, and how the file is written."""

from __future__ import annotations

import hashlib
import io
import json
import re
import statistics

import pytest
import torch
from rich.console import Console

from ccr_lightning import _version
from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation.evaluate import evaluate
from ccr_lightning.evaluation.protocol import EvaluationProtocol
from ccr_lightning.evaluation.results import results_document, write_results
from ccr_lightning.evaluation.scores import retrieval_results
from ccr_lightning.evaluation.table import print_results, results_table
from ccr_lightning.functional.galleries import Embeddings, LanguageRanks

LANGUAGES = ("cs", "de", "en", "fr")
DIRECTIONS = ("image_to_text", "text_to_image")
DATA = {  # direction to language index to (image id, rank); German has no captions; image 6 has no French one
    "image_to_text": {0: [(4, 1), (5, 3), (6, 11)], 2: [(4, 2), (5, 3), (6, 1)], 3: [(4, 6), (5, 1)]},
    "text_to_image": {
        0: [(4, 1), (5, 1), (6, 10)],
        2: [(4, 2), (4, 5), (5, 1), (6, 4)],  # image 4 has two English captions
        3: [(4, 12), (5, 2)],
    },
}
GALLERY = {"image_to_text": {0: 3, 2: 4, 3: 2}, "text_to_image": {0: 3, 2: 3, 3: 2}}
LEFT_OUT = {"bad_records": 0, "blank_captions": 2}
MADE_WITH = {
    "dataset": "demo", "split": "test", "protocol": EvaluationProtocol(rerank_depth=128), "checkpoint": None, "seed": 7,
    "left_out": LEFT_OUT, "made_of": {"data": {"images": 3, "sha256": "abc"}},
    "ranks": {"file": "ranks.csv", "sha256": "def"},
}  # fmt: skip


def language_ranks(ids, ranks, gallery):
    """Without ties, and with the right first result where the rank is 1."""
    first = torch.where(ranks == 1, ids, ids + 1)
    return LanguageRanks(ids, ranks, gallery, torch.zeros_like(ranks), first)


def ranks(only=(0, 2, 3)):
    return {
        direction: {
            language: language_ranks(
                *(torch.tensor(column) for column in zip(*pairs, strict=True)), GALLERY[direction][language]
            )
            for language, pairs in languages.items()
            if language in only
        }
        for direction, languages in DATA.items()
    }


def loop_consistency(direction, languages, spread):
    per_language = []
    for language in languages:
        of = {}
        for image, rank in DATA[direction][language]:
            of.setdefault(image, []).append(rank)
        per_language.append({image: statistics.mean(values) for image, values in of.items()})
    common = [image for image in per_language[0] if all(image in of for of in per_language)]
    return statistics.mean(spread([of[image] for of in per_language]) for image in common), len(common)


def test_recalls_are_those_of_loops():
    results = retrieval_results(ranks(), LANGUAGES)
    assert list(results["languages"]) == ["cs", "en", "fr"]
    everything = []
    for index, name in ((0, "cs"), (2, "en"), (3, "fr")):
        assert list(results["languages"][name]) == list(DIRECTIONS)
        for direction in DIRECTIONS:
            found = results["languages"][name][direction]
            pairs = DATA[direction][index]
            expected = {f"recall@{k}": sum(rank <= k for _, rank in pairs) / len(pairs) for k in (1, 5, 10)}
            everything += expected.values()
            numbers = {"queries": len(pairs), "gallery": GALLERY[direction][index], "tied_queries": 0}
            assert {key: value for key, value in found.items() if key != "intervals"} == expected | numbers
    for direction in DIRECTIONS:
        for k in (1, 5, 10):
            of = [sum(rank <= k for _, rank in DATA[direction][i]) / len(DATA[direction][i]) for i in (0, 2, 3)]
            assert results["mean_recalls"][direction][f"recall@{k}"] == pytest.approx(statistics.mean(of), rel=1e-15)
    assert results["mean_recall"] == pytest.approx(statistics.mean(everything), rel=1e-15)
    assert 0 < results["mean_recall"] < 1


@pytest.mark.parametrize(
    ("chosen", "names"), [(None, ["cs", "en", "fr"]), (["en", "cs"], ["cs", "en"]), (["fr", "en"], ["en", "fr"])]
)
def test_mrv_and_mrsd_are_those_of_loops(chosen, names):
    results = retrieval_results(ranks(), LANGUAGES, protocol=EvaluationProtocol(mrv_languages=chosen))
    for key, spread in (("mrv", statistics.pvariance), ("mrsd", statistics.pstdev)):
        expected = {d: loop_consistency(d, map(LANGUAGES.index, names), spread) for d in DIRECTIONS}
        values = [expected[d][0] for d in DIRECTIONS]
        found = results[key]
        assert [found[d] for d in DIRECTIONS] == pytest.approx(values, rel=1e-14)
        assert found["mean"] == pytest.approx(sum(values) / 2, rel=1e-14)
        assert found["languages"] == names
        assert found["instances"] == expected["image_to_text"][1] == (3 if "fr" not in names else 2)
        keys = {*DIRECTIONS, "mean", "interval", "languages", "instances", "left_out"}
        assert set(found) == (keys | {"pairs"} if key == "mrv" else keys)
        assert found["left_out"] == (0 if "fr" not in names else 1)
    assert results["mrv"]["mean"] != results["mrsd"]["mean"]


def test_mrv_of_each_two_languages_is_that_of_loops():
    """Images that one of the other languages lacks do not count for the pairs either, which make up the whole."""
    mrv = retrieval_results(ranks(), LANGUAGES)["mrv"]
    assert {one: list(of) for one, of in mrv["pairs"].items()} == {"cs": ["en", "fr"], "en": ["fr"]}
    common = {4, 5}

    def of(direction, language, image):
        return statistics.mean(rank for shown, rank in DATA[direction][LANGUAGES.index(language)] if shown == image)

    for one, others in mrv["pairs"].items():
        for other, value in others.items():
            spreads = [
                statistics.pvariance([of(direction, language, image) for language in (one, other)])
                for direction in DIRECTIONS
                for image in common
            ]
            assert value == pytest.approx(statistics.mean(spreads), rel=1e-14)
    total = sum(value for others in mrv["pairs"].values() for value in others.values())
    assert mrv["mean"] == pytest.approx(4 / 3**2 * total, rel=1e-14)


def nowhere_common():
    one = {0: language_ranks(torch.tensor([1]), torch.tensor([1]), 1)}
    return dict.fromkeys(DIRECTIONS, one | {1: language_ranks(torch.tensor([2]), torch.tensor([1]), 1)})


@pytest.mark.parametrize(
    ("given", "options", "reason", "names"),
    [
        (ranks(only=(2,)), {}, "a single language", ["en"]),
        (ranks(), {"protocol": EvaluationProtocol(mrv_languages=["fr"])}, "a single language", ["fr"]),
        (ranks(), {"parallel": False}, "not translations", ["cs", "en", "fr"]),
        (nowhere_common(), {}, "no image has a caption in each", ["cs", "de"]),
    ],
)
def test_mrv_that_means_nothing_is_null_and_says_why(given, options, reason, names):
    results = retrieval_results(given, LANGUAGES, **options)
    for key in ("mrv", "mrsd"):
        found = results[key]
        assert [found[name] for name in (*DIRECTIONS, "mean")] == [None] * 3
        assert reason in found["reason"]
        assert found["instances"] == 0
        assert found["languages"] == names
    assert results["mrv"]["pairs"] is None
    assert results["mean_recall"] > 0


@pytest.mark.parametrize(
    ("given", "names", "options", "message"),
    [
        ({d: {} for d in DIRECTIONS}, LANGUAGES, {}, "ranks of at least one language"),
        (ranks(), LANGUAGES[:3], {}, "a name for each index"),
    ],
)
def test_results_that_cannot_be(given, names, options, message):
    with pytest.raises(CCRError, match=message):
        retrieval_results(given, names, **options)


def test_mrv_over_a_language_that_is_not_there_is_none():
    results = retrieval_results(ranks(), LANGUAGES, protocol=EvaluationProtocol(mrv_languages=[LANGUAGES[0], "de"]))
    assert results["mrv"]["mean"] is None
    assert results["mrv"]["reason"] == "there is no caption in de"


def test_document(tmp_path):
    checkpoint = tmp_path / "best.ckpt"
    checkpoint.write_bytes(b"weights")
    scores = retrieval_results(ranks(), LANGUAGES)
    document = results_document(
        scores,
        **(MADE_WITH | {"checkpoint": checkpoint}),
        ranking="re-ranked",
    )
    assert json.loads(json.dumps(document)) == document  # Python numbers throughout
    assert list(document) == [
        *("format", "dataset", "split", "left_out", "ranking", "protocol", "checkpoint", "seed", "data", "versions"),
        *(
            "ranks",
            "languages",
            "language_means",
            "mean_recalls",
            "mean_recall",
            "mean_recall_interval",
            "worst_language",
        ),
        *("gap_to_english", "mrv", "mrsd", "rank1_agreement", "folds", "text_to_text"),
    ]
    assert {key: document[key] for key in scores} == scores
    assert document["left_out"] == LEFT_OUT
    assert document["checkpoint"] == {"path": str(checkpoint), "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert [document[key] for key in ("ranking", "seed", "data")] == ["re-ranked", 7, {"images": 3, "sha256": "abc"}]
    assert document["protocol"] == {
        "mrv_languages": None, "folds": 1, "text_to_text": False, "rerank_depth": 128, "rerank_by": "matching",
        "resamples": 1000,
    }  # fmt: skip
    assert results_document(scores, **MADE_WITH)["protocol"]["rerank_depth"] == 0  # of the dual encoder
    packages = {"ccr_lightning", "torch", "lightning", "torchmetrics", "transformers", "timm", "tokenizers"}
    assert set(document["versions"]) == packages | {"python"}
    assert document["versions"]["ccr_lightning"] == _version.__version__
    assert torch.__version__.startswith(document["versions"]["torch"].split("+")[0])
    with pytest.raises(CCRError, match=r"missing\.ckpt: the checkpoint cannot be read"):
        results_document(scores, **(MADE_WITH | {"checkpoint": tmp_path / "missing.ckpt"}))


def test_file_is_written_in_full_or_not_at_all(tmp_path):
    folder = tmp_path / "run"
    path = folder / "results.json"
    document = results_document(retrieval_results(ranks(), LANGUAGES), **(MADE_WITH | {"dataset": "données"}))
    write_results(path, document)
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == document
    assert '\n  "dataset": "données",\n' in text
    plain = folder / "plain"
    plain.touch()
    assert path.stat().st_mode == plain.stat().st_mode

    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(path, {"mean_recall": float("nan")})
    assert path.read_text(encoding="utf-8") == text
    write_results(path, {"seed": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"seed": 1}
    (folder / "taken").mkdir()
    with pytest.raises(CCRError, match="the results could not be written"):
        write_results(folder / "taken", document)
    with pytest.raises(CCRError, match="the results could not be written"):
        write_results(plain / "results.json", document)
    assert sorted(file.name for file in folder.iterdir()) == ["plain", "results.json", "taken"]


def printed(document, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(results_table(document))
    return console.export_text()


def test_table_is_readable_at_80_columns():
    scores = retrieval_results(ranks(), LANGUAGES, protocol=EvaluationProtocol(resamples=0))
    lines = printed(results_document(scores, **MADE_WITH)).splitlines()
    assert max(map(len, lines)) <= 80
    assert "demo, test (dual encoder)" in lines[0]
    cells = [line.replace("┃", "│").split("│")[1:-1] for line in lines if line[:1] in "│┃"]
    rows = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in cells}
    assert rows.pop("language") == ["i2t R@1", "i2t R@5", "i2t R@10", "t2i R@1", "t2i R@5", "t2i R@10"]
    mean = [float(cell) for cell in rows.pop("mean")]
    assert list(rows) == ["cs", "en", "fr"]
    sums = [0.0] * 6
    for name, row in rows.items():
        index = LANGUAGES.index(name)
        percents = [
            100 * sum(rank <= k for _, rank in DATA[direction][index]) / len(DATA[direction][index])
            for direction in DIRECTIONS
            for k in (1, 5, 10)
        ]
        assert row == [f"{percent:.1f}" for percent in percents]
        sums = [total + percent for total, percent in zip(sums, percents, strict=True)]
    assert mean == pytest.approx([total / 3 for total in sums], abs=0.05)
    below = " ".join(line.strip() for line in lines[-9:])
    for name, spread in (("MRV", statistics.pvariance), ("MRSD", statistics.pstdev)):
        i2t, t2i = (loop_consistency(d, (0, 2, 3), spread)[0] for d in DIRECTIONS)
        assert f" {name} {(i2t + t2i) / 2:.2f} (i2t {i2t:.2f}, t2i {t2i:.2f})" in below
    assert "over cs, en, fr; 2 images, 1 left out for want of a caption:" in below
    assert "ties" not in below
    by_language = {name: sum(map(float, row)) / 6 for name, row in rows.items()}
    worst = min(by_language, key=by_language.get)
    assert f"lowest mean recall: {worst} " in below
    assert float(below.partition(f"lowest mean recall: {worst} ")[2].split()[0]) == pytest.approx(
        by_language[worst], abs=0.1
    )


def test_table_of_everything(capsys):
    zeros, ids = torch.zeros(6, dtype=torch.int64), torch.arange(6)
    embeds = torch.eye(6)[[0, 0, 2, 3, 4, 5]]  # the first two tie
    texts = Embeddings(embeds, ids, embeds.repeat(2, 1), ids.repeat(2), torch.cat([zeros, zeros + 1]), zeros.repeat(2))
    protocol = EvaluationProtocol(folds=2, text_to_text=True)
    scores = evaluate(texts, ["en", "de"], protocol=protocol).results
    print_results(results_document(scores, **(MADE_WITH | {"protocol": protocol})))
    text = capsys.readouterr().out
    assert "mean of 2 folds, each a gallery of its own" in text
    assert "ties: 8 of 24 queries, counted against the model" in text
    assert re.search(r"mean recall 88\.9 \[\d+\.\d, 100\.0\]", text)  # R@1 is 4 of 6, the others are 1
    assert "from text to text of another language: R@1 66.7, R@5 100.0, R@10 100.0" in text
    assert "below English, in points of mean recall: de 0.0" in text
    assert re.search(r"same first result, %: 66\.67 \[\d+\.\d+, 100\.00\] \(i2t 66\.67, t2i 66\.67\)", text)


def test_table_says_why_there_is_no_mrv_and_what_was_re_ranked(capsys):
    scores = retrieval_results(ranks(only=(2,)), LANGUAGES)
    document = results_document(scores, **MADE_WITH, ranking="re-ranked")
    text = printed(document)
    assert "(re-ranked, best 128 by matching)" in text
    assert "MRV: none, for a single language has nothing to be consistent with" in text
    print_results(document)
    assert "re-ranked" in capsys.readouterr().out


def test_table_of_ten_languages_with_large_ranks():
    names = ["cs", "de", "en", "es", "fr", "id", "ja", "ru", "tr", "zh"]
    generator = torch.Generator().manual_seed(0)
    many = {
        direction: {
            index: language_ranks(torch.arange(50), torch.randint(1, 10_000, (50,), generator=generator), 10_000)
            for index in range(10)
        }
        for direction in DIRECTIONS
    }
    lines = printed(results_document(retrieval_results(many, names), **MADE_WITH)).splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)
