"""README's pictures of the page of ccr serve, from an index of captioned pictures, and of a page of ccr report.

python -m benchmarks.screenshots INDEX [--report report.html] [--ckpt_path MODEL] [--output docs] [--queries en:dog ...]

Starts the server and a headless Chromium; needs the extra test, and Chromium in PATH. It writes search.png, the queries
side by side with the lines of one picture lit up; search_languages.png, where each language finds one picture; and
report.png and report_images.png, what the report says of agreement.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from PIL import Image

from benchmarks.browser import find_browser, started_browser

WIDTH = 1280
QUERIES = ("en:dog", "de:Hund", "tr:köpek", "ja:犬", "ar:كلب")


def main() -> int:
    """Write the pictures; return 1 if there is no browser, else 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path)
    parser.add_argument("--report", type=Path, help="a page that ccr report wrote")
    parser.add_argument("--ckpt_path")
    parser.add_argument("--output", type=Path, default=Path("docs"))
    parser.add_argument("--queries", nargs="+", default=QUERIES, metavar="LANGUAGE:TEXT")
    parser.add_argument("--caption", default="sloth", help="of the picture whose languages are shown")
    args = parser.parse_args()
    queries = [tuple(query.split(":", 1)) for query in args.queries]
    path = find_browser()
    if path is None:
        print("error: there is no browser: install Chromium.", file=sys.stderr)
        return 1
    with served(args.index, args.ckpt_path) as address, started_browser(path) as browser:
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        side_by_side(page, address, queries)
        save(page, args.output / "search.png", height=1120)
        languages(page, address, args.caption)
        save(page, args.output / "search_languages.png", height=1290)
        if args.report:
            page.goto(args.report.resolve().as_uri())
            for name, heading in (("report", "Agreement of the languages"), ("report_images", "The most inconsistent")):
                top = page.get_by_role("heading", name=heading).bounding_box()["y"] - 24
                save(page, args.output / f"{name}.png", height=1130, top=top)
    return 0


@contextmanager
def served(index: Path, ckpt_path: str | None) -> Iterator[str]:
    """The address of a server of the index, until the end of the block."""
    command = [sys.executable, "-m", "ccr_lightning.cli.main", "serve", str(index), "--port", "0"]
    command += ["--ckpt_path", ckpt_path] if ckpt_path else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().partition(" at ")[2].split(" ")[0]
        finally:
            process.terminate()


def side_by_side(page: Any, address: str, queries: Sequence[Sequence[str]]) -> None:
    """Show the queries in columns, and light up the second picture of the first."""
    pairs = [pair for language, text in queries for pair in (("q", text), ("language", language))]
    pairs.append(("k", "7"))
    page.goto(f"{address}?{urlencode(pairs)}")
    page.wait_for_selector(".columns")
    page.wait_for_load_state("networkidle")
    page.locator(".column .card").nth(1).hover()


def languages(page: Any, address: str, caption: str) -> None:
    """Show all languages of the picture that has a caption, or of the first that it finds."""
    hits = page.request.get(f"{address}api/search", params={"q": caption, "k": 200}).json()["results"][0]["hits"]
    chosen = next((hit for hit in hits if [caption] in hit["captions"].values()), hits[0])
    page.goto(f"{address}?languages_of={chosen['number']}")
    page.wait_for_selector(".languages")
    page.wait_for_load_state("networkidle")


def save(page: Any, path: Path, height: int, top: float = 0) -> None:
    """Write a part of the page as a PNG of few colours, which is small."""
    page.wait_for_timeout(300)
    height = min(height, page.evaluate("document.documentElement.scrollHeight") - top)
    data = page.screenshot(full_page=True, clip={"x": 0, "y": top, "width": WIDTH, "height": height})
    Image.open(io.BytesIO(data)).convert("RGB").quantize(192).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:,.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
