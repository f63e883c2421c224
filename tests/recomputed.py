"""Recomputes, with numpy and scipy alone, every table of docs/results.md from the lines of its JSON."""

import json
import math
import re
from collections import Counter
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


COSTS = {
    "images": ("images", 1e3),
    "tokens": ("tokens", 1e6),
    "CPU s": ("cpu_seconds", 1),
    "wall s": ("wall_seconds", 1),
}
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
        self.every = [_normal(json.loads(line)) for line in lines]

    def of(
        self,
        objective: str,
        split: str,
        seeds: list[int],
        epochs: int = 10,
        scored: str = "test",
        rate: float | None = None,
        **said: Any,
    ) -> list[dict[str, Any]]:
        """The records of some seeds, in their order; ``said`` are options, degraded, callbacks and tested_on.

        Without a learning rate those of the best one in tuning.
        """
        said = {"options": {}, "degraded": {}, "callbacks": {}, "tested_on": [], **said}
        said["rate"] = self.best_rate(objective, split, epochs) if rate is None else rate
        every = 1 if "ByLanguage" in said["callbacks"] else epochs // 5
        said["options"] = {"trainer.max_epochs": epochs, "trainer.check_val_every_n_epoch": every} | said["options"]
        chosen = [
            record
            for record in self.every
            if (record["objective"], record["split"], record["scored"]) == (objective, split, scored)
            and record["seed"] in seeds
            and all(record[name] == value for name, value in said.items())
        ]
        chosen.sort(key=lambda record: record["seed"])
        assert [record["seed"] for record in chosen] == seeds, (objective, split, epochs, said)
        return chosen

    def best_rate(self, objective: str, split: str, epochs: int) -> float:
        """Of those with the most seeds in tuning at this length, or at 10 epochs if there is none."""
        found: dict[float, list[float]] = {}
        for record in self.every:
            of = (record["objective"], record["split"], record["scored"], record["callbacks"])
            if of == (objective, split, "val", {}) and record["options"]["trainer.max_epochs"] == epochs:
                found.setdefault(record["rate"], []).append(record["scores"]["mean_recall"])
        if not found:
            return self.best_rate(objective, split, 10)
        most = max(len(scores) for scores in found.values())
        return max(found, key=lambda rate: (len(found[rate]) == most, np.mean(found[rate])))


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
    rate = options.pop("model.lr", configured_rate(record["objective"]))
    degraded = dict(record["degraded"])
    if degraded:
        assert degraded.pop("seed") == record["seed"]
    changed = {"options": options, "rate": rate, "degraded": degraded, "tested_on": sorted(record["tested_on"])}
    return {**record, **changed}


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
        languages = ("ar", "fa", "id", "ko") if column.endswith("rarest") else ("ar", "pt")
        return [
            100 * np.mean([list(score["recall@1_of_language"][language].values()) for language in languages])
            for score in scores
        ]
    if column == "mean recall":
        return [100 * score["mean_recall"] for score in scores]
    if column == "worst language":
        return [100 * min(score["of_language"].values()) for score in scores]
    if column == "same first":
        return [100 * score["same_first"] for score in scores]
    if column == "below English":
        return [100 * of["en"] - 100 * np.mean([of[k] for k in of if k != "en"]) for of in _of_language(scores)]
    if column == "gap to English":
        return [abs(value) for value in values(records, "below English")]
    name, unit = COSTS[column]
    return [record["cost"][name] / unit for record in records]


def _of_language(scores: list[dict[str, Any]]) -> list[dict[str, float]]:
    return [score["of_language"] for score in scores]


def check_cell(cell: str, numbers: list[float], column: str) -> None:
    """A mean and its interval: ``a ± b``, or ``a [b, c]`` of logarithms; costs, and what was run once, have none."""
    without_commas = re.sub(r"(?<=\d),(?=\d{3})", "", cell)
    shown = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", without_commas)]
    rounding = 0.51 * 10 ** -len(re.match(r"-?\d+\.?(\d*)", without_commas)[1])
    is_ratio = column.endswith(("MRV", "MRSD"))
    scaled = np.log(numbers) if is_ratio else np.array(numbers)
    expected = [np.mean(scaled)]
    if len(numbers) > 1 and column not in COSTS:
        half = stats.t.ppf(0.975, len(numbers) - 1) * stats.sem(scaled)
        expected += [expected[0] - half, expected[0] + half] if is_ratio else [half]
    assert shown == pytest.approx(np.exp(expected) if is_ratio else expected, abs=rounding), (cell, column)


