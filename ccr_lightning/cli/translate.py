"""``ccr data translate``: captions in one language become captions in several."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import NoReturn

from ccr_lightning.errors import CCRError

HELP = """\
usage: ccr data translate CONFIG|CAPTIONS.jsonl --model NAME_OR_PATH --to de,fr,... --out FOLDER [options]

Translates the captions of a split and writes FOLDER/SPLIT.jsonl: the same images with the captions that they have and
their translations, marked as such. Images stay where they are; those that the data holds itself are written to
FOLDER/images. Started again with the same settings it goes on where it was interrupted. At the end it prints the part
of a configuration that reads the result.

The data is that of a configuration, or a file with one line per image:
  {"image": "a.jpg", "captions": {"en": ["A dog.", "A puppy."]}}

options:
  --model NAME_OR_PATH  a translation model: M2M-100, NLLB-200 or Marian (OPUS-MT), as a folder or by its name on the
                        Hugging Face hub, such as facebook/m2m100_418M
  --to LANGUAGES        languages to add, separated by commas; an image is not translated into one that it has
  --from LANGUAGE       language of the captions to translate (default: en)
  --out FOLDER          where the result goes
  --split SPLIT         which split (default: train)
  --image_root FOLDER   folder of the images of CAPTIONS.jsonl (default: the folder that it lies in)
  --device DEVICE       where to compute: cpu, cuda, cuda:1 (default: cpu)
  --batch_size N        captions at once (default: 64)
  --beams N             width of the beam search (default: 1)

example:
  ccr data translate captions/train.jsonl --model facebook/m2m100_418M --to de,fr,zh --out captions-translated

M2M-100, NLLB-200 and Marian need one package more: pip install 'ccr-lightning[translate]'
"""


class _Parser(ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CCRError(f"ccr data translate: {message}; 'ccr data translate --help' explains it.")


def run(args: list[str]) -> int:
    """Translate a split, and print what came of it.

    Args:
        args: The arguments after ``ccr data translate``.

    Raises:
        CCRError: An argument is missing or wrong, or as :func:`~ccr_lightning.data.translation.translate_source`.
    """
    if not args or "-h" in args or "--help" in args:
        print(HELP, end="")
        return 0
    given = _parse(args)

    from ccr_lightning.cli.data_arguments import read_source
    from ccr_lightning.data.translation import config_snippet, translate_source
    from ccr_lightning.data.translator import Translator

    source = read_source(given.data, given.image_root)
    out = Path(given.out)
    file = out / f"{given.split}.jsonl"
    was_there = file.exists()
    translator = Translator(given.model, given.device, given.batch_size, given.beams)
    try:
        translation = translate_source(
            source, given.split, translator, given.source_language, given.target_languages, out
        )
    except KeyboardInterrupt:
        print("error: interrupted: the same command goes on from here.", file=sys.stderr)
        return 130
    counts = ", ".join(f"{count:,} in {language}" for language, count in translation.captions.items())
    print(f"{file} {'was finished before' if was_there else 'is written'}: {translation.images:,} images, {counts}.")
    if translation.left_out:
        counts = ", ".join(f"{count:,} into {language}" for language, count in translation.left_out.items())
        print(f"left out, too long or without a usable translation: {counts}.")
    if translation.images_without_source:
        print(f"{translation.images_without_source:,} images have no caption in {given.source_language}.")
    print(f"\nread it with this in a configuration:\n\n{config_snippet(translation, out, source.languages)}", end="")
    return 0


def _parse(args: list[str]) -> Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("data", metavar="CONFIG|CAPTIONS.jsonl")
    parser.add_argument("--model", required=True)
    parser.add_argument("--to", dest="target_languages", type=lambda text: text.split(","), required=True)
    parser.add_argument("--from", dest="source_language", default="en")
    parser.add_argument("--out", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--image_root")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--beams", type=int, default=1)
    return parser.parse_args(args)
