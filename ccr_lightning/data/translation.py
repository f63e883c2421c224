"""A source in one language becomes JSON lines in several, by a translation model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from ccr_lightning.data.images import file_ending, read_image
from ccr_lightning.data.sources.jsonl import JsonLines
from ccr_lightning.data.sources.protocol import Source
from ccr_lightning.data.sources.reading import check_languages, check_split
from ccr_lightning.data.translation_files import OTHERWISE, Settings, Translation, TranslationFiles
from ccr_lightning.data.translator import Translator
from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write
from ccr_lightning.types import ImageCaptions, MachineTranslation


def translate_source(
    source: Source,
    split: str,
    translator: Translator,
    source_language: str,
    target_languages: Sequence[str],
    out_folder: str | Path,
    records_per_chunk: int = 512,
) -> Translation:
    """Write a split of a source, with translations added, as JSON lines for :class:`JsonLines`.

    ``OUT/<split>.jsonl`` has one line per record, in the same order. Captions that are there stay as they are, and a
    record is not translated into a language that it has; each of its captions in the source language is translated into
    the other languages, and bears the model's name and the day. What cannot be translated is left out and counted, see
    :meth:`Translator.translate`.

    Images stay where they are and are not read: the lines hold their paths from the ``image_root`` that is returned.
    Those that a source holds as bytes are written to ``OUT/images``.

    Work that was interrupted, even by ``kill -9``, goes on behind the last whole chunk of records, and in the end the
    file has the bytes that it would have had without (with the same batch size, on the same device). Until then it is
    called ``OUT/<split>.jsonl.part``; ``OUT/<split>.translation.json`` says how it is made. What is finished is
    returned as it is.

    Args:
        source: Where the records come from.
        split: Which of them.
        translator: The model.
        source_language: Language of the captions to translate.
        target_languages: Languages to translate into.
        out_folder: Folder of the output.
        records_per_chunk: Records between two saves.

    Raises:
        CCRError: The model does not know a language, a record cannot be used, the work was begun with other settings,
            another process is at it, or the output cannot be written.
    """
    check_split(source.name, split, source.splits)
    targets = check_languages("the translation", target_languages)
    if source_language in targets:
        raise CCRError(f"the captions are in {source_language!r} already; leave it out of the languages to add.")
    translator.check_languages(source_language, targets)
    settings = Settings(
        source=source.name,
        fingerprint=source.fingerprint(split),
        split=split,
        model=translator.name,
        beams=translator.beams,
        source_language=source_language,
        target_languages=list(targets),
        records_per_chunk=records_per_chunk,
    )
    files = TranslationFiles(Path(out_folder).absolute(), split)
    with files.locked():
        translation = files.begun(settings)
        if translation is None:
            translation = _survey(source, settings, files.out)
            files.begin(translation)
        if not files.lines.exists():
            translation = _translate_records(source, translator, translation, files)
            files.finish(translation)
    return translation


def config_snippet(translation: Translation, out_folder: str | Path, languages: Sequence[str]) -> str:
    """Return the part of a configuration that reads the output, as YAML.

    Args:
        translation: What :func:`translate_source` returned.
        out_folder: Folder of the output.
        languages: The languages of the source, in its order; those without a caption are left out.
    """
    settings = translation.settings
    there = dict.fromkeys([*languages, *settings.target_languages])
    arguments = {
        "files": {settings.split: str(TranslationFiles(Path(out_folder).absolute(), settings.split).lines)},
        "image_root": translation.image_root,
        "languages": [language for language in there if translation.captions[language]],
    }
    source = {"class_path": f"{JsonLines.__module__}.{JsonLines.__name__}", "init_args": arguments}
    return str(yaml.safe_dump({"data": {"source": source}}, sort_keys=False, allow_unicode=True, width=1000))


def _survey(source: Source, settings: Settings, out: Path) -> Translation:
    """Read all records once: how many captions there are to translate, and where the images are."""
    images = captions_to_do = in_bytes = 0
    folders: set[str] = set()
    for record in source.records(settings.split):
        images += 1
        captions_to_do += sum(_to_do(record, settings).values())
        if isinstance(record.image, bytes):
            file_ending(read_image(record.image, record.where), record.where)
            in_bytes += 1
        else:
            folders.add(_folder(record.image))
    if not images:
        raise CCRError(f"the split {settings.split!r} of {source.name} has no images; check the source.")
    if in_bytes and folders:
        raise CCRError(f"{source.name} holds some images as files and others as bytes; translate them separately.")
    if in_bytes:
        root = str(out)
    elif isinstance(source, JsonLines):
        root = str(Path(source.image_root).resolve())
    else:
        root = os.path.commonpath([*folders, *_folders_of_other_splits(source, settings.split)])
        if root == os.path.dirname(root):
            raise CCRError(f"the images of {source.name} have no folder in common but {root}; put them into one.")
    return Translation(settings, _today(), root, images, captions_to_do)


def _today() -> str:
    return date.today().isoformat()


def _folder(image: Path) -> str:
    return os.path.dirname(os.path.abspath(image))


def _folders_of_other_splits(source: Source, split: str) -> set[str]:
    """Folders of images that will be read from the same ``image_root`` when their split is translated too."""
    folders: set[str] = set()
    for other in source.splits:
        if other == split:
            continue
        try:
            for record in source.records(other, lambda fault: None):
                if isinstance(record.image, Path):
                    folders.add(_folder(record.image))
        except CCRError:  # its files need not be there
            continue
    return folders


def _to_do(record: ImageCaptions, settings: Settings) -> dict[str, int]:
    """Language to the number of captions that must be translated into it."""
    count = len(record.captions.get(settings.source_language, ()))
    return {target: count for target in settings.target_languages if target not in record.captions}


def _translate_records(
    source: Source, translator: Translator, translation: Translation, files: TranslationFiles
) -> Translation:
    """Write what is missing of the lines, and return the translation with its counts."""
    settings = translation.settings
    translation = Translation(
        settings, translation.translated_on, translation.image_root, translation.images, translation.captions_to_do
    )
    records = iter(source.records(settings.split))
    first = 0
    with files.growing() as growing, _progress(translation) as (skip, done):
        while chunk := list(islice(records, settings.records_per_chunk)):
            lines = growing.read_chunk(len(chunk))
            if lines is None:
                captions = _translate_chunk(chunk, translator, translation, done)
                lines = [
                    {
                        "image": _image(record, first + number, translation),
                        "image_id": record.image_id,
                        "captions": captions[number],
                    }
                    for number, record in enumerate(chunk)
                ]
                growing.write_chunk(lines)
            else:
                skip(sum(sum(_to_do(record, settings).values()) for record in chunk))
            for record, line in zip(chunk, lines, strict=True):
                _count(record, line["captions"], translation)
            first += len(chunk)
    return translation


def _translate_chunk(
    records: Sequence[ImageCaptions], translator: Translator, translation: Translation, done: Callable[[int], object]
) -> list[dict[str, list[Any]]]:
    """The captions of each record as a line holds them: those that it has, then the translations."""
    settings = translation.settings
    captions = [
        {language: [_as_json(text) for text in texts] for language, texts in record.captions.items()}
        for record in records
    ]
    for target in settings.target_languages:
        to_do = [
            (number, text)
            for number, record in enumerate(records)
            if target not in record.captions
            for text in record.captions.get(settings.source_language, ())
        ]
        texts = translator.translate([text for _, text in to_do], settings.source_language, target, done)
        for (number, _), text in zip(to_do, texts, strict=True):
            if text is not None:
                translated = MachineTranslation(text, settings.model, translation.translated_on)
                captions[number].setdefault(target, []).append(_as_json(translated))
    return captions


def _as_json(caption: str) -> str | dict[str, str]:
    if not isinstance(caption, MachineTranslation):
        return caption
    return {"text": caption, "translated_by": caption.translated_by, "translated_on": caption.translated_on}


def _image(record: ImageCaptions, number: int, translation: Translation) -> str:
    """The path of the record's image from the image root, after writing the image if the record holds it."""
    root = Path(translation.image_root)
    if isinstance(record.image, Path):
        return Path(os.path.abspath(record.image)).relative_to(root).as_posix()
    name = f"images/{translation.settings.split}-{number}.{file_ending(record.image, record.where)}"
    with atomic_write(root / name, "an image", OTHERWISE) as file:
        file.write(record.image)
    return name


def _count(record: ImageCaptions, captions: dict[str, list[Any]], translation: Translation) -> None:
    settings = translation.settings
    translation.captions.update({language: len(texts) for language, texts in captions.items()})
    translation.images_without_source += settings.source_language not in record.captions
    for target, count in _to_do(record, settings).items():
        if left_out := count - len(captions.get(target, ())):
            translation.left_out[target] += left_out


@contextmanager
def _progress(translation: Translation) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """Show how the work goes, on a terminal.

    Yields:
        What to call with a number of captions that are there already, and with one that has been translated.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("captions, {task.fields[rate]:.1f} a second,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=300) as progress:
        name = f"translating {translation.settings.split}"
        task = progress.add_task(name, total=translation.captions_to_do, rate=0.0)
        bar = progress.tasks[0]

        def skip(captions: int) -> None:  # not as progress, or the rate and the time left would be too good
            progress.update(task, total=(bar.total or 0) - captions)

        def done(captions: int) -> None:
            progress.update(task, advance=captions, rate=bar.speed or 0.0)

        yield skip, done
