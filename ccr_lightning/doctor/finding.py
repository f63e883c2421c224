"""What an examination has found."""

from __future__ import annotations

from typing import Literal, NamedTuple

Status = Literal["ok", "advice", "problem"]


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        topic: What it belongs to, a heading.
        name: What was looked at.
        found: What was found, in a few words.
        status: ``problem`` if something will fail, ``advice`` if something may, or is missing that one may want.
        remedy: What to do; empty if all is well.
    """

    topic: str
    name: str
    found: str
    status: Status = "ok"
    remedy: str = ""
