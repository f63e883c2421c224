"""What every model here is: images and captions in one space, and the temperature that the loss divides by."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ccr_lightning.data.images import as_rgb
from ccr_lightning.errors import CCRError
from ccr_lightning.functional.similarity import slices

if TYPE_CHECKING:
    from ccr_lightning.data.tokenizer import CaptionTokenizer
    from ccr_lightning.data.transforms import ImageTransform
    from ccr_lightning.models.fusion import FusionEncoder

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.001, 0.5

_Hit = TypeVar("_Hit", covariant=True)


class Searchable(Protocol[_Hit]):
    """What :meth:`DualEncoder.search` searches: ``ccr_lightning.Index``."""

    def check_model(self, model: DualEncoder) -> None:
        """Check that the model made what is in it."""
        ...

    def search(self, queries: Tensor, k: int) -> Sequence[Sequence[_Hit]]:
        """Find the k best of each query (Q, D)."""
        ...


class Encoded(NamedTuple):
    """Images or captions, as embeddings and as token states."""

    embeds: Tensor  # (..., D), L2-normalised, at least float32
    states: Tensor  # (..., tokens, width of the encoder)


def normalised(projected: Tensor) -> Tensor:
    """L2-normalises vectors (..., D), at least in float32."""
    return F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=-1)


class DualEncoder(nn.Module, ABC):
    """Embeds images and captions in one space.

    Attributes:
        log_logit_scale: The stored parameter, (1,), the logarithm of 1 / temperature; nothing shards a scalar.
        logit_bias: What a sigmoid loss adds to all logits, (1,); None for models without.
        fusion: What scores pairs of image and caption beyond their embeddings; None for a plain dual encoder.
        tokenizer: What makes token ids of captions for it, if known.
        transform: What makes pixels of pictures for it, if known.

    Args:
        log_logit_scale: The logarithm of 1 / temperature at the start.
        logit_bias: The bias at the start, for models that have one.
    """

    def __init__(self, log_logit_scale: float, logit_bias: float | None = None) -> None:
        super().__init__()
        self.log_logit_scale = nn.Parameter(torch.tensor([log_logit_scale]))
        self.logit_bias = None if logit_bias is None else nn.Parameter(torch.tensor([logit_bias]))
        self.fusion: FusionEncoder | None = None
        self.tokenizer: CaptionTokenizer | None = None
        self.transform: ImageTransform | None = None

    @property
    def logit_scale(self) -> Tensor:
        """1 / temperature, a scalar that the loss differentiates."""
        return self.log_logit_scale.exp().squeeze()

    @property
    def temperature(self) -> Tensor:
        """The current temperature, a scalar without gradient."""
        return self.log_logit_scale.detach().neg().exp().squeeze()

    @torch.no_grad()
    def clamp_temperature_(self) -> None:
        """Puts the temperature back into [0.001, 0.5], for use after each optimiser step."""
        self.log_logit_scale.clamp_(-math.log(MAX_TEMPERATURE), -math.log(MIN_TEMPERATURE))

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of token ids."""

    @property
    @abstractmethod
    def max_positions(self) -> int:
        """Most tokens of a caption."""

    @abstractmethod
    def encode_image(self, images: Tensor) -> Encoded:
        """Encodes what ``transform`` makes of B pictures: embeddings (B, D)."""

    @abstractmethod
    def encode_text(self, input_ids: Tensor, attention_mask: Tensor, most_tokens: int | None = None) -> Encoded:
        """Encodes what ``tokenizer`` makes of captions, (N, L) or one per language, (B, K, L): embeddings (..., D).

        Args:
            input_ids: (..., L) int64.
            attention_mask: (..., L) bool, True for tokens. A row without any (no such caption) gets an embedding that
                means nothing, but is finite.
            most_tokens: A bound on the number of tokens, which may spare a GPU the wait for their count.
        """

    def embed_captions(
        self, captions: Sequence[str], languages: Sequence[str] | None = None, batch_size: int = 256
    ) -> Tensor:
        """Embeds texts.

        Args:
            captions: N texts, in any language that the model knows.
            languages: Their codes, for a model that wants to be told; others do without.
            batch_size: Texts at a time.

        Returns:
            (N, D) float32, L2-normalised, on the CPU; computed as in evaluation.

        Raises:
            CCRError: The model has no tokenizer, or a text is no Unicode.
        """
        if self.tokenizer is None:
            raise CCRError("this model does not know what makes token ids for it: set its tokenizer.")
        try:
            "".join(captions).encode()
        except UnicodeEncodeError as error:  # of bytes on a command line, say, that were no UTF-8
            raise CCRError(
                f"a text has {error.object[error.start]!a}, which is no character: write it again, in UTF-8."
            ) from error
        embeds = []
        with self._encoding() as device:
            for part in slices(len(captions), batch_size):
                input_ids, mask = self.tokenizer.encode(captions[part], languages[part] if languages else None)
                embeds.append(self.encode_text(input_ids.to(device), mask.to(device)).embeds.float().cpu())
        return torch.cat(embeds)

    def embed_images(self, images: Sequence[Image.Image], batch_size: int = 64) -> Tensor:
        """Embeds pictures.

        Args:
            images: N pictures of Pillow.
            batch_size: Pictures at a time.

        Returns:
            (N, D) float32, L2-normalised, on the CPU; computed as in evaluation.

        Raises:
            CCRError: The model has no transform.
        """
        if self.transform is None:
            raise CCRError("this model does not know what makes pixels for it: set its transform.")
        embeds = []
        for part in slices(len(images), batch_size):
            embeds.append(self.embed_pixels([self.transform.evaluate(as_rgb(image)) for image in images[part]]))
        return torch.cat(embeds)

    def embed_pixels(self, pixels: Sequence[np.ndarray[Any, np.dtype[np.uint8]]]) -> Tensor:
        """Embeds a batch of what ``transform.evaluate`` made of pictures: see :meth:`embed_images`."""
        assert self.transform is not None
        with self._encoding() as device:
            images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).to(device)
            return self.encode_image(self.transform.normalize(images)).embeds.float().cpu()

    @contextmanager
    def _encoding(self) -> Iterator[torch.device]:
        """Encodes without gradients or dropout, on the device of the parameters."""
        was_training = self.training
        self.eval()
        try:
            with torch.inference_mode():
                yield self.log_logit_scale.device
        finally:
            self.train(was_training)

    def search(
        self, index: Searchable[_Hit], queries: Sequence[str | Image.Image], k: int = 10
    ) -> Sequence[Sequence[_Hit]]:
        """Finds the pictures of an index that are most similar to captions or pictures, exactly.

        Args:
            index: An ``Index`` that this model made.
            queries: Captions in any language that the model knows, and pictures of Pillow.
            k: How many of each query; fewer if there are fewer pictures.

        Returns:
            For each query its hits, best first, with ``picture`` and ``similarity``.

        Raises:
            CCRError: The index was made by another model, or there is no query.

        Example:
            >>> from ccr_lightning import Index, from_pretrained
            >>> model = from_pretrained("models/mine")  # doctest: +SKIP
            >>> model.search(Index("pictures.index"), ["ein roter Apfel"])[0][0].picture.path  # doctest: +SKIP
            '/home/me/Pictures/apple.jpg'
        """
        if isinstance(queries, str) or not queries:
            raise CCRError("search takes a list of queries, with at least one: pass [query].")
        for query in queries:
            if not (query.strip() if isinstance(query, str) else isinstance(query, Image.Image)):
                raise CCRError(
                    f"search cannot use {query!r}: pass captions that say something, and pictures of Pillow."
                )
        index.check_model(self)
        places = {kind: [n for n, of in enumerate(queries) if isinstance(of, str) is kind] for kind in (True, False)}
        texts, images = ([queries[place] for place in places[kind]] for kind in (True, False))
        parts = [self.embed_captions(texts)] if texts else []  # type: ignore[arg-type]
        parts += [self.embed_images(images)] if images else []  # type: ignore[arg-type]
        order = torch.tensor([*places[True], *places[False]]).argsort()
        return index.search(torch.cat(parts)[order], k)

    @abstractmethod
    def save_pretrained(self, folder: str | Path, results: Mapping[str, Any] | None = None) -> None:
        """Saves the model with what prepares its inputs, for ``from_pretrained``, and with a card.

        Args:
            folder: Made if need be.
            results: The document of a test of it, as in ``results.json``, for the card.

        Raises:
            CCRError: If a file cannot be written.
        """

    def save_settings(self, folder: Path) -> None:
        """Saves what makes such a model anew but for its weights, where a configuration does not say all of it.

        Args:
            folder: Made if there is something to save; it is then a name for the model.

        Raises:
            CCRError: If a file cannot be written.
        """

    def new_parameters(self) -> set[str]:
        """Names of the parameters that start at random while others are pretrained: they learn at a doubled rate."""
        return set()

    @abstractmethod
    def towers(self) -> Sequence[Sequence[nn.Module]]:
        """The layers of each encoder, from its input on; each is only used by calling it in training."""

    @abstractmethod
    def projections(self) -> Sequence[nn.Module | nn.Parameter]:
        """What makes embeddings of the encoders' last states."""

    def layers(self) -> list[nn.Module]:
        """The layers of all encoders."""
        return [layer for tower in self.towers() for layer in tower]
