"""The results of a test run as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ccr_lightning.evaluation.scores import CUTOFFS, DIRECTIONS, SHORT


def results_table(document: Mapping[str, Any]) -> Table:
    """Lays the results out: one row per language with recall@k in percent, their mean, and MRV and MRSD below.

    Args:
        document: What ``results_document`` returns.

    Returns:
        A table that fits 80 columns.

    Example:
        >>> recalls = {"recall@1": 0.5, "recall@5": 1.0, "recall@10": 1.0}
        >>> mrv = {"mean": None, "reason": "a single language has nothing to be consistent with"}
        >>> document = {"dataset": "demo", "split": "test", "ranking": "dual_encoder", "mrv": mrv, "mrsd": mrv}
        >>> document["languages"] = {"en": {"image_to_text": recalls, "text_to_image": recalls}}
        >>> document["left_out"] = {"bad_records": 0, "blank_captions": 0}
        >>> document["mean_recalls"] = document["languages"]["en"]
        >>> table = results_table(document)
        >>> [column.header for column in table.columns][:3]
        ['language', 'i2t R@1', 'i2t R@5']
    """
    ranking = document["ranking"].replace("_", " ")
    if document["ranking"] == "re-ranked":
        protocol = document["protocol"]
        ranking += f", best {protocol['rerank_depth']} by {protocol['rerank_by'].replace('_', ' ')}"
    bad = document["left_out"]["bad_records"]
    below = "\n".join(
        [
            "percent; i2t: from image to text, t2i: from text to image",
            *([f"without {bad} bad records of the split"] if bad else []),
            *(_over_languages(name, document[name.lower()]) for name in ("MRV", "MRSD")),
        ]
    )
    table = Table(
        title=f"{document['dataset']}, {document['split']} ({ranking})",
        caption=below,
        caption_justify="left",
    )
    table.add_column("language")
    columns = [(direction, k) for direction in DIRECTIONS for k in CUTOFFS]
    for direction, k in columns:
        table.add_column(f"{SHORT[direction]} R@{k}", justify="right", no_wrap=True)
    for name, scores in [*document["languages"].items(), ("mean", document["mean_recalls"])]:
        if name == "mean":
            table.add_section()
        table.add_row(name, *(f"{100 * scores[direction][f'recall@{k}']:.1f}" for direction, k in columns))
    return table


def print_results(document: Mapping[str, Any]) -> None:
    """Prints :func:`results_table` of the document."""
    Console().print(results_table(document))


def _over_languages(name: str, scores: Mapping[str, Any]) -> str:
    if scores["mean"] is None:
        return f"{name}: none, for {scores['reason']}"
    both = ", ".join(f"{SHORT[direction]} {scores[direction]:.2f}" for direction in DIRECTIONS)
    return f"{name} {scores['mean']:.2f} ({both}) over {', '.join(scores['languages'])}; {scores['instances']} images"