def check_columns(table: Table, records_of_column: Any) -> int:
    """All cells of a table with a setting in each column and a quantity in each row; return how many."""
    return check_rows(Table(table.title, *_turned(table)), records_of_column)


def _turned(table: Table) -> tuple[list[str], list[list[str]]]:
    head, *rows = zip(table.head, *table.rows, strict=True)
    return list(head), [list(row) for row in rows]


def check_rows(table: Table, records_of_row: Any) -> int:
    """All cells of a table with a setting in each row and a quantity in each column; return how many."""
    for name, *cells in table.rows:
        for column, cell in zip(table.head[1:], cells, strict=True):
            check_cell(cell, values(records_of_row(name), column), column)
    return len(table.rows) * (len(table.head) - 1)


def objectives(text: str, records: Records, time: int) -> tuple[int, int]:
    """The tables of the objectives, and of their verdicts; return the number of cells and of comparisons."""
    epochs = {"": 10, "equal images": 10, "equal text tokens": 40, "equal CPU time": time}

    def of(name: str, split: str) -> list[dict[str, Any]]:
        objective, _, budget = name.partition(", ")
        assert bool(budget) == (objective == "one random language")
        return records.of(OBJECTIVES[objective], split, [0, 1, 2, 3, 4], epochs[budget])

    checked = 0
    for table in tables(text):
        if match := re.fullmatch(r"The objectives, `(\w+)` split", table.title):
            checked += check_columns(table, lambda name, split=match[1]: of(name, split))
    verdicts = tables(text)[0]
    claims = [re.fullmatch("(.+) is (higher|lower)", name).groups() for name in verdicts.head[2:]]
    assert [quantity for quantity, claim in claims if claim == "higher"] == ["R@1", "worst language"]
    words, differences = [], []
    for other, split, *cells in verdicts.rows:
        for (quantity, claim), cell in zip(claims, cells, strict=True):
            word, said, p = re.fullmatch("(.+): (.+), p (.+)", cell).groups()
            words.append((claim, word))
            differences.append((of("1-to-K", split), of(other, split), quantity, said, p))
    compared = check_differences(differences)
    for (claim, word), (p, value, _) in zip(words, compared, strict=True):
        is_so = (value > 0) == (claim == "higher")
        assert word == ("undecided" if p >= 0.05 else "**yes**" if is_so else "**no, the opposite**")
    counted = Counter(word for _, word in words)
    says = (
        f"Of {len(words)} comparisons **{counted['**yes**']} confirm the claim, "
        f"{counted['**no, the opposite**']} say the opposite, and {counted['undecided']} decide nothing**"
    )
    assert says in " ".join(text.split())
    of_paper = Counter(
        word for (_, word), (*_, quantity) in zip(words, compared, strict=True) if quantity in ("R@1", "MRV")
    )
    says = (
        f"Of the {of_paper.total()} comparisons of R@1 and MRV, of which the paper speaks, "
        f"{of_paper['**yes**']} confirm it, "
        f"{of_paper['**no, the opposite**']} say the opposite, and {of_paper['undecided']} decide nothing."
    )
    assert says in " ".join(text.split())
    _check_conclusions(text, verdicts, words)
    return checked, len(compared)


def _check_conclusions(text: str, verdicts: Table, words: list[tuple[str, str]]) -> None:
    """The list of what is confirmed, is the opposite and is undecided, by what 1-to-K is compared with."""
    quantities = [name.partition(" is ")[0] for name in verdicts.head[2:]]
    expected: dict[str, dict[str, dict[str, str]]] = {}
    for number, (other, split, *_) in enumerate(verdicts.rows):
        of_row = [word for _, word in words[len(quantities) * number :]]
        expected.setdefault(other, {})[split] = dict(zip(quantities, of_row, strict=False))
    _, _, rest = text.partition("1-to-K against\n\n")
    listed = [line.removeprefix("- ") for line in rest.splitlines()[: len(expected)]]
    for line in listed:
        other, said = re.fullmatch(r"\*\*(.+?)\*\*: (.+)", line).groups()
        for split, of_split in re.findall(r"`(\w+)` (.+?)\.(?: |$)", said):
            found = expected[other].pop(split)
            for part in of_split.split("; "):
                word, _, names = part.partition(": ")
                for name in names.split(", "):
                    assert found.pop(name).strip("*").split(",")[0] == {
                        "confirmed": "yes", "**the opposite**": "no", "undecided": "undecided"
                    }[word]  # fmt: skip
            assert not found
    assert not any(expected.values())


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
    if title in ("length of training", EQUAL_TIME):
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
        seen = [language for language in LANGUAGES if language not in ("ar", "pt")]
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
EQUAL_TIME = "length at equal CPU time"
ABLATIONS = (
    *(
        "length of training",
        EQUAL_TIME,
        "languages per step",
        "losses",
        "temperature at the start",
        "weight of text to image",
    ),
    *("batch size", "missing captions", "rare languages", "unseen languages", "swapped captions"),
)


