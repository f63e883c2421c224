"""What is varied: tables of one change each, at equal images on the composition split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from benchmarks.experiments.plan import ABLATION_SEEDS, EPOCHS, LANGUAGES_PER_STEP, Row, objectives, trained
from benchmarks.experiments.trial import OBJECTIVES, Trial
from ccr_lightning.data.sources.openmoji import LANGUAGES

LENGTHS = (5, EPOCHS, 20, 40)  # each twice the one before, as long as one random language trains in the same time
EQUAL_TIME = "length at equal CPU time"
UNSEEN = ("ar", "pt")  # the script of another language in training, and close relatives
RARE = {"ar": 0.1, "fa": 0.1, "id": 0.1, "ko": 0.1, "it": 0.5, "pt": 0.5, "ru": 0.5, "tr": 0.5}

MASKED_LM_WEIGHT, DRAW_WARMUP = 0.2, 0.3

_FUSION = {  # the rest of its settings follow from those of the encoders
    "class_path": "ccr_lightning.models.fusion.FusionEncoder",
    "init_args": {"layers": 1, "dropout": 0.0},
}


def _rows(values: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """A row of 1-to-K for each name, with options over its own, against that without options: 1-to-K as it is."""
    plain = [trained("one_to_k", "composition", seed) for seed in ABLATION_SEEDS]
    (base,) = [Row(name, plain) for name, options in values.items() if not options]
    return [
        Row(name, [replace(trial, options={**trial.options, **options}) for trial in plain], base) if options else base
        for name, options in values.items()
    ]


def _of_length(objective: str, count: int) -> Row:
    return Row(
        f"{objective}, {count} epochs", [trained(objective, "composition", seed, count) for seed in ABLATION_SEEDS]
    )


def _of_each(name: str, change: Callable[[Trial], Trial]) -> list[Row]:
    """The same change to all three objectives."""
    return _against_first(
        Row(f"{row.name}, {name}", [change(trial) for trial in row.trials])
        for row in objectives("composition", ABLATION_SEEDS)
    )


def _against_first(rows: Iterable[Row]) -> list[Row]:
    """The others against 1-to-K, which is the first, under the same conditions."""
    first, *others = rows
    return [first, *(row._replace(base=first) for row in others)]


def _degraded(name: str, **arguments: Any) -> list[Row]:
    """All three objectives on degraded captions, of each seed others."""
    return _of_each(name, lambda trial: replace(trial, degraded={**arguments, "seed": trial.seed}))


def _losses(matching: bool, masked_lm: bool) -> dict[str, Any]:
    return {
        "model.retriever.init_args.fusion": _FUSION,
        "model.matching_weight": float(matching),
        "model.masked_lm_weight": MASKED_LM_WEIGHT * masked_lm,
        "model.draw_warmup": DRAW_WARMUP,
    }


def ablations() -> dict[str, list[Row]]:
    """Tables of one change each, at equal images."""
    plain = _against_first(objectives("composition", ABLATION_SEEDS))
    per_step, seen = "data.languages_per_step", [language for language in LANGUAGES if language not in UNSEEN]

    def without(trial: Trial) -> Trial:
        return replace(trial, options={**trial.options, "data.languages": seen}, tested_on=LANGUAGES)

    return {
        "length of training": [
            row for count in LENGTHS for row in _against_first(_of_length(objective, count) for objective in OBJECTIVES)
        ],
        EQUAL_TIME: [
            row
            for count, double in pairwise(LENGTHS)
            for row in _against_first([_of_length("one_to_k", count), _of_length("one_to_one", double)])
        ],
        "languages per step": _rows(
            {f"K = {k}": {per_step: k} if k != LANGUAGES_PER_STEP else {} for k in (1, 2, 4, 8, 14)}
        ),
        "losses": _rows(
            {
                "contrastive": {},
                "with matching": _losses(True, False),
                "with masked-LM": _losses(False, True),
                "with both": _losses(True, True),
            }
        ),
        "temperature at the start": _rows(
            {
                f"{start}": {"model.retriever.init_args.temperature": start} if start != 0.07 else {}
                for start in (0.02, 0.07, 0.2)
            }
        ),
        "weight of text to image": _rows({"1": {}, "1/K": {"model.text_to_image_weight": 1 / LANGUAGES_PER_STEP}}),
        "batch size": _rows(
            {f"{size}": {"data.batch_size": size} if size != 128 else {} for size in (32, 64, 128, 256)}
        ),
        "missing captions": [
            *plain,
            *(
                row
                for share in (0.25, 0.5)
                for row in _degraded(f"{share:.0%} missing", kept=dict.fromkeys(LANGUAGES, 1 - share))
            ),
        ],
        "rare languages": [*plain, *_degraded("rare", kept=RARE)],
        "unseen languages": [*plain, *_of_each("unseen", without)],
        "swapped captions": [
            *plain,
            *(row for share in (0.1, 0.3) for row in _degraded(f"{share:.0%} swapped", swapped=share)),
        ],
    }
