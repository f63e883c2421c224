"""One HTML page to look at: a sample of a source's images with their captions in all languages."""

from __future__ import annotations

import html
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ccr_lightning._version import __version__
from ccr_lightning.data.faults import RecordFault
from ccr_lightning.data.seeding import derived_seed
from ccr_lightning.data.sources.protocol import Source
from ccr_lightning.data.sources.reading import check_split
from ccr_lightning.data.thumbnails import thumbnail
from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write
from ccr_lightning.pages import CONTENT_POLICY, LANGUAGE_NAMES, STYLE, refuse_to_replace, shortened
from ccr_lightning.types import ImageCaptions, MachineTranslation

MAX_FAULTS = 5  # of a split and kind on the page; the others are counted


class SplitPreview(NamedTuple):
    """What the page shows of a split."""

    split: str
    images: int  # that the source yields
    shown: int
    undecodable: int  # of those shown
    faults: int  # records that cannot be used
    stopped: str | None  # why the reading ended before the end, if it did


def write_preview(
    source: Source, path: str | Path, splits: Sequence[str], count: int = 24, seed: int = 0
) -> list[SplitPreview]:
    """Write one HTML file with a sample of each split: thumbnails, and the captions of every language.

    The file needs nothing else, neither a network nor JavaScript, and the same call writes the same bytes. A split is
    read once; its sample is uniform without replacement, a function of the seed and the split's name, and shown in the
    order of the files. Only the images of the sample are decoded, and only ``count`` records are held in memory.

    Records that cannot be used, images that cannot be decoded, and what ends the reading of a split (its file is not
    there, say) are shown with their sentence.

    Args:
        source: The source.
        path: The page to write; a file that is there is replaced.
        splits: Splits to show, in this order.
        count: Images of each split; if it has fewer, all of them.
        seed: Seed of the sample.

    Returns:
        What the page shows of each split.

    Raises:
        CCRError: The source has no such split, nothing can be read of any, ``count`` is below 1, or the page cannot be
            written.

    Example:
        >>> import json, tempfile
        >>> from PIL import Image
        >>> from ccr_lightning.data.sources.jsonl import JsonLines
        >>> root = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (640, 480), "red").save(root / "a.png")
        >>> line = {"image": "a.png", "captions": {"en": "Red.", "ar": "أحمر"}}
        >>> _ = (root / "train.jsonl").write_text(json.dumps(line))
        >>> source = JsonLines({"train": str(root / "train.jsonl")}, image_root=str(root))
        >>> [shown] = write_preview(source, root / "preview.html", ["train"])
        >>> shown.images, shown.shown, shown.faults
        (1, 1, 0)
        >>> '<dd lang="ar" dir="auto">أحمر</dd>' in (root / "preview.html").read_text(encoding="utf-8")
        True
    """
    if count < 1:
        raise CCRError(f"a preview of {count} images per split shows nothing; give 1 or more.")
    refuse_to_replace(Path(path), "the preview")
    for split in splits:
        check_split(source.name, split, source.splits)
    sections, previews = [], []
    for number, split in enumerate(dict.fromkeys(splits), 1):
        content = _read(source, split, count, seed)
        cards = [_card(record, source.languages) for record in content.sample]
        undecodable = sum(card.is_undecodable for card in cards)
        previews.append(SplitPreview(split, content.images, len(cards), undecodable, content.faults, content.stopped))
        sections.append(_section(number, content, source.languages, [card.html for card in cards]))
    if previews and all(preview.stopped and not preview.images + preview.faults for preview in previews):
        raise CCRError(previews[0].stopped)
    page = _page(source, previews, sections, seed)
    with atomic_write(Path(path), "the preview") as file:
        file.write(page.encode(errors="replace"))  # names of files need not be UTF-8
    return previews


@dataclass
class _Content:
    """A split as it was read: all of it as counts, some of it as records."""

    split: str
    images: int = 0
    sample: list[ImageCaptions] = field(default_factory=list)
    captions: Counter[str] = field(default_factory=Counter)
    images_with: Counter[str] = field(default_factory=Counter)
    blank_captions: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    sentences: dict[str, list[str]] = field(default_factory=dict)  # of the first faults of each kind
    stopped: str | None = None

    @property
    def faults(self) -> int:
        return self.kinds.total()

    def add_fault(self, fault: RecordFault) -> None:
        self.kinds[fault.kind] += 1
        if self.kinds[fault.kind] <= MAX_FAULTS:
            self.sentences.setdefault(fault.kind, []).append(str(fault))

    def add(self, record: ImageCaptions) -> None:
        self.images += 1
        self.blank_captions += len(record.blank_captions)
        for language, texts in record.captions.items():
            self.captions[language] += len(texts)
            self.images_with[language] += bool(texts)


