"""Retrieval metrics with state: they collect embeddings on all devices, drop repeats, and rank when asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors
from torchmetrics.utilities.plot import _AX_TYPE, _PLOT_OUT_TYPE

from ccr_lightning.errors import CCRError
from ccr_lightning.functional.consistency import Statistic, align_ranks, mean_rank_variance
from ccr_lightning.functional.galleries import Direction, Embeddings, ranks_by_language
from ccr_lightning.functional.retrieval import recall_at_k

_EMBEDS = ("image_embeds", "text_embeds")
_INTEGERS = ("image_ids", "text_ids", "text_languages", "caption_indices", "language_counts")
_SAME = 0.1  # relative distance up to which two embeddings of one item are taken for rounding


class RetrievalEmbeddings(Metric):
    """Collects the embeddings of all devices, each item once: what every number of an evaluation follows from.

    Items are known by their ids: images by image id, captions by (image id, language, ``caption_index``). One that
    comes again, as the padding of a distributed sampler does, is dropped. Works on any number of devices, also if some
    saw more than others or nothing; the result is that of one device.

    Args:
        kwargs: Passed on to ``torchmetrics.Metric``.

    Example:
        >>> metric = RetrievalEmbeddings()
        >>> metric.update(torch.eye(3), None, torch.tensor([4, 5, 6]))
        >>> metric.update(None, torch.eye(3)[[0, 2, 2]], torch.tensor([4, 5, 6]), languages=torch.tensor([0, 0, 0]))
        >>> ranks_by_language(metric.compute(), "text_to_image")[0].ranks
        tensor([1, 3, 1])
    """

    is_differentiable = False
    higher_is_better: bool | None = None
    full_state_update = False

    image_embeds: list[Tensor]
    image_ids: list[Tensor]
    text_embeds: list[Tensor]
    text_ids: list[Tensor]
    text_languages: list[Tensor]
    caption_indices: list[Tensor]
    language_counts: list[Tensor]  # K of every update that has images and captions

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in _EMBEDS + _INTEGERS:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(
        self,
        image_embeds: Tensor | None,
        text_embeds: Tensor | None,
        image_ids: Tensor,
        *,
        caption_mask: Tensor | None = None,
        languages: Tensor | None = None,
        caption_index: Tensor | None = None,
    ) -> None:
        """Adds images with a caption in each of K languages, images only, or captions only.

        Args:
            image_embeds: (B, D) floating point; None if there are only captions.
            text_embeds: (B, K, D), the captions of the images in K languages, the same K in every update, with
                ``caption_index`` 0; None if there are only images; (N, D) if there are only captions, any number per
                image and language.
            image_ids: (B,) integers, or (N,) if there are only captions: the image that each of them describes.
            caption_mask: (B, K) bool, False where an image has no caption in a language.
            languages: (N,) integers from 0, the language of each caption; only and always if there are only captions.
            caption_index: (N,) integers, the number of each caption within its image and language; by default 0, and
                only if there are only captions.

        Raises:
            CCRError: If arguments do not fit together, or not with those of earlier updates.
        """
        if image_embeds is None and text_embeds is None:
            raise CCRError("there is nothing to add: pass image_embeds, text_embeds or both.")
        parallel = image_embeds is not None and text_embeds is not None
        if caption_mask is not None and not parallel:
            raise CCRError("caption_mask goes with image_embeds and text_embeds together: pass both, or leave it out.")
        if (languages is not None or caption_index is not None) and image_embeds is not None:
            raise CCRError(
                "languages and caption_index describe captions that come without images: pass image_embeds=None, or "
                "leave them out."
            )
        rows = image_ids.numel()
        _check_integers("image_ids", image_ids, rows)
        if image_embeds is not None:
            _check_embeds("image_embeds", image_embeds, (rows, "D"))
        if text_embeds is not None:
            _check_embeds("text_embeds", text_embeds, (rows, "K", "D") if parallel else (rows, "D"))
        together = (image_embeds, text_embeds, *self.image_embeds[:1], *self.text_embeds[:1])
        widths = {embeds.shape[-1] for embeds in together if embeds is not None}
        if len(widths) > 1:
            raise CCRError(
                f"embeddings of widths {min(widths)} and {max(widths)} cannot be compared: pass one width D."
            )

        captions = None
        if image_embeds is not None and text_embeds is not None:
            captions = self._present(text_embeds, image_ids, caption_mask)
        elif text_embeds is not None:
            if languages is None:
                raise CCRError("captions without images need languages: pass (N,) integers, the language of each.")
            _check_integers("languages", languages, rows)
            if (languages < 0).any():
                raise CCRError(f"languages has {int(languages.min())}: number the languages from 0.")
            if caption_index is None:
                caption_index = torch.zeros_like(image_ids)
            _check_integers("caption_index", caption_index, rows)
            captions = (text_embeds, image_ids, languages, caption_index)

        if image_embeds is not None:
            self.image_embeds.append(_storable(image_embeds))
            self.image_ids.append(_copied(image_ids))
        if captions is not None:
            self.text_embeds.append(_storable(captions[0]))
            self.text_ids.append(_copied(captions[1]))
            self.text_languages.append(_copied(captions[2]))
            self.caption_indices.append(_copied(captions[3]))

    def compute(self) -> Any:
        """Gathers the items of all devices.

        Returns:
            :class:`~ccr_lightning.functional.galleries.Embeddings`.

        Raises:
            CCRError: If there are no images or no captions, if the image of a caption is missing, or if an id was given
                to different items.
        """
        return self._seen()

    def _present(
        self, text_embeds: Tensor, image_ids: Tensor, caption_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Embeddings, image ids, languages and caption indices of the captions that are there."""
        shape = text_embeds.shape[:2]
        if caption_mask is None:
            caption_mask = torch.ones(shape, dtype=torch.bool, device=text_embeds.device)
        if caption_mask.shape != shape or caption_mask.dtype != torch.bool:
            raise CCRError(
                f"caption_mask is {caption_mask.dtype} of shape {tuple(caption_mask.shape)}: pass torch.bool of shape "
                f"{tuple(shape)}, one entry per caption of text_embeds."
            )
        count = torch.tensor([shape[1]], device=self.device)
        _check_language_counts([*self.language_counts[:1], count])
        self.language_counts.append(count)
        row, language = caption_mask.nonzero(as_tuple=True)
        return text_embeds[row, language], image_ids[row], language, torch.zeros_like(language)

    def _seen(self) -> Embeddings:
        image_ids, text_ids = _concatenated(self.image_ids), _concatenated(self.text_ids)
        for what, ids in (("images", image_ids), ("captions", text_ids)):
            if not len(ids):
                raise CCRError(f"no {what} have been added, so nothing can be ranked: call update with some first.")
        _check_language_counts(self.language_counts)
        image_embeds, text_embeds = _concatenated(self.image_embeds), _concatenated(self.text_embeds)
        dtype = torch.promote_types(image_embeds.dtype, text_embeds.dtype)
        image_embeds, text_embeds = image_embeds.to(dtype), text_embeds.to(dtype)
        text_languages, caption_indices = _concatenated(self.text_languages), _concatenated(self.caption_indices)

        images = _first_of_each(image_ids[:, None], image_embeds, "image {}")
        texts = _first_of_each(
            torch.stack([text_languages, text_ids, caption_indices], 1),
            text_embeds,
            "language {}, image {}, caption_index {}",
        )
        seen = Embeddings(
            image_embeds[images],
            image_ids[images],
            text_embeds[texts],
            text_ids[texts],
            text_languages[texts],
            caption_indices[texts],
        )
        unknown = ~torch.isin(seen.text_ids, seen.image_ids)
        if unknown.any():
            raise CCRError(
                f"{int(unknown.sum())} captions describe images that have not been added, first image id "
                f"{int(seen.text_ids[unknown][0])}: add the images too."
            )
        return seen

    def _sync_dist(
        self, dist_sync_fn: Callable[..., list[Tensor]] = gather_all_tensors, process_group: Any | None = None
    ) -> None:
        # A device that saw nothing has to offer empty tensors of the others' width and dtype, or the group aborts.
        embeds = (*self.image_embeds, *self.text_embeds)
        own = [max((e.shape[1] for e in embeds), default=0), max((e.dtype.itemsize for e in embeds), default=0)]
        gathered = dist_sync_fn(torch.tensor(own, device=self.device), group=process_group or self.process_group)
        width, itemsize = torch.stack(gathered).amax(0).tolist()
        dtype = torch.float64 if itemsize == torch.float64.itemsize else torch.float32
        for name in _EMBEDS:
            setattr(self, name, [torch.empty(0, width, dtype=dtype, device=self.device), *getattr(self, name)])
        for name in _INTEGERS:
            setattr(self, name, [torch.empty(0, dtype=torch.int64, device=self.device), *getattr(self, name)])
        super()._sync_dist(dist_sync_fn, process_group)


