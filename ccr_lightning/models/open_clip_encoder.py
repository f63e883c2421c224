"""Dual encoders of the open_clip library: its CLIPs with multilingual text towers, SigLIP, NLLB-CLIP and their kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ccr_lightning.data.open_clip_inputs import OpenClipTokenizer, OpenClipTransform
from ccr_lightning.data.open_clip_source import CONFIG, OpenClipSource, find_open_clip, import_open_clip
from ccr_lightning.errors import CCRError
from ccr_lightning.files import atomic_write
from ccr_lightning.libraries import quiet, reason
from ccr_lightning.models.card import write_card
from ccr_lightning.models.digests import check_digests, write_digests
from ccr_lightning.models.dual_encoder import DualEncoder, Encoded, normalised
from ccr_lightning.models.parts import freeze_unreached, layers_of

_WEIGHTS = "open_clip_model.safetensors"
_PROJECTIONS = (
    *("visual.proj", "visual.attnpool", "visual.head", "visual.trunk.attn_pool", "visual.trunk.head"),
    *("text_projection", "text.text_projection", "text.proj"),
)


class OpenClipDualEncoder(DualEncoder):
    """Any model of open_clip.

    It reads what open_clip makes of pictures (:class:`~ccr_lightning.data.open_clip_inputs.OpenClipTransform`) and of
    captions (:class:`~ccr_lightning.data.open_clip_inputs.OpenClipTokenizer`), and goes on with its own temperature and
    bias. It needs the extra ``open_clip``. A text tower of transformers is looked for under the name in the
    configuration, of which only its own ``config.json`` is read.

    Args:
        name_or_path: A folder or a name on the Hugging Face hub, with an ``open_clip_config.json``; or
            ``open_clip:ARCHITECTURE/TAG``, of the weights that open_clip knows.
        pretrained: Whether to load the weights; without, they are random, for a checkpoint to replace.

    Raises:
        CCRError: open_clip is not installed, there is no such model, or its weights are missing or of another.
    """

    def __init__(self, name_or_path: str, pretrained: bool = True) -> None:
        source = find_open_clip(name_or_path)
        model = _load(name_or_path, source, pretrained)
        bias = model.logit_bias
        super().__init__(model.logit_scale.detach().item(), None if bias is None else bias.detach().item())
        self._shape_of_scale = model.logit_scale.shape
        model.logit_scale = model.logit_bias = None  # they are this class' own parameters now
        self.name_or_path = name_or_path
        self.model = model
        self._source = source
        self._padding: int | None = None
        if "hf_model_name" in source.model["text_cfg"]:
            self._padding = model.text.config.pad_token_id
        self.transform: OpenClipTransform = OpenClipTransform(name_or_path)
        self.tokenizer: OpenClipTokenizer = OpenClipTokenizer(name_or_path)
        freeze_unreached(self)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self.model.vocab_size)

    @property
    def max_positions(self) -> int:
        """Most tokens of a caption."""
        return self._source.context_length

    def encode_image(self, images: Tensor) -> Encoded:
        """Encodes B images (B, 3, S, S): embeddings (B, D), and the same before normalisation as a state each."""
        features = self.model.encode_image(images)
        return Encoded(normalised(features), features[:, None])

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor, most_tokens: int | None = None) -> Encoded:
        """Encodes captions (N, L), or one per language (B, K, L): embeddings (..., D) and a state each.

        As in open_clip the mask follows from the ids; L is its context length.
        """
        ids = input_ids.flatten(0, -2)
        if self._padding is not None:  # a tower of transformers would divide by the number of tokens, which may be 0
            empty = (ids == self._padding).all(1, keepdim=True)
            ids = ids.masked_fill(empty, int(self._padding == 0))
        features = self.model.encode_text(ids)
        shape = input_ids.shape[:-1]
        return Encoded(normalised(features).view(*shape, -1), features.view(*shape, 1, -1))

    def towers(self) -> list[list[nn.Module]]:
        """The layers of both encoders."""
        text = self.model.text if hasattr(self.model, "text") else self.model.transformer
        return [layers_of(self.model.visual), layers_of(text)]

    def projections(self) -> list[nn.Module | nn.Parameter]:
        """What makes embeddings of the encoders' states; some are plain matrices."""
        modules = {name: part for name, part in self.model.named_modules() if any(True for _ in part.parameters())}
        parts = {**modules, **dict(self.model.named_parameters())}
        return [parts[name] for name in _PROJECTIONS if name in parts]

    def save_pretrained(self, folder: str | Path, results: Mapping[str, Any] | None = None) -> None:
        """Saves the model as open_clip does, with its configuration and tokeniser, and with a card.

        Args:
            folder: Made if need be. open_clip (``local-dir:FOLDER``) and this class load it.
            results: The document of a test of it, as in ``results.json``, for the card.

        Raises:
            CCRError: If a file cannot be written.
        """
        from safetensors.torch import save

        folder = Path(folder)
        state = self.model.state_dict() | {"logit_scale": self.log_logit_scale.detach().reshape(self._shape_of_scale)}
        if self.logit_bias is not None:
            state["logit_bias"] = self.logit_bias.detach().reshape(self._shape_of_scale)
        with atomic_write(folder / _WEIGHTS, "the weights") as file:
            file.write(save({name: of.cpu().clone().contiguous() for name, of in state.items()}, {"format": "pt"}))
        self.save_settings(folder)
        write_digests(folder)
        write_card(folder, folder.resolve().name, sum(parameter.numel() for parameter in self.parameters()), results)

    def save_settings(self, folder: Path) -> None:
        """Saves configuration and tokeniser; see :meth:`DualEncoder.save_settings`."""
        config = {"model_cfg": self._source.model, "preprocess_cfg": self._source.preprocess}
        with atomic_write(folder / CONFIG, "the settings") as file:
            file.write((json.dumps(config, indent=2) + "\n").encode())
        self.tokenizer.save(folder)


def _load(given: str, source: OpenClipSource, pretrained: bool) -> Any:
    """The model in float32; without weights none are asked for, nor those that its towers might start from."""
    library = import_open_clip()
    name = source.name
    refuse_own_code(given, source)
    settings: dict[str, Any] = {"pretrained_text": False, "require_pretrained": pretrained, "load_weights": pretrained}
    try:
        with quiet():
            if not pretrained and name.startswith("hf-hub:"):
                name = f"local-dir:{_config_folder(given)}"
            if pretrained and name.startswith("local-dir:"):
                check_digests(Path(name.removeprefix("local-dir:")))
            tag = source.tag if pretrained else None
            model = library.create_model(name, tag, force_quick_gelu=bool(source.model.get("quick_gelu")), **settings)
    except CCRError:
        raise
    except Exception as error:  # open_clip and the hub raise anything
        raise CCRError(
            f"{given}: open_clip cannot load this model ({reason(error)}); complete its folder, or connect to the "
            "Hugging Face hub."
        ) from error
    return model.float()


def _config_folder(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, CONFIG)).parent


def refuse_own_code(given: str, source: OpenClipSource) -> None:
    """Checks the text tower of transformers, which open_clip would load with code of its own if a user said yes.

    Raises:
        CCRError: It is not there, or has such code.
    """
    if (tower := source.model["text_cfg"].get("hf_model_name")) is None:
        return
    from transformers import AutoConfig

    try:
        with quiet():
            AutoConfig.from_pretrained(tower, trust_remote_code=False)
    except Exception as error:  # transformers and the hub raise anything
        raise CCRError(f"{given}: its text tower {tower!r} cannot be loaded ({reason(error)}).") from error
