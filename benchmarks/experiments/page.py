"""The page of results, docs/results.md: what is measured is computed from the records, what is set from the plan."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from benchmarks.experiments import ablations, plan, tables_of_ablations, tables_of_beyond
from benchmarks.experiments.claims import comparisons, in_short
from benchmarks.experiments.mechanisms import mechanisms
from benchmarks.experiments.quantities import COSTS, RAREST
from benchmarks.experiments.running import Results
from benchmarks.experiments.tables import SCORES, table_of
from benchmarks.experiments.tables_of_tuning import tuning
from benchmarks.experiments.trial import SPLITS
from ccr_lightning.data.sources.openmoji import LANGUAGES
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.text import TextEncoder
from ccr_lightning.models.vision import ImageEncoder
from ccr_lightning.pages import LANGUAGE_NAMES

REDUCED = "reduced.json"  # how long the reduced version took


def page(results: Results) -> str:
    """The whole page, in Markdown; it lies beside the folder of the results, wherever that is."""
    docs = os.path.relpath("docs", results.path.parents[1])
    files = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=files, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
    return environment.get_template("results.md.jinja").render(
        plan=plan,
        ablations_of=ablations,
        docs="" if docs == "." else f"{docs}/",
        folder=results.path.parent.name,
        more=[path.name for path in results.more],
        **in_short(comparisons(results)),
        varied=tables_of_ablations.in_short(results),
        objectives=[(split, table_of(plan.at_budgets(split), (*COSTS, *SCORES), results)) for split in SPLITS],
        mechanisms=mechanisms(results),
        candidates=tables_of_beyond.candidates(results),
        beyond=tables_of_beyond.beyond(results),
        ablations=tables_of_ablations.by_setting(results),
        languages=_languages(),
        tuning=tuning(results),
        run=_run(results),
    )


def _languages() -> dict[str, Any]:
    """How many there are, and the names of those that ablations treat in their own way."""
    fewer = [language for language in ablations.RARE if language not in RAREST]
    of = {"rarest": RAREST, "fewer": fewer, "unseen": ablations.UNSEEN}
    return {"count": len(LANGUAGES)} | {
        kind: " and ".join(", ".join(LANGUAGE_NAMES[language] for language in some).rsplit(", ", 1))
        for kind, some in of.items()
    }


def _run(results: Results) -> dict[str, Any]:
    """What was trained with what, and for how long."""
    records = list(results.found.values())

    def counted(values: Iterable[str]) -> str:
        found = Counter(values)
        return ", ".join(f"{value} ({count})" if len(found) > 1 else value for value, count in sorted(found.items()))

    described = {
        f"processors of trainings scored on {split}": counted(
            record["processor"] for record in records if record["scored"] == split
        )
        for split in ("test", "val")
    }
    for name in ("python", "torch", "lightning", "timm"):
        described[name] = counted(record["versions"][name] for record in records)
    described["commits"] = counted(record["commit"] for record in records)
    described["seeds"] = "; ".join(
        f"{of} {seeds[0]} to {seeds[-1]}"
        for of, seeds in (
            ("objectives", plan.SEEDS),
            ("ablations and mechanisms", plan.ABLATION_SEEDS),
            *((f"the term beyond the paper on {split}", seeds) for split, seeds in plan.BEYOND_SEEDS.items()),
            ("tuning and choice of terms", plan.TUNING_SEEDS),
        )
    )
    settings = plan.trained("one_to_k", SPLITS[0], 0).settings(results.more)
    return {
        "trainings": len(records),
        "hours": f"{_cpu_seconds(records) / 3600:.1f}",
        "reduced": _reduced(results),
        "renamed": sorted({record["commit"] for record in records if "wall_seconds" not in record["cost"]}),
        "described": described,
        "parameters": f"{_parameters(settings['model']['retriever']['init_args']) / 1e6:.1f}",
        "batch_size": settings["data"]["batch_size"],
    }


def _reduced(results: Results) -> dict[str, Any] | None:
    """How long the reduced version took, and by its proportion of CPU seconds to time how long everything takes."""
    path = results.path.with_name(REDUCED)
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    whole = _cpu_seconds(results.found.values()) * found["seconds"] / found["cpu_seconds"]
    return {**found, "minutes": f"{found['seconds'] / 60:.0f}", "hours_of_everything": f"{whole / 3600:.1f}"}


def _cpu_seconds(records: Iterable[Mapping[str, Any]]) -> float:
    return float(sum(record["cost"]["cpu_seconds"] for record in records))


def _parameters(retriever: Mapping[str, Any]) -> int:
    """How many the model has."""
    image, text = (retriever[name]["init_args"] for name in ("image_encoder", "text_encoder"))
    model = Retriever(ImageEncoder(**image), TextEncoder(**text), embed_dim=retriever["embed_dim"])
    return sum(parameter.numel() for parameter in model.parameters())
