"""Recomputes, with numpy and scipy alone, every table of docs/results.md from the lines of its JSON."""

import json
import math
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from scipy import stats

CONFIGS = Path(__file__).parents[1] / "configs" / "experiments"
OBJECTIVES = {"1-to-K": "one_to_k", "one random language": "one_to_one", "English pivot": "english_pivot"}
DIRECTIONS = {"i2t": "image_to_text", "t2i": "text_to_image"}
LANGUAGES = ("ar", "de", "en", "es", "fa", "fr", "id", "it", "ja", "ko", "pt", "ru", "tr", "zh")
RARE = {"ar": 0.1, "fa": 0.1, "id": 0.1, "ko": 0.1, "it": 0.5, "pt": 0.5, "ru": 0.5, "tr": 0.5}


DELIMITERS = ("| ---", "|---")  # between the head of a table and its rows


class Table(NamedTuple):
    """A table of a page."""

    title: str  # the line of text before it
    head: list[str]
    rows: list[list[str]]


def tables(text: str) -> list[Table]:
    """All tables, as cells."""
    found, before = [], ""
    for line, following in pairwise([*text.splitlines(), ""]):
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if line.startswith(DELIMITERS):
            continue
        if line.startswith("| ") and following.startswith(DELIMITERS):
            found.append(Table(before, cells, []))
        elif line.startswith("| "):
            found[-1].rows.append(cells)
        elif line.strip():
            before = line.strip("*: ")
    return found


