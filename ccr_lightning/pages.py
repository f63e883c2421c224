"""What the HTML pages of this package share: colours for light and dark, names of languages, and safeguards."""

from __future__ import annotations

import re
from pathlib import Path

from ccr_lightning.errors import CCRError

MAX_CHARACTERS = 1000  # of one text from data on a page

CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # nothing from anywhere, no script

LANGUAGE_NAMES = {  # of the data sets that the package reads; another language is shown by its code alone
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "cs": "Czech", "da": "Danish", "de": "German", "el": "Greek",
    "en": "English", "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fil": "Filipino",
    "fr": "French", "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian",
    "it": "Italian", "ja": "Japanese", "ko": "Korean", "mi": "Māori", "nl": "Dutch", "no": "Norwegian",
    "pl": "Polish", "pt": "Portuguese", "quz": "Quechua", "ro": "Romanian", "ru": "Russian", "sv": "Swedish",
    "sw": "Swahili", "te": "Telugu", "th": "Thai", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese",
    "zh": "Chinese",
}  # fmt: skip

LIGHT = {
    "page": "#f5f5f1", "card": "#ffffff", "panel": "#ecece6", "line": "#dddcd4", "text": "#1d1e20", "muted": "#5a5f66",
    "link": "#2747a8", "code": "#28396b", "code-back": "#e8ecf7", "warn": "#7d4300", "warn-back": "#fff1d6",
    "fault": "#8f1717", "fault-back": "#fdeaea",
    "bar": "#3557c4", "bar-2": "#8fa6e6", "bar-3": "#d3dcf6", "heat": "#86a1f2",  # of one series, strongest first
    "series-1": "#3056c8", "series-2": "#b4540a", "series-3": "#17785a", "series-4": "#8a3ba9",
}  # fmt: skip
DARK = {
    "page": "#131417", "card": "#1d1f23", "panel": "#292c32", "line": "#34373e", "text": "#e8e8ea", "muted": "#a4a9b2",
    "link": "#9db4ff", "code": "#c8d5ff", "code-back": "#2b3346", "warn": "#ffcb82", "warn-back": "#382a12",
    "fault": "#ffb3ab", "fault-back": "#3c1b1b",
    "bar": "#8da8ff", "bar-2": "#52679f", "bar-3": "#333c57", "heat": "#4961b5",
    "series-1": "#8ea9ff", "series-2": "#f3a55f", "series-3": "#5cc9a1", "series-4": "#d69af1",
}  # fmt: skip


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


STYLE = f"""\
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{
  :root {{ {_variables(DARK)} }}
}}
* {{ box-sizing: border-box; margin: 0; padding: 0; }}
body {{
  max-width: 100rem; margin: auto; padding: 2rem clamp(1rem, 4vw, 3rem); background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; overflow-wrap: anywhere;
}}
a {{ color: var(--link); }}
h1 {{ font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.01em; }}
h2 {{ font-size: 1.4rem; line-height: 1.2; }}
h3 {{ font-size: 1rem; line-height: 1.3; }}
summary {{ width: fit-content; cursor: pointer; }}
.code {{
  display: inline-block; min-width: 2.1rem; padding: 0 0.35rem; border-radius: 0.3rem; text-align: center;
  background: var(--code-back); color: var(--code); font: 600 0.8rem/1.4 ui-monospace, Menlo, monospace;
}}
.name {{ color: var(--muted); font-size: 0.8rem; }}
"""


def shortened(text: str) -> str:
    """Return a text, cut where it is very long.

    Example:
        >>> shortened("a" * 5000)[998:]
        'aa… (5,000 characters)'
    """
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}… ({len(text):,} characters)"


def without_controls(text: str) -> str:
    r"""Return a text without the characters that HTML does not allow, but with a mark in their places.

    Example:
        >>> without_controls("a\x00b\x1b[31m\n")
        'a\ufffdb\ufffd[31m\n'
    """
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", "\ufffd", text)


def refuse_to_replace(path: Path, what: str) -> None:
    """Let a page be replaced, but nothing else.

    Args:
        path: Where a page is to be written.
        what: The page, for the message ("the preview").

    Raises:
        CCRError: There is something else, or what is there cannot be read.
    """
    begin = b"<!DOCTYPE html>"
    try:
        if not path.is_file():
            return
        with path.open("rb") as file:
            is_page = file.read(len(begin)) == begin
    except OSError as error:
        raise CCRError(f"{what} {path} cannot be written ({error.strerror}); choose another name.") from error
    if not is_page:
        raise CCRError(f"{path} is there, and no page; choose another name.")
