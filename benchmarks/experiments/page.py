"""The page of results, docs/results.md: every number on it is computed from the records."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.experiments import ablations, plan
from benchmarks.experiments.gradients import PARTS
from benchmarks.experiments.intervals import Difference, difference, holm
from benchmarks.experiments.plan import Row
from benchmarks.experiments.quantities import Record, compared, said, shown
from benchmarks.experiments.running import Results
from benchmarks.experiments.trial import OBJECTIVES, SPLITS
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.vision import ImageEncoder

NAMES = {"one_to_k": "1-to-K", "one_to_one": "one random language", "english_pivot": "English pivot"}
BUDGET_NAMES = {"images": "equal images", "tokens": "equal text tokens", "time": "equal CPU time"}
SCORES = (
    *("i2t R@1", "i2t R@5", "i2t R@10", "t2i R@1", "t2i R@5", "t2i R@10"),
    *("i2t MRV", "t2i MRV", "MRSD", "worst language", "below English"),
)
OF_ABLATIONS = ("R@1", "R@10", "MRV", "MRSD", "worst language", "below English", "CPU s")
ALSO_OF = {"rare languages": ("R@1 of the rarest",), "unseen languages": ("R@1 of the unseen",)}
ANGLES = ("of a step", "of the expectation")
IN_SHORT = {  # rows of tables of ablations that are said in words as well
    "length of training": ("one_to_one, 40 epochs", "english_pivot, 40 epochs"),
    "languages per step": ("K = 1", "K = 14"),
    "losses": ("with matching", "with masked-LM", "with both"),
    "weight of text to image": ("1/K",),
    "batch size": ("32", "256"),
    "missing captions": ("one_to_one, 50% missing", "english_pivot, 50% missing"),
    "rare languages": ("one_to_one, rare", "english_pivot, rare"),
    "unseen languages": ("one_to_one, unseen", "english_pivot, unseen"),
    "swapped captions": ("one_to_one, 30% swapped", "english_pivot, 30% swapped"),
}
COMPARED = {"R@1": "R@1, difference", "MRV": "MRV, quotient"}
SAME = "–"
OF_BEYOND = ("R@1", "MRV", "worst language", "gap to English")
ERROR = 0.05  # of all comparisons together
YES, NO, UNDECIDED = "yes", "**no, the opposite**", "undecided"
HIGHER, LOWER = "higher", "lower"
NOT_RUN = "not run"


class Claim(NamedTuple):
    """Something that the paper says of 1-to-K against another objective."""

    other: str
    quantity: str
    is_higher: bool

    @property
    def words(self) -> str:
        """The claim."""
        return f"{self.quantity} is {'higher' if self.is_higher else 'lower'} than with {NAMES[self.other]}"


CLAIMS = [
    Claim(other, quantity, is_higher)
    for other in ("one_to_one", "english_pivot")
    for quantity, is_higher in (("R@1", True), ("MRV", False), ("worst language", True), ("gap to English", False))
]
Compared = dict[Claim, tuple[Difference, float]]  # with p after Holm


def page(results: Results, seeds: Sequence[int] = plan.SEEDS) -> str:
    """The whole page, in Markdown."""
    files = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=files, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    found = comparisons(results, seeds)
    return environment.get_template("results.md.jinja").render(
        plan=plan,
        seeds=len(seeds),
        **_in_short(found),
        varied=_varied(results),
        objectives=_objectives(results, seeds),
        differences=_differences(found),
        mechanisms=_mechanisms(results),
        candidates=_candidates(results),
        beyond=_beyond(results, seeds),
        ablations=[(name, _ablation(name, rows, results)) for name, rows in ablations.ablations().items()],
        tuning=_tuning(results),
        run=_run(results),
    )


def records_of(row: Row, results: Results) -> list[Record]:
    """The records of a row's trials; none unless all are there."""
    found = [results.of(trial) for trial in row.trials]
    return [record for record in found if record is not None] if None not in found else []


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *lines])


def table_of(rows: Sequence[Row], columns: Sequence[str], results: Results, first: str) -> str:
    """A line for each setting, with means over seeds and the half widths of their intervals."""
    lines = []
    for row in rows:
        records = records_of(row, results)
        lines.append([named(row.name), *(shown(records, of) if records else NOT_RUN for of in columns)])
    return table([first, *columns], lines)