class Records:
    """The lines of JSON, to be chosen from by what they say of themselves."""

    def __init__(self, lines: list[str]) -> None:
        self._all = [_normal(json.loads(line)) for line in lines]

    def of(
        self, objective: str, split: str, seeds: list[int], epochs: int = 10, scored: str = "test", **said: Any
    ) -> list[dict[str, Any]]:
        """The records of some seeds, in their order; ``said`` are options, degraded, callbacks and tested_on."""
        said = {"options": {}, "degraded": {}, "callbacks": {}, "tested_on": [], **said}
        every = 1 if "ByLanguage" in said["callbacks"] else max(1, epochs // 4)
        said["options"] = {"trainer.max_epochs": epochs, "trainer.check_val_every_n_epoch": every} | said["options"]
        chosen = [
            record
            for record in self._all
            if (record["objective"], record["split"], record["scored"]) == (objective, split, scored)
            and record["seed"] in seeds
            and all(record[name] == value for name, value in said.items())
        ]
        chosen.sort(key=lambda record: record["seed"])
        assert [record["seed"] for record in chosen] == seeds, (objective, split, epochs, said)
        return chosen


def configured_rate(objective: str) -> float:
    """The learning rate in the configuration of an objective, which is laid over that of 1-to-K."""
    rates = [
        yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["model"].get("lr") for name in ("one_to_k", objective)
    ]
    return float(rates[1] or rates[0])


def _normal(record: dict[str, Any]) -> dict[str, Any]:
    """Languages in alphabetic order, without what is configured, or implied as layers of the fusion encoder are."""
    options = {name: sorted(of) if name == "data.languages" else of for name, of in record["options"].items()}
    options.pop("model.retriever.init_args.fusion", None)
    if options.get("model.lr") == configured_rate(record["objective"]):
        del options["model.lr"]
    return {**record, "options": options, "tested_on": sorted(record["tested_on"])}


def values(records: list[dict[str, Any]], column: str) -> list[float]:
    """A number of each record, in the unit of a column."""
    scores = [record["scores"] for record in records]
    if match := re.fullmatch(r"(i2t|t2i) R@(\d+)", column):
        return [100 * score["recalls"][DIRECTIONS[match[1]]][f"recall@{match[2]}"] for score in scores]
    if match := re.fullmatch(r"R@(\d+)", column):
        return [50 * sum(of[f"recall@{match[1]}"] for of in score["recalls"].values()) for score in scores]
    if column in ("i2t MRV", "t2i MRV"):
        return [score["mrv"][DIRECTIONS[column[:3]]] for score in scores]
    if column in ("MRV", "MRSD"):
        return [score[column.lower()]["mean"] for score in scores]
    if column in ("R@1 of the rarest", "R@1 of the unseen"):
        languages = ("ar", "fa", "id", "ko") if column.endswith("rarest") else ("ar", "ko", "pt")
        return [
            100 * np.mean([list(score["recall@1_of_language"][language].values()) for language in languages])
            for score in scores
        ]
    if column == "mean recall":
        return [100 * score["mean_recall"] for score in scores]
    if column == "worst language":
        return [100 * min(score["of_language"].values()) for score in scores]
    if column == "below English":
        return [100 * of["en"] - 100 * np.mean([of[k] for k in of if k != "en"]) for of in _of_language(scores)]
    name, unit = {"images": ("images", 1e3), "tokens": ("tokens", 1e6), "CPU s": ("cpu_seconds", 1)}[column]
    return [record["cost"][name] / unit for record in records]


def _of_language(scores: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [score["of_language"] for score in scores]


def check_cell(cell: str, numbers: list[float]) -> None:
    """A mean, and half of its interval if there is one."""
    value, *half = (float(part.replace(",", "")) for part in cell.split(" ± "))
    rounding = 0.51 * 10 ** -len(cell.split(" ± ")[0].partition(".")[2])
    assert value == pytest.approx(np.mean(numbers), abs=rounding)
    if half:
        low, high = stats.t.interval(0.95, len(numbers) - 1, np.mean(numbers), stats.sem(numbers))
        assert half[0] == pytest.approx((high - low) / 2, abs=rounding)


def check_rows(table: Table, records_of_row: Any) -> int:
    """All cells of a table with a setting in each row and a quantity in each column; return how many."""
    for name, *cells in table.rows:
        for column, cell in zip(table.head[1:], cells, strict=True):
            check_cell(cell, values(records_of_row(name), column))
    return len(table.rows) * (len(table.head) - 1)


def objectives(text: str, records: Records, time: dict[str, int]) -> tuple[int, int]:
    """The tables of the objectives, and of their differences; return the number of cells and of comparisons."""
    epochs = {
        "equal images": {"one_to_k": 10, "one_to_one": 10, "english_pivot": 10},
        "equal text tokens": {"one_to_k": 10, "one_to_one": 40, "english_pivot": 10},
        "equal CPU time": time,
    }

    def of(name: str, budget: str, split: str) -> list[dict[str, Any]]:
        return records.of(OBJECTIVES[name], split, [0, 1, 2, 3, 4], epochs[budget][OBJECTIVES[name]])

    checked = 0
    for table in tables(text):
        if match := re.fullmatch(r"(equal .+), `(\w+)` split", table.title):
            checked += check_rows(table, lambda name, match=match: of(name, *match.groups()))
    (differences,) = [table for table in tables(text) if table.title.startswith("1-to-K against the others")]
    compared = check_differences(
        (of("1-to-K", budget, split), of(other, budget, split), *shown)
        for budget, split, other, *shown in differences.rows
    )
    better = [(value > 0) == (quantity in ("R@1", "worst language")) for _, value, quantity in compared]
    confirmed = sum(p < 0.05 and is_better for (p, *_), is_better in zip(compared, better, strict=True))
    opposite = sum(p < 0.05 for p, *_ in compared) - confirmed
    says = f"Of {len(compared)} comparisons {confirmed} confirm the claim, {opposite} say the opposite, and "
    assert says + str(len(compared) - confirmed - opposite) in " ".join(text.split())
    return checked, len(compared)


def check_difference(said: str, own: list[float], others: list[float], is_ratio: bool) -> tuple[float, float]:
    """A mean difference or quotient and its interval; return the p of the paired t-test and the difference."""
    if is_ratio:
        own, others = list(np.log(own)), list(np.log(others))
    test, difference = stats.ttest_rel(own, others), np.mean(np.subtract(own, others))
    numbers = [difference, *test.confidence_interval(0.95)]
    numbers = list(np.exp(numbers)) if is_ratio else numbers
    shown = [float(number) for number in re.findall(r"[-+]?\d+\.\d+", said)]
    assert shown == pytest.approx(numbers, abs=0.0051 if is_ratio else 0.051), said
    return float(test.pvalue), float(difference)


def check_differences(rows: Iterable[tuple[Any, ...]]) -> list[tuple[float, float, str]]:
    """The lines of a table of differences: own and other records, quantity, what is said of it, and Holm's p.

    Return p as it is shown, the mean difference and the quantity of each.
    """
    compared = []
    for own_records, other_records, quantity, said, p in rows:
        own, others = values(own_records, quantity), values(other_records, quantity)
        pvalue, value = check_difference(said, own, others, is_ratio=quantity == "MRV")
        compared.append((pvalue, float(p), value, quantity))
    highest = 0.0
    for place, (raw, adjusted, *_) in enumerate(sorted(compared)):
        highest = max(highest, min(1.0, (len(compared) - place) * raw))
        assert adjusted == pytest.approx(highest, rel=0.06)
    return [(p, value, quantity) for _, p, value, quantity in compared]


def _setting(title: str, name: str) -> dict[str, Any]:
    """What a row of an ablation should have been trained with, over its objective."""
    if title == "length of training":
        return {"epochs": int(re.fullmatch(r"(\d+) epochs", name)[1])}
    if title == "languages per step":
        k = int(name.removeprefix("K = "))
        return {"options": {"data.languages_per_step": k} if k != 4 else {}}
    if title == "losses":
        matching, masked_lm = {"contrastive": (0, 0), "with matching": (1, 0)}.get(name, (0, 0.2))
        matching = 1 if name == "with both" else matching
        weights = {"model.matching_weight": matching, "model.masked_lm_weight": masked_lm, "model.draw_warmup": 0.3}
        return {"options": weights if matching or masked_lm else {}}
    if title == "temperature at the start":
        start = float(name)
        return {"options": {"model.retriever.init_args.temperature": start} if start != 0.07 else {}}
    if title == "weight of text to image":
        return {"options": {"model.text_to_image_weight": 0.25} if name == "1/K" else {}}
    if title == "batch size":
        return {"options": {"data.batch_size": int(name)} if name != "128" else {}}
    if match := re.fullmatch(r"(\d+)% missing", name):
        return {"degraded": {"kept": dict.fromkeys(LANGUAGES, 1 - int(match[1]) / 100)}}
    if match := re.fullmatch(r"(\d+)% swapped", name):
        return {"degraded": {"swapped": int(match[1]) / 100}}
    if name == "rare":
        return {"degraded": {"kept": RARE}}
    if name == "unseen":
        seen = [language for language in LANGUAGES if language not in ("ar", "ko", "pt")]
        return {"options": {"data.languages": seen}, "tested_on": list(LANGUAGES)}
    assert not name, (title, name)
    return {}


BASES = {  # of tables that are of 1-to-K alone
    "languages per step": "K = 4",
    "losses": "contrastive",
    "temperature at the start": "0.07",
    "weight of text to image": "1",
    "batch size": "128",
}
ABLATIONS = (
    *("length of training", "languages per step", "losses", "temperature at the start", "weight of text to image"),
    *("batch size", "missing captions", "rare languages", "unseen languages", "swapped captions"),
)


def ablations(text: str, records: Records) -> int:
    """The tables of what was varied; return the number of cells."""
    checked = 0
    for title in ABLATIONS:
        (table,) = [table for table in tables(text) if table.title == title]

        def of(row: str, title: str = title) -> list[dict[str, Any]]:
            return _records_of(row, title, records)

        checked += check_rows(Table(title, table.head[:-2], [row[:-2] for row in table.rows]), of)
        assert table.head[-2:] == ["R@1, difference", "MRV, quotient"]
        for name, *_, difference, quotient in table.rows:
            _, comma, change = name.partition(",")
            base = BASES.get(title, f"1-to-K{comma}{change}")
            for cell, quantity in ((difference, "R@1"), (quotient, "MRV")):
                assert (cell == "–") == (name == base)
                if name != base:
                    own, others = values(of(name), quantity), values(of(base), quantity)
                    p, _ = check_difference(cell, own, others, is_ratio=quantity == "MRV")
                    assert cell.startswith("**") == (p < 0.05)
                    checked += 1
    return checked


def in_words(text: str, records: Records) -> int:
    """What is said of ablations in words; return how many words."""
    (table,) = [table for table in tables(text) if table.head[0] == "varied"]
    for title, name, base, *cells in table.rows:
        own, others = (_records_of(row, title, records) for row in (name, base))
        for cell in cells:
            quantity, _, word = cell.partition(": ")
            numbers = [
                np.log(values(of, quantity)) if quantity == "MRV" else values(of, quantity) for of in (own, others)
            ]
            test = stats.ttest_rel(*numbers)
            expected = "undecided" if test.pvalue > 0.05 else "higher" if test.statistic > 0 else "lower"
            assert word == expected, (title, name, cell)
    return 2 * len(table.rows)


def _records_of(row: str, title: str, records: Records) -> list[dict[str, Any]]:
    """Those of a row of an ablation's table."""
    objective, _, change = row.partition(", ")
    if objective not in OBJECTIVES:
        objective, change = "1-to-K", row
    return records.of(OBJECTIVES[objective], "composition", [0, 1, 2], **_setting(title, change))


def mechanisms(text: str, records: Records) -> int:
    """Recall of English and of the others in the course of training, and angles; return the number of cells."""
    watched = {"ByLanguage": {}, "GradientAngles": {}}
    checked = 0
    for table in tables(text):
        steps = [int(name.removeprefix("step ")) for name in table.head if name.startswith("step ")]
        for row in table.rows if steps else []:
            of = records.of(OBJECTIVES[row[0]], "composition", [0, 1, 2], callbacks=watched)
            for step, cell in zip(steps, row[-len(steps) :], strict=True):
                first, second = [], []
                for record in of:
                    if table.head[1] == "part":
                        (at,) = [one[row[1]] for one in record["angles"] if one["step"] == step]
                        first.append(at["of a step"])
                        second.append(at["of their mean"])
                    else:
                        (at,) = [one["recall@1"] for one in record["by_language"] if one["step"] == step]
                        first.append(100 * at["en"])
                        second.append(100 * np.mean([at[name] for name in at if name != "en"]))
                for shown, numbers in zip(cell.split(" / "), (first, second), strict=True):
                    check_cell(shown, numbers)
                    checked += 1
    return checked


def candidates(text: str, records: Records) -> int:
    """The terms that were tried; return the number of cells."""
    (table,) = [table for table in tables(text) if table.head[0] == "term, weight"]
    for name, *cells in table.rows:
        term, _, weight = name.partition(", ")
        callbacks = {"AddTerm": {"term": term, "weight": float(weight)}} if weight else {}
        for split, cell in zip(table.head[1:], cells, strict=True):
            of = records.of("one_to_k", split, [1000], scored="val", callbacks=callbacks)
            for shown, column in zip(cell.split(", "), ("R@1", "MRV"), strict=True):
                check_cell(shown, values(of, column))
    return len(table.rows) * (len(table.head) - 1)


def beyond(text: str, records: Records) -> int:
    """1-to-K with and without the mean text; return the number of cells."""

    def of(name: str, split: str) -> list[dict[str, Any]]:
        options = {"options": {"model.mean_text_weight": 0.5}} if name == "1-to-K, mean text" else {}
        return records.of("one_to_k", split, [0, 1, 2, 3, 4], **options)

    checked = 0
    for table in tables(text):
        if match := re.fullmatch(r"With and without the mean text, `(\w+)` split", table.title):
            assert [name for name, *_ in table.rows] == ["1-to-K", "1-to-K, mean text"]
            checked += check_rows(table, lambda name, split=match[1]: of(name, split))
    (differences,) = [table for table in tables(text) if "with the mean text" in table.head]
    compared = check_differences(
        (of("1-to-K, mean text", split), of("1-to-K", split), *shown) for split, *shown in differences.rows
    )
    return checked + len(compared)


def tuning(text: str, records: Records) -> int:
    """Mean recall by learning rate; return the number of cells."""
    (table,) = [table for table in tables(text) if table.head[0] == "objective" and _is_number(table.head[1])]
    (finalists,) = [table for table in tables(text) if "learning rate" in table.head]

    def check(name: str, rate: float, split: str, seeds: list[int], shown: str) -> None:
        options = {"model.lr": rate} if rate != configured_rate(OBJECTIVES[name]) else {}
        of = records.of(OBJECTIVES[name], split, seeds, scored="val", options=options)
        check_cell(shown, values(of, "mean recall"))

    for name, *cells in table.rows:
        for rate, cell in zip(table.head[1:], cells, strict=True):
            for split, shown in zip(("composition", "family"), cell.split(", "), strict=True):
                check(name, float(rate), split, [1000], shown)
    for name, rate, *cells in finalists.rows:
        for split, shown in zip(finalists.head[2:], cells, strict=True):
            check(name, float(rate), split, [1000, 1001, 1002], shown)
    return sum(len(of.rows) * (len(of.head) - 1) for of in (table, finalists)) - len(finalists.rows)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
