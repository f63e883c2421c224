"""Dual encoders of the sentence-transformers library: an image model and a text model that share a space."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ccr_lightning.data.processor_transform import ProcessorTransform
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.errors import CCRError
from ccr_lightning.files import load_json
from ccr_lightning.libraries import quiet, reason
from ccr_lightning.models.card import write_card
from ccr_lightning.models.dual_encoder import DualEncoder, Encoded, normalised
from ccr_lightning.models.parts import freeze_unreached, layers_of

PREFIX = "sentence-transformers:"
_TEMPERATURE = 0.01  # that of CLIP
_PARTS = ("image", "text")  # folders of a pair that was saved
_MODULES = "modules.json"


class InputSettings(NamedTuple):
    """What prepares the inputs of a pair of models."""

    tokenizer: dict[str, Any]  # arguments of CaptionTokenizer
    transform: dict[str, Any]  # arguments of ProcessorTransform


class SentenceTransformersDualEncoder(DualEncoder):
    """Two models of sentence-transformers, one for images and one for captions, or one for both.

    Embeddings are what ``SentenceTransformer.encode(..., normalize_embeddings=True)`` returns. These models keep no
    temperature: training starts from CLIP's, 0.01, and what it learns is in checkpoints but in no saved folder. It
    needs the extra ``sentence_transformers``.

    Args:
        name_or_path: ``sentence-transformers:IMAGE_MODEL+TEXT_MODEL``, each a folder or a name on the Hugging Face hub,
            of which ``sentence-transformers/`` may be left out; or ``sentence-transformers:MODEL`` for a model of both,
            or for a folder that :meth:`save_pretrained` wrote.
        pretrained: Without effect, since sentence-transformers makes no model without its weights; those of a
            checkpoint replace them.

    Raises:
        CCRError: sentence-transformers is not installed, there is no such model, the two have no space in common, or
            they prepare pictures or captions in a way of their own.
    """

    def __init__(self, name_or_path: str, pretrained: bool = True) -> None:
        super().__init__(-math.log(_TEMPERATURE))
        names = list(dict.fromkeys(_names(name_or_path)))
        self.name_or_path = name_or_path
        self.models = nn.ModuleList([_load(name) for name in names])
        for name, model, kind in zip((names[0], names[-1]), (self._image_model, self._text_model), _PARTS, strict=True):
            if not model.supports(kind):
                raise CCRError(f"{name}: this model of sentence-transformers embeds no {kind}s; name one that does.")
        widths = [model.get_embedding_dimension() for model in (self._image_model, self._text_model)]
        if widths[0] != widths[1]:
            raise CCRError(
                f"{name_or_path}: images get {widths[0]} numbers and captions {widths[1]}, so they share no space; "
                "name models that were trained for each other."
            )
        settings = input_settings(name_or_path)
        self.transform: ProcessorTransform = ProcessorTransform(**settings.transform)
        self.tokenizer: CaptionTokenizer = CaptionTokenizer(**settings.tokenizer)
        self._check_inputs()
        freeze_unreached(self)

    @property
    def _image_model(self) -> Any:
        return self.models[0]

    @property
    def _text_model(self) -> Any:
        return self.models[-1]

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self._text_model[0].config.get_text_config().vocab_size)

    @property
    def max_positions(self) -> int:
        """Most tokens of a caption."""
        return int(self._text_model.max_seq_length)

    def encode_image(self, images: Tensor) -> Encoded:
        """Encodes B images (B, 3, S, S): embeddings (B, D), and the same before normalisation as a state each."""
        features = _features(self._image_model, {"pixel_values": images, "modality": "image"})
        return Encoded(normalised(features), features[:, None])

    def encode_text(self, input_ids: Tensor, attention_mask: Tensor, most_tokens: int | None = None) -> Encoded:
        """Encodes captions (N, L), or one per language (B, K, L): embeddings (..., D) and a state each."""
        ids, mask = input_ids.flatten(0, -2), attention_mask.flatten(0, -2)
        mask = mask | ~mask.any(1, keepdim=True)  # a row of padding looks at itself
        features = _features(self._text_model, {"input_ids": ids, "attention_mask": mask.long(), "modality": "text"})
        shape = input_ids.shape[:-1]
        return Encoded(normalised(features).view(*shape, -1), features.view(*shape, 1, -1))

    def towers(self) -> list[list[nn.Module]]:
        """The layers of both encoders."""
        images, texts = self._image_model[0].model, self._text_model[0].model
        return [layers_of(getattr(images, "vision_model", images)), layers_of(getattr(texts, "text_model", texts))]

    def projections(self) -> list[nn.Module]:
        """What makes embeddings of the encoders' states."""
        images, texts = self._image_model[0].model, self._text_model[0].model
        named = [getattr(images, "visual_projection", None), getattr(texts, "text_projection", None)]
        models: list[Any] = list(self.models)
        after = [part for model in models for part in list(model)[1:] if any(True for _ in part.parameters())]
        return [part for part in named if part is not None] + after

    def save_pretrained(self, folder: str | Path, results: Mapping[str, Any] | None = None) -> None:
        """Saves both models as sentence-transformers does, in ``image`` and ``text``, or the one of both, with a card.

        Args:
            folder: Made if need be. sentence-transformers loads it, or ``image`` and ``text`` in it, and this class
                loads ``sentence-transformers:FOLDER``.
            results: The document of a test of it, as in ``results.json``, for the card.

        Raises:
            CCRError: If a file cannot be written.
        """
        folder = Path(folder)
        places = [folder / part for part in _PARTS] if len(self.models) > 1 else [folder]
        try:
            models: list[Any] = list(self.models)
            with quiet():
                for model, place in zip(models, places, strict=True):
                    model.save_pretrained(str(place), create_model_card=False)
        except OSError as error:
            raise CCRError(f"{folder}: the model could not be written ({error}); choose another place.") from error
        write_card(folder, f"{PREFIX}{folder}", sum(parameter.numel() for parameter in self.parameters()), results)

    def _check_inputs(self) -> None:
        """The library's own inputs and ours must be the same, whatever settings its models may have."""
        texts = ["A probe of Ünïcode, 赤いりんご", "long " * 2000]
        prompts = self._text_model.prompts.get(self._text_model.default_prompt_name)
        with quiet():
            ids = self._text_model.preprocess(texts)["input_ids"]
            if prompts or not ids.equal(self.tokenizer.encode(texts)[0]):
                raise CCRError(f"{self.name_or_path}: captions are prepared in a way that is not supported here.")
            picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
            expected = self._image_model.preprocess([picture])["pixel_values"]
        images = torch.from_numpy(np.array(self.transform.evaluate(picture))).permute(2, 0, 1)[None]
        images = self.transform.normalize(images)
        if images.shape != expected.shape or not torch.allclose(images, expected, rtol=0, atol=1e-4):
            raise CCRError(f"{self.name_or_path}: pictures are prepared in a way that is not supported here.")


