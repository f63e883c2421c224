"""``ccr data``: looks at data and prepares them, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

from ccr_lightning.errors import CCRError

HELP = """\
usage: ccr data ACTION CONFIG|PATH [options]

Looks at captioned images and prepares them; no model and no GPU is needed.

actions:
  check       read everything, decode every image, and say what there is and what is wrong, with file and line
  preview     write a page with a sample of the images and their captions in all languages
  build       write the stores that training reads, ahead of it
  shards      write WebDataset shards, for storage without fast random access
  translate   turn captions of one language into several with a translation model

CONFIG is a configuration with data.source, as for ccr fit; PATH a file of JSON lines, a folder of such files
(train.jsonl, val.jsonl, test.jsonl), a store, or a folder of shards. A line is one image:
  {"image": "a.jpg", "captions": {"en": ["a red apple"], "de": ["ein roter Apfel"]}}

start here:
  ccr data check captions/ --image_root images/

'ccr data ACTION --help' explains an action.
"""

ACTIONS = ("check", "preview", "build", "shards", "translate")


def run(args: Sequence[str]) -> int:
    """Runs an action and returns the exit status.

    Raises:
        CCRError: For whatever the user can put right.
    """
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    action, *rest = args
    if action not in ACTIONS:
        close = get_close_matches(action, ACTIONS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "run 'ccr data --help' for the list."
        raise CCRError(f"'data {action}' is not a command: {hint}")
    module = import_module(f"ccr_lightning.cli.data_{action}")
    if not rest or any(arg in ("-h", "--help") for arg in rest):
        print(module.HELP, end="")
        return 0
    status: int = module.run(rest)
    return status
