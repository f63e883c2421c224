"""Any model from its folder or its name on the Hugging Face hub, and how a configuration describes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ccr_lightning.data.open_clip_source import PREFIX as OPEN_CLIP
from ccr_lightning.data.open_clip_source import find_open_clip
from ccr_lightning.models.dual_encoder import DualEncoder
from ccr_lightning.models.open_clip_encoder import OpenClipDualEncoder
from ccr_lightning.models.pretrained import (
    LIBRARY,
    check_retriever_config,
    is_of_open_clip,
    read_config,
    retriever_folder,
)
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.sentence_transformers_encoder import PREFIX as SENTENCE_TRANSFORMERS
from ccr_lightning.models.sentence_transformers_encoder import SentenceTransformersDualEncoder, input_settings
from ccr_lightning.models.transformers_encoder import TransformersDualEncoder, tokenizer_settings

_TOKENIZER = "ccr_lightning.data.tokenizer.CaptionTokenizer"
_TRANSFORM = "ccr_lightning.data.transforms.ImageTransform"
_PROCESSOR = "ccr_lightning.data.processor_transform.ProcessorTransform"
_WITHOUT_FUSION = {"matching_weight": 0.0, "masked_lm_weight": 0.0}


class Description(NamedTuple):
    """What a configuration says of a model."""

    retriever: dict[str, Any]  # class_path and init_args, without weights of a retriever
    tokenizer: dict[str, Any]  # class_path and init_args
    transform: dict[str, Any]  # class_path and init_args
    training: dict[str, Any]  # settings of RetrievalModule that suit it


def from_pretrained(name_or_path: str | Path) -> DualEncoder:
    """Loads a model: a retriever that was saved, or a dual encoder of transformers, open_clip or sentence-transformers.

    Args:
        name_or_path: Its folder, or its name on the Hugging Face hub; or ``open_clip:ARCHITECTURE/TAG``, or
            ``sentence-transformers:IMAGE_MODEL+TEXT_MODEL``.

    Returns:
        The model in evaluation mode, with its ``tokenizer`` and ``transform``.

    Raises:
        CCRError: There is none, it is of no known kind, or its files are damaged.
    """
    name = str(name_or_path)
    if name.startswith(SENTENCE_TRANSFORMERS):
        return SentenceTransformersDualEncoder(name).eval()
    if name.startswith(OPEN_CLIP) or is_of_open_clip(name):
        return OpenClipDualEncoder(name).eval()
    if read_config(name).get("library_name") == LIBRARY:
        return Retriever.from_pretrained(name)
    return TransformersDualEncoder(name).eval()


def describe(name_or_path: str) -> Description:
    """Returns how a configuration describes a model; its weights are not read.

    Raises:
        CCRError: There is none, or it is of no known kind.
    """
    if name_or_path.startswith(SENTENCE_TRANSFORMERS):
        return _of_sentence_transformers(name_or_path)
    if name_or_path.startswith(OPEN_CLIP) or is_of_open_clip(name_or_path):
        return _of_open_clip(name_or_path)
    config = read_config(name_or_path)
    if config.get("library_name") == LIBRARY:
        return _of_retriever(name_or_path, config)
    named = {"name_or_path": name_or_path}
    return Description(
        _of("ccr_lightning.models.transformers_encoder.TransformersDualEncoder", named),
        _of(_TOKENIZER, {**named, **tokenizer_settings(name_or_path)}),
        _of(_PROCESSOR, named),
        {**_WITHOUT_FUSION, "objective": _objective(str(config.get("model_type")).startswith("siglip"))},
    )


def _of_open_clip(name: str) -> Description:
    source = find_open_clip(name)
    named = {"name_or_path": name}
    return Description(
        _of("ccr_lightning.models.open_clip_encoder.OpenClipDualEncoder", named),
        _of("ccr_lightning.data.open_clip_inputs.OpenClipTokenizer", {**named, "max_tokens": source.context_length}),
        _of("ccr_lightning.data.open_clip_inputs.OpenClipTransform", named),
        {**_WITHOUT_FUSION, "objective": _objective(source.model.get("init_logit_bias") is not None)},
    )


def _of_sentence_transformers(name: str) -> Description:
    settings = input_settings(name)
    return Description(
        _of(
            "ccr_lightning.models.sentence_transformers_encoder.SentenceTransformersDualEncoder",
            {"name_or_path": name},
        ),
        _of(_TOKENIZER, settings.tokenizer),
        _of(_PROCESSOR, settings.transform),
        {**_WITHOUT_FUSION, "objective": _objective(is_sigmoid=False)},
    )


def _of_retriever(name_or_path: str, config: dict[str, Any]) -> Description:
    folder = retriever_folder(name_or_path)
    check_retriever_config(folder, config)
    parts = {
        "image_encoder": "ccr_lightning.models.vision.ImageEncoder",
        "text_encoder": "ccr_lightning.models.text.TextEncoder",
        "fusion": "ccr_lightning.models.fusion.FusionEncoder",
    }
    settings = dict(config["retriever"])
    for name, class_path in parts.items():
        settings[name] = settings[name] and _of(class_path, settings[name])
    has_fusion = settings["fusion"] is not None
    return Description(
        _of("ccr_lightning.models.retriever.Retriever", settings),
        _of(_TOKENIZER, {"name_or_path": str(folder), **config["tokenizer"]}),
        _of(_TRANSFORM, config["transform"]),
        {} if has_fusion else _WITHOUT_FUSION,
    )


def _objective(is_sigmoid: bool) -> str:
    return "one_to_k_sigmoid" if is_sigmoid else "one_to_k"


def _of(class_path: str, init_args: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}
