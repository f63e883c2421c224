"""The card of a model that is shared: what it is, how it is used, and how it did in a test."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ccr_lightning.files import atomic_write

_CITATION = """\
```bibtex
@inproceedings{nie2024improving,
  title = {Improving the Consistency in Cross-Lingual Cross-Modal Retrieval with 1-to-K Contrastive Learning},
  author = {Nie, Zhijie and Zhang, Richong and Feng, Zhangchi and Huang, Hailang and Liu, Xudong},
  booktitle = {Proceedings of the 30th ACM SIGKDD Conference on Knowledge Discovery and Data Mining},
  pages = {2272--2283},
  year = {2024},
}
```"""


def model_card(name: str, parameters: int, usage: str, results: Mapping[str, Any] | None = None) -> str:
    """Returns a card in Markdown with the header that the Hugging Face hub reads.

    Args:
        name: Of the model.
        parameters: How many numbers it has.
        usage: Python that loads it.
        results: The document of a test, as in ``results.json``; None if there is none.

    Example:
        >>> card = model_card("mine", 1_500_000, 'model = Retriever.from_pretrained("mine")')
        >>> card.splitlines()[0], "1.5 million parameters" in card
        ('---', True)
    """
    header: dict[str, Any] = {"library_name": "ccr-lightning", "tags": ["image-text-retrieval", "multilingual"]}
    if results is not None:
        header["language"] = list(results["languages"])
    parts = [
        "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in header.items()), "---"]),
        f"# {name}",
        f"Finds images from captions and captions from images, in many languages. {parameters / 1e6:.1f} million "
        "parameters; made with ccr-lightning.",
        f"```python\n{usage}\n```",
        *(() if results is None else _results(results)),
        "## Citation",
        _CITATION,
    ]
    return "\n\n".join(parts) + "\n"


def write_card(folder: Path, name_or_path: str, parameters: int, results: Mapping[str, Any] | None) -> None:
    """Writes ``README.md`` of a model that ``from_pretrained`` loads.

    Args:
        folder: Of the model.
        name_or_path: What ``from_pretrained`` is given.
        parameters: How many numbers it has.
        results: As for :func:`model_card`.

    Raises:
        CCRError: If it cannot be written.
    """
    usage = f"from ccr_lightning import from_pretrained\n\nmodel = from_pretrained({name_or_path!r})"
    with atomic_write(folder / "README.md", "the card") as file:
        file.write(model_card(folder.resolve().name, parameters, usage, results).encode())


def _results(document: Mapping[str, Any]) -> Iterator[str]:
    """The document's recalls in percent, and how consistent they are."""
    recalls = ("recall@1", "recall@5", "recall@10")
    directions = {"text_to_image": "text→image", "image_to_text": "image→text"}
    columns = ["language", *(f"{short} R@{name[7:]}" for short in directions.values() for name in recalls), "mean"]
    rows = [columns, ["---"] * len(columns)]
    for language, of in document["languages"].items():
        numbers = [of[direction][name] for direction in directions for name in recalls]
        mean = document["language_means"][language]["mean_recall"]
        rows.append([language, *(f"{100 * number:.1f}" for number in [*numbers, mean])])
    yield f"## Results on {document['dataset']}, {document['split']} ({document['ranking'].replace('_', ' ')})"
    yield "\n".join(f"| {' | '.join(row)} |" for row in rows)
    means = ", ".join(
        f"{name.upper()} {document[name]['mean']:.2f}" for name in ("mrv", "mrsd") if document[name]["mean"] is not None
    )
    said = f"Recall in percent; their mean is {100 * document['mean_recall']:.1f}"
    yield (
        f"{said}, {means} (mean rank variance and standard deviation over languages, 0 is best)."
        if means
        else f"{said}."
    )