def named(row: str) -> str:
    """The name of a row as it is shown.

    Example:
        >>> named("one_to_one, 5 epochs")
        'one random language, 5 epochs'
    """
    name, comma, change = row.partition(",")
    return f"{NAMES.get(name, name)}{comma}{change}"


def comparisons(results: Results, seeds: Sequence[int]) -> dict[tuple[str, str], Compared]:
    """By budget and split, for each claim the other objective against 1-to-K; p is adjusted over all of them together.

    Comparisons of the same trainings count once, at equal images.
    """
    found: dict[tuple[str, str], dict[Claim, Difference]] = {}
    for split in SPLITS:
        for budget in plan.BUDGETS:
            rows = {row.name: records_of(row, results) for row in plan.objectives(budget, split, seeds)}
            if all(rows.values()):
                found[budget, split] = {
                    claim: compared(rows[claim.other], rows["one_to_k"], claim.quantity)
                    for claim in CLAIMS
                    if budget == "images" or plan.BUDGETS[budget][claim.other] != plan.EPOCHS
                }
    adjusted = iter(holm([of.p for by_claim in found.values() for of in by_claim.values()]))
    return {where: {claim: (of, next(adjusted)) for claim, of in by_claim.items()} for where, by_claim in found.items()}


def verdict(found: Difference, p: float, is_higher: bool) -> str:
    """Whether a claim is confirmed, by the sign of the other's difference from 1-to-K and its adjusted p.

    Example:
        >>> verdict(Difference(-2.0, 0.5, 0.001), 0.004, is_higher=True)
        'yes'
        >>> verdict(Difference(2.0, 3.0, 0.1), 0.4, is_higher=True)
        'undecided'
    """
    if math.isnan(p) or p >= ERROR:
        return UNDECIDED
    return YES if (found.value < 0) == is_higher else NO


def _in_short(found: dict[tuple[str, str], Compared]) -> dict[str, Any]:
    head = ["with 1-to-K, ...", *(f"{BUDGET_NAMES[budget]}, `{split}`" for budget, split in found)]
    lines = [
        [
            claim.words,
            *(verdict(*by_claim[claim], claim.is_higher) if claim in by_claim else SAME for by_claim in found.values()),
        ]
        for claim in CLAIMS
    ]
    counted = Counter(cell for line in lines for cell in line[1:])
    counts = {
        "all": counted.total() - counted[SAME],
        "yes": counted[YES],
        "no": counted[NO],
        "undecided": counted[UNDECIDED],
    }
    return {"verdicts": table(head, lines), "counts": counts}


def _varied(results: Results) -> str:
    """Ablations in words: where the interval leaves out that there is no difference, its sign."""
    lines = []
    for title, names in IN_SHORT.items():
        rows = ablations.ablations()[title]
        recall, *_ = (*ALSO_OF.get(title, ()), "R@1")
        for row in [row for row in rows if row.name in names]:
            base = ablations.reference(row, rows)
            assert base is not None
            own, others = records_of(row, results), records_of(base, results)
            found = [_in_words(compared(own, others, of)) if own and others else NOT_RUN for of in (recall, "MRV")]
            lines.append([title, named(row.name), named(base.name), f"{recall}: {found[0]}", f"MRV: {found[1]}"])
    return table(["varied", "with", "against", "recall", "consistency"], lines)


def _in_words(found: Difference) -> str:
    if not abs(found.value) > found.half:
        return UNDECIDED
    return HIGHER if found.value > 0 else LOWER


def _objectives(results: Results, seeds: Sequence[int]) -> list[tuple[str, str]]:
    return [
        (
            f"{BUDGET_NAMES[budget]}, `{split}` split",
            table_of(
                plan.objectives(budget, split, seeds),
                ("images", "tokens", "CPU s", "wall s", *SCORES),
                results,
                "objective",
            ),
        )
        for split in SPLITS
        for budget in plan.BUDGETS
    ]


def _differences(found: dict[tuple[str, str], Compared]) -> str:
    return table(
        ["at", "split", "of", "with", "against 1-to-K", "p (Holm)"],
        [
            [BUDGET_NAMES[budget], split, claim.quantity, NAMES[claim.other], said(of, claim.quantity), f"{p:.2g}"]
            for (budget, split), by_claim in found.items()
            for claim, (of, p) in by_claim.items()
        ],
    )


