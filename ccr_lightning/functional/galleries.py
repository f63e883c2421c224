"""Images and their captions in several languages, and the ranks of all of them: a gallery for each language."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ccr_lightning.functional.ranks import RankCounts, mutual_rank_counts, rank_counts
from ccr_lightning.functional.retrieval import first_results

Direction = Literal["image_to_text", "text_to_image"]


class _Embeddings(NamedTuple):
    image_embeds: Tensor
    image_ids: Tensor
    text_embeds: Tensor
    text_ids: Tensor
    text_languages: Tensor
    caption_index: Tensor


class Embeddings(_Embeddings):
    """Images and captions, each once.

    Attributes:
        image_embeds: (I, D).
        image_ids: (I,) int64, ascending.
        text_embeds: (N, D), of the dtype of ``image_embeds``.
        text_ids: (N,) int64, the image that each caption describes, ascending within a language.
        text_languages: (N,) int64, ascending.
        caption_index: (N,) int64, the number of each caption within its image and language, ascending within these.
    """

    __slots__ = ()

    def __new__(
        cls,
        image_embeds: Tensor,
        image_ids: Tensor,
        text_embeds: Tensor,
        text_ids: Tensor,
        text_languages: Tensor,
        caption_index: Tensor,
    ) -> Embeddings:
        """Restores the axes of single items: ``Metric.compute`` squeezes every tensor of one element."""
        images, texts = (
            embeds.reshape(1, 1) if embeds.numel() == 1 else embeds for embeds in (image_embeds, text_embeds)
        )
        of_texts = (values.reshape(-1) for values in (text_ids, text_languages, caption_index))
        return super().__new__(cls, images, image_ids.reshape(-1), texts, *of_texts)

    def of_images(self, image_ids: Tensor) -> Embeddings:
        """Return the images with these ids, and their captions: a fold, say."""
        images, texts = torch.isin(self.image_ids, image_ids), torch.isin(self.text_ids, image_ids)
        return Embeddings(
            self.image_embeds[images],
            self.image_ids[images],
            self.text_embeds[texts],
            self.text_ids[texts],
            self.text_languages[texts],
            self.caption_index[texts],
        )


class _LanguageRanks(NamedTuple):
    image_ids: Tensor
    ranks: Tensor
    gallery: int
    ties: Tensor
    first: Tensor | None


class LanguageRanks(_LanguageRanks):
    """The ranks of all queries of one direction in one language.

    Attributes:
        image_ids: (Q,) int64, the image that each query shows or describes, ascending; repeated for its captions.
        ranks: (Q,) int64, from 1; ties count against the model.
        gallery: Number of items among which each query was ranked.
        ties: (Q,) int64, gallery items that are no positives and exactly as similar as the best one.
        first: (Q,) int64, the image that the first result shows or describes, -1 where several images share its place;
            None where nobody asked.
    """

    __slots__ = ()

    @property
    def tied_queries(self) -> int:
        """Number of queries whose rank would be better if ties counted for the model."""
        return int((self.ties > 0).sum())


class Items(NamedTuple):
    """Some of the images, or some of the captions."""

    rows: Tensor  # (N,) int64, among all images, or all captions
    embeds: Tensor  # (N, D)
    ids: Tensor  # (N,) int64, the images that they show or describe


class Gallery(NamedTuple):
    """What is ranked in one language and one direction."""

    language: int
    queries: Items
    items: Items


def galleries(embeddings: Embeddings, direction: Direction) -> Iterator[Gallery]:
    """Yield the queries and the gallery of each language that has captions.

    - ``image_to_text``: the queries are the images with a caption in the language, the gallery is all its captions;
    - ``text_to_image``: the queries are the captions, the gallery is the images with a caption in the language.

    So each language has its own gallery. Where every image has a caption in every language, that is all images.

    Args:
        embeddings: Images and captions; every caption's image is among the images.
        direction: ``image_to_text`` or ``text_to_image``.

    Example:
        >>> ids, languages, zeros = torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]), torch.zeros(3, dtype=torch.int64)
        >>> embeddings = Embeddings(torch.eye(2), torch.arange(2), torch.ones(3, 2), ids, languages, zeros)
        >>> [(of.language, of.queries.rows.tolist(), of.items.rows.tolist())
        ...  for of in galleries(embeddings, "text_to_image")]
        [(0, [0, 1], [0, 1]), (1, [2], [1])]
    """
    for language in torch.unique(embeddings.text_languages).tolist():
        captions = _captions(embeddings, embeddings.text_languages == language)
        rows = torch.isin(embeddings.image_ids, captions.ids).nonzero().squeeze(1)
        images = Items(rows, embeddings.image_embeds[rows], embeddings.image_ids[rows])
        yield Gallery(language, *((images, captions) if direction == "image_to_text" else (captions, images)))


def _captions(embeddings: Embeddings, chosen: Tensor) -> Items:
    rows = chosen.nonzero().squeeze(1)
    return Items(rows, embeddings.text_embeds[rows], embeddings.text_ids[rows])


def ranks_by_language(
    embeddings: Embeddings, direction: Direction, *, with_first: bool = False
) -> dict[int, LanguageRanks]:
    """Rank every query of one direction in every language that has captions: see :func:`galleries`.

    Args:
        embeddings: Images and captions; every caption's image is among the images.
        direction: ``image_to_text`` or ``text_to_image``.
        with_first: Whether to find the first result of each query too; image ids must then not be negative.

    Returns:
        Language index to ranks.

    Raises:
        CCRError: If embeddings are not finite.

    Example:
        >>> captions = torch.eye(3)[[0, 2, 2]]
        >>> ids, zeros = torch.arange(3), torch.zeros(3, dtype=torch.int64)
        >>> embeddings = Embeddings(torch.eye(3), ids, captions, ids, zeros, zeros)
        >>> ranks = ranks_by_language(embeddings, "text_to_image", with_first=True)[0]
        >>> ranks.ranks, ranks.first
        (tensor([1, 3, 1]), tensor([0, 2, 2]))
    """
    return {
        language: _ranks(queries, items, with_first) for language, queries, items in galleries(embeddings, direction)
    }


class Share(NamedTuple):
    """The part of a computation that a process does where several have the same data."""

    rank: int = 0
    world_size: int = 1
    total: Callable[[Tensor], Tensor] = lambda own: own  # adds up a tensor over the processes

    def of(self, length: int) -> slice:
        """The part of so many items that is this process's."""
        return slice(length * self.rank // self.world_size, length * (self.rank + 1) // self.world_size)


ALONE = Share()


def ranks_by_direction(
    embeddings: Embeddings, *, with_first: bool = False, share: Share = ALONE
) -> dict[Direction, dict[int, LanguageRanks]]:
    """Return :func:`ranks_by_language` of each direction, in half the time of two calls.

    Args:
        embeddings: Images and captions.
        with_first: Whether to find the first result of each query too.
        share: Where several processes have the same embeddings, what each of them does; all get the same ranks.
    """
    ranks: dict[Direction, dict[int, LanguageRanks]] = {"image_to_text": {}, "text_to_image": {}}
    for language, images, captions in galleries(embeddings, "image_to_text"):
        own = share.of(len(images.rows))
        counts = mutual_rank_counts(images.embeds, captions.embeds, images.ids, captions.ids, images=own)
        ranks["image_to_text"][language] = _shared(images, captions, counts[0], with_first, share)
        ranks["text_to_image"][language] = _shared(captions, images, counts[1], with_first, share)
    return ranks


def _shared(queries: Items, items: Items, counts: RankCounts, with_first: bool, share: Share) -> LanguageRanks:
    of_all = share.total(torch.stack(counts))
    first = _first(queries, items, share) if with_first else None
    return LanguageRanks(queries.ids, 1 + of_all.sum(0), len(items.rows), of_all[1], first)


def _first(queries: Items, items: Items, share: Share) -> Tensor:
    first, own = torch.zeros_like(queries.ids), share.of(len(queries.rows))
    if own.stop > own.start:
        first[own] = first_results(queries.embeds[own], items.embeds, items.ids)
    return share.total(first)


def ranks_between_languages(embeddings: Embeddings) -> dict[tuple[int, int], LanguageRanks]:
    """Rank the captions of each language among those of each other language: text-to-text retrieval.

    The queries are the captions in one language, the gallery is the captions in the other, both of the images that have
    some in both; positives are those of the same image.

    Args:
        embeddings: Images and captions.

    Returns:
        (language of the queries, language of the gallery) to ranks, without pairs that no image has both of.

    Raises:
        CCRError: If embeddings are not finite.

    Example:
        >>> captions = torch.eye(2)[[0, 1, 1, 0]]
        >>> ids, languages = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
        >>> embeddings = Embeddings(torch.eye(2), torch.arange(2), captions, ids, languages, torch.zeros(4))
        >>> ranks_between_languages(embeddings)[0, 1].ranks
        tensor([2, 2])
    """
    languages = torch.unique(embeddings.text_languages).tolist()
    of_language = {language: embeddings.text_languages == language for language in languages}
    ranks = {}
    for asked in languages:
        for searched in languages:
            queries, gallery = of_language[asked], of_language[searched]
            queries = queries & torch.isin(embeddings.text_ids, embeddings.text_ids[gallery])
            gallery = gallery & torch.isin(embeddings.text_ids, embeddings.text_ids[queries])
            if asked != searched and queries.any():
                sides = _captions(embeddings, queries), _captions(embeddings, gallery)
                ranks[asked, searched] = _ranks(*sides, with_first=False)
    return ranks


def _ranks(queries: Items, items: Items, with_first: bool) -> LanguageRanks:
    counts = rank_counts(queries.embeds, items.embeds, queries.ids, items.ids)
    first = first_results(queries.embeds, items.embeds, items.ids) if with_first else None
    return LanguageRanks(queries.ids, 1 + counts.ahead + counts.tied, len(items.rows), counts.tied, first)
