"""What is trained: tuning, the objectives at equal budgets, the mechanisms, and changes to the objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from benchmarks.experiments.trial import OBJECTIVES, SPLITS, Trial

EPOCHS = 10  # of the built-in pictures; what fills no batch is left out of an epoch
LANGUAGES_PER_STEP = 4
PIVOT = "en"
IMAGES = {
    "composition": {"train": 3194, "val": 250, "test": 500},
    "family": {"train": 3115, "val": 274, "test": 502},
}
SEEDS = (0, 1, 2, 3, 4)
ABLATION_SEEDS = SEEDS[:3]
SECOND_SEEDS = range(5, 15)  # of the term beyond the paper, run after those of the objectives had been looked at
NEW_SEEDS = {"composition": range(15, 35), "family": SECOND_SEEDS}  # run after the last look
BEYOND_SEEDS = {split: tuple(range(new.stop)) for split, new in NEW_SEEDS.items()}
TUNING_SEEDS = (1000, 1001, 1002)  # of trainings that choose settings; no test split is scored with them

BUDGETS = {  # epochs of one random language; those of the others, which cost alike, are the same at each
    "equal images": EPOCHS,
    "equal text tokens": EPOCHS * LANGUAGES_PER_STEP,
    "equal CPU time": 20,  # by the CPU seconds of tuning
}

LEARNING_RATES = (7.5e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2)
FINALISTS = {"one_to_k": (1.5e-3, 3e-3), "one_to_one": (1.5e-3, 3e-3), "english_pivot": (3e-3, 6e-3)}
RATES_OF_LONGER = LEARNING_RATES[:3]  # of trainings at equal tokens and time
RATES = {  # where tuning found another one than the configuration's, by objective, split and epochs
    ("one_to_one", "family", 10): 3e-3,
    ("one_to_one", "family", 20): 3e-3,
    ("one_to_one", "composition", 40): 3e-3,
}

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
        {"text_to_text": 0.5, "agreement": 0.5},
    )
}
BEST_CANDIDATES = ("text_to_text 0.25", "text_to_text 0.5", "agreement 0.5", "text_to_text 0.5, agreement 0.5")
BEYOND = {"model.text_to_text_weight": 0.5}  # the best of the single terms


class Row(NamedTuple):
    """A setting of a table: its name, the trials of all its seeds, and what it is compared with."""

    name: str
    trials: Sequence[Trial]
    base: Row | None = None


def epochs(count: int) -> dict[str, Any]:
    """Options of a training of so many epochs, a multiple of 5, validated five times, at its end as well."""
    return {"trainer.max_epochs": count, "trainer.check_val_every_n_epoch": count // 5}


def trained(objective: str, split: str, seed: int, count: int = EPOCHS) -> Trial:
    """An objective with the learning rate that tuning found."""
    rate = RATES.get((objective, split, count))
    return Trial(objective, split, seed, epochs(count) | ({"model.lr": rate} if rate else {}))


def tuned() -> list[tuple[str, float, str, int]]:
    """Objective, learning rate, split and epochs of all tuning: arguments of :func:`tuning`."""
    all_rates = [
        (objective, rate, split, EPOCHS) for objective in OBJECTIVES for split in SPLITS for rate in LEARNING_RATES
    ]
    return all_rates + [
        ("one_to_one", rate, split, count) for count in longer() for split in SPLITS for rate in RATES_OF_LONGER
    ]


def longer() -> list[int]:
    """Epochs of the trainings of one random language that a budget makes longer."""
    return sorted(count for count in BUDGETS.values() if count != EPOCHS)


def tuning(objective: str, rate: float, split: str, count: int = EPOCHS) -> list[Trial]:
    """An objective with a learning rate, scored on the validation split, by seed.

    The finalists have several seeds. Longer trainings are tuned as well, with one seed, where a budget has them.
    """
    seeds = TUNING_SEEDS if rate in FINALISTS[objective] and count == EPOCHS else TUNING_SEEDS[:1]
    options = {**epochs(count), "model.lr": rate}
    return [Trial(objective, split, seed, options, selects=True) for seed in seeds]


def objectives(split: str, seeds: Sequence[int] = SEEDS) -> list[Row]:
    """The three objectives at equal images."""
    return [Row(objective, [trained(objective, split, seed) for seed in seeds]) for objective in OBJECTIVES]


def at_budgets(split: str) -> list[Row]:
    """1-to-K, then what it is compared with: one random language at each budget, and the pivot, which costs alike."""
    plain, _, pivot = objectives(split)
    one_to_one = [
        Row(f"one_to_one, {budget}", [trained("one_to_one", split, seed, count) for seed in SEEDS], plain)
        for budget, count in BUDGETS.items()
    ]
    return [plain, *one_to_one, pivot._replace(base=plain)]


def beyond(split: str, seeds: Sequence[int] | None = None) -> list[Row]:
    """1-to-K as it is, and with the term chosen of the candidates, at equal images; by default of all seeds."""
    plain, *_ = objectives(split, seeds or BEYOND_SEEDS[split])
    added = [replace(trial, options={**trial.options, **BEYOND}) for trial in plain.trials]
    return [plain, Row(f"{plain.name}, text to text", added, plain)]


def mechanisms() -> list[Row]:
    """The three objectives, watched while they train; angles are measured on the weights of the first alone."""
    every = {"trainer.check_val_every_n_epoch": 1}

    def watched(trial: Trial) -> Trial:
        callbacks = {"ByLanguage": {}, **({"GradientAngles": {}} if trial.objective == "one_to_k" else {})}
        return replace(trial, callbacks=callbacks, options={**trial.options, **every})

    return [
        Row(row.name, [watched(trial) for trial in row.trials]) for row in objectives("composition", ABLATION_SEEDS)
    ]


def candidates() -> dict[str, dict[str, list[Trial]]]:
    """Terms added to the 1-to-K loss, and that alone, by split and seed, scored on the validation split.

    Those that are best with one seed have several, as the loss alone does.
    """
    return {
        name: {
            split: [
                Trial("one_to_k", split, seed, epochs(EPOCHS), callbacks=_terms(weights), selects=True)
                for seed in (TUNING_SEEDS if name in (PLAIN, *BEST_CANDIDATES) else TUNING_SEEDS[:1])
            ]
            for split in SPLITS
        }
        for name, weights in CANDIDATES.items()
    }


def _terms(weights: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    return {"AddTerms": {"weights": dict(weights)}} if weights else {}
