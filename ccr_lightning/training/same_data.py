"""Whether a run that resumes trains on the data of before."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ccr_lightning.errors import CCRError


class CompareData(Callback):
    """Compares images, captions and the batches of all devices with those of the checkpoint that a run resumes.

    Paths do not count, only what the training and the validation split hold: see
    :meth:`~ccr_lightning.data.store.Store.records_sha256`.

    Args:
        accepts_changes: Whether changes are said only.

    Raises:
        CCRError: There are changes; it names each.
    """

    def __init__(self, accepts_changes: bool) -> None:
        self._accepts_changes = accepts_changes

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compares."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.state.fn != "fit" or data is None:
            return
        before, now = checkpoint.get(type(data).__qualname__, {}), data.state_dict()
        old, new = before.get("global_batch"), now["global_batch"]
        changes = [f"batches of all devices together had {old} images and have {new}"] if old not in (None, new) else []
        for split, is_now in now["images"].items():
            if (was := before.get("images", {}).get(split, is_now)) != is_now:
                changes.append(f"the split {split} was {was} and is {is_now}")
        if not changes:
            return
        if not self._accepts_changes:
            raise CCRError(
                f"the run that is to go on had other data: {', '.join(changes)}; give them as they were, or pass "
                "--resume-changed to go on with these."
            )
        if trainer.is_global_zero:
            print(f"other data than before: {', '.join(changes)}", flush=True)
