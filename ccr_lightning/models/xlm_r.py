"""Layers of XLM-R, or of a model like it, as the start of the text and fusion encoders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ccr_lightning.errors import CCRError
from ccr_lightning.hub import model_folder
from ccr_lightning.models.pretrained import read_config
from ccr_lightning.models.torch_file import read_torch_file

if TYPE_CHECKING:
    from ccr_lightning.models.retriever import Retriever

_KINDS = ("xlm-roberta", "roberta", "camembert")
_OF_LAYER = {  # our name of a part to theirs
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention.norm": "attention.output.LayerNorm",
    "feed_forward.intermediate": "intermediate.dense",
    "feed_forward.output": "output.dense",
    "feed_forward.norm": "output.LayerNorm",
}
_OF_HEAD = {"dense": "lm_head.dense", "norm": "lm_head.layer_norm"}


@torch.no_grad()
def start_from_xlm_r(retriever: Retriever, name_or_path: str) -> set[str]:
    """Copies weights of XLM-R into the text encoder, the fusion encoder and the masked-LM head, in place.

    Of a model with more layers every second, third, ... is taken, the last one among them: of XLM-R-large's 24, counted
    from 0, layers 1, 3, ..., 23 for six layers of the text encoder and six of fusion (Nie et al., KDD 2024). The lower
    ones go to the text encoder. Its positions, which start at 2 there, start at 0 here, and its one token type is added
    to them.

    Args:
        retriever: Of the same width, heads and vocabulary.
        name_or_path: A folder that transformers wrote, or a name on the Hugging Face hub.

    Returns:
        Names of the parameters that were copied; all others of the retriever stay as they were.

    Raises:
        CCRError: There is no such model, it is of another kind or size, or a tensor is missing.
    """
    folder = model_folder(name_or_path)
    config = _config(folder)
    text, fusion = retriever.text_encoder, retriever.fusion
    sizes = {
        "hidden_size": text.settings["hidden_size"],
        "num_attention_heads": text.settings["heads"],
        "intermediate_size": text.settings["feed_forward_size"],
        "vocab_size": text.vocab_size,
    }
    for name, size in sizes.items():
        if config.get(name) != size:
            raise CCRError(
                f"{folder}: its {name} is {config.get(name)} and the text encoder's {size}: make them equal."
            )
    layers = [f"text_encoder.layers.{number}" for number in range(len(text.layers))]
    if fusion is not None:
        layers += [f"fusion.layers.{number}" for number in range(len(fusion.layers))]
    tensors = _Tensors(folder)
    copied: set[str] = set()

    def copy(name: str, tensor: Tensor) -> None:
        own = retriever.get_parameter(name)
        if own.shape != tensor.shape:
            raise CCRError(
                f"{folder}: what becomes {name!r} is {tuple(tensor.shape)}, and {tuple(own.shape)} would fit."
            )
        own.copy_(tensor)
        copied.add(name)

    copy("text_encoder.word_embeddings.weight", tensors["embeddings.word_embeddings.weight"])
    copy("text_encoder.position_embeddings.weight", _positions(folder, tensors, config, text.max_positions))
    for leaf in ("weight", "bias"):
        copy(f"text_encoder.norm.{leaf}", tensors[f"embeddings.LayerNorm.{leaf}"])
        for name, number in zip(layers, _chosen(folder, config, len(layers)), strict=True):
            for ours, theirs in _OF_LAYER.items():
                copy(f"{name}.{ours}.{leaf}", tensors[f"encoder.layer.{number}.{theirs}.{leaf}"])
        if fusion is not None and "lm_head.dense.weight" in tensors:
            for ours, theirs in _OF_HEAD.items():
                copy(f"masked_lm_head.{ours}.{leaf}", tensors[f"{theirs}.{leaf}"])
    if fusion is not None and "lm_head.bias" in tensors:
        copy("masked_lm_head.bias", tensors["lm_head.bias"])
    return copied


def _chosen(folder: Path, config: Mapping[str, Any], wanted: int) -> range:
    """Numbers of the layers to take: evenly spread, the last one among them."""
    there = config.get("num_hidden_layers")
    if not isinstance(there, int) or not wanted or there % wanted:
        raise CCRError(
            f"{folder}: it has {there} layers, of which {wanted} cannot be taken evenly: let the text encoder and the "
            "fusion encoder have a divisor of that together."
        )
    return range(there // wanted - 1, there, there // wanted)


def _positions(folder: Path, tensors: _Tensors, config: Mapping[str, Any], wanted: int) -> Tensor:
    """Embeddings of the positions from 0 on, which come after those that padding has."""
    table = tensors["embeddings.position_embeddings.weight"]
    unused = int(config.get("pad_token_id", 1)) + 1
    if wanted > len(table) - unused:
        raise CCRError(
            f"{folder}: it has {len(table) - unused} positions: set the text encoder's max_positions to that or less."
        )
    return table[unused : unused + wanted] + tensors["embeddings.token_type_embeddings.weight"][0]


def _config(folder: Path) -> dict[str, Any]:
    config = read_config(folder)
    if config.get("model_type") not in _KINDS:
        raise CCRError(f"{folder}: its model_type is {config.get('model_type')!r}; give one of {', '.join(_KINDS)}.")
    return config


class _Tensors:
    """The tensors of a model's files, with or without the prefix that models with a head have, in any order."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, Path] = {}
        self._pickled: dict[str, Tensor] = {}
        files = sorted(folder.glob("model*.safetensors"))
        for file in files:
            with _opened(file) as content:
                self._files |= dict.fromkeys(content.keys(), file)
        if not files:
            content = read_torch_file(folder / "pytorch_model.bin")
            self._pickled = {name: of for name, of in content.items() if isinstance(of, Tensor)}

    def _name(self, name: str) -> str | None:
        known = self._files or self._pickled
        return next((key for key in (name, f"roberta.{name}") if key in known), None)

    def __contains__(self, name: str) -> bool:
        return self._name(name) is not None

    def __getitem__(self, name: str) -> Tensor:
        key = self._name(name)
        if key is None:
            raise CCRError(f"{self._folder}: {name!r} is missing among its weights.")
        if key in self._pickled:
            return self._pickled[key]
        with _opened(self._files[key]) as content:
            tensor: Tensor = content.get_tensor(key)
        return tensor


def _opened(file: Path) -> Any:
    from safetensors import safe_open

    try:
        return safe_open(file, "pt")
    except Exception as error:  # safetensors has an exception of its own, and OSError
        raise CCRError(f"{file}: cannot be read ({error}); fetch it again.") from error