class RecallAtK(RetrievalEmbeddings):
    """Recall@k: share of queries with some positive among the first k. The stateful twin of ``recall_at_k``.

    Each language has a gallery of its own (:func:`~ccr_lightning.functional.galleries.ranks_by_language`); ids and
    ``update`` are those of :class:`RetrievalEmbeddings`.

    Args:
        k: The cut-off, at least 1.
        direction: ``image_to_text`` or ``text_to_image``.
        average: ``macro`` for the mean over languages; ``none`` for one value per language, in the order of their
            indices, without those that have no caption.
        kwargs: Passed on to ``torchmetrics.Metric``.

    Raises:
        CCRError: If an argument is not one of these.

    Example:
        >>> metric = RecallAtK(k=1, direction="image_to_text", average="none")
        >>> image_embeds = torch.eye(3)
        >>> text_embeds = torch.stack([image_embeds, image_embeds[[0, 2, 1]]], 1)
        >>> metric.update(image_embeds, text_embeds, torch.tensor([4, 5, 6]))
        >>> metric.compute()
        tensor([1.0000, 0.3333], dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    plot_legend_name = "Language"

    def __init__(
        self,
        k: int = 1,
        direction: Direction = "text_to_image",
        average: Literal["macro", "none"] = "macro",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        _check_choice("direction", direction, get_args(Direction))
        _check_choice("average", average, ("macro", "none"))
        if k < 1 or k != int(k):
            raise CCRError(f"k is {k}: recall@k needs a whole k of at least 1.")
        self.k = k
        self.direction: Direction = direction
        self.average = average

    def compute(self) -> Tensor:
        """Computes recall@k, in float64: scalar, or (K,) with ``average="none"``.

        Raises:
            CCRError: As :meth:`RetrievalEmbeddings.compute`, or if embeddings are not finite.
        """
        per_language = ranks_by_language(self._seen(), self.direction).values()
        recalls = torch.stack([recall_at_k(language.ranks, self.k) for language in per_language])
        return recalls.mean() if self.average == "macro" else recalls

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plots recall@k, or several values of it as steps: of each language with ``average="none"``.

        Args:
            val: What ``compute`` or ``forward`` returned, or a list of such values; by default that of ``compute`` now.
            ax: Axes of matplotlib to draw on; by default new ones.

        Returns:
            The figure, None if ``ax`` was given, and the axes.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.

        Example:
            >>> metric = RecallAtK(k=1, average="none")
            >>> metric.update(torch.eye(3), torch.eye(3)[:, None].expand(3, 2, 3), torch.arange(3))
            >>> figure, axes = metric.plot()
            >>> [text.get_text() for text in axes.get_legend().get_texts()]
            ['Language 0', 'Language 1']
        """
        return self._plot(val, ax)


