"""Any dual encoder under the image-text tasks of mteb, the Massive Text Embedding Benchmark."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ccr_lightning.data.images import as_rgb
from ccr_lightning.data.transforms import ImageTransform
from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation.results import weights_sha256
from ccr_lightning.files import settings_sha256
from ccr_lightning.models.dual_encoder import DualEncoder, normalised


class MTEBModel:
    """A model as mteb wants it: an encoder of texts, of images, and of texts with an image each.

    The embedding of a text with an image is the normalised sum of both. Prompts of tasks are not used. The model is
    moved to the device and put into evaluation mode.

    mteb keeps results by name and revision. The revision here is a hash of the weights, the tokeniser and the
    transform, so that a model that has learned since is not given the results of the one before: wrap it again.

    Args:
        model: Any dual encoder that knows its ``tokenizer`` and ``transform``, as all that ``from_pretrained`` returns.
        name: What mteb calls it, ``organisation/model``; by default ``ccr-lightning/`` and the name of its class.
        batch_size: Texts or images that are encoded at once; by default the ``batch_size`` of mteb's
            ``encode_kwargs``, which is 32 unless given.
        device: Where to encode; by default a CUDA device if there is one, or else where the model is.

    Raises:
        CCRError: mteb is not installed, the model does not know what prepares its inputs, or an argument does not fit.

    Attributes:
        mteb_model_meta: What mteb keeps of the model besides its results.

    Example:
        Retrieval of images by captions in 8 languages::

            import mteb
            from ccr_lightning.evaluation.mteb_model import MTEBModel
            results = mteb.evaluate(MTEBModel(model), tasks=mteb.get_tasks(tasks=["XFlickr30kCoT2IRetrieval"]))
    """

    def __init__(
        self,
        model: DualEncoder,
        name: str | None = None,
        batch_size: int | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        try:
            import mteb
        except ImportError as error:
            raise CCRError("MTEBModel needs mteb: pip install 'ccr-lightning[mteb]'.") from error
        if model.tokenizer is None or model.transform is None:
            raise CCRError(
                f"this {type(model).__name__} does not know what prepares its inputs: set its tokenizer and transform, "
                "then evaluate it."
            )
        name = f"ccr-lightning/{type(model).__name__}" if name is None else name
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            raise CCRError(f"MTEBModel got name {name!r}; mteb wants organisation/model, such as 'mine/tiny'.")
        if batch_size is not None and batch_size < 1:
            raise CCRError(f"MTEBModel got batch_size {batch_size}; give 1 or more.")
        if device is None:
            device = "cuda" if torch.cuda.is_available() else model.log_logit_scale.device
        try:
            self.model = model.to(device)
        except (AssertionError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise CCRError(f"MTEBModel got device {str(device)!r}, which cannot be used ({reason}).") from error
        self.batch_size = batch_size
        self._tokenizer, self._transform = model.tokenizer, model.transform
        parameters = list(model.parameters())
        self.mteb_model_meta = mteb.models.ModelMeta(
            loader=None,
            name=name,
            revision=self._revision(),
            release_date=None,
            languages=None,
            n_parameters=sum(parameter.numel() for parameter in parameters),
            memory_usage_mb=sum(parameter.nbytes for parameter in parameters) / 2**20,
            max_tokens=self._tokenizer.max_tokens,
            embed_dim=self._embeds({"text": ["a"]}).shape[1],
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["PyTorch"],
            similarity_fn_name="cosine",
            use_instructions=False,
            training_datasets=None,
            modalities=["text", "image"],
        )

    def encode(
        self,
        inputs: DataLoader[Any],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        batch_size: int | None = None,
        show_progress_bar: bool = True,
        **kwargs: Any,
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Encodes what mteb hands over.

        Args:
            inputs: mteb's loader of batches with texts, images (of Pillow) or both.
            task_metadata: Not used, nor are the next three.
            hf_split: The split.
            hf_subset: The subset, often a language.
            prompt_type: Whether they are queries or documents.
            batch_size: Of ``encode_kwargs``; that of the constructor wins.
            show_progress_bar: Of ``encode_kwargs``.
            **kwargs: More of ``encode_kwargs``, which mean nothing here.

        Returns:
            Normalised embeddings (N, D), in the order of the inputs.

        Raises:
            CCRError: They have neither texts nor images.
        """
        from tqdm.auto import tqdm

        loader = DataLoader(
            inputs.dataset,
            batch_size=self.batch_size or batch_size or inputs.batch_size,
            collate_fn=partial(_with_pixels, collate=inputs.collate_fn, transform=self._transform),
            num_workers=inputs.num_workers,
        )
        batches = tqdm(loader, desc="Encoding", disable=not show_progress_bar)
        return np.concatenate([self._embeds(batch).cpu().numpy() for batch in batches])

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Returns the cosines between all of the first and all of the second, (N, M)."""
        from mteb.similarity_functions import cos_sim

        cosines: Tensor = cos_sim(embeddings1, embeddings2)
        return cosines

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Returns the cosines between each of the first and its counterpart of the second, (N,)."""
        from mteb.similarity_functions import pairwise_cos_sim

        cosines: Tensor = pairwise_cos_sim(embeddings1, embeddings2)
        return cosines

    @torch.inference_mode()
    def _embeds(self, batch: dict[str, Any]) -> Tensor:
        """Normalised embeddings (N, D), float32, of a batch with ``text``, ``image`` (pixels) or both."""
        self.model.eval()
        device = self.model.log_logit_scale.device
        parts = []
        if "text" in batch:
            input_ids, attention_mask = self._tokenizer.encode(batch["text"])
            parts.append(self.model.encode_text(input_ids.to(device), attention_mask.to(device)).embeds)
        if "image" in batch:
            parts.append(self.model.encode_image(self._transform.normalize(batch["image"].to(device))).embeds)
        if not parts:
            raise CCRError(f"mteb handed over {', '.join(batch)} and no text or image; choose a task that has them.")
        return normalised(torch.stack(parts).sum(0)).float()

    def _revision(self) -> str:
        return settings_sha256(
            {
                "weights": weights_sha256(self.model.state_dict()),
                "tokenizer": self._tokenizer.identity,
                "transform": self._transform.evaluation_settings,
            }
        )


def _with_pixels(rows: list[Any], collate: Callable[[list[Any]], Any], transform: ImageTransform) -> dict[str, Any]:
    """What mteb collates, its pictures as (B, 3, H, W) bytes: made here, mteb's ``num_proc`` workers share the work."""
    batch: dict[str, Any] = collate(rows)
    if "image" in batch:
        pixels = np.stack([transform.evaluate(as_rgb(image)) for image in batch["image"]])
        batch = {**batch, "image": torch.from_numpy(pixels).permute(0, 3, 1, 2)}
    return batch