def _read(source: Source, split: str, count: int, seed: int) -> _Content:
    """Read the split once and keep a sample, each subset of ``count`` records being as likely (reservoir sampling)."""
    content = _Content(split)
    chosen: list[tuple[int, ImageCaptions]] = []
    generator = random.Random(derived_seed("preview", seed, split))
    try:
        for record in source.records(split, report=content.add_fault):
            content.add(record)
            numbered = content.images, record
            if len(chosen) < count:
                chosen.append(numbered)
            elif (place := generator.randrange(content.images)) < count:
                chosen[place] = numbered
    except CCRError as error:
        content.stopped = str(error)
    content.sample = [record for _, record in sorted(chosen, key=lambda numbered: numbered[0])]
    return content


def _text(text: str) -> str:
    """Whatever comes from data, safe between tags and in attributes.

    Example:
        >>> _text('<b title="x">')
        '&lt;b title=&quot;x&quot;&gt;'
    """
    return html.escape(shortened(text))


def _number(number: int, noun: str) -> str:
    """Write a number with its noun.

    Example:
        >>> _number(1, "image"), _number(1200, "image")
        ('1 image', '1,200 images')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _language(language: str) -> str:
    name = LANGUAGE_NAMES.get(language)
    return f'<span class="code">{_text(language)}</span>' + (f' <span class="name">{name}</span>' if name else "")


class _Card(NamedTuple):
    html: str
    is_undecodable: bool


def _card(record: ImageCaptions, languages: Sequence[str]) -> _Card:
    captions = {language: record.captions.get(language, ()) for language in (*languages, *record.captions)}
    first = ((text, language) for language, texts in captions.items() for text in texts)
    alt, of_alt = next(first, ("an image without captions", "en"))
    is_undecodable = False
    try:
        uri, width, height = thumbnail(record.image, record.where)
        picture = f'<img src="{uri}" width="{width}" height="{height}" lang="{_text(of_alt)}" alt="{_text(alt)}">'
    except RecordFault as fault:
        is_undecodable = True
        picture = f'<p class="fault" dir="auto">{_text(str(fault))}</p>'
    parts = [
        '<li class="card">',
        f'<div class="picture">{picture}</div>',
        f'<h3 dir="auto">{_text(record.image_id)}</h3>',
        f'<p class="where" dir="auto">{_text(record.where)}</p>',
        "<dl>",
        *(
            f"<div><dt>{_language(language)}</dt>{_captions(language, texts)}</div>"
            for language, texts in captions.items()
        ),
        "</dl>",
    ]
    if blank := record.blank_captions:
        says = f"{_number(len(blank), 'blank caption')} left out: {', '.join(blank)}"
        parts.append(f'<p class="blank" dir="auto">{_text(says)}</p>')
    return _Card("\n".join([*parts, "</li>"]), is_undecodable)


def _captions(language: str, texts: Sequence[str]) -> str:
    if not texts:
        return '<dd class="missing">no caption</dd>'
    return "".join(f'<dd lang="{_text(language)}" dir="auto">{_text(text)}</dd>{_origin(text)}' for text in texts)


def _origin(text: str) -> str:
    if not isinstance(text, MachineTranslation):
        return ""
    return f'<dd class="missing">translated by {_text(text.translated_by)}</dd>'


def _section(number: int, content: _Content, languages: Sequence[str], cards: Sequence[str]) -> str:
    spoken = sum(1 for count in content.captions.values() if count)
    counts = [
        f"{len(cards):,} of {_number(content.images, 'image')} shown",
        f"{_number(content.captions.total(), 'caption')} in {_number(spoken, 'language')}",
    ]
    if content.blank_captions:
        counts.append(f"{_number(content.blank_captions, 'blank caption')} left out")
    parts = [
        f'<section aria-labelledby="split-{number}">',
        f'<h2 id="split-{number}" dir="auto">{_text(content.split)}</h2>',
        f'<p class="counts">{" · ".join(counts)}</p>',
    ]
    if content.stopped:
        parts.append(f'<p class="fault">The reading stopped here: {_text(content.stopped)}</p>')
    if content.images:
        parts.append(_coverage(content, languages))
    if content.faults:
        parts.append(_faults(content))
    if cards:
        parts += ['<ul class="cards">', *cards, "</ul>"]
    return "\n".join([*parts, "</section>"])


def _coverage(content: _Content, languages: Sequence[str]) -> str:
    """How many captions each language has, and how many images are without."""
    missing = {language: content.images - content.images_with[language] for language in (*languages, *content.captions)}
    incomplete = sum(1 for number in missing.values() if number)
    says = "Every image has a caption in every language"
    if incomplete:
        says = f"Without a caption for some images: {incomplete} of {_number(len(missing), 'language')}"
    parts = [f"<details{' open' if incomplete else ''}>", f"<summary>{says}</summary>", '<ul class="coverage">']
    for language, number in missing.items():
        without = f", <em>{_number(number, 'image')} without</em>" if number else ""
        parts.append(f"<li>{_language(language)} {_number(content.captions[language], 'caption')}{without}</li>")
    return "\n".join([*parts, "</ul>", "</details>"])


def _faults(content: _Content) -> str:
    parts = ['<div class="fault">', f"<h3>{_number(content.faults, 'record')} that cannot be used</h3>"]
    for kind, sentences in content.sentences.items():
        parts += [f"<h4>{_text(kind)}: {content.kinds[kind]:,}</h4>", "<ul>"]
        parts += [f'<li dir="auto">{_text(sentence)}</li>' for sentence in sentences]
        if more := content.kinds[kind] - len(sentences):
            parts.append(f"<li>and {more:,} more</li>")
        parts.append("</ul>")
    return "\n".join([*parts, "</div>"])


def _page(source: Source, previews: Sequence[SplitPreview], sections: Sequence[str], seed: int) -> str:
    links = "\n".join(
        f'<li><a href="#split-{number}" dir="auto">{_text(preview.split)}</a> {preview.images:,}</li>'
        for number, preview in enumerate(previews, 1)
    )
    parallel = "The languages are parallel." if source.parallel else "The languages are not parallel."
    body = "\n".join(sections)
    return f"""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{CONTENT_POLICY}">