class MeanRankVariance(RetrievalEmbeddings):
    """MRV: mean over images of the variance of the rank over languages. The stateful twin of ``mean_rank_variance``.

    Nie et al., KDD 2024. Instances are aligned by image id, and only images with a caption in every language count. For
    ``text_to_image`` the rank of an image in a language is that of its caption there, or the mean over its captions.
    Each language has a gallery of its own (:func:`~ccr_lightning.functional.galleries.ranks_by_language`); ids and
    ``update`` are those of :class:`RetrievalEmbeddings`. With one language only, the result is 0.

    Args:
        direction: ``image_to_text`` or ``text_to_image``.
        statistic: ``variance`` for MRV; ``std`` for the mean standard deviation, MRSD.
        kwargs: Passed on to ``torchmetrics.Metric``.

    Raises:
        CCRError: If an argument is not one of these.

    Example:
        >>> metric = MeanRankVariance(direction="text_to_image")
        >>> image_embeds = torch.eye(3)
        >>> text_embeds = torch.stack([image_embeds, image_embeds[[0, 2, 1]]], 1)
        >>> metric.update(image_embeds, text_embeds, torch.tensor([4, 5, 6]))
        >>> metric.compute()  # ranks (1, 1), (1, 3) and (1, 3)
        tensor(0.6667, dtype=torch.float64)
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def __init__(
        self, direction: Direction = "text_to_image", statistic: Statistic = "variance", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        _check_choice("direction", direction, get_args(Direction))
        _check_choice("statistic", statistic, get_args(Statistic))
        self.direction: Direction = direction
        self.statistic: Statistic = statistic
        self._left_out: int | None = None

    @property
    def left_out(self) -> int | None:
        """Number of images that did not count in the last ``compute``, for want of a caption in some language."""
        return self._left_out

    def compute(self) -> Tensor:
        """Computes MRV, or MRSD: scalar, float64.

        Raises:
            CCRError: As :meth:`RetrievalEmbeddings.compute`, if embeddings are not finite, or if no image has a caption
                in every language.
        """
        seen = self._seen()
        per_language = ranks_by_language(seen, self.direction).values()
        image_ids, ranks = align_ranks(
            [language.image_ids for language in per_language], [language.ranks for language in per_language]
        )
        self._left_out = len(seen.image_ids) - len(image_ids)
        return mean_rank_variance(ranks, self.statistic)

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: _AX_TYPE | None = None) -> _PLOT_OUT_TYPE:
        """Plots MRV, or several values of it as steps.

        Args:
            val: What ``compute`` or ``forward`` returned, or a list of such values; by default that of ``compute`` now.
            ax: Axes of matplotlib to draw on; by default new ones.

        Returns:
            The figure, None if ``ax`` was given, and the axes.

        Raises:
            ModuleNotFoundError: If matplotlib is not installed.

        Example:
            >>> figure, axes = MeanRankVariance().plot([torch.tensor(2.5), torch.tensor(1.5)])
            >>> axes.get_xlabel(), axes.lines[0].get_ydata().tolist()
            ('Step', [2.5, 1.5])
        """
        return self._plot(val, ax)


def _first_of_each(keys: Tensor, embeds: Tensor, what: str) -> Tensor:
    """Index of the first row of each key (N, C), in the order of the keys.

    Raises:
        CCRError: If rows of one key are not embeddings of one thing.
    """
    distinct, place = torch.unique(keys, dim=0, return_inverse=True)
    number = torch.arange(len(keys), device=keys.device)
    first = torch.full_like(distinct[:, 0], len(keys)).scatter_reduce(0, place, number, "amin")
    repeats = (first[place] != number).nonzero().squeeze(1)
    original = embeds[first[place[repeats]]]
    distance = torch.linalg.vector_norm(embeds[repeats] - original, dim=1)
    differs = distance > _SAME * torch.linalg.vector_norm(original, dim=1)
    if differs.any():
        raise CCRError(
            f"{int(differs.sum())} repeats have other embeddings than the first item of their ids, first "
            f"{what.format(*keys[repeats[differs]][0].tolist())}: give each image its own image id and each caption of "
            "an image its own caption_index, and encode without dropout and augmentation."
        )
    return first


def _concatenated(state: list[Tensor] | Tensor) -> Tensor:
    """A list state as one tensor, which it is already once devices have been synchronised."""
    if isinstance(state, Tensor):
        return state
    return torch.cat(state) if state else torch.empty(0, dtype=torch.int64)


def _storable(embeds: Tensor) -> Tensor:
    """A detached copy in float32 or float64: devices must agree on the dtype of what they exchange."""
    return embeds.detach().to(torch.promote_types(embeds.dtype, torch.float32), copy=True)


def _copied(integers: Tensor) -> Tensor:
    # What a loader's worker has sent keeps a file open for as long as it lives, and a process may open about 1,000.
    return integers.to(torch.int64, copy=True)


def _check_embeds(name: str, embeds: Tensor, shape: tuple[int | str, ...]) -> None:
    if embeds.ndim != len(shape) or embeds.shape[0] != shape[0] or 0 in embeds.shape[1:]:
        raise CCRError(
            f"{name} has shape {tuple(embeds.shape)}: pass ({', '.join(map(str, shape))}), one row per image id."
        )
    if not embeds.is_floating_point():
        raise CCRError(f"{name} is {embeds.dtype}: pass floating point.")


def _check_integers(name: str, values: Tensor, rows: int) -> None:
    if values.shape != (rows,) or values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise CCRError(
            f"{name} is {values.dtype} of shape {tuple(values.shape)}: pass integers of shape ({rows},), one per row."
        )


def _check_language_counts(counts: list[Tensor] | Tensor) -> None:
    different = torch.unique(_concatenated(counts)).tolist()
    if len(different) > 1:
        raise CCRError(
            f"text_embeds had {different[0]} languages in one update and {different[1]} in another: pass the same K "
            "languages every time, with a caption_mask for missing captions."
        )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise CCRError(f"{name} is {value!r}: choose one of {', '.join(choices)}.")
