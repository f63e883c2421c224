"""What is trained: tuning, the objectives at equal budgets, ablations, mechanisms, and changes to the objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from benchmarks.experiments.trial import OBJECTIVES, SPLITS, Trial

EPOCHS = 10  # of the built-in pictures, of which each is seen once an epoch
LANGUAGES_PER_STEP = 4
SEEDS = (0, 1, 2, 3, 4)
ABLATION_SEEDS = SEEDS[:3]
TUNING_SEEDS = (1000, 1001, 1002)  # of trainings that choose settings; no test split is scored with them
LENGTHS = (5, EPOCHS, 20, 40)
LEARNING_RATES = (7.5e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2)
PLAIN = "1-to-K"
CANDIDATES: dict[str, dict[str, float]] = {PLAIN: {}} | {
    ", ".join(f"{term} {weight}" for term, weight in weights.items()): weights
    for weights in (
        {"mean_text": 0.25},
        {"mean_text": 0.5},
        {"agreement": 0.5},
        {"agreement": 2.0},
        {"spread_of_positives": 0.1},
        {"spread_of_positives": 0.4},
        {"hardest_language": 0.25},
        {"hardest_language": 0.5},
        {"text_to_text": 0.25},
        {"text_to_text": 0.5},
        {"agreement": 0.5, "spread_of_positives": 0.1},
        {"agreement": 0.5, "mean_text": 0.25},
    )
}
BEST_CANDIDATES: tuple[str, ...] = ()
MEAN_TEXT = {"model.mean_text_weight": 0.5}  # what did best among the candidates
RATES_OF_LONGER = LEARNING_RATES[:3]  # of trainings at equal tokens and time
FINALISTS = {"one_to_k": (1.5e-3, 3e-3), "one_to_one": (1.5e-3, 3e-3), "english_pivot": (3e-3, 6e-3)}

BUDGETS = {  # epochs of each objective
    "images": dict.fromkeys(OBJECTIVES, EPOCHS),
    "tokens": {"one_to_k": EPOCHS, "one_to_one": EPOCHS * LANGUAGES_PER_STEP, "english_pivot": EPOCHS},
    "time": {"one_to_k": EPOCHS, "one_to_one": 20, "english_pivot": EPOCHS},  # by tuning's CPU seconds, on an idle EPYC
}

PIVOT = "en"
UNSEEN = ("ar", "ko", "pt")  # a script of another language, a script of its own, and close relatives in training
RARE = {"ar": 0.1, "fa": 0.1, "id": 0.1, "ko": 0.1, "it": 0.5, "pt": 0.5, "ru": 0.5, "tr": 0.5}
LANGUAGES = ("en", "es", "ja", "ko", "pt", "it", "fr", "de", "fa", "id", "zh", "ru", "tr", "ar")

_FUSION = {
    "class_path": "ccr_lightning.models.fusion.FusionEncoder",
    "init_args": {
        "hidden_size": 128,
        "layers": 1,
        "heads": 2,
        "feed_forward_size": 512,
        "image_width": 256,
        "dropout": 0.0,
    },
}


class Row(NamedTuple):
    """A line of a table: its name, and the trials of all its seeds."""

    name: str
    trials: Sequence[Trial]


def epochs(count: int) -> dict[str, int]:
    """Options of a training of so many epochs, a multiple of 5, validated five times, at its end as well."""
    return {"trainer.max_epochs": count, "trainer.check_val_every_n_epoch": count // 5}


def tuned(splits: Sequence[str] = SPLITS) -> list[tuple[str, float, str, int]]:
    """Objective, learning rate, split and epochs of all tuning: arguments of :func:`tuning`."""
    all_rates = [
        (objective, rate, split, EPOCHS) for objective in OBJECTIVES for split in splits for rate in LEARNING_RATES
    ]
    longer = {(objective, of[objective]) for of in BUDGETS.values() for objective in OBJECTIVES} - {
        (objective, EPOCHS) for objective in OBJECTIVES
    }
    return all_rates + [
        (objective, rate, split, count)
        for objective, count in sorted(longer)
        for split in splits
        for rate in RATES_OF_LONGER
    ]


def tuning(objective: str, rate: float, split: str, count: int = EPOCHS) -> list[Trial]:
    """An objective with a learning rate, scored on the validation split, by seed.

    The finalists have several seeds. Longer trainings are tuned as well, with one seed, where a budget has them.
    """
    seeds = TUNING_SEEDS if rate in FINALISTS[objective] and count == EPOCHS else TUNING_SEEDS[:1]
    options = {**epochs(count), "model.lr": rate}
    return [Trial(objective, split, seed, options, selects=True) for seed in seeds]


def objectives(budget: str, split: str, seeds: Sequence[int] = SEEDS) -> list[Row]:
    """The three objectives at an equal budget."""
    return [
        Row(objective, [Trial(objective, split, seed, epochs(count)) for seed in seeds])
        for objective, count in BUDGETS[budget].items()
    ]


def _rows(
    values: Mapping[str, Mapping[str, Any]], objective: str = "one_to_k", seeds: Sequence[int] = ABLATION_SEEDS
) -> list[Row]:
    """A row for each name, with options over those of the objective; none is the objective itself."""
    return [
        Row(name, [Trial(objective, "composition", seed, {**epochs(EPOCHS), **options}) for seed in seeds])
        for name, options in values.items()
    ]


def _of_each(name: str, **changes: Any) -> list[Row]:
    """The same change to all three objectives."""
    return [
        Row(f"{row.name}, {name}", [replace(trial, **changes) for trial in row.trials])
        for row in objectives("images", "composition", ABLATION_SEEDS)
    ]


def _losses(matching: bool, masked_lm: bool) -> dict[str, Any]:
    return {
        "model.retriever.init_args.fusion": _FUSION,
        "model.matching_weight": float(matching),
        "model.masked_lm_weight": 0.2 * masked_lm,
        "model.draw_warmup": 0.3,
    }


def ablations() -> dict[str, list[Row]]:
    """Tables of one change each, at equal images."""
    plain = objectives("images", "composition", ABLATION_SEEDS)
    per_step, seen = "data.languages_per_step", [language for language in LANGUAGES if language not in UNSEEN]
    missing = {share: {"kept": dict.fromkeys(LANGUAGES, 1 - share)} for share in (0.25, 0.5)}

    def without(trial: Trial) -> Trial:
        return replace(trial, options={**trial.options, "data.languages": seen}, tested_on=LANGUAGES)

    return {
        "length of training": [
            Row(
                f"{objective}, {count} epochs",
                [Trial(objective, "composition", seed, epochs(count)) for seed in ABLATION_SEEDS],
            )
            for count in LENGTHS
            for objective in OBJECTIVES
        ],
        "languages per step": _rows({f"K = {k}": {per_step: k} if k != 4 else {} for k in (1, 2, 4, 8, 14)}),
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
            *(row for share, of in missing.items() for row in _of_each(f"{share:.0%} missing", degraded=of)),
        ],
        "rare languages": [*plain, *_of_each("rare", degraded={"kept": RARE})],
        "unseen languages": [
            *plain,
            *(Row(row.name, [without(trial) for trial in row.trials]) for row in _of_each("unseen")),
        ],
        "swapped captions": [
            *plain,
            *(row for share in (0.1, 0.3) for row in _of_each(f"{share:.0%} swapped", degraded={"swapped": share})),
        ],
    }


def reference(row: Row, rows: Sequence[Row]) -> Row | None:
    """What a row of an ablation is compared with: 1-to-K under the same change, or as it is; None if it is that.

    Args:
        row: Of a table.
        rows: All of the table.
    """
    if any(other.trials[0].objective != "one_to_k" for other in rows):
        _, comma, change = row.name.partition(",")
        (found,) = [other for other in rows if other.name == f"one_to_k{comma}{change}"]
    else:
        plain, *_ = objectives("images", "composition", ABLATION_SEEDS)
        (found,) = [other for other in rows if list(other.trials) == list(plain.trials)]
    return None if found is row else found


def mechanisms() -> list[Row]:
    """The three objectives, watched while they train."""
    callbacks = {"ByLanguage": {}, "GradientAngles": {}}
    every = {"trainer.check_val_every_n_epoch": 1}
    return [
        Row(
            row.name,
            [replace(trial, callbacks=callbacks, options={**trial.options, **every}) for trial in row.trials],
        )
        for row in objectives("images", "composition", ABLATION_SEEDS)
    ]


def beyond(split: str, seeds: Sequence[int] = SEEDS) -> list[Row]:
    """1-to-K as it is, and with the term that did best among the candidates, at equal images."""
    plain, *_ = objectives("images", split, seeds)
    added = [replace(trial, options={**trial.options, **MEAN_TEXT}) for trial in plain.trials]
    return [plain, Row(f"{plain.name}, mean text", added)]


def candidates(splits: Sequence[str] = SPLITS) -> dict[str, dict[str, list[Trial]]]:
    """Terms added to the 1-to-K loss, and that alone, by split and seed, scored on the validation split.

    The three that are best with one seed have several, as the loss alone does.
    """
    return {
        name: {
            split: [
                Trial("one_to_k", split, seed, epochs(EPOCHS), callbacks=_terms(weights), selects=True)
                for seed in (TUNING_SEEDS if name in (PLAIN, *BEST_CANDIDATES) else TUNING_SEEDS[:1])
            ]
            for split in splits
        }
        for name, weights in CANDIDATES.items()
    }


def _terms(weights: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    return {"AddTerms": {"weights": dict(weights)}} if weights else {}
