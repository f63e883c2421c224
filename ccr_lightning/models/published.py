"""Checkpoints that the authors of CCR^k and CCLM published, read into a retriever."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ccr_lightning.data.transforms import ImageTransform
from ccr_lightning.errors import CCRError
from ccr_lightning.models.dual_encoder import MAX_TEMPERATURE, MIN_TEMPERATURE
from ccr_lightning.models.retriever import Retriever
from ccr_lightning.models.torch_file import read_torch_file
from ccr_lightning.models.vision import ImageEncoder

_HEAD_SIZE = 64  # components of an attention head of XLM-R
_REDUCTION = 32  # pixels to a side of what Swin's last stage sees: a patch of 4, doubled three times

_OF_LAYER = {  # the authors' name of a part to ours
    "attention.self.query": "attention.query",
    "attention.self.key": "attention.key",
    "attention.self.value": "attention.value",
    "attention.output.dense": "attention.output",
    "attention.output.LayerNorm": "attention.norm",
    "crossattention.self.query": "cross_attention.query",
    "crossattention.self.key": "cross_attention.key",
    "crossattention.self.value": "cross_attention.value",
    "crossattention.output.dense": "cross_attention.output",
    "crossattention.output.LayerNorm": "cross_attention.norm",
    "intermediate.dense": "feed_forward.intermediate",
    "output.dense": "feed_forward.output",
    "output.LayerNorm": "feed_forward.norm",
}
_OUTSIDE_LAYERS = {
    "text_encoder.embeddings.word_embeddings": "text_encoder.word_embeddings",
    "text_encoder.embeddings.LayerNorm": "text_encoder.norm",
    "vision_proj": "image_projection",
    "text_proj": "text_projection",
    "itm_head.0": "matching_head.dense",
    "itm_head.1": "matching_head.norm",
    "itm_head.3": "matching_head.output",
    "text_encoder.cls.predictions.transform.dense": "masked_lm_head.dense",
    "text_encoder.cls.predictions.transform.LayerNorm": "masked_lm_head.norm",
}
_MASKED_LM_BIAS = "text_encoder.cls.predictions.bias"
_AGAIN = {  # the authors' second copy of a tensor to the first
    "text_encoder.cls.predictions.decoder.weight": "text_encoder.embeddings.word_embeddings.weight",
    "text_encoder.cls.predictions.decoder.bias": _MASKED_LM_BIAS,
}
_WORDS = "text_encoder.embeddings.word_embeddings.weight"
_POSITIONS = "text_encoder.embeddings.position_embeddings.weight"
_POSITION_IDS = "text_encoder.embeddings.position_ids"
_TYPES = "text_encoder.embeddings.token_type_embeddings.weight"
_IGNORED = {
    re.escape("text_encoder.embeddings.position_ids"): "counts the positions",
    r"vision_encoder\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_index": "follows from the window",
    r"vision_encoder\.layers\.\d+\.blocks\.\d+\.attn_mask": "follows from the size of the images",
    r"bbox_head\.[013]\.(weight|bias)": "CCLM's head for regions of images, which retrieval does not use",
}


@dataclass(frozen=True)
class Account:
    """What became of each tensor of a checkpoint.

    Attributes:
        loaded: Name in the file to name in the retriever.
        changed: Name in the file to what was done to it, of those among ``loaded`` that are not as they were.
        ignored: Name in the file to the reason.
        new: Names in the retriever of what the file lacks and what starts at random.
    """

    loaded: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)


class Published(NamedTuple):
    """A published checkpoint."""

    retriever: Retriever
    account: Account  # what became of each tensor
    settings: Mapping[str, Any]  # what the file says beside the weights


def load_published(
    path: str | Path, *, text_heads: int | None = None, image_size: int | None = None, tokenizer: Any = None
) -> Retriever:
    """Reads a checkpoint that the authors of CCR^k or CCLM published, of pre-training or of fine-tuning.

    All sizes but one follow from the weights. Positions start at 0 in these files, as they do in the retriever.

    Args:
        path: The file. Nothing in it is executed; an optimiser's state in it is passed over.
        text_heads: Attention heads of a text layer, which weights do not tell; by default one for each 64 components,
            right for all that was published.
        image_size: Pixels to a side of the images that the retriever is for, a multiple of 32; by default the
            checkpoint's. Tables of relative positions are interpolated if they depend on it.
        tokenizer: The ``CaptionTokenizer`` that belongs to the weights, for :meth:`Retriever.save_pretrained`.

    Returns:
        The retriever, in evaluation mode. What the file lacks, in fine-tuned ones the masked-LM head, is random.

    Raises:
        CCRError: The file is damaged or holds code, or a tensor is missing, unknown or of a wrong size; it says which.
    """
    retriever = read_published(path, text_heads=text_heads, image_size=image_size).retriever
    retriever.tokenizer = tokenizer
    return retriever


def read_published(path: str | Path, *, text_heads: int | None = None, image_size: int | None = None) -> Published:
    """Does what :func:`load_published` does, and gives account of each tensor of the file."""
    if image_size is not None and (image_size < _REDUCTION or image_size % _REDUCTION):
        raise CCRError(f"image_size is {image_size}: give a multiple of {_REDUCTION}.")
    content = read_torch_file(path)
    try:
        tensors = _tensors(content)
        config = content.get("config")
        settings = config if isinstance(config, Mapping) else {}
        swin = _Swin.of(tensors, settings)
        text = _Text.of(tensors, text_heads)
        return Published(*_assemble(tensors, swin, text, image_size), settings)
    except CCRError as error:
        raise CCRError(f"{path}: {error}") from error


def _tensors(content: Any) -> dict[str, Tensor]:
    """The weights of a file, under the names of fine-tuned checkpoints."""
    if not isinstance(content, dict):
        raise CCRError("this is no checkpoint of CCR^k or CCLM: it is no dict with weights under 'model'.")
    weights = content.get("model", content)
    if isinstance(weights, dict) and any(str(name).startswith("module.") for name in weights):
        raise CCRError("its names begin with 'module.', as DistributedDataParallel's do: save them without.")
    if not isinstance(weights, dict) or "vision_encoder.patch_embed.proj.weight" not in weights:
        raise CCRError(
            "this is no checkpoint of CCR^k or CCLM with a Swin image encoder: it has no "
            "'vision_encoder.patch_embed.proj.weight'."
        )
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            raise CCRError(f"{name!r} is no tensor but a {type(tensor).__name__}.")
        own = str(name).replace("text_encoder.bert.", "text_encoder.", 1)
        if own in tensors:
            raise CCRError(f"{own!r} is there twice, with and without 'bert.' in its name.")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CCRError(f"{name!r} has numbers that are not finite.")
        tensors[own] = tensor
    return tensors


def _shape(tensors: Mapping[str, Tensor], name: str, *sizes: int | None) -> tuple[int, ...]:
    """The shape of a tensor, which must be there and have these sizes, of which None may be any."""
    if name not in tensors:
        raise CCRError(f"{name!r} is missing.")
    shape = tuple(tensors[name].shape)
    fits = len(shape) == len(sizes) and all(size in (None, of) for size, of in zip(sizes, shape, strict=True))
    if not fits:
        expected = ", ".join("any" if size is None else str(size) for size in sizes)
        raise CCRError(f"{name!r} is {shape} where ({expected}) would fit.")
    return shape


def _count(tensors: Iterable[str], pattern: str, what: str) -> int:
    """How many things of a kind there are, numbered from 0 by the group of a pattern."""
    numbers = {int(found[1]) for name in tensors if (found := re.match(pattern, name))}
    missing = set(range(max(numbers, default=0) + 1)) - numbers
    if missing:
        raise CCRError(f"{what} {min(missing)} is missing.")
    return len(numbers)


@dataclass(frozen=True)
class _Swin:
    """The sizes of an image encoder."""

    embed_dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    image_size: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> _Swin:
        embed_dim, *_ = _shape(tensors, "vision_encoder.patch_embed.proj.weight", None, 3, 4, 4)
        stages = _count(tensors, r"vision_encoder\.layers\.(\d+)\.", "stage of the image encoder")
        blocks = "vision_encoder.layers.{}.blocks.{}."
        depths, heads = [], []
        for stage in range(stages):
            pattern = re.escape(blocks.format(stage, "*")).replace(r"\*", r"(\d+)")
            depths.append(_count(tensors, pattern, f"in stage {stage} of the image encoder, block"))
            table = f"{blocks.format(stage, 0)}attn.relative_position_bias_table"
            heads.append(_shape(tensors, table, None, None)[1])
        rows, _ = _shape(tensors, f"{blocks.format(0, 0)}attn.relative_position_bias_table", None, None)
        window = (math.isqrt(rows) + 1) // 2
        if (2 * window - 1) ** 2 != rows:
            raise CCRError(f"a table of relative positions has {rows} rows, which no window of Swin has.")
        return cls(embed_dim, tuple(depths), tuple(heads), window, _image_size(tensors, window, settings))

    @property
    def width(self) -> int:
        return int(self.embed_dim * 2 ** (len(self.depths) - 1))

    def settings(self, image_size: int) -> dict[str, Any]:
        """Those of an :class:`ImageEncoder`, whose window grows with the images where it spans the last stage."""
        spans = self.image_size == self.window * _REDUCTION
        sizes = {"embed_dim": self.embed_dim, "depths": list(self.depths), "num_heads": list(self.heads)}
        window = image_size // _REDUCTION if spans else self.window
        return {
            "name": "swin_base_patch4_window7_224",
            "image_size": image_size,
            "model_args": {**sizes, "window_size": window},
        }


def _image_size(tensors: Mapping[str, Tensor], window: int, settings: Mapping[str, Any]) -> int:
    """What masks of shifted windows say, which blocks of all but the last stage have; else what the settings say."""
    configured = settings.get("image_res")
    for name, tensor in tensors.items():
        if found := re.fullmatch(r"vision_encoder\.layers\.(\d+)\.blocks\.\d+\.attn_mask", name):
            seen = math.isqrt(len(tensor)) * window * 4 << int(found[1])
            if configured not in (None, seen):
                raise CCRError(
                    f"{name!r} is of images of {seen} px, and the settings beside the weights say {configured}."
                )
            return seen
    size = window * _REDUCTION if configured is None else configured
    if not isinstance(size, int) or size < _REDUCTION or size % _REDUCTION:
        raise CCRError(f"image_res in the settings is {size!r} and no multiple of {_REDUCTION}.")
    return size


@dataclass(frozen=True)
class _Text:
    """The sizes of the text encoder and of the fusion encoder on top of it."""

    vocab_size: int
    width: int
    positions: int
    heads: int
    feed_forward_size: int
    layers: int
    fusion_layers: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], heads: int | None) -> _Text:
        vocab_size, width = _shape(tensors, _WORDS, None, None)
        positions, _ = _shape(tensors, _POSITIONS, None, width)
        layer = "text_encoder.encoder.layer."
        total = _count(tensors, re.escape(layer) + r"(\d+)\.", "text layer")
        crossing = [f"{layer}{number}.crossattention.self.query.weight" in tensors for number in range(total)]
        if True not in crossing or False in crossing[crossing.index(True) :]:
            raise CCRError("the upper text layers have no cross-attention, which those of a fusion encoder have.")
        feed_forward_size, _ = _shape(tensors, f"{layer}0.intermediate.dense.weight", None, width)
        if heads is None and width % _HEAD_SIZE:
            raise CCRError(
                f"texts are {width} wide, and no multiple of {_HEAD_SIZE}: say how many text_heads there are."
            )
        heads = width // _HEAD_SIZE if heads is None else heads
        if heads < 1 or width % heads:
            raise CCRError(f"text_heads is {heads}, which cannot share {width} components: give a divisor of it.")
        return cls(vocab_size, width, positions, heads, feed_forward_size, crossing.index(True), sum(crossing))

    def settings(self, layers: int) -> dict[str, Any]:
        sizes = {"hidden_size": self.width, "heads": self.heads, "feed_forward_size": self.feed_forward_size}
        return {**sizes, "layers": layers}


def _assemble(
    tensors: Mapping[str, Tensor], swin: _Swin, text: _Text, image_size: int | None
) -> tuple[Retriever, Account]:
    embed_dim, _ = _shape(tensors, "text_proj.weight", None, text.width)
    settings: dict[str, Any] = {
        "image_encoder": swin.settings(swin.image_size),
        "text_encoder": {**text.settings(text.layers), "vocab_size": text.vocab_size, "max_positions": text.positions},
        "fusion": {**text.settings(text.fusion_layers), "image_width": swin.width},
        "embed_dim": embed_dim,
    }
    retriever = Retriever.from_settings(settings)
    state, account = _translate(tensors, retriever.state_dict(), text)
    _check_buffers(tensors, retriever.image_encoder)
    retriever.load_state_dict(state)
    if image_size not in (None, swin.image_size):
        _resample(retriever, swin.settings(image_size), account)
    retriever.transform = ImageTransform(image_size=retriever.image_encoder.image_size)
    return retriever.eval(), account


def _translate(
    tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], text: _Text
) -> tuple[dict[str, Tensor], Account]:
    """The state of a retriever whose random one is ``own``, and where each tensor of the file went."""
    state, account = dict(own), Account()
    masked_lm = any(name.startswith("text_encoder.cls.") for name in tensors)
    for name, random in own.items():
        theirs = _their_name(name, text)
        if not masked_lm and name.startswith("masked_lm_head."):
            account.new.append(name)
            continue
        if name == "log_logit_scale":
            _shape(tensors, theirs, *([1] * (theirs in tensors and tensors[theirs].ndim)))
            if not tensors[theirs].is_floating_point():
                raise CCRError(f"{theirs!r} is of {tensors[theirs].dtype} and not of floating-point numbers.")
            state[name] = _log_logit_scale(tensors[theirs]).to(random.dtype)
            account.changed[theirs] = "the logarithm of its inverse"
        else:
            _shape(tensors, theirs, *random.shape)
            if not tensors[theirs].is_floating_point():
                raise CCRError(f"{theirs!r} is of {tensors[theirs].dtype} and not of floating-point numbers.")
            state[name] = tensors[theirs].to(random.dtype)
        account.loaded[theirs] = name
    _check_positions(tensors, text.positions)
    types, _ = _shape(tensors, _TYPES, None, text.width)
    state["text_encoder.position_embeddings.weight"] = tensors[_POSITIONS].float() + tensors[_TYPES][0].float()
    account.changed[_POSITIONS] = "the first token type added"
    account.ignored[_TYPES] = "its first row is added to each position" + (", others are never used" * (types > 1))
    for again, first in _AGAIN.items():
        if again in tensors:
            if not tensors[again].equal(tensors[first]):
                raise CCRError(f"{again!r} is not the same as {first!r}, as in a retriever it has to be.")
            account.ignored[again] = f"the same as {first}"
    for name in tensors.keys() - account.loaded.keys() - account.ignored.keys():
        reason = next((of for pattern, of in _IGNORED.items() if re.fullmatch(pattern, name)), None)
        if reason is None:
            raise CCRError(f"{name!r} has no place in a retriever.")
        account.ignored[name] = reason
    return state, account


def _check_buffers(tensors: Mapping[str, Tensor], encoder: ImageEncoder) -> None:
    """What follows from the sizes has to be as it is here, or the tables would be read in another order."""
    for name, own in encoder.named_buffers():
        theirs = f"vision_encoder.{name.removeprefix('backbone.')}"
        if theirs in tensors and not tensors[theirs].equal(own.to(tensors[theirs].dtype)):
            raise CCRError(f"{theirs!r} is not as Swin's windows have it.")


def _their_name(name: str, text: _Text) -> str:
    """What the authors call a tensor of the retriever."""
    special = {
        "log_logit_scale": "temp",
        "masked_lm_head.bias": _MASKED_LM_BIAS,
        "text_encoder.position_embeddings.weight": _POSITIONS,
    }
    if name in special:
        return special[name]
    part, _, leaf = name.rpartition(".")
    if found := re.fullmatch(r"(text_encoder|fusion)\.layers\.(\d+)\.(.+)", part):
        number = int(found[2]) + (text.layers if found[1] == "fusion" else 0)
        (theirs,) = (theirs for theirs, ours in _OF_LAYER.items() if ours == found[3])
        return f"text_encoder.encoder.layer.{number}.{theirs}.{leaf}"
    if part.startswith("image_encoder.backbone."):
        own = name.removeprefix("image_encoder.backbone.")
        # In timm a stage begins with what makes its patches out of those of the stage before; here that ended one.
        return "vision_encoder." + re.sub(
            r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", own
        )
    (theirs,) = (theirs for theirs, ours in _OUTSIDE_LAYERS.items() if ours == part)
    return f"{theirs}.{leaf}"


def _log_logit_scale(temperature: Tensor) -> Tensor:
    value = float(temperature)
    if not MIN_TEMPERATURE <= value <= MAX_TEMPERATURE:
        raise CCRError(f"'temp' is {value:g}, and a temperature lies from {MIN_TEMPERATURE} to {MAX_TEMPERATURE}.")
    return temperature.double().log().neg().reshape(1)


def _check_positions(tensors: Mapping[str, Tensor], positions: int) -> None:
    """Positions start at 0 here; in transformers' tables of XLM-R at 2, and nothing reads the two rows before."""
    own = tensors.get(_POSITION_IDS)
    if own is not None and not own.flatten().equal(torch.arange(positions)):
        raise CCRError(f"{_POSITION_IDS!r} does not count from 0 to {positions - 1}, the rows of {_POSITIONS!r}.")
    if positions < 2 or not tensors[_POSITIONS][1].any():
        raise CCRError(
            f"{_POSITIONS!r} has an empty row 1, as tables of transformers have, whose positions start at 2: leave out "
            "the first two rows."
        )


def _resample(retriever: Retriever, settings: Mapping[str, Any], account: Account) -> None:
    """Gives a retriever an image encoder for images of another size, in place."""
    before = retriever.image_encoder.state_dict()
    encoder = ImageEncoder(**settings)
    after = encoder.resample(before)
    for theirs, name in account.loaded.items():
        own = name.removeprefix("image_encoder.")
        if own in after and after[own].shape != before[own].shape:
            sizes = [" x ".join(map(str, of[own].shape)) for of in (before, after)]
            account.changed[theirs] = f"interpolated from {sizes[0]} to {sizes[1]}"
    encoder.load_state_dict(after)
    retriever.image_encoder = encoder
