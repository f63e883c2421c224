"""``ccr export``: a trained model as a folder to keep and to share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ccr_lightning.cli.arguments import CommandArguments
from ccr_lightning.errors import CCRError

HELP = """\
usage: ccr export MODEL FOLDER [--onnx]

Writes a model into a folder of its own: weights (safetensors, adapters merged), settings, tokeniser, preprocessing, and
a card with the results of its test. 'ccr test --ckpt_path FOLDER', 'ccr fit --init_from FOLDER' and from_pretrained in
Python take it. A dual encoder of transformers is written as transformers itself does it.

arguments:
  MODEL                 a run (its best checkpoint), a checkpoint in the folder of its run, a model's folder, or a name
                        on the Hugging Face hub
  FOLDER                a new one

options:
  --onnx                also write image_encoder.onnx and text_encoder.onnx, each compared with torch
                        (pip install 'ccr-lightning[onnx]')

example:
  ccr export runs/pretrain models/openmoji
"""


def run(args: Sequence[str]) -> int:
    """Writes the folder.

    Raises:
        CCRError: For whatever the user can put right.
    """
    if not args or any(arg in ("-h", "--help") for arg in args):
        print(HELP, end="")
        return 0
    from ccr_lightning.cli.load_model import load_model, results_of

    parser = CommandArguments("export")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--onnx", action="store_true")
    options = parser.parse_args(args)
    check_new(options.folder)
    loaded = load_model(options.model)
    model = loaded.model
    model.save_pretrained(options.folder, results_of(loaded))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{parameters / 1e6:.1f} M parameters written to {options.folder}")
    if options.onnx:
        from ccr_lightning.models.onnx_export import export_onnx

        print(f"{', '.join(export_onnx(model, options.folder))} written and compared with torch")
    return 0


def check_new(folder: Path) -> None:
    """Checks that a folder to write to is new or empty.

    Raises:
        CCRError: If not.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CCRError(f"{folder}: there is something already; name a new folder.")
    for parent in folder.absolute().parents:
        if parent.exists() and not parent.is_dir():
            raise CCRError(f"{folder}: {parent} is a file; name another folder.")
