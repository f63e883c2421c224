"""Searches of an index as the server answers them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from re import fullmatch
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from ccr_lightning.models.dual_encoder import DualEncoder
from ccr_lightning.pages import MAX_CHARACTERS
from ccr_lightning.search import index as search_index
from ccr_lightning.search.index import Index
from ccr_lightning.search.picture import Picture as IndexedPicture
from ccr_lightning.serve import answers, limits
from ccr_lightning.serve.pictures import version

Find = Literal["pictures", "captions"]
_LOOKED_AT, _EXAMPLES = 1000, 24


class Searching:
    """An index and its model, which answer in the classes of :mod:`~ccr_lightning.serve.answers`.

    Args:
        index: With pictures.
        model: The one that made it.
    """

    def __init__(self, index: Index, model: DualEncoder) -> None:
        self._index, self._model = index, model

    def describe(self, known_languages: Sequence[str]) -> answers.IndexAnswer:
        """Return what can be searched.

        Args:
            known_languages: Offered where captions do not show any.
        """
        numbers = _spread(len(self._index), _LOOKED_AT)
        captions = [self._index.picture(number).captions for number in numbers]
        languages = [shown(language) for language in dict.fromkeys(language for of in captions for language in of)]
        return answers.IndexAnswer(
            model=model_name(str(self._index.model["named"])),
            pictures=len(self._index),
            captions=self._index.captions,
            languages=languages,
            known_languages=languages or list(known_languages),
            limits=answers.Limits(
                queries=limits.MAX_QUERIES,
                characters=limits.MAX_CHARACTERS,
                k=limits.MAX_K,
                upload_bytes=limits.MAX_UPLOAD,
            ),
            examples=[self.picture(number) for number in _spread(len(self._index), _EXAMPLES)],
        )

    def embed(self, texts: Sequence[str], languages: Sequence[str]) -> Tensor:
        """Embeds captions; those without a language apart, since a model is told those of all or of none.

        Args:
            texts: One or more.
            languages: Of each, or an empty text.

        Raises:
            CCRError: The model cannot embed them.
        """
        told = [place for place, language in enumerate(languages) if language]
        rest = [place for place, language in enumerate(languages) if not language]
        parts = []
        if told:
            parts.append(self._model.embed_captions([texts[of] for of in told], [languages[of] for of in told]))
        if rest:
            parts.append(self._model.embed_captions([texts[of] for of in rest]))
        return torch.cat(parts)[torch.tensor([*told, *rest]).argsort()]

    def by_texts(
        self,
        texts: Sequence[str],
        languages: Sequence[str],
        embeds: Tensor,
        k: int,
        find: Find,
        ranked: int | None,
    ) -> answers.SearchAnswer:
        """Searches with captions.

        Args:
            texts: One or more.
            languages: Of each, or an empty text.
            embeds: Of each: see :meth:`embed`.
            k: How many are found for each.
            find: What is found.
            ranked: A picture whose ranks are told, too.
        """
        results = self._results(embeds, k, find)
        if len(texts) > 1 and find == "pictures":
            self._add_ranks(results, embeds)
        for result, text, language in zip(results, texts, languages, strict=True):
            result.text, result.language = text, language or None
        picture = None
        if ranked is not None:
            ranks = [row[0] for row in self._index.ranks(embeds, [ranked])]
            picture = answers.RankedPicture(**dict(self.picture(ranked)), ranks=ranks)
        return answers.SearchAnswer(results=results, picture=picture)

    def by_picture(self, image: Image.Image, k: int, find: Find) -> answers.SearchAnswer:
        """Searches with a picture that is not of the index.

        Args:
            image: The picture.
            k: How many are found.
            find: What is found.
        """
        return answers.SearchAnswer(results=self._results(self._model.embed_images([image]), k, find), picture=None)

    def by_number(self, number: int, k: int, find: Find) -> answers.SearchAnswer:
        """Searches with a picture of the index.

        Args:
            number: Of the picture.
            k: How many are found.
            find: What is found.

        Raises:
            CCRError: There is none, or its file is not what it was.
        """
        return self.by_picture(self._index.open(number), k, find)

    def _results(self, embeds: Tensor, k: int, find: Find) -> list[answers.Results]:
        search = self._index.search_captions if find == "captions" else self._index.search
        return [
            answers.Results(text=None, language=None, hits=[self._hit(place, hit) for place, hit in enumerate(hits, 1)])
            for hits in search(embeds, k)
        ]

    def _add_ranks(self, results: Sequence[answers.Results], embeds: Tensor) -> None:
        numbers = sorted({hit.number for result in results for hit in result.hits})
        ranks = dict(zip(numbers, zip(*self._index.ranks(embeds, numbers), strict=True), strict=True))
        for result in results:
            for hit in result.hits:
                hit.ranks = list(ranks[hit.number])

    def _hit(self, place: int, hit: search_index.Hit) -> answers.Hit:
        caption = answers.FoundCaption(language=shown(hit.language), text=shown(hit.caption)) if hit.language else None
        picture = dict(_answer(hit.number, hit.picture))
        return answers.Hit(**picture, place=place, similarity=hit.similarity, ranks=None, caption=caption)

    def picture(self, number: int) -> answers.Picture:
        """Return a picture of the index.

        Raises:
            CCRError: There is none of this number.
        """
        return _answer(number, self._index.picture(number))


def _answer(number: int, picture: IndexedPicture) -> answers.Picture:
    of = f"{number}?v={version(picture)}"
    captions = {shown(language): [shown(text) for text in texts] for language, texts in picture.captions.items()}
    return answers.Picture(
        number=number,
        name=picture_name(picture),
        captions=captions,
        thumbnail_url=f"/thumbnail/{of}",
        picture_url=f"/picture/{of}",
    )


def picture_name(picture: IndexedPicture) -> str:
    """Return what a picture is called in an answer: a file by its name alone, a record as its data call it.

    Example:
        >>> picture_name(IndexedPicture("/home/me/a.jpg", "", "/home/me/a.jpg"))
        'a.jpg'
        >>> picture_name(IndexedPicture("mine/train/a", "", "/home/me/a.jpg"))
        'mine/train/a'
    """
    return shown(Path(picture.name).name if picture.path == picture.name else picture.name)


def model_name(named: str) -> str:
    """Return what a model is called in an answer: on the hub by its whole name, on the disk by the end of its path.

    A relative path of two parts that is not there any more cannot be told from a name on the hub.

    Example:
        >>> model_name("google/siglip2-base-patch16-224"), model_name("/home/me/runs/mine"), model_name("")
        ('google/siglip2-base-patch16-224', 'mine', 'a model without a name')
    """
    if fullmatch(r"\w[\w.-]*/\w[\w.-]*", named) and not Path(named).exists():
        return named
    return shown(Path(named).name) or "a model without a name"


def shown(text: str) -> str:
    r"""Return a text that can be sent: cut where it is very long, undecodable bytes as question marks.

    Example:
        >>> shown("a\udcff"), len(shown("a" * 5000))
        ('a?', 1001)
    """
    cut = f"{text[:MAX_CHARACTERS]}…" if len(text) > MAX_CHARACTERS else text
    return cut.encode(errors="replace").decode()


def _spread(size: int, count: int) -> list[int]:
    """Numbers below a size, evenly spread.

    Example:
        >>> _spread(10, 3), _spread(2, 3)
        ([1, 5, 8], [0, 1])
    """
    count = min(size, count)
    return [(2 * number + 1) * size // (2 * count) for number in range(count)]
