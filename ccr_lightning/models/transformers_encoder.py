"""Dual encoders of the transformers library: SigLIP, SigLIP 2, CLIP, Chinese-CLIP, AltCLIP and their kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ccr_lightning.data.patches import unpack_patches
from ccr_lightning.data.processor_transform import ProcessorTransform
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.errors import CCRError
from ccr_lightning.hub import TEXTS, local_folder, model_folder
from ccr_lightning.libraries import quiet, reason
from ccr_lightning.models.card import write_card
from ccr_lightning.models.digests import check_digests, write_digests
from ccr_lightning.models.dual_encoder import DualEncoder, Encoded, normalised
from ccr_lightning.models.parts import freeze_unreached, layers_of

_PADS_TO_MAX = ("siglip", "siglip2")  # trained, hence to be used, with captions padded to the full length
_COUNTS_FROM_PADDING = ("altclip_text_model",)  # positions, as XLM-R does
_PROJECTIONS = ("visual_projection", "text_projection", "vision_model.head", "text_model.head")


class TransformersDualEncoder(DualEncoder):
    """Any model of transformers with ``get_image_features`` and ``get_text_features``.

    It reads what its own image processor makes of pictures
    (:class:`~ccr_lightning.data.processor_transform.ProcessorTransform`) and what its own tokeniser makes of captions
    (:class:`~ccr_lightning.data.tokenizer.CaptionTokenizer`), and goes on with its own temperature.

    Args:
        name_or_path: A folder that transformers wrote, or a name on the Hugging Face hub.
        pretrained: Whether to load the weights; without, they are random, for a checkpoint to replace.

    Raises:
        CCRError: There is no such model, it is none of transformers' own or has no such features, or a part of its
            weights is missing.
    """

    def __init__(self, name_or_path: str, pretrained: bool = True) -> None:
        model = _load(name_or_path, pretrained)
        scale = getattr(model, "logit_scale", None)
        if scale is None or not all(hasattr(model, name) for name in ("get_image_features", "get_text_features")):
            raise CCRError(
                f"{name_or_path}: {type(model).__name__} is no dual encoder with a learned temperature; pass one that "
                "is, such as CLIP or SigLIP."
            )
        bias = getattr(model, "logit_bias", None)
        super().__init__(scale.detach().item(), None if bias is None else bias.detach().item())
        self._shape_of_scale = scale.shape
        model.logit_scale = model.logit_bias = None  # they are this class' own parameters now
        self.name_or_path = name_or_path
        self.model = model
        self._takes_mask = "attention_mask" in _tokenizer(name_or_path).model_input_names
        self._takes_patches = "spatial_shapes" in signature(model.get_image_features).parameters
        self.transform: ProcessorTransform = ProcessorTransform(name_or_path)
        self.tokenizer: CaptionTokenizer = CaptionTokenizer(name_or_path, **tokenizer_settings(name_or_path))
        freeze_unreached(self)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self.model.config.text_config.vocab_size)

    @property
    def max_positions(self) -> int:
        """Most tokens of a caption."""
        return _positions(self.model.config)

    def encode_image(self, images: Tensor) -> Encoded:
        """Encodes what the processor makes of B pictures, (B, 3, H, W): embeddings (B, D)."""
        if self._takes_patches:
            pixels, mask, shapes = unpack_patches(images)
            features = self.model.get_image_features(pixels, pixel_attention_mask=mask, spatial_shapes=shapes)
        else:
            features = self.model.get_image_features(images)
        return _encoded(features)

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor, most_tokens: int | None = None) -> Encoded:
        """Encodes captions (N, L), or one per language (B, K, L): embeddings (..., D)."""
        ids, mask = input_ids.flatten(0, -2), attention_mask.flatten(0, -2)
        given = {}
        if self._takes_mask:
            given["attention_mask"] = (mask | ~mask.any(1, keepdim=True)).long()  # a row of padding looks at itself
        embeds, states = _encoded(self.model.get_text_features(ids, **given))
        shape = input_ids.shape[:-1]
        return Encoded(embeds.view(*shape, -1), states.view(*shape, *states.shape[1:]))

    def towers(self) -> list[list[nn.Module]]:
        """The layers of both encoders."""
        return [layers_of(self.model.vision_model), layers_of(self.model.text_model)]

    def projections(self) -> list[nn.Module]:
        """What makes embeddings of the encoders' states."""
        parts = dict(self.model.named_modules())
        return [parts[name] for name in _PROJECTIONS if name in parts]

    def save_pretrained(self, folder: str | Path, results: Mapping[str, Any] | None = None) -> None:
        """Saves the model as transformers does, with its processor and tokeniser, and with a card.

        Args:
            folder: Made if need be. Both transformers and this class load it.
            results: The document of a test of it, as in ``results.json``, for the card.

        Raises:
            CCRError: If a file cannot be written.
        """
        folder = Path(folder)
        state = self.model.state_dict() | {"logit_scale": self.log_logit_scale.detach().reshape(self._shape_of_scale)}
        if self.logit_bias is not None:
            state["logit_bias"] = self.logit_bias.detach()
        with _written(folder):
            self.model.save_pretrained(folder, state_dict=state)
        self.save_settings(folder)
        write_digests(folder)
        write_card(folder, folder.resolve().name, sum(parameter.numel() for parameter in self.parameters()), results)

    def save_settings(self, folder: Path) -> None:
        """Saves configuration, processor and tokeniser; see :meth:`DualEncoder.save_settings`."""
        with _written(folder):
            self.model.config.save_pretrained(folder)
            self.transform.processor.save_pretrained(folder)
        self.tokenizer.save(folder)


@contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        with quiet():
            yield
    except OSError as error:
        raise CCRError(f"{folder}: the model could not be written ({error}); choose another place.") from error


def tokenizer_settings(name_or_path: str) -> dict[str, Any]:
    """Returns the arguments of the ``CaptionTokenizer`` that suits a model, besides its name."""
    from transformers import AutoConfig

    try:
        with quiet():
            config = AutoConfig.from_pretrained(local_folder(name_or_path, *TEXTS), trust_remote_code=False)
    except CCRError:
        raise
    except Exception as error:
        raise _cannot_load(name_or_path, error) from error
    if not hasattr(config, "text_config"):
        raise CCRError(
            f"{name_or_path}: a {config.model_type} is no dual encoder of images and texts; pass one that is."
        )
    longest = min(_tokenizer(name_or_path).model_max_length, _positions(config))
    return {"max_tokens": longest, "pads_to_max": config.model_type in _PADS_TO_MAX}


def _positions(config: Any) -> int:
    """Most tokens of a caption."""
    text = config.text_config
    positions = int(text.max_position_embeddings)
    return positions - text.pad_token_id - 1 if text.model_type in _COUNTS_FROM_PADDING else positions


def _cannot_load(name_or_path: str, error: Exception) -> CCRError:
    own_code = "trust_remote_code" in str(error)
    why = "it needs code of its own, which is not run" if own_code else reason(error)
    return CCRError(
        f"the model {name_or_path!r} cannot be loaded ({why}); give the path of a folder that transformers wrote, "
        "or a name on the Hugging Face hub and a connection to it."
    )


def _encoded(features: Any) -> Encoded:
    """What get_image_features or get_text_features returned, which depends on the version of transformers."""
    if isinstance(features, Tensor):
        return Encoded(normalised(features), features[:, None])
    return Encoded(normalised(features.pooler_output), features.last_hidden_state)


def _load(name_or_path: str, pretrained: bool) -> Any:
    """The model in float32; nothing but transformers' own code makes it."""
    from transformers import AutoConfig, AutoModel

    settings: dict[str, Any] = {"trust_remote_code": False}
    try:
        with quiet():
            if not pretrained:
                config = AutoConfig.from_pretrained(local_folder(name_or_path, *TEXTS), **settings)
                return AutoModel.from_config(config, dtype=torch.float32, **settings)
            settings |= {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
            folder = model_folder(name_or_path)
            check_digests(folder)
            model, info = AutoModel.from_pretrained(folder, **settings)
    except CCRError:
        raise
    except Exception as error:  # transformers and the hub raise anything
        raise _cannot_load(name_or_path, error) from error
    for key, saved, own in info["mismatched_keys"]:
        raise CCRError(f"{name_or_path}: {key!r} is {tuple(saved)} where {tuple(own)} would fit; fetch it again.")
    if absent := sorted(info["missing_keys"]):
        raise CCRError(f"{name_or_path}: the weights lack {absent[0]!r}; fetch them again.")
    return model


def _tokenizer(name_or_path: str) -> Any:
    from transformers import AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(local_folder(name_or_path, *TEXTS), trust_remote_code=False)
    except Exception as error:
        raise CCRError(
            f"the tokeniser of {name_or_path!r} cannot be loaded ({reason(error)}); complete its files."
        ) from error