<title>{_text(source.name)}: images and captions</title>
<style>
{_STYLE}</style>
</head>
<body>
<header>
<h1 dir="auto">{_text(source.name)}</h1>
<p>Images and their captions, drawn at random with seed {seed} and shown in the order of the files. {parallel}</p>
<nav aria-label="Splits">
<ul>
{links}
</ul>
</nav>
</header>
<main>
{body}
</main>
<footer>Written by <code>ccr data preview</code>, ccr-lightning {__version__}</footer>
</body>
</html>
"""


_STYLE = (
    STYLE
    + """\
ul { list-style: none; }
header p, .counts, footer, nav li { color: var(--muted); }
header p { margin-top: 0.4rem; max-width: 50rem; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.3rem 1.5rem; margin-top: 0.8rem; }
section { margin-top: 2rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
.counts { margin-top: 0.2rem; }
details { margin-top: 0.6rem; font-size: 0.9rem; }
.coverage { columns: 18rem; margin-top: 0.5rem; color: var(--muted); }
.coverage li { break-inside: avoid; padding: 0.1rem 0; }
.coverage em { color: var(--warn); font-style: normal; }
.fault { background: var(--fault-back); color: var(--fault); border-radius: 0.5rem; padding: 0.7rem 1rem; }
section > .fault { margin-top: 1rem; font-size: 0.9rem; }
.fault h4 { margin-top: 0.5rem; font-size: 0.9rem; }
.fault li { margin-top: 0.15rem; }
.cards {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1.25rem;
  margin-top: 1.25rem;
}
.card {
  padding-bottom: 0.8rem; overflow: hidden; break-inside: avoid;
  background: var(--card); border: 1px solid var(--line); border-radius: 0.75rem;
}
.card > :not(.picture) { margin-inline: 1rem; }
.picture { display: grid; place-items: center; height: 13rem; padding: 0.75rem; background: var(--panel); }
.picture img { width: auto; height: auto; max-width: 100%; min-height: 9rem; max-height: 11.5rem; object-fit: contain; }
.picture .fault { max-height: 11.5rem; overflow: auto; font-size: 0.9rem; }
.card h3 { margin-top: 0.8rem; }
.where, .blank { color: var(--muted); font-size: 0.8rem; }
.blank { margin-top: 0.5rem; color: var(--warn); }
dl { margin-top: 0.5rem; }
dl > div {
  display: grid; grid-template-columns: 7.8rem 1fr; column-gap: 0.5rem; align-items: baseline;
  padding: 0.25rem 0; border-top: 1px solid var(--line);
}
dt { grid-column: 1; grid-row: 1; }
dd { grid-column: 2; }
dd + dd { margin-top: 0.35rem; }
.missing {
  justify-self: start; padding: 0 0.5rem; border-radius: 0.3rem;
  background: var(--warn-back); color: var(--warn); font-size: 0.85rem;
}
footer { margin-top: 2.5rem; font-size: 0.85rem; }
"""
)
