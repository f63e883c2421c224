"""``ccr search``: pictures of an index, by captions in any language or by pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ccr_lightning.cli.arguments import CommandArguments
from ccr_lightning.errors import CCRError

HELP = """\
usage: ccr search INDEX QUERY... [options]

Shows the pictures of an index that fit each query best: exactly, of all of them, with their cosine similarity.

arguments:
  INDEX                 a folder that 'ccr embed' wrote
  QUERY                 captions, in any language that the model knows

options:
  --image FILE ...      pictures to search with, too
  -k N                  how many of each query (default: 5)
  --json                one JSON object a line: query, path, similarity, place
  --ckpt_path MODEL     the model that made the index, if it has moved

example:
  ccr search pictures.index "a red apple" "ein roter Apfel" -k 3
"""


def run(args: Sequence[str]) -> int:
    """Searches, and prints what it finds.

    Raises:
        CCRError: For whatever the user can put right.
    """
    if not args or any(arg in ("-h", "--help") for arg in args):
        print(HELP, end="")
        return 0
    parser = CommandArguments("search")
    parser.add_argument("index", type=Path, metavar="INDEX")
    parser.add_argument("queries", nargs="*", metavar="QUERY")
    parser.add_argument("--image", nargs="+", type=Path, default=[])
    parser.add_argument("-k", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--ckpt_path")
    options = parser.parse_intermixed_args(args)
    if options.k < 1:
        parser.error(f"-k is {options.k}: give 1 or more")
    if not options.queries and not options.image:
        parser.error("there is no query: give captions, or pictures with --image")
    if any(not query.strip() for query in options.queries):
        parser.error("a query is empty: give it some words")
    if not (options.index / "index.json").is_file():
        raise CCRError(f"{options.index}: there is no index; make one with ccr embed.")

    import torch

    from ccr_lightning.cli.load_model import load_model
    from ccr_lightning.search.embed import embed_pictures, model_identity
    from ccr_lightning.search.index import Index
    from ccr_lightning.search.search import search

    index = Index(options.index)
    given = options.ckpt_path or index.model["named"]
    model = load_model(given).model
    index.take_model({"named": given, **model_identity(model)})
    assert model.tokenizer is not None
    queries: list[str] = [*options.queries, *map(str, options.image)]
    embeds = []
    if options.queries:
        with torch.inference_mode():
            embeds.append(model.encode_text(*model.tokenizer.encode(options.queries)).embeds.float())
    for batch in embed_pictures(model, options.image):
        for path, reason in batch.left_out.items():
            raise CCRError(f"--image {path}: {reason}")
        embeds.append(batch.embeds)
    hits = search(torch.cat(embeds), index.embeds(), options.k)
    pictures = index.pictures
    for query, places, similarities in zip(queries, hits.places.tolist(), hits.similarity.tolist(), strict=True):
        found = [(_shown(pictures[of].path), similarity) for of, similarity in zip(places, similarities, strict=True)]
        if options.json:
            for place, (path, similarity) in enumerate(found, 1):
                line: dict[str, Any] = {"query": query, "place": place, "path": path, "similarity": similarity}
                print(json.dumps(line, ensure_ascii=False))
        else:
            print(_line(query))
            for place, (path, similarity) in enumerate(found, 1):
                print(f"  {place:3}  {similarity:7.4f}  {_line(path)}")
    return 0


def _line(text: str) -> str:
    """A text in one line of a terminal, where it may be any."""
    shown = "".join(of if of.isprintable() else ascii(of)[1:-1] for of in text)
    return shown if len(shown) <= 200 else f"{shown[:200]} ..."


def _shown(path: str) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