def english_and_others(record: Record) -> list[tuple[int, float, float]]:
    """Step, R@1 of English and the mean R@1 of the other languages, in percent, of each validation."""
    return [
        (
            of["step"],
            100 * of["recall@1"][plan.PIVOT],
            100 * statistics.mean(value for name, value in of["recall@1"].items() if name != plan.PIVOT),
        )
        for of in record["by_language"]
    ]


def _mechanisms(results: Results) -> dict[str, str] | None:
    rows = {row.name: records_of(row, results) for row in plan.mechanisms()}
    if not all(rows.values()):
        return None
    number = len(rows["one_to_k"][0]["by_language"])
    chosen = [number * part // 4 - 1 for part in (1, 2, 3, 4)]
    steps = [rows["one_to_k"][0]["by_language"][of]["step"] for of in chosen]

    def means(records: Sequence[Record], validation: int) -> str:
        of = [english_and_others(record)[validation] for record in records]
        return " / ".join(f"{statistics.mean(one[which] for one in of):.1f}" for which in (1, 2))

    def degrees(time: int, objective: str, part: str) -> str:
        of = [record["angles"][time][objective][part] for record in rows["one_to_k"]]
        return " / ".join(f"{statistics.mean(one[which] for one in of):.0f}" for which in ANGLES)

    times = [of["step"] for of in rows["one_to_k"][0]["angles"]]
    return {
        "languages": table(
            ["objective", *(f"step {step}" for step in steps)],
            [[NAMES[name], *(means(records, of) for of in chosen)] for name, records in rows.items()],
        ),
        "angles": table(
            ["objective", "part", *(f"step {step}" for step in times)],
            [
                [NAMES[name], part, *(degrees(time, name, part) for time in range(len(times)))]
                for part in PARTS
                for name in OBJECTIVES
            ],
        ),
        "in_words": table(["of", "with", "against 1-to-K", ""], _mechanisms_in_words(rows)),
    }


def _mechanisms_in_words(rows: Mapping[str, Sequence[Record]]) -> list[list[str]]:
    """The others against 1-to-K: the lead of English at the end, and the mean angle of the expected step."""

    def lead(record: Record) -> float:
        _, english, others = english_and_others(record)[-1]
        return english - others

    def angle(record: Record, objective: str, part: str) -> float:
        return statistics.mean(of[objective][part][ANGLES[1]] for of in record["angles"])

    lines = []
    for other in ("one_to_one", "english_pivot"):
        of_seed = ({record["seed"]: lead(record) for record in rows[name]} for name in (other, "one_to_k"))
        lines.append(["lead of English, R@1", other, difference(*of_seed)])
    for part in PARTS:
        for other in ("one_to_one", "english_pivot"):
            of_seed = (
                {record["seed"]: angle(record, name, part) for record in rows["one_to_k"]}
                for name in (other, "one_to_k")
            )
            lines.append([f"angle of the expected step, {part}", other, difference(*of_seed)])
    return [[of, NAMES[other], _in_words(found), said(found, "R@1")] for of, other, found in lines]


def _candidates(results: Results) -> str:
    lines = []
    for name, by_split in plan.candidates().items():
        found = {split: records_of(Row(name, trials), results) for split, trials in by_split.items()}
        cells = [
            shown(found[split], of) if found[split] else NOT_RUN for split in SPLITS for of in ("mean recall", "MRV")
        ]
        lines.append([name, str(len(by_split[SPLITS[0]])), *cells])
    return table(
        ["term, weight", "seeds", *(f"{split}: {of}" for split in SPLITS for of in ("mean recall", "MRV"))], lines
    )


def _ablation(name: str, rows: Sequence[Row], results: Results) -> str:
    """Its table; in the last columns each row against that it is compared with."""
    columns = (*ALSO_OF.get(name, ()), *OF_ABLATIONS)
    lines = []
    for row in rows:
        records, base = records_of(row, results), ablations.reference(row, rows)
        against = [SAME] * len(COMPARED)
        if base is not None:
            others = records_of(base, results)
            against = [_bold(compared(records, others, of), of) if records and others else NOT_RUN for of in COMPARED]
        lines.append([named(row.name), *(shown(records, of) if records else NOT_RUN for of in columns), *against])
    return table([name, *columns, *COMPARED.values()], lines)


def _bold(found: Difference, quantity: str) -> str:
    """A comparison, in bold where its interval leaves out that there is no difference."""
    words = said(found, quantity)
    return f"**{words}**" if abs(found.value) > found.half else words


def _beyond(results: Results, seeds: Sequence[int]) -> dict[str, Any]:
    rows = {split: plan.beyond(split, seeds) for split in SPLITS}
    found = {
        (split, quantity): compared(*records, quantity)
        for split, (plain, added) in rows.items()
        if all(records := [records_of(row, results) for row in (added, plain)])
        for quantity in OF_BEYOND
    }
    adjusted = holm([of.p for of in found.values()])
    lines = [
        [split, quantity, _in_words(of) if p < ERROR else UNDECIDED, said(of, quantity), f"{p:.2g}"]
        for ((split, quantity), of), p in zip(found.items(), adjusted, strict=True)
    ]
    return {
        "tables": [(split, table_of(of, ("CPU s", *SCORES), results, "objective")) for split, of in rows.items()],
        "differences": table(["split", "of", "with the term", "against without it", "p (Holm)"], lines),
    }


def _tuning(results: Results) -> dict[str, str]:
    def cell(seeds: int, *of: Any) -> str:
        found = records_of(Row("", plan.tuning(*of)[:seeds]), results)
        return shown(found, "mean recall") if found else NOT_RUN

    def by_rate(name: str, objective: str, rates: Sequence[float], count: int = plan.EPOCHS) -> list[str]:
        return [name, *(", ".join(cell(1, objective, rate, split, count) for split in SPLITS) for rate in rates)]

    finalists = [
        [NAMES[objective], f"{rate:g}", *(cell(len(plan.TUNING_SEEDS), objective, rate, split) for split in SPLITS)]
        for objective, rates in plan.FINALISTS.items()
        for rate in rates
    ]
    longer = [
        by_rate(f"{NAMES[objective]}, {count} epochs", objective, plan.RATES_OF_LONGER, count)
        for objective, count in plan.longer()
    ]
    return {
        "rates": table(
            ["objective", *(f"{rate:g}" for rate in plan.LEARNING_RATES)],
            [by_rate(NAMES[objective], objective, plan.LEARNING_RATES) for objective in OBJECTIVES],
        ),
        "finalists": table(["objective", "learning rate", *SPLITS], finalists),
        "longer": table(["longer", *(f"{rate:g}" for rate in plan.RATES_OF_LONGER)], longer),
    }


def _run(results: Results) -> dict[str, Any]:
    records = list(results.found.values())

    def counted(values: Iterable[str]) -> str:
        found = Counter(values)
        return ", ".join(f"{value} ({count})" if len(found) > 1 else value for value, count in sorted(found.items()))

    described = {"processors (trainings)": counted(record["processor"] for record in records)}
    for name in ("python", "torch", "lightning", "timm"):
        described[name] = counted(record["versions"][name] for record in records)
    described["commits"] = counted(record["commit"] for record in records)
    described["seeds"] = "; ".join(
        f"{of} {', '.join(map(str, seeds))}"
        for of, seeds in (
            ("objectives", plan.SEEDS), ("ablations and mechanisms", plan.ABLATION_SEEDS), ("tuning", plan.TUNING_SEEDS)
        )
    )  # fmt: skip
    hours = sum(record["cost"]["cpu_seconds"] for record in records) / 3600
    settings = plan.trained("one_to_k", SPLITS[0], 0).settings(results.more)
    return {
        "trainings": len(records),
        "hours": f"{hours:.1f}",
        "described": described,
        "parameters": f"{_parameters(settings['model']['retriever']['init_args']) / 1e6:.1f}",
        "batch_size": settings["data"]["batch_size"],
    }


def _parameters(retriever: Mapping[str, Any]) -> int:
    """How many the model has."""
    image, text = (retriever[name]["init_args"] for name in ("image_encoder", "text_encoder"))
    model = Retriever(ImageEncoder(**image), TextEncoder(**text), embed_dim=retriever["embed_dim"])
    return sum(parameter.numel() for parameter in model.parameters())
