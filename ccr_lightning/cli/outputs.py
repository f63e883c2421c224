"""What the commands write into the folder of a run: configuration, scores and embeddings."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from ccr_lightning.data.datamodule import CaptionDataModule
from ccr_lightning.evaluation.evaluate import Evaluation
from ccr_lightning.evaluation.query_ranks import write_query_ranks
from ccr_lightning.evaluation.results import Ranking, results_document, weights_sha256, write_results
from ccr_lightning.evaluation.table import print_results
from ccr_lightning.files import atomic_write
from ccr_lightning.training.module import RetrievalModule

_CHANGED = "# changed: "
_LISTED = 10  # of what was left out
_OTHERWISE = "change --runs_dir"


def write_config(path: Path, text: str, changes: str, keeps_notes: bool) -> None:
    """Writes a run's configuration, with a line on top that says how to use it.

    Args:
        path: The file.
        text: The configuration, in YAML.
        changes: In what a run that goes on differs from what it was, and from when on; empty if in nothing.
        keeps_notes: Whether what the former file says of changes stays, since it is of the same run.

    Raises:
        CCRError: If it cannot be written.
    """
    file_name = shlex.quote(str(path)) if str(path).isprintable() else "FILE"
    lines = path.read_text(encoding="utf-8").splitlines() if keeps_notes and path.exists() else []
    notes = [line for line in lines if line.startswith(_CHANGED)]
    notes += [f"{_CHANGED}{' '.join(changes.split())}"] if changes else []
    made = "What this run goes on with" if notes else "What made this run"
    header = "\n".join([f"# {made}; repeat it with: ccr fit --config {file_name} --name NAME", *notes, ""])
    with atomic_write(path, "the configuration", _OTHERWISE) as file:
        file.write((header + text).encode())


def write_scores(
    folder: Path,
    model: RetrievalModule,
    data: CaptionDataModule,
    split: Literal["val", "test"],
    checkpoint: Path,
    source: Mapping[str, Any],
    weights: Mapping[str, Tensor],
) -> None:
    """Writes and prints what the model scored on a split, and what it scored after re-ranking if it did.

    The rank of every query goes to a file beside each document, which names it.

    Args:
        folder: That of the run.
        model: It holds the scores.
        data: It holds the split.
        split: What was scored.
        checkpoint: Of the weights.
        source: ``class_path`` and ``init_args`` of the data's source.
        weights: The state of the model, whole.

    Raises:
        CCRError: If a file cannot be written.
    """
    made_with: dict[str, Any] = {
        "dataset": data.source.name,
        "split": split,
        "left_out": data.left_out(split),
        "protocol": model.protocol,
        "checkpoint": checkpoint,
        "seed": model.seed,
        "made_of": {"source": dict(source), **data.made_of(split), **_model(model, weights)},
    }
    assert model.evaluation is not None
    scored: list[tuple[str, Ranking, Evaluation]] = [
        ("-val" if split == "val" else "", "dual_encoder", model.evaluation)
    ]
    if model.reranked:
        scored.append(("-reranked", "re-ranked", model.reranked))
    for suffix, ranking, (results, ranks) in scored:
        of_ranks = folder / f"ranks{suffix}.csv"
        sha256 = write_query_ranks(of_ranks, ranks, data.image_names(split))
        named = {"file": of_ranks.name, "sha256": sha256}
        document = results_document(results, ranking=ranking, ranks=named, **made_with)
        path = folder / f"results{suffix}.json"
        write_results(path, document)
        print_results(document)
        print(f"written to {path}; the rank of every query is in {of_ranks}")


def _model(model: RetrievalModule, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    trainer, prefix = model.trainer, "retriever."
    of_retriever = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
    return {
        "model": {"parameters": sum(of.numel() for of in model.parameters()), "sha256": weights_sha256(of_retriever)},
        "ran_on": {"device": model.device.type, "devices": trainer.world_size, "precision": trainer.precision},
    }


def print_left_out(data: CaptionDataModule) -> None:
    """Lists what the training split had that was not trained on; nothing if it had no such thing."""
    file, entries = data.list_of_left_out("train")
    if not entries:
        return
    kinds = Counter(entry["kind"] for entry in entries)
    print(f"left out of training: {', '.join(f'{count} x {kind}' for kind, count in kinds.most_common())}")
    for entry in entries[:_LISTED]:
        print(f"  {entry['message']}")
    if len(entries) > _LISTED:
        print(f"  and {len(entries) - _LISTED} more: {file} lists all")


def write_embeddings(
    folder: Path,
    predictions: Sequence[Sequence[Mapping[str, Tensor]]],
    image_names: Sequence[str],
    languages: Sequence[str],
) -> None:
    """Writes ``embeddings.safetensors``, and ``embeddings.json`` with the names that its ids stand for.

    Args:
        folder: The folder of the run.
        predictions: What ``predict_step`` returned for each batch of images, and for each batch of captions.
        image_names: The image id in the source of each row of the split.
        languages: The languages, in the order of the K axis.

    Raises:
        CCRError: If a file cannot be written.
    """
    images, captions = predictions
    tensors = {
        f"{kind}_{name}": torch.cat([batch[name] for batch in batches]).contiguous()
        for kind, batches in (("image", images), ("text", captions))
        for name in batches[0]
    }
    path = folder / "embeddings.safetensors"
    with atomic_write(path, "the embeddings", _OTHERWISE) as file:
        file.write(save(tensors))
    names = {"image_ids": list(image_names), "languages": list(languages)}
    with atomic_write(folder / "embeddings.json", "the names of the embeddings", _OTHERWISE) as file:
        file.write(json.dumps(names, ensure_ascii=False).encode())
    n_images, n_captions = len(tensors["image_embeds"]), len(tensors["text_embeds"])
    print(f"{n_images} images and {n_captions} captions written to {path}")
