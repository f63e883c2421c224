"""``ccr embed``: pictures to an index that ``ccr search`` searches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ccr_lightning.cli.arguments import CommandArguments
from ccr_lightning.errors import CCRError

if TYPE_CHECKING:
    from ccr_lightning.search.index import Picture

HELP = """\
usage: ccr embed IMAGES... -o INDEX [--ckpt_path MODEL] [options]

Embeds pictures with a model and keeps the result in a folder, which 'ccr search' searches in any language. Called
again, it embeds only what is new or has changed, and drops what is no longer on the disk; interrupted, it goes on.
Pictures that cannot be read are left out and listed in INDEX/left_out.jsonl.

arguments:
  IMAGES                files, folders (with the folders in them), or patterns such as 'photos/**/*.jpg'

options:
  -o, --output INDEX    the folder of the index
  --ckpt_path MODEL     a run, a checkpoint, or a model's folder or name on the hub (default: that of the index)
  --batch_size N        pictures at a time (default: 64)
  --device D            cpu, cuda, ... (default: cuda if there is one)

example:
  ccr embed ~/Pictures -o pictures.index --ckpt_path google/siglip2-base-patch16-224
  ccr search pictures.index "ein roter Apfel" "赤いりんご"
"""

_PART = 4096  # pictures: so many are lost at most if the command is killed


def run(args: Sequence[str]) -> int:
    """Embeds what is new.

    Raises:
        CCRError: For whatever the user can put right.
    """
    if not args or any(arg in ("-h", "--help") for arg in args):
        print(HELP, end="")
        return 0
    import torch

    from ccr_lightning.cli.load_model import load_model
    from ccr_lightning.progress import progress
    from ccr_lightning.search.embed import embed_pictures, find_pictures, model_identity, write_left_out
    from ccr_lightning.search.index import Index

    parser = CommandArguments("embed")
    parser.add_argument("images", nargs="+", metavar="IMAGES")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--ckpt_path")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(args)
    if options.batch_size < 1:
        parser.error(f"--batch_size is {options.batch_size}: give 1 or more")
    index = Index(options.output)
    paths = find_pictures(options.images)
    given = options.ckpt_path or index.model.get("named")
    if given is None:
        parser.error("a new index needs --ckpt_path, which names a model")
    model = load_model(given).model
    identity = {"named": given, **model_identity(model)}
    index.take_model(identity)

    known = {picture.path: picture for picture in index.pictures}
    gone = {path for path, picture in known.items() if _is_gone(Path(path), picture)}
    if gone:
        index.remove(gone)
    wanted = [path for path in paths if str(path) not in known.keys() - gone]
    try:
        model.to(options.device)
    except (AssertionError, RuntimeError) as error:  # torch raises either for a device that is not there
        raise CCRError(f"--device {options.device}: {str(error).splitlines()[0]}") from error
    left_out: dict[str, str] = {}
    pictures: list[Picture] = []
    embeds: list[torch.Tensor] = []

    def keep() -> None:
        if pictures:
            index.add(pictures, torch.cat(embeds))
            pictures.clear()
            embeds.clear()

    try:
        with progress("embedding", "pictures", total=len(wanted)) as advance:
            for batch in embed_pictures(model, wanted, options.batch_size):
                left_out |= batch.left_out
                pictures += batch.pictures
                if batch.pictures:
                    embeds.append(batch.embeds)
                if len(pictures) >= _PART:
                    keep()
                advance(len(batch.pictures) + len(batch.left_out))
    finally:
        keep()
    write_left_out(index.folder, left_out)
    if not index.parts:
        raise CCRError(
            f"none of the {len(wanted):,} pictures could be read: {index.folder / 'left_out.jsonl'} says why."
        )
    print(
        f"{len(wanted) - len(left_out):,} pictures embedded, {len(gone):,} dropped, {len(left_out):,} left out; "
        f"{len(index.pictures):,} in {index.folder}"
    )
    return 0


def _is_gone(path: Path, picture: Picture) -> bool:
    """Whether a picture has changed, or is no longer in its folder; one whose folder is not there may come back."""
    from ccr_lightning.search.index import Picture

    return Picture.of(path) != picture if path.is_file() else path.parent.is_dir()
