"""``ccr search``: pictures and captions of an index, by captions in any language or by pictures."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccr_lightning.cli.arguments import CommandArguments
from ccr_lightning.cli.streams import fits_output, json_text
from ccr_lightning.cli.thumbnails import can_show, print_thumbnails
from ccr_lightning.errors import CCRError

if TYPE_CHECKING:
    from ccr_lightning.search.index import Hit, Index

HELP = """\
usage: ccr search INDEX QUERY... [options]

Shows the pictures of an index that fit each query best: exactly, of all of them, with their cosine similarity.

arguments:
  INDEX                 a folder that 'ccr embed' wrote
  QUERY                 captions, in any language that the model knows

options:
  --image FILE ...      pictures to search with, too
  -k N                  how many of each query (default: 5)
  --captions            find captions instead of pictures, in an index of captioned data
  --compare             one table: how each picture that was found ranks for every query
  --approximate         search pictures with faiss, for indexes of millions: prints which share of the exact results it
                        finds (needs pip install 'ccr-lightning[faiss]'; made once for an index)
  --languages CODE ...  languages of the queries, for a model that wants to be told (see docs/models.md)
  --no_thumbnails       no pictures in the terminal (which shows them with pip install 'ccr-lightning[terminal]')
  --json                one JSON object a line: query, place, name, path, similarity (and language and caption with
                        --captions, ranks for all queries with --compare)
  --ckpt_path MODEL     the model that made the index, if it has moved

examples:
  ccr search pictures.index "a red apple" "ein roter Apfel" -k 3
  ccr search openmoji.index "a red apple" "ein roter Apfel" "赤いりんご" --compare
  ccr search openmoji.index --image apple.jpg --captions
