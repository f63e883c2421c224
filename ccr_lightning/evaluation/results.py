"""The JSON document that is kept of a test run: its numbers, and what one needs to trust and to repeat them."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ccr_lightning._version import __version__
from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation.protocol import EvaluationProtocol
from ccr_lightning.files import atomic_write, sha256_of

if TYPE_CHECKING:
    from torch import Tensor

Ranking = Literal["dual_encoder", "re-ranked"]

FORMAT = 2


def results_document(
    scores: Mapping[str, Any],
    *,
    dataset: str,
    split: str,
    left_out: Mapping[str, int],
    ranking: Ranking = "dual_encoder",
    protocol: EvaluationProtocol,
    checkpoint: Path | None,
    seed: int,
    made_of: Mapping[str, Any],
    ranks: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Add to the scores what one needs to know to trust and to repeat them.

    Args:
        scores: What ``retrieval_results`` returns.
        dataset: Name of the data.
        split: The part of it that was scored.
        left_out: What the split had that was not scored: the numbers of ``bad_records`` and ``blank_captions``.
        ranking: ``dual_encoder``, or ``re-ranked`` if the matching head ordered the best candidates.
        protocol: How it was scored.
        checkpoint: The checkpoint of the weights, or the folder or name of the model; None if there is neither.
        seed: The seed of the run.
        made_of: The ``source``, hashes and settings of the ``data``, the ``model``, the ``tokenizer`` and the
            ``transform``, and what it ran on.
        ranks: The name of the ``file`` beside the document that has the rank of every query, and its ``sha256``; None
            if there is none.

    Returns:
        ``format``, ``dataset``, ``split``, ``left_out``, ``ranking``, ``protocol`` (without re-ranking for the dual
        encoder, without text-to-text for the other), ``checkpoint`` (its ``path`` and ``sha256``), ``seed``, what
        ``made_of`` has, ``versions`` (None for a package that is not installed), ``ranks``, then the scores.

    Raises:
        CCRError: If the checkpoint cannot be read.

    Example:
        >>> given = {"dataset": "demo", "split": "test", "protocol": EvaluationProtocol(rerank_depth=16), "seed": 1}
        >>> left_out = {"bad_records": 0, "blank_captions": 0}
        >>> document = results_document({}, **given, left_out=left_out, checkpoint=None, made_of={}, ranks=None)
        >>> document["checkpoint"], document["ranking"], document["protocol"]["rerank_depth"]
        ({'path': None, 'sha256': None}, 'dual_encoder', 0)
    """
    not_done: dict[str, Any] = {"rerank_depth": 0} if ranking == "dual_encoder" else {"text_to_text": False}
    return {
        "format": FORMAT,
        "dataset": dataset,
        "split": split,
        "left_out": dict(left_out),
        "ranking": ranking,
        "protocol": asdict(replace(protocol, **not_done)),
        "checkpoint": {
            "path": None if checkpoint is None else str(checkpoint),
            "sha256": _sha256(checkpoint),
        },
        "seed": seed,
        **made_of,
        "versions": {
            "python": platform.python_version(),
            "ccr_lightning": __version__,
            **{
                package: _installed(package)
                for package in ("torch", "lightning", "torchmetrics", "transformers", "timm", "tokenizers")
            },
        },
        "ranks": None if ranks is None else dict(ranks),
        **scores,
    }


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 of weights: of the names, types, shapes and bytes of the tensors, by name.

    Unlike that of a checkpoint's file it is the same for the same weights, however they were saved.

    Example:
        >>> import torch
        >>> a, b = torch.zeros(2), torch.ones(3)
        >>> weights_sha256({"a": a, "b": b}) == weights_sha256({"b": b, "a": a}) != weights_sha256({"a": a})
        True
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sha256(path: Path | None) -> str | None:
    """That of a checkpoint, or of the weights in a model's folder; None where they are not one file here."""
    if path is not None and not path.is_file() and path.suffix != ".ckpt":
        path = path / "model.safetensors" if (path / "model.safetensors").is_file() else None
    if path is None:
        return None
    try:
        return sha256_of(path)
    except OSError as error:
        raise CCRError(f"{path}: the checkpoint cannot be read ({error.strerror}); check the path.") from error


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def write_results(path: Path, document: Mapping[str, Any]) -> None:
    """Writes the document as JSON; the file is there in full, or as it was before.

    Args:
        path: The file; its folder is made if need be.
        document: What ``results_document`` returns.

    Raises:
        CCRError: If the file cannot be written.
    """
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_write(path, "the results") as file:
        file.write(text.encode())
