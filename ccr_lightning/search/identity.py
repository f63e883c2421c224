"""What decides an embedding: hashes that tell one model from another."""

from __future__ import annotations

from typing import Any

from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation.results import weights_sha256
from ccr_lightning.files import settings_sha256
from ccr_lightning.models.dual_encoder import DualEncoder


def model_identity(model: DualEncoder) -> dict[str, str]:
    """Return hashes of what decides an embedding: weights, tokeniser and preprocessing.

    Raises:
        CCRError: The model does not know what prepares its inputs.
    """
    if model.tokenizer is None or model.transform is None:
        raise CCRError("this model does not know what prepares its inputs: set its tokenizer and transform.")
    inputs: dict[str, Any] = {"tokenizer": model.tokenizer.identity, "transform": model.transform.evaluation_settings}
    return {"weights": weights_sha256(model.state_dict()), "inputs": settings_sha256(inputs)}
