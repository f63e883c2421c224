"""``ccr convert``: a checkpoint that the authors of CCR^k or CCLM published, as a model's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ccr_lightning.cli.arguments import CommandArguments
from ccr_lightning.cli.export import check_new
from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write

HELP = """\
usage: ccr convert FILE FOLDER [options]

Makes a model's folder of a checkpoint that the authors of CCR^k or CCLM published (.th, of pre-training or fine-tuning,
with Swin as image encoder). Nothing in the file is executed. FOLDER/conversion.json says what became of every tensor;
one that is missing, unknown or of a wrong size is an error. The folder is then used as any model:

  ccr test --ckpt_path FOLDER --config configs/test/X.yaml
  ccr fit --init_from FOLDER --config configs/finetune/X.yaml

arguments:
  FILE                  the checkpoint
  FOLDER                a new one

options:
  --tokenizer T         folder or hub name of XLM-R's tokeniser (default: FacebookAI/xlm-roberta-large, from the hub)
  --max_tokens N        longest caption (default: what the settings beside the weights say, else 40)
  --image_size N        for images of N pixels, a multiple of 32: tables of relative positions are interpolated
  --text_heads N        attention heads of a text layer (default: width / 64, right for all that was published)

example:
  ccr convert ccrk_3m_10lan_epoch_29.th models/ccrk-3m-10
"""


def run(args: Sequence[str]) -> int:
    """Writes the folder.

    Raises:
        CCRError: For whatever the user can put right.
    """
    if not args or any(arg in ("-h", "--help") for arg in args):
        print(HELP, end="")
        return 0
    from ccr_lightning.data.tokenizer import CaptionTokenizer
    from ccr_lightning.models.published import read_published

    parser = CommandArguments("convert")
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--tokenizer", default="FacebookAI/xlm-roberta-large")
    for name in ("max_tokens", "image_size", "text_heads"):
        parser.add_argument(f"--{name}", type=int)
    options = parser.parse_args(args)
    check_new(options.folder)
    retriever, account, settings = read_published(
        options.file, text_heads=options.text_heads, image_size=options.image_size
    )
    of_file = settings.get("max_tokens")
    max_tokens = options.max_tokens or (of_file if isinstance(of_file, int) else 40)
    retriever.tokenizer = CaptionTokenizer(options.tokenizer, max_tokens=max_tokens)
    if max_tokens > retriever.max_positions:
        parser.error(f"--max_tokens is {max_tokens}, and the checkpoint has {retriever.max_positions} positions")
    if not retriever.tokenizer.is_numbered_as_xlm_r:
        raise CCRError(
            f"--tokenizer {options.tokenizer} does not number <s>, <pad> and </s> as 0, 1 and 2, as XLM-R's does, "
            "which these checkpoints were trained with: pass that one."
        )
    if retriever.tokenizer.vocab_size > retriever.vocab_size:
        raise CCRError(
            f"--tokenizer {options.tokenizer} has {retriever.tokenizer.vocab_size} tokens and {options.file} "
            f"{retriever.vocab_size}: pass the tokeniser that it was trained with."
        )
    retriever.save_pretrained(options.folder)
    with atomic_write(options.folder / "conversion.json", "the account of the tensors") as file:
        file.write((json.dumps(asdict(account), indent=1) + "\n").encode())
    heads = retriever.text_encoder.settings["heads"]
    size = retriever.image_encoder.image_size
    parameters = sum(parameter.numel() for parameter in retriever.parameters())
    print(f"{parameters / 1e6:.1f} M parameters, images of {size} px, {heads} heads in a text layer")
    if retriever.tokenizer.vocab_size < retriever.vocab_size:
        known, all_of_them = retriever.tokenizer.vocab_size, retriever.vocab_size
        print(f"of {all_of_them} tokens the tokeniser knows {known}: is it the one that the weights were trained with?")
    resized = sum(of.startswith("interpolated") for of in account.changed.values())
    print(
        f"{len(account.loaded)} tensors loaded, {resized} of them interpolated; {len(account.ignored)} not needed; "
        f"{len(account.new)} new and random" + (": the masked-LM head" if account.new else "")
    )
    print(f"written to {options.folder}; conversion.json has what became of each tensor")
    return 0
