"""What calling other libraries takes: silence on what asks nothing of the user, and one line of what went wrong."""

from __future__ import annotations

import logging
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Without remarks of transformers and open_clip on settings that work, and bars where nobody watches them."""
    from transformers.utils import logging as of_transformers

    level, has_bars = of_transformers.get_verbosity(), of_transformers.is_progress_bar_enabled()
    of_transformers.set_verbosity_error()
    if not sys.stderr.isatty():
        of_transformers.disable_progress_bar()
    root, silence = logging.getLogger(), logging.NullHandler()
    root.addHandler(silence)  # or open_clip, which logs to the root, would make it print, for good
    try:
        yield
    finally:
        root.removeHandler(silence)
        of_transformers.set_verbosity(level)
        if has_bars:
            of_transformers.enable_progress_bar()


def reason(error: Exception) -> str:
    r"""Returns the first line of what an error says, with what follows its colon, for a sentence about it.

    Example:
        >>> reason(OSError("there is no such file\nand more")), reason(KeyError())
        ('there is no such file', 'KeyError')
    """
    text = str(error).strip() or type(error).__name__
    first = text.partition("\n")[0]
    return textwrap.shorten(text if first.endswith(":") else first, 200)