def ablations(text: str, records: Records) -> int:
    """The tables of what was varied; return the number of cells."""
    checked = 0
    for title in ABLATIONS:
        (table,) = [table for table in tables(text) if table.title == title]

        def of(row: str, title: str = title) -> list[dict[str, Any]]:
            return _records_of(row, title, records)

        differing = [name.rpartition(", ")[0] for name in table.head if name.endswith((", difference", ", quotient"))]
        assert differing[-2:] == ["R@1", "MRV"]
        assert table.head[-1] == "MRV, quotient"
        n = len(differing)
        checked += check_rows(Table(title, table.head[:-n], [row[:-n] for row in table.rows]), of)
        for name, *cells in table.rows:
            _, comma, change = name.partition(",")
            base = BASES.get(title, f"1-to-K{comma}{change}")
            if title == EQUAL_TIME and name.startswith("one random"):
                base = f"1-to-K, {_setting(title, change.strip())['epochs'] // 2} epochs"
            for cell, quantity in zip(cells[-n:], differing, strict=True):
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
        for column, cell in zip(("recall", "MRV"), cells, strict=True):
            words, _, said = cell.partition(": ")
            quantity, _, word = words.rpartition(" ") if column == "recall" else ("MRV", "", words)
            p, value = check_difference(said, values(own, quantity), values(others, quantity), is_ratio=column == "MRV")
            assert word == ("undecided" if p > 0.05 else "higher" if value > 0 else "lower"), (title, name, cell)
    return 2 * len(table.rows)


def _records_of(row: str, title: str, records: Records) -> list[dict[str, Any]]:
    """Those of a row of an ablation's table."""
    objective, _, change = row.partition(", ")
    if objective not in OBJECTIVES:
        objective, change = "1-to-K", row
    return records.of(OBJECTIVES[objective], "composition", [0, 1, 2], **_setting(title, change))


def mechanisms(text: str, records: Records) -> int:
    """Recall of English and of the others in the course of training, and angles; return the number of cells."""
    checked = 0

    def watched(name: str) -> list[dict[str, Any]]:
        callbacks = {"ByLanguage": {}, **({"GradientAngles": {}} if name == "1-to-K" else {})}
        return records.of(OBJECTIVES[name], "composition", [0, 1, 2], callbacks=callbacks)

    def english_and_others(at: dict[str, float]) -> tuple[float, float]:
        return 100 * at["en"], float(100 * np.mean([at[name] for name in at if name != "en"]))

    def angle(record: dict[str, Any], name: str, part: str, step: int, which: str) -> float:
        (at,) = [one for one in record["angles"] if one["step"] == step]
        return float(at[OBJECTIVES[name]][part][which])

    for table in tables(text):
        steps = [int(name.removeprefix("step ")) for name in table.head if name.startswith("step ")]
        for row in table.rows if steps else []:
            for step, cell in zip(steps, row[-len(steps) :], strict=True):
                if table.head[1] == "part":
                    of = [
                        [angle(record, row[0], row[1], step, which) for record in watched("1-to-K")]
                        for which in ("of a step", "of the expectation")
                    ]
                else:
                    at = [
                        one["recall@1"]
                        for record in watched(row[0])
                        for one in record["by_language"]
                        if one["step"] == step
                    ]
                    of = list(zip(*map(english_and_others, at), strict=True))
                for shown, numbers in zip(cell.split(" / "), of, strict=True):
                    assert float(shown) == pytest.approx(
                        np.mean(numbers), abs=0.51 if table.head[1] == "part" else 0.051
                    )
                    checked += 1
    (table,) = [table for table in tables(text) if table.head[:3] == ["measured", "with", "the paper says"]]
    for of, other, predicted, word, said in table.rows:
        is_of_paper = of.startswith("lead" if other == "English pivot" else "angle")
        assert predicted == ("higher" if is_of_paper else "–")
        if of == "lead of English in R@1, points":
            last = [
                [english_and_others(record["by_language"][-1]["recall@1"]) for record in watched(name)]
                for name in (other, "1-to-K")
            ]
            numbers = [[english - others for english, others in pairs] for pairs in last]
        else:
            which, part = re.fullmatch("angle (of .+), (.+), degrees", of).groups()
            numbers = [
                [
                    np.mean([one[OBJECTIVES[name]][part][which] for one in record["angles"]])
                    for record in watched("1-to-K")
                ]
                for name in (other, "1-to-K")
            ]
        p, value = check_difference(said, *numbers, is_ratio=False)
        assert word == ("undecided" if p > 0.05 else "higher" if value > 0 else "lower")
        checked += 1
    return checked


