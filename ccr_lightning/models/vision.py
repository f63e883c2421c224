"""The image encoder: any timm model, to token states."""

from __future__ import annotations

import difflib
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ccr_lightning.errors import CCRError
from ccr_lightning.memory import is_out_of_memory

# Arguments of timm's factory: with one of them the settings of a model could read a pickled file.
_OF_TIMM = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "scriptable"}


def _known(name: str) -> bool:
    """Whether timm has a model of this name and, after a dot, weights of this tag."""
    try:
        return timm.is_model(name) and timm.get_pretrained_cfg(name) is not None
    except RuntimeError:
        return False


def _weights_overlay(path: str, classifier: str | tuple[str, ...]) -> dict[str, Any]:
    """Points timm to a file of weights, such that a file which lacks or adds anything but a classifier is refused."""
    if not Path(path).is_file():
        raise CCRError(f"{path}: there is no such file of image encoder weights; correct pretrained_file.")
    layers = {"head", "head.fc", *((classifier,) if isinstance(classifier, str) else classifier)}
    ends = {f"{layer}.{leaf}" for layer in layers for leaf in ("weight", "bias")}
    weights = {key: value for key, value in timm.models.load_state_dict(path).items() if key not in ends}
    # Without num_classes timm sees two kinds of classifier and loads whatever happens to fit.
    return {"state_dict": weights, "num_classes": 0}


def _drop_pooling_head(backbone: Any) -> None:
    """Removes what timm applies after the patch tokens; its parameters would never receive a gradient."""
    heads = ["head", "fc_norm", "attn_pool"]
    if backbone.head_hidden_size != backbone.num_features:  # MobileNetV3 and its kind: convolutions after pooling
        heads += ["conv_head", "norm_head"]
    for head in heads:
        if getattr(backbone, head, None) is not None:
            setattr(backbone, head, nn.Identity())


