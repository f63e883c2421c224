"""Any model from its folder or its name on the Hugging Face hub, and how a configuration describes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from ccr_lightning.models.dual_encoder import DualEncoder
from ccr_lightning.models.pretrained import LIBRARY, check_retriever_config, read_config, retriever_folder
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.transformers_encoder import TransformersDualEncoder, tokenizer_settings

_TOKENIZER = "ccr_lightning.data.tokenizer.CaptionTokenizer"
_TRANSFORM = "ccr_lightning.data.transforms.ImageTransform"
_PROCESSOR = "ccr_lightning.data.processor_transform.ProcessorTransform"


class Description(NamedTuple):
    """What a configuration says of a model."""

    retriever: dict[str, Any]  # class_path and init_args, without weights of a retriever
    tokenizer: dict[str, Any]  # class_path and init_args
    transform: dict[str, Any]  # class_path and init_args
    training: dict[str, Any]  # settings of RetrievalModule that suit it


def from_pretrained(name_or_path: str | Path) -> DualEncoder:
    """Loads a model: a retriever that was saved, or a dual encoder of transformers.

    Args:
        name_or_path: Its folder, or its name on the Hugging Face hub.

    Returns:
        The model in evaluation mode, with its ``tokenizer`` and ``transform``.

    Raises:
        CCRError: There is none, it is of no known kind, or its files are damaged.
    """
    if read_config(name_or_path).get("library_name") == LIBRARY:
        return Retriever.from_pretrained(name_or_path)
    return TransformersDualEncoder(str(name_or_path)).eval()


def describe(name_or_path: str) -> Description:
    """Returns how a configuration describes a model; its weights are not read.

    Raises:
        CCRError: There is none, or it is of no known kind.
    """
    config = read_config(name_or_path)
    if config.get("library_name") != LIBRARY:
        named = {"name_or_path": name_or_path}
        without_fusion = {"matching_weight": 0.0, "masked_lm_weight": 0.0}
        is_sigmoid = str(config.get("model_type")).startswith("siglip")
        return Description(
            _of("ccr_lightning.models.transformers_encoder.TransformersDualEncoder", named),
            _of(_TOKENIZER, {**named, **tokenizer_settings(name_or_path)}),
            _of(_PROCESSOR, named),
            {**without_fusion, "objective": "one_to_k_sigmoid" if is_sigmoid else "one_to_k"},
        )
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
        {} if has_fusion else {"matching_weight": 0.0, "masked_lm_weight": 0.0},
    )


def _of(class_path: str, init_args: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": class_path, "init_args": init_args}
