"""The page of results, docs/results.md: every number on it is computed from the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.experiments import ablations, plan
from benchmarks.experiments.claims import ERROR, comparisons, in_short
from benchmarks.experiments.intervals import Difference, holm
from benchmarks.experiments.mechanisms import mechanisms
from benchmarks.experiments.plan import Row
from benchmarks.experiments.quantities import COSTS, compared, said, shown
from benchmarks.experiments.running import Results
from benchmarks.experiments.tables import (
    NAMES,
    NOT_RUN,
    SAME,
    UNDECIDED,
    in_words,
    named,
    records_of,
    table,
    table_of,
)
from benchmarks.experiments.trial import OBJECTIVES, SPLITS
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.vision import ImageEncoder

SCORES = (
    *("R@1", "MRV"),
    *("i2t R@1", "i2t R@5", "i2t R@10", "t2i R@1", "t2i R@5", "t2i R@10"),
    *("i2t MRV", "t2i MRV", "MRSD", "worst language", "below English"),
)
OF_ABLATIONS = ("R@1", "R@10", "MRV", "MRSD", "worst language", "below English", "CPU s")
ALSO_OF = {"rare languages": ("R@1 of the rarest",), "unseen languages": ("R@1 of the unseen",)}
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
OF_BEYOND = ("R@1", "MRV")


def page(results: Results) -> str:
    """The whole page, in Markdown."""
    files = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=files, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return environment.get_template("results.md.jinja").render(
        plan=plan,
        **in_short(comparisons(results)),
        varied=_varied(results),
        objectives=[(split, table_of(plan.at_budgets(split), (*COSTS, *SCORES), results)) for split in SPLITS],
        mechanisms=mechanisms(results),
        candidates=_candidates(results),
        beyond=_beyond(results),
        ablations=[(name, _ablation(name, rows, results)) for name, rows in ablations.ablations().items()],
        tuning=_tuning(results),
        run=_run(results),
    )


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
            found = [in_words(compared(own, others, of)) if own and others else NOT_RUN for of in (recall, "MRV")]
            lines.append([title, named(row.name), named(base.name), f"{recall}: {found[0]}", f"MRV: {found[1]}"])
    return table(["varied", "with", "against", "recall", "consistency"], lines)


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


def _beyond(results: Results) -> dict[str, Any]:
    rows = {split: plan.beyond(split) for split in SPLITS}
    found = {
        (split, quantity): compared(*records, quantity)
        for split, (plain, added) in rows.items()
        if all(records := [records_of(row, results) for row in (added, plain)])
        for quantity in OF_BEYOND
    }
    adjusted = holm([of.p for of in found.values()])
    lines = [
        [split, quantity, in_words(of) if p < ERROR else UNDECIDED, said(of, quantity), f"{p:.2g}"]
        for ((split, quantity), of), p in zip(found.items(), adjusted, strict=True)
    ]
    return {
        "tables": [(split, table_of(of, ("CPU s", *SCORES), results)) for split, of in rows.items()],
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
        by_rate(f"{NAMES['one_to_one']}, {count} epochs", "one_to_one", plan.RATES_OF_LONGER, count)
        for count in plan.longer()
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
            ("objectives", plan.SEEDS), ("the term beyond them", plan.BEYOND_SEEDS),
            ("ablations and mechanisms", plan.ABLATION_SEEDS), ("tuning", plan.TUNING_SEEDS),
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
