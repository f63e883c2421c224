"""Whether a run that resumes, or is scored, is asked for what it was asked for before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ccr_lightning.cli.differences import Difference, differences, is_one_of
from ccr_lightning.cli.run_config import OF_THE_DATA, OF_THE_PROTOCOL
from ccr_lightning.errors import CCRError

# Where things lie, and what says where a run begins; the data are compared themselves, not their paths.
_PLACES = ("name", "runs_dir", "init_from", "data.source", "data.cache_dir", "data.train_shards")

# Another way to do the same, or what the trained weights do not depend on. How many images all devices take together
# is compared with the data, once it is known how many devices there are.
_FREE = (
    *(f"trainer.{name}" for name in ("accelerator", "strategy", "devices", "num_nodes", "logger", "callbacks")),
    *(f"trainer.limit_{split}_batches" for split in ("val", "test", "predict")),
    *("trainer.val_check_interval", "trainer.check_val_every_n_epoch", "trainer.num_sanity_val_steps"),
    *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.enable_checkpointing"),
    *("trainer.log_every_n_steps", "trainer.default_root_dir", "trainer.max_time", "trainer.fast_dev_run"),
    *("trainer.deterministic", "trainer.benchmark", "trainer.profiler", "trainer.detect_anomaly"),
    *("trainer.inference_mode", "trainer.enable_autolog_hparams", "trainer.model_registry"),
    *("data.batch_size", "data.eval_batch_size", "data.num_workers", "data.bad_records", "data.max_bad_fraction"),
    *("model.protocol", "model.is_compiled", "model.chunk_size"),
)

# What an evaluation depends on, and what it is not built from, since the checkpoint has the weights.
_OF_AN_EVALUATION = ("seed_everything", "trainer.precision", "data", "model")
_BROUGHT = ("pretrained", "pretrained_file", "name_or_path", "text_weights")

# What a checkpoint brings along, since its weights belong to it.
_OF_THE_WEIGHTS = ("data.tokenizer",)
_NOT_OF_THE_WEIGHTS = ("data.tokenizer.init_args.max_tokens",)

# What the architecture is. With another number of heads the weights would fit, and mean something else.
_PARTS = ("retriever", "image_encoder", "text_encoder", "fusion", "name")
_SIZES = (
    "embed_dim",
    "hidden_size",
    "image_width",
    "layers",
    "heads",
    "feed_forward_size",
    "vocab_size",
    "max_positions",
)


def check_settings(before: Mapping[str, Any], now: Mapping[str, Any], accepts_changes: bool) -> str:
    """Compare the configuration that a run began with and that with which it is to go on.

    Args:
        before: As the run's ``config.yaml`` has it.
        now: The same of now.
        accepts_changes: Whether ``--resume-changed`` is given.

    Returns:
        The changes that are accepted, in a line; empty if there are none.

    Raises:
        CCRError: There are other changes; it names each.

    Example:
        >>> check_settings({"data": {"num_workers": 0}}, {"data": {"num_workers": 4}}, accepts_changes=False)
        'other settings than before: data.num_workers was 0 and is 4'
    """
    found = [change for change in differences(before, now) if not is_one_of(change.name, _PLACES)]
    kept = [change for change in found if _belongs_to_weights(change)]
    if kept:
        raise CCRError(f"{_listed(kept)}: the checkpoint has its own; keep them as they were, or start a new run.")
    refused = [change for change in found if not is_one_of(change.name, _FREE)]
    if refused and not accepts_changes:
        raise CCRError(
            f"the run that is to go on had other settings: {_listed(refused)}; give them as they were, or pass "
            "--resume-changed to go on with these."
        )
    return f"other settings than before: {_listed(found)}" if found else ""


def changes_of_evaluation(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say in a line in which settings an evaluation differs from those of the run; empty if in none.

    Args:
        before: As the run's ``config.yaml`` has it.
        now: The same of the evaluation, which counts.

    Example:
        >>> changes_of_evaluation({"model": {"seed": 0}, "name": "a"}, {"model": {"seed": 1}, "name": "b"})
        "other settings than the run's: model.seed was 0 and is 1"
    """
    found = [
        change
        for change in differences(before, now)
        if is_one_of(change.name, _OF_AN_EVALUATION) and change.name.rpartition(".")[2] not in _BROUGHT
    ]
    if any(change.name == "data.source" for change in found):
        of_source = [f"data.{name}" for name in OF_THE_DATA if name != "source"]
        of_source += [f"model.protocol.{name}" for name in OF_THE_PROTOCOL]
        found = [change for change in found if not is_one_of(change.name, of_source)]
    return f"other settings than the run's: {_listed(found)}" if found else ""


def _belongs_to_weights(change: Difference) -> bool:
    if is_one_of(change.name, ["model.retriever"]):
        return change.name.rpartition(".")[2] in (*_PARTS, *_SIZES)
    return is_one_of(change.name, _OF_THE_WEIGHTS) and not is_one_of(change.name, _NOT_OF_THE_WEIGHTS)


def _listed(changes: Sequence[Difference]) -> str:
    return ", ".join(map(str, changes))