def input_settings(name_or_path: str) -> InputSettings:
    """Returns the arguments of what prepares captions and pictures; no weights are read.

    Args:
        name_or_path: As for :class:`SentenceTransformersDualEncoder`.

    Raises:
        CCRError: sentence-transformers is not installed, or there is no such model.
    """
    from transformers import AutoConfig, AutoTokenizer

    images, texts = _names(name_or_path)
    folders = {name: _first_folder(name) for name in (images, texts)}
    place = {"name_or_path": texts, "subfolder": folders[texts]}
    try:
        with quiet():
            config = AutoConfig.from_pretrained(texts, subfolder=folders[texts], trust_remote_code=False)
            longest = AutoTokenizer.from_pretrained(
                texts, subfolder=folders[texts], trust_remote_code=False
            ).model_max_length
            settings = _library().sentence_transformer.modules.Transformer.load_config(texts, subfolder=folders[texts])
    except Exception as error:  # transformers and the hub raise anything
        raise _cannot_load(texts, error) from error
    longest = settings.get("max_seq_length") or min(longest, getattr(config, "max_position_embeddings", longest))
    return InputSettings({**place, "max_tokens": longest}, {"name_or_path": images, "subfolder": folders[images]})


def _names(given: str) -> tuple[str, str]:
    """The folders, or names on the hub, of the image model and the text model."""
    rest = given.removeprefix(PREFIX)
    if all((Path(rest) / part / _MODULES).is_file() for part in _PARTS):
        return f"{rest}/{_PARTS[0]}", f"{rest}/{_PARTS[1]}"
    images, plus, texts = (rest, "", "") if Path(rest).is_dir() else rest.partition("+")
    names = [images, texts if plus else images]
    if not all(names):
        raise CCRError(f"{given}: give {PREFIX}IMAGE_MODEL+TEXT_MODEL, or {PREFIX}MODEL for a model of both.")
    images, texts = (name if "/" in name or Path(name).is_dir() else f"sentence-transformers/{name}" for name in names)
    return images, texts


def _library() -> Any:
    try:
        import sentence_transformers
    except ImportError as error:
        raise CCRError(
            "models of sentence-transformers need that library: pip install 'ccr-lightning[sentence_transformers]'."
        ) from error
    return sentence_transformers


def _first_folder(name: str) -> str:
    """Where in a model its first module is, which reads the inputs; a model of transformers alone has no others."""
    try:
        path = _library().util.load_file_path(name, _MODULES)
        return "" if path is None else str(load_json(Path(path).read_text(encoding="utf-8"))[0]["path"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CCRError(f"{name}: its {_MODULES} cannot be read ({reason(error)}); fetch the model again.") from error


def _refuse_other_classes(name: str) -> None:
    """A model names the classes of its parts by where they are imported from, which could be anything installed."""
    path = _library().util.load_file_path(name, _MODULES)
    for part in [] if path is None else load_json(Path(path).read_text(encoding="utf-8")):
        if not str(part["type"]).startswith("sentence_transformers."):
            raise CCRError(f"{name}: {_MODULES} names {part['type']!r}, which is not sentence-transformers' own.")


def _load(name: str) -> Any:
    library = _library()
    try:
        _refuse_other_classes(name)
        with quiet():
            model = library.SentenceTransformer(name, device="cpu", model_kwargs={"dtype": torch.float32})
    except CCRError:
        raise
    except Exception as error:  # sentence-transformers, transformers and the hub raise anything
        raise _cannot_load(name, error) from error
    if not isinstance(model[0], library.sentence_transformer.modules.Transformer):
        raise CCRError(f"{name}: its first part is a {type(model[0]).__name__}, of which no inputs are known here.")
    return model


def _features(model: Any, inputs: dict[str, Any]) -> Tensor:
    features: Tensor = model(inputs)["sentence_embedding"][:, : model.truncate_dim]
    return features


def _cannot_load(name: str, error: Exception) -> CCRError:
    return CCRError(
        f"the model {name!r} cannot be loaded ({reason(error)}); give the path of a folder that sentence-transformers "
        "wrote, or a name on the Hugging Face hub and a connection to it."
    )