def candidates(text: str, records: Records) -> int:
    """The terms that were tried; return the number of cells."""
    tried, finalists = [table for table in tables(text) if table.head[0] == "term, weight"]
    for table, seeds in ((tried, [1000]), (finalists, [1000, 1001, 1002])):
        for name, *cells, both in table.rows:
            weights = (
                {term: float(weight) for term, weight in (of.split(" ") for of in name.split(", "))}
                if " " in name
                else {}
            )
            callbacks = {"AddTerms": {"weights": weights}} if weights else {}
            logs = []
            for head, cell in zip(table.head[1:-1], cells, strict=True):
                split, column = head.split(": ")
                of = values(records.of("one_to_k", split, seeds, scored="val", callbacks=callbacks), column)
                check_cell(cell, of, column)
                logs += list(np.log(of)) if column == "MRV" else []
            assert float(both) == pytest.approx(np.exp(np.mean(logs)), abs=0.051)
    return sum(len(table.rows) * (len(table.head) - 1) for table in (tried, finalists))


def beyond(text: str, records: Records, term: dict[str, float]) -> int:
    """1-to-K with and without the term that is added; return the number of cells."""

    every = {"composition": list(range(35)), "family": list(range(15))}
    new = {"composition": list(range(15, 35)), "family": list(range(5, 15))}

    def of(name: str, split: str, seeds: dict[str, list[int]] = every) -> list[dict[str, Any]]:
        return records.of("one_to_k", split, seeds[split], options=term if name != "1-to-K" else {})

    checked = 0
    for table in tables(text):
        if match := re.match(r"With and without the term, `(\w+)` split", table.title):
            assert table.head[1:] == ["1-to-K", "1-to-K, text to text"]
            checked += check_columns(table, lambda name, split=match[1]: of(name, split))
    (differences,) = [table for table in tables(text) if "with the term" in table.head]
    tests = []
    for split, quantity, word, of_new, shown_p, of_all in differences.rows:
        for said, seeds in ((of_all, every), (of_new, new)):
            own, others = (values(of(name, split, seeds), quantity) for name in ("1-to-K, text to text", "1-to-K"))
            p, value = check_difference(said, own, others, is_ratio=quantity == "MRV")
        assert (shown_p == "–") == (quantity != "MRV")
        if quantity == "MRV":
            tests.append((p, float(shown_p), value, word))
        else:
            assert word == ("undecided" if p > 0.05 else "higher" if value > 0 else "lower"), quantity
    (least, shown_least, *_), (most, shown_most, *_) = sorted(tests)
    assert shown_least == pytest.approx(min(1, 2 * least), rel=0.06)
    assert shown_most == pytest.approx(min(1, max(2 * least, most)), rel=0.06)
    for _, p, value, word in tests:
        assert word == ("undecided" if p >= 0.05 else "higher" if value > 0 else "lower")
    words: dict[str, dict[str, list[str]]] = {}
    for split, quantity, word, *_ in differences.rows:
        if quantity != "MRV":
            words.setdefault(split, {}).setdefault(word, []).append(quantity)
    for split, by_word in words.items():
        order = [word for word in ("lower", "higher", "undecided") if word in by_word]
        says = f"`{split}` " + "; ".join(f"{word}: {', '.join(by_word[word])}" for word in order)
        assert f" {says}." in " ".join(text.split())
    before = re.search(r"These alone gave MRV (× .+?\])", " ".join(text.split()))[1]
    own, others = (
        values(of(name, "composition", {"composition": new["family"]}), "MRV")
        for name in ("1-to-K, text to text", "1-to-K")
    )
    check_difference(before, own, others, is_ratio=True)
    return checked + 2 * len(differences.rows)