"""


_JOINERS = "\u200c\u200d"  # which Persian and emoji are written with


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
    parser.add_argument("--captions", action="store_true")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--approximate", action="store_true")
    parser.add_argument("--languages", nargs="+")
    parser.add_argument("--no_thumbnails", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--ckpt_path")
    options = parser.parse_intermixed_args(args)
    if options.k < 1:
        parser.error(f"-k is {options.k}: give 1 or more")
    if not options.queries and not options.image:
        parser.error("there is no query: give captions, or pictures with --image")
    if any(not query.strip() for query in options.queries):
        parser.error("a query is empty: give it some words")
    if options.languages and len(options.languages) != len(options.queries):
        parser.error(f"there are {len(options.queries)} captions and {len(options.languages)} --languages: name each")
    if options.compare and options.captions:
        parser.error("--compare shows ranks of pictures: leave out --captions")
    if options.approximate and (options.captions or options.compare):
        parser.error("--approximate finds pictures: leave out --captions and --compare")

    import torch

    index, model = open_index(options.index, options.ckpt_path)
    embeds = [model.embed_captions(options.queries, options.languages)] if options.queries else []
    embeds += [model.embed_images([_image(path) for path in options.image])] if options.image else []
    queries, of_queries = [*options.queries, *map(str, options.image)], torch.cat(embeds)
    find = index.search_captions if options.captions else index.search
    if options.approximate:
        find = _approximate(index)
    found = find(of_queries, options.k)
    if options.compare:
        _print_comparison(queries, found, index, of_queries, options.json)
        return 0
    with_thumbnails = can_show() and not (options.json or options.captions or options.no_thumbnails)
    for query, hits in zip(queries, found, strict=True):
        if not options.json:
            print(_line(query), flush=True)
        if with_thumbnails:
            print_thumbnails([_opened(index, hit.number) for hit in hits])
        for place, hit in enumerate(hits, 1):
            print(_json(query, place, hit) if options.json else f"  {place:3}  {hit.similarity:7.4f}  {_shown(hit)}")
    return 0


def _opened(index: Index, number: int) -> Any:
    try:
        return index.open(number)
    except CCRError:
        return None


def open_index(folder: Path, ckpt_path: str | None) -> tuple[Index, Any]:
    """Return an index and the model that made it.

    Raises:
        CCRError: There is no index, it is damaged, or the model is not there or another one.
    """
    if not (folder / "index.json").is_file():
        raise CCRError(f"{folder}: there is no index; make one with ccr embed.")

    from ccr_lightning.cli.load_model import load_model
    from ccr_lightning.search.index import Index

    index = Index(folder)
    if not len(index):
        raise CCRError(f"{folder}: there is no picture in this index; add some with ccr embed.")
    given = ckpt_path or index.model["named"]
    if not given:
        raise CCRError(f"{folder}: it does not say where its model is: name it with --ckpt_path.")
    if os.path.isabs(given) and not os.path.exists(given):
        raise CCRError(f"{folder}: its model is not at {given} any more: name it with --ckpt_path.")
    model = load_model(given).model
    index.check_model(model, given)
    return index, model


def _approximate(index: Index) -> Any:
    from ccr_lightning.search.approximate import ApproximateSearch

    search = ApproximateSearch(index, say=lambda line: print(line, file=sys.stderr, flush=True))
    of = search.approximation
    print(
        f"approximate: {100 * of.recall:.1f} % of the {of.best} best of exact search, measured with {of.queries} "
        f"{of.asked} of the index; {of.probes:,} of {of.cells:,} cells are searched",
        file=sys.stderr,
    )
    return search.search


def _image(path: Path) -> Any:
    from ccr_lightning.data.faults import RecordFault
    from ccr_lightning.data.images import open_image

    if not os.path.isfile(path):
        raise CCRError(f"--image {path}: there is no such file; captions go before --image.")
    try:
        return open_image(path, "--image")
    except RecordFault as fault:
        raise CCRError(str(fault)) from fault


def _json(query: str, place: int, hit: Hit, ranks: Sequence[int] = ()) -> str:
    line: dict[str, Any] = {"query": query, "place": place, "name": _path(hit.picture.name), "path": None}
    if hit.picture.path is not None:
        line["path"] = _path(hit.picture.path)
    line["similarity"] = hit.similarity
    if hit.language:
        line |= {"language": hit.language, "caption": hit.caption}
    if ranks:
        line["ranks"] = list(ranks)
    text = json_text(line)
    is_plain = all(of.isprintable() or of in _JOINERS for of in text)  # names of files may steer a terminal
    return text if is_plain else json.dumps(line)


def _print_comparison(
    queries: Sequence[str], found: Sequence[Sequence[Hit]], index: Index, of_queries: Any, as_json: bool
) -> None:
    hits = {hit.number: hit for of in found for hit in of}
    ranks = dict(zip(hits, zip(*index.ranks(of_queries, list(hits)), strict=True), strict=True))
    if as_json:
        for query, of in zip(queries, found, strict=True):
            for place, hit in enumerate(of, 1):
                print(_json(query, place, hit, ranks[hit.number]))
        return
    from tabulate import tabulate

    header = ["rank for", *(f"{_line(query)[:24]}" for query in queries)]
    rows = [[_shown(hits[number]), *ranks[number]] for number in sorted(hits, key=lambda of: ranks[of])]
    alignment = ("left", *("right" for _ in queries))
    print(tabulate(rows, header, tablefmt="simple_outline", disable_numparse=True, colalign=alignment))


def _shown(hit: Hit) -> str:
    """A hit in a line: a caption, or a picture with a caption of it if it has one."""
    name = _path(hit.picture.name)
    captions = [(hit.language, hit.caption)] if hit.language else hit.picture.all_captions()[:1]
    return _line("  ".join([name, *(f"{language}: {text}" for language, text in captions)]))


def _line(text: str) -> str:
    """A text in one line of a terminal, where it may be any."""
    shown = "".join(of if of.isprintable() or of in _JOINERS else ascii(of)[1:-1] for of in text)
    if not fits_output(shown):
        shown = "".join(of if fits_output(of) else ascii(of)[1:-1] for of in shown)
    return shown if len(shown) <= 200 else f"{shown[:200]} ..."


def _path(path: str) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path