class ImageEncoder(nn.Module):
    """A timm model that returns its patch tokens, led by their mean.

    "1-to-K contrastive learning" (Nie et al., KDD 2024) takes ``swin_base_patch4_window7_224`` (P = 49 patches of width
    1024) for pre-training. Models that do not normalise their last features, such as ConvNeXt, get a layer
    normalisation of their own; class and register tokens are left out.

    Args:
        name: timm's model name, with or without a weights tag.
        image_size: Height and width of the images.
        pretrained: Whether to start from timm's weights (from the Hugging Face hub or its cache).
        pretrained_file: File with weights to start from instead, in timm's or the original layout of the model; a
            classifier in it is ignored.
        drop_path_rate: Stochastic depth; None for models of timm that know none.
        model_args: More arguments of the timm model, for example its depths and widths.

    Attributes:
        width: Width C of the states.
        image_size: Height and width of the images.
        pretrained: Whether the weights come from a file or the hub.
        settings: Arguments that make such an encoder anew, with random weights.

    Raises:
        CCRError: If timm knows no such model or cannot build it like this, or if the weights are missing or others.

    Example:
        >>> encoder = ImageEncoder("test_convnext", image_size=64)
        >>> encoder(torch.randn(2, 3, 64, 64)).shape  # 4 patches
        torch.Size([2, 5, 64])
    """

    def __init__(
        self,
        name: str,
        image_size: int,
        pretrained: bool = False,
        pretrained_file: str | None = None,
        drop_path_rate: float | None = 0.0,
        model_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not _known(name):
            close = difflib.get_close_matches(name, timm.list_models() + timm.list_pretrained(), n=3)
            raise CCRError(f"timm has no image model {name!r}: choose one of its models, {', '.join(close) or 'any'}.")
        if refused := _OF_TIMM & (model_args or {}).keys():
            raise CCRError(
                f"model_args has {min(refused)!r}, which is no argument of a model: pretrained and pretrained_file "
                "load weights."
            )
        config = timm.get_pretrained_cfg(name)
        args: dict[str, Any] = {"num_classes": 0, "drop_path_rate": drop_path_rate}
        if config.fixed_input_size:
            args["img_size"] = image_size
        if pretrained_file is not None:
            args["pretrained_cfg_overlay"] = _weights_overlay(pretrained_file, config.classifier or ())
        self.image_size = image_size
        self.pretrained = pretrained or pretrained_file is not None
        self.settings: dict[str, Any] = {
            "name": name,
            "image_size": image_size,
            "drop_path_rate": drop_path_rate,
            "model_args": model_args,
        }
        args |= model_args or {}
        try:
            backbone: Any = timm.create_model(name, pretrained=self.pretrained, **args)
        except Exception as error:  # timm and the hub raise anything from TypeError to OSError
            reason = textwrap.shorten(str(error) or type(error).__name__, 300)
            raise CCRError(
                f"timm cannot build {name!r} for images of {image_size} px "
                f"(weights: {pretrained_file or pretrained}, model_args: {model_args}): {reason}"
            ) from error
        backbone.pretrained_cfg.pop("state_dict", None)  # or it would keep a second copy of the weights
        args.pop("pretrained_cfg_overlay", None)
        self._made_as = {"model_name": name, **args}
        _drop_pooling_head(backbone)
        self.backbone = backbone
        self.width: int = backbone.num_features
        normed = isinstance(getattr(backbone, "norm", None), nn.LayerNorm)
        self.norm = nn.Identity() if normed else nn.LayerNorm(self.width)
        self._check_image_size()

    def resample(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Fits the state of such an encoder for images of another size to this one, by timm's own rules.

        Position embeddings and tables of relative positions, which depend on the size, are interpolated (bicubic).

        Args:
            state: The ``state_dict`` of an encoder of this architecture.

        Returns:
            The state with tensors of this encoder's sizes; of another architecture, the state as it was.
        """
        own, prefix = self.state_dict(), "backbone."
        different = [name for name in state if name in own and state[name].shape != own[name].shape]
        if state.keys() != own.keys() or not all("pos" in name for name in different):
            return dict(state)
        backbone = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
        with_heads = timm.create_model(**self._made_as).state_dict() | backbone
        overlay = {"state_dict": with_heads, "num_classes": 0}
        try:
            with warnings.catch_warnings(action="ignore"):  # of timm's interpolation to its own developers
                resampled = timm.create_model(
                    **self._made_as, pretrained=True, pretrained_cfg_overlay=overlay
                ).state_dict()
        except Exception as error:  # timm raises anything; the caller compares sizes
            if is_out_of_memory(error):
                raise
            return dict(state)
        return {
            name: tensor if tensor.shape == own[name].shape else resampled[name.removeprefix(prefix)]
            for name, tensor in state.items()
        }

    @property
    def blocks(self) -> list[nn.Module]:
        """The backbone's blocks, where it has sequences of that name, as Swin, ViT and ConvNeXt do."""
        sequences = (getattr(module, "blocks", None) for module in self.backbone.modules())
        return [
            block
            for sequence in sequences
            if isinstance(sequence, nn.Sequential | nn.ModuleList)
            for block in sequence
            if not isinstance(block, nn.ModuleList)
        ]

    @torch.no_grad()
    def _check_image_size(self) -> None:
        """Encodes an empty image: each timm model has its own rule for what is too small, or no multiple of a patch."""
        weight = next(self.parameters())
        try:
            self.eval()(weight.new_zeros(1, 3, self.image_size, self.image_size))
        except (AssertionError, RuntimeError) as error:
            raise CCRError(
                f"the image encoder {self.backbone.default_cfg['architecture']!r} cannot take images of "
                f"{self.image_size} px ({str(error).splitlines()[0]}): choose another image_size."
            ) from error
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """Encodes normalised images (B, 3, H, W).

        Returns:
            States (B, 1 + P, C): the mean of the normalised patch tokens, then these, row by row.

        Raises:
            CCRError: If the images are not of the encoder's size.
        """
        size = (3, self.image_size, self.image_size)
        if images.shape[1:] != size:
            raise CCRError(
                f"the images are {tuple(images.shape[1:])} and the image encoder takes {size}: "
                "resize them or set its image_size."
            )
        # On a CPU the small convolutional models run up to a third faster in this layout, ResNets slower.
        tokens = self.backbone.forward_features(images.contiguous(memory_format=torch.channels_last))
        if tokens.ndim == 3:
            tokens = tokens[:, getattr(self.backbone, "num_prefix_tokens", 0) :]
        elif getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
            tokens = tokens.flatten(1, 2)
        else:
            tokens = tokens.flatten(2).transpose(1, 2)
        tokens = self.norm(tokens)
        return torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
