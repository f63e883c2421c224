"""``ccr data translate``: captions in one language become captions in several."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ccr_lightning.cli.data_arguments import Arguments
from ccr_lightning.data.translation import config_snippet, translate_source
from ccr_lightning.data.translator import Translator

HELP = """\
usage: ccr data translate CONFIG|PATH --model NAME_OR_PATH --to de,fr,... --out FOLDER [options]

Translates the captions of a split and writes FOLDER/SPLIT.jsonl: the same images with the captions that they have and
their translations, marked as such. A bad record stops it before it starts. Images stay where they are; those that the
data holds itself are written to FOLDER/images. Started again with the same settings it goes on where it was
interrupted. At the end it prints the part of a configuration that reads the result.

arguments:
  CONFIG|PATH           a configuration with data.source (several are merged), or a file or folder of JSON lines

options:
  --model NAME_OR_PATH  a translation model: M2M-100, NLLB-200 or Marian (OPUS-MT), as a folder or by its name on the
                        Hugging Face hub, such as facebook/m2m100_418M
  --to LANGUAGES        languages to add, separated by commas; an image is not translated into one that it has
  --from LANGUAGE       language of the captions to translate (default: en)
  --out FOLDER          where the result goes
  --split SPLIT         which split (default: train)
  --image_root DIR      the folder of the images, for JSON lines (default: the folder that they lie in)
  --device DEVICE       where to compute: cpu, cuda, cuda:1 (default: cpu)
  --batch_size N        captions at once (default: 64)
  --beams N             width of the beam search (default: 1)
  --data.NAME VALUE     any setting of the configuration's source, as for ccr fit

example:
  ccr data translate captions/train.jsonl --model facebook/m2m100_418M --to de,fr,zh --out captions-translated

M2M-100, NLLB-200 and Marian need one package more: pip install 'ccr-lightning[translate]'
"""


def run(args: Sequence[str]) -> int:
    """Translates a split, and prints what came of it.

    Raises:
        CCRError: An argument is missing or wrong, or as :func:`~ccr_lightning.data.translation.translate_source`.
    """
    parser = Arguments("translate")
    parser.add_argument("--model", required=True)
    parser.add_argument("--to", dest="target_languages", type=_names, required=True)
    parser.add_argument("--from", dest="source_language", default="en")
    parser.add_argument("--out", required=True)
    parser.add_argument("--split", default="train")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--beams", type=int, default=1)
    given, (source, *_) = parser.read(args)
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


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]