def tuning(text: str, records: Records) -> int:
    """Mean recall by learning rate; return the number of cells."""
    (rates,) = [table for table in tables(text) if table.head[0] == "objective" and _is_number(table.head[1])]
    (longer,) = [table for table in tables(text) if table.head[0] == "longer"]
    (finalists,) = [table for table in tables(text) if "learning rate" in table.head]

    def check(name: str, rate: str, split: str, seeds: list[int], epochs: int, shown: str) -> None:
        of = records.of(OBJECTIVES[name], split, seeds, epochs, "val", float(rate))
        check_cell(shown, values(of, "mean recall"), "mean recall")

    for table in (rates, longer):
        for row, *cells in table.rows:
            name, _, length = row.partition(", ")
            epochs = int(length.removesuffix(" epochs") or 10)
            for rate, cell in zip(table.head[1:], cells, strict=True):
                for split, shown in zip(("composition", "family"), cell.split(", "), strict=True):
                    check(name, rate, split, [1000], epochs, shown)
    edges = [
        f"{epochs} epochs on `{split}`"
        for epochs in (20, 40)
        for split in ("composition", "family")
        if records.best_rate("one_to_one", split, epochs) == 3e-3
    ]
    said = re.search(r"The highest rate of these was the best one for (.+?):", " ".join(text.split()))
    assert (said[1].split(" and ") if said else []) == edges
    for name, rate, *cells in finalists.rows:
        for split, shown in zip(finalists.head[2:], cells, strict=True):
            check(name, rate, split, [1000, 1001, 1002], 10, shown)
    return sum(2 * len(of.rows) * (len(of.head) - 1) for of in (rates, longer)) + 2 * len(finalists.rows)


def run(text: str, records: Records) -> int:
    """What was trained with what, and for how long; return how many facts."""
    every = records.every
    shown = dict(row for table in tables(text) for row in table.rows if len(row) == 2)
    facts = {
        name: Counter(record["versions"][name] for record in every) for name in ("python", "torch", "lightning", "timm")
    }
    facts["commits"] = Counter(record["commit"] for record in every)
    for split in ("test", "val"):
        facts[f"processors of trainings scored on {split}"] = Counter(
            record["processor"] for record in every if record["scored"] == split
        )
    for name, counted in facts.items():
        expected = [f"{value} ({count})" if len(counted) > 1 else value for value, count in sorted(counted.items())]
        assert shown[name] == ", ".join(expected)
    hours = sum(record["cost"]["cpu_seconds"] for record in every) / 3600
    term = {"model.text_to_text_weight": 0.5}
    of_seeds = {
        "objectives": {"objective": "english_pivot", "scored": "test"},
        "ablations and mechanisms": {"degraded": {"swapped": 0.3}},
        "the term beyond the paper on composition": {"options": term, "split": "composition"},
        "the term beyond the paper on family": {"options": term, "split": "family"},
        "tuning and choice of terms": {"scored": "val"},
    }
    said = {name: ends for name, *ends in re.findall(r"(\w[^;]+) (\d+) to (\d+)", shown["seeds"])}
    assert said.keys() == of_seeds.keys()
    for name, wanted in of_seeds.items():
        found = {record["seed"] for record in every if _is_of(record, wanted)}
        first, last = map(int, said[name])
        assert found == set(range(first, last + 1))
    if took := re.search(r"all (\d+) take about ([\d.]+) hours", text):
        minutes = re.search(r"took \*\*(\d+) minutes\*\*", text)[1]
        of_reduced = [
            record["cost"]["cpu_seconds"]
            for name in OBJECTIVES.values()
            for split in ("composition", "family")
            for record in records.of(name, split, [0, 1])
        ]
        assert (int(took[1]), float(took[2])) == (
            len(every),
            pytest.approx(hours * 60 * int(minutes) / sum(of_reduced), rel=0.12),
        )
    trainings, cpu_hours = re.search(r"The (\d+) trainings took ([\d.]+) CPU hours", text).groups()
    assert (int(trainings), float(cpu_hours)) == (len(every), pytest.approx(hours, abs=0.051))
    return len(facts)


def _is_of(record: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return all(
        value.items() <= record[key].items() if isinstance(value, dict) else record[key] == value
        for key, value in wanted.items()
    )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
