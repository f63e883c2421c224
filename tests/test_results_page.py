"""The page of results of benchmarks.objectives: every table, recomputed from the records it is made of."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import recomputed

from benchmarks import objectives
from benchmarks.experiments import plan
from benchmarks.experiments.figures import draw
from benchmarks.experiments.page import page
from benchmarks.experiments.running import Results
from ccr_lightning.data.sources.openmoji import LANGUAGES

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"


def made_up(results):
    """Results of all trials, with numbers that nothing was trained for."""
    generator = np.random.default_rng(0)

    def draw(low, high):
        return float(f"{generator.uniform(low, high):.6g}")

    def pair(low, high):
        return {"image_to_text": draw(low, high), "text_to_image": draw(low, high)}

    for trial in [trial for part in objectives.PARTS for trial in objectives.trials(part)]:
        mrv, mrsd = pair(5, 50), pair(1, 3)
        scores = {
            "recalls": {of: {f"recall@{k}": draw(0.3, 0.9) for k in (1, 5, 10)} for of in mrv},
            "mean_recall": draw(0.3, 0.9),
            "of_language": {language: draw(0.3, 0.9) for language in LANGUAGES},
            "recall@1_of_language": {language: pair(0.3, 0.9) for language in LANGUAGES},
            "mrv": {**mrv, "mean": sum(mrv.values()) / 2},
            "mrsd": {**mrsd, "mean": sum(mrsd.values()) / 2},
            "same_first": draw(0, 1),
        }
        record = {
            "key": trial.key(),
            **trial.described,
            "scored": "val" if trial.selects else "test",
            "scores": scores,
            "cost": {"steps": 480, "images": 61440, "tokens": int(draw(1e6, 5e6)), "cpu_seconds": draw(100, 300)},
            "versions": {"python": "3", "torch": "2", "lightning": "2", "timm": "1"},
            "commit": "0",
            "processor": "none",
        }
        if "ByLanguage" in trial.callbacks:
            record["by_language"] = [
                {"step": 24 * epoch, "recall@1": {language: draw(0, 1) for language in LANGUAGES}}
                for epoch in range(1, plan.EPOCHS + 1)
            ]
            record["angles"] = [
                {"step": step, **{part: {"of a step": draw(5, 90), "of their mean": draw(1, 50)} for part in PARTS}}
                for step in (0, 72, 144, 216)
            ]
        results.found[record["key"]] = record
    results.write()
    return results


PARTS = ("image encoder", "text encoder")


@pytest.fixture(scope="module")
def folder_of_made_up(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        results = made_up(Results(tmp_path_factory.mktemp("made up") / "runs.jsonl"))
        results.path.with_name("page.md").write_text(page(results), encoding="utf-8")
    return results.path.parent


@pytest.fixture
def text_and_records(folder_of_made_up):
    lines = (folder_of_made_up / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    return (folder_of_made_up / "page.md").read_text(encoding="utf-8"), recomputed.Records(lines)


def test_the_page_says_what_the_records_say(text_and_records):
    assert recomputed.objectives(*text_and_records, plan.BUDGETS["time"]) == (2 * 3 * 3 * 14, 2 * (8 + 4 + 4))
    assert recomputed.ablations(*text_and_records) == 7 * (12 + 5 + 4 + 3 + 2 + 4 + 9 + 6 + 6 + 9) + 6 + 6 + 2 * (
        8 + 4 + 3 + 2 + 1 + 3 + 6 + 4 + 4 + 6
    )
    assert recomputed.in_words(*text_and_records) == 2 * (2 + 2 + 3 + 1 + 2 + 4 * 2)
    assert recomputed.mechanisms(*text_and_records) == 3 * 4 * 2 + 6 * 4 * 2
    assert recomputed.candidates(*text_and_records) == 8 * 2
    assert recomputed.beyond(*text_and_records) == 2 * 2 * 11 + 2 * 5
    assert recomputed.tuning(*text_and_records) == 3 * 5 + 6 * 2
    assert "not run" not in text_and_records[0]


@pytest.mark.parametrize("part", ["objectives", "ablations", "mechanisms", "candidates", "beyond", "tuning"])
def test_a_number_that_is_changed_is_found(text_and_records, part):
    """The checks above can fail."""
    text, records = text_and_records
    more = (plan.BUDGETS["time"],) if part == "objectives" else ()
    title = {
        "objectives": "**equal images, `family` split**",
        "ablations": "**batch size**",
        "mechanisms": "other languages, in the course of training:",
        "candidates": "one training each, R@1 and MRV on the validation splits:",
        "beyond": "without it, as differences, and as quotients for MRV, with 95 % intervals:",
        "tuning": "seed that no other table has.",
    }[part]
    before, found, table = text.partition(title)
    assert found
    number = re.search(r"\d+\.\d(?= ±|,| /)", table)
    changed = table[: number.start()] + str(float(number[0]) + 1.5) + table[number.end() :]
    with pytest.raises(AssertionError):
        getattr(recomputed, part)(before + title + changed, records, *more)


def test_a_word_that_is_changed_is_found(text_and_records):
    text, records = text_and_records
    before, found, after = text.partition("| R@1 of the rarest: ")
    word = re.match("[a-z]+", after)[0]
    other = "lower" if word == "higher" else "higher"
    with pytest.raises(AssertionError):
        recomputed.in_words(before + found + other + after.removeprefix(word), records)


def test_learning_rates_are_those_that_were_best_in_tuning():
    """By the mean of both splits' mean recall on validation, with one seed and then with three."""
    lines = (ROOT / "docs" / "results" / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if record["scored"] == "val" and not record["callbacks"]]
    for objective in ("one_to_k", "one_to_one", "english_pivot"):
        found = {}
        for record in [record for record in records if record["objective"] == objective]:
            rate = record["options"].get("model.lr", recomputed.configured_rate(objective))
            found.setdefault((rate, record["seed"]), []).append(record["scores"]["mean_recall"])
        assert {len(scores) for scores in found.values()} == {2}
        of_one_seed = {rate: sum(scores) for (rate, seed), scores in found.items() if seed == 1000}
        best = sorted(of_one_seed, key=of_one_seed.get)[-2:]
        assert len(of_one_seed) == 5
        assert sorted(best) == list(plan.FINALISTS[objective])
        of_three = {rate: sum(sum(found[rate, seed]) for seed in (1000, 1001, 1002)) for rate in best}
        assert recomputed.configured_rate(objective) == max(of_three, key=of_three.get)


@pytest.mark.skipif(not PAGE.exists(), reason="nothing has been trained")
def test_the_shipped_page_says_what_the_shipped_records_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = PAGE.read_text(encoding="utf-8")
    lines = (ROOT / "docs" / "results" / "runs.jsonl").read_text(encoding="utf-8").splitlines()
    records = recomputed.Records(lines)
    recomputed.objectives(text, records, plan.BUDGETS["time"])
    for part in (
        recomputed.ablations,
        recomputed.in_words,
        recomputed.mechanisms,
        recomputed.candidates,
        recomputed.beyond,
        recomputed.tuning,
    ):
        part(text, records)
    assert text == page(Results(ROOT / "docs" / "results" / "runs.jsonl"))


def test_figures(folder_of_made_up, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    draw(Results(folder_of_made_up / "runs.jsonl"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"objectives.png", "mechanisms.png", "ablations.png"}
    assert all(path.stat().st_size > 10_000 for path in tmp_path.iterdir())


def test_a_page_of_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = page(Results(tmp_path / "none.jsonl"))
    assert "Of 0 comparisons 0 confirm" in text
    assert text.count("not run") > 100
    draw(Results(tmp_path / "none.jsonl"), tmp_path)
    assert not list(tmp_path.iterdir())
