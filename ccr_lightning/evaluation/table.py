"""The results of a test run as a table for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from rich.table import Table

from ccr_lightning.evaluation.scores import CUTOFFS, DIRECTIONS, SHORT
from ccr_lightning.tables import print_table

_WIDTH = 73  # that of the table, in which rich wraps what is below it


def results_table(document: Mapping[str, Any]) -> Table:
    """Lay the results out: one row per language with recall@k in percent, their mean, and all else below.

    Args:
        document: What ``results_document`` returns.

    Returns:
        A table that fits 80 columns.

    Example:
        >>> import torch
        >>> from ccr_lightning.evaluation.protocol import EvaluationProtocol
        >>> from ccr_lightning.evaluation.results import results_document
        >>> from ccr_lightning.evaluation.scores import retrieval_results
        >>> from ccr_lightning.functional.galleries import LanguageRanks
        >>> ids = torch.arange(2)
        >>> ranks = {0: LanguageRanks(ids, torch.tensor([1, 2]), 2, torch.zeros(2), ids)}
        >>> scores = retrieval_results({"image_to_text": ranks, "text_to_image": ranks}, ["en"])
        >>> made_with = {"protocol": EvaluationProtocol(), "checkpoint": None, "seed": 0, "made_of": {}, "ranks": None}
        >>> left_out = {"bad_records": 0, "blank_captions": 0}
        >>> table = results_table(results_document(scores, dataset="a", split="test", left_out=left_out, **made_with))
        >>> [column.header for column in table.columns][:3]
        ['language', 'i2t R@1', 'i2t R@5']
    """
    ranking = document["ranking"].replace("_", " ")
    if document["ranking"] == "re-ranked":
        protocol = document["protocol"]
        ranking += f", best {protocol['rerank_depth']} by {protocol['rerank_by'].replace('_', ' ')}"
    below = [line for text in _below(document) for line in textwrap.wrap(text, _WIDTH, subsequent_indent="  ")]
    return _table(f"{document['dataset']}, {document['split']} ({ranking})", document, "\n".join(below))


def print_results(document: Mapping[str, Any]) -> None:
    """Print :func:`results_table` of the document, and that of its folds if there are any."""
    print_table(results_table(document))
    if (folds := document["folds"]) is not None:
        print_table(_table(f"mean of {folds['count']} folds, each a gallery of its own", folds, None))


def _table(title: str, scores: Mapping[str, Any], below: str | None) -> Table:
    table = Table(title=title, caption=below, caption_justify="left")
    table.add_column("language")
    columns = [(direction, k) for direction in DIRECTIONS for k in CUTOFFS]
    for direction, k in columns:
        table.add_column(f"{SHORT[direction]} R@{k}", justify="right", no_wrap=True)
    for name, of in [*scores["languages"].items(), ("mean", scores["mean_recalls"])]:
        if name == "mean":
            table.add_section()
        table.add_row(name, *(f"{100 * of[direction][f'recall@{k}']:.1f}" for direction, k in columns))
    return table


def _below(document: Mapping[str, Any]) -> Iterator[str]:
    """What is to be known beside the recalls, a sentence or so each."""
    bars = " [95 % interval]" if document["mean_recall_interval"] is not None else ""
    yield f"percent{bars}; i2t: from image to text, t2i: from text to image"
    if bad := document["left_out"]["bad_records"]:
        yield f"without {bad} bad records of the split"
    yield f"mean recall {_percent(document['mean_recall'], document['mean_recall_interval'])}"
    if len(document["languages"]) > 1:
        worst = document["worst_language"]["mean_recall"]
        yield f"lowest mean recall: {worst['language']} {_percent(worst['value'], worst['interval'])}"
    if gaps := document["gap_to_english"]:
        of_each = (f"{name} {100 * gap['value']:.1f}" for name, gap in gaps.items())
        yield f"below English, in points of mean recall: {', '.join(of_each)}"
    yield from _consistency(document)
    tied, queries = (
        sum(of[direction][key] for of in document["languages"].values() for direction in DIRECTIONS)
        for key in ("tied_queries", "queries")
    )
    if tied:
        yield f"ties: {tied} of {queries} queries, counted against the model"
    if (between := document["text_to_text"]) and between["mean"]:
        recalls = ", ".join(f"R@{k} {100 * between['mean'][f'recall@{k}']:.1f}" for k in CUTOFFS)
        yield f"from text to text of another language: {recalls}"


def _percent(value: float, interval: list[float] | None) -> str:
    return f"{100 * value:.1f}" + ("" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]")


def _consistency(document: Mapping[str, Any]) -> Iterator[str]:
    mrv = document["mrv"]
    if mrv["mean"] is None:
        yield f"MRV: none, for {mrv['reason']}"
        return
    left_out = f", {mrv['left_out']} left out for want of a caption" if mrv["left_out"] else ""
    yield f"over {', '.join(mrv['languages'])}; {mrv['instances']} images{left_out}:"
    yield _over_languages("  MRV", mrv, 1)
    yield _over_languages("  MRSD", document["mrsd"], 1)
    yield _over_languages("  same first result, %:", document["rank1_agreement"], 100)


def _over_languages(name: str, scores: Mapping[str, Any], factor: int) -> str:
    bars = ""
    if scores["interval"] is not None:
        bars = " [{:.2f}, {:.2f}]".format(*(factor * end for end in scores["interval"]))
    both = ", ".join(f"{SHORT[direction]} {factor * scores[direction]:.2f}" for direction in DIRECTIONS)
    return f"{name} {factor * scores['mean']:.2f}{bars} ({both})"
