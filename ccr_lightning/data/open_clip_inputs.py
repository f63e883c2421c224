"""Captions and pictures as open_clip prepares them for a model."""

from __future__ import annotations

import json
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ccr_lightning.data.language_codes import source_code
from ccr_lightning.data.open_clip_source import CONFIG, find_open_clip, import_open_clip, open_clip_tokenizer
from ccr_lightning.data.pixels import EncodedPicture, Pixels
from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.data.transforms import ImageTransform
from ccr_lightning.errors import CCRError

_KIND = "open_clip"
_OF_TOKENIZER = ("context_length", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode")


class OpenClipTokenizer(CaptionTokenizer):
    """open_clip's own tokeniser of a model: its cleaning of texts, its special tokens, its padding to a fixed length.

    What open_clip does to a caption that spells out a special token is done here too. Models that are told the language
    of a text (NLLB-CLIP) are told each caption's.

    Args:
        name_or_path: As for :func:`~ccr_lightning.data.open_clip_source.find_open_clip`.
        max_tokens: The model's context length, as by default; open_clip knows no other.

    Raises:
        CCRError: There is no such model, or its context length is another.
    """

    def __init__(self, name_or_path: str, max_tokens: int | None = None) -> None:
        super().__init__(name_or_path, max_tokens=max_tokens or find_open_clip(name_or_path).context_length)
        self.pads_to_max = True
        self._text: dict[str, Any] = {}
        self._usual_language: str | None = None

    @staticmethod
    def wrote(state: dict[str, Any]) -> bool:
        """Whether a state that ``to_dict`` returned is one of this class."""
        return state.get("kind") == _KIND

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self._tokenizer.vocab_size) if self._of_hub is None else len(self._of_hub)

    @property
    def special_token_ids(self) -> tuple[int, ...]:
        """Ids of all special tokens, sorted."""
        return tuple(sorted((self._of_hub or self._tokenizer).all_special_ids))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings and the tokeniser's files as plain types, for a checkpoint."""
        state: dict[str, Any] = {"kind": _KIND, "name_or_path": self.name_or_path, "max_tokens": self.max_tokens}
        tokenizer = self._tokenizer
        state["text_cfg"] = self._text
        if self._of_hub is not None:
            self._tell(None)
            if self._of_hub.is_fast:  # or its file would say how the last captions were cut and padded
                self._of_hub.backend_tokenizer.no_truncation()
                self._of_hub.backend_tokenizer.no_padding()
            with tempfile.TemporaryDirectory() as folder:
                tokenizer.save_pretrained(folder)
                state["files"] = {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
        return state

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the token ids of a caption, as plain types, wherever the tokeniser lies."""
        state = self.to_dict()
        text = {**state["text_cfg"], "hf_tokenizer_name": self._of_hub is not None}
        files = {name: sha256(content).hexdigest() for name, content in state.get("files", {}).items()}
        files.pop("tokenizer_config.json", None)  # has the place too, and nothing that the other files leave open
        return {"max_tokens": self.max_tokens, "text_cfg": text, "pad": self.pad_token_id, "files": files}

    def save(self, folder: str | Path) -> list[str]:
        """Save the files of a tokeniser of transformers, and return their names; open_clip brings its own vocabulary.

        Raises:
            CCRError: They cannot be written.
        """
        files = self.to_dict().get("files", {})
        try:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
        except OSError as error:
            raise CCRError(f"{folder}: the tokeniser could not be written ({error}); choose another place.") from error
        return sorted(files)

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> OpenClipTokenizer:
        """Return the tokeniser that :meth:`to_dict` described; what it holds is not looked for elsewhere.

        Raises:
            CCRError: The state is not one of such a tokeniser.
        """
        try:
            tokenizer = cls(state["name_or_path"], state["max_tokens"])
            with tempfile.TemporaryDirectory() as folder:
                config = json.dumps({"model_cfg": {"text_cfg": state["text_cfg"]}})
                for name, content in {**state.get("files", {}), CONFIG: config.encode()}.items():
                    (Path(folder) / Path(name).name).write_bytes(content)
                tokenizer._take(open_clip_tokenizer(f"local-dir:{folder}", state["text_cfg"]), state["text_cfg"])
        except CCRError:
            raise
        except Exception as error:
            raise CCRError(f"the saved tokeniser cannot be read ({error}); save it again.") from error
        return tokenizer

    @property
    def _tokenizer(self) -> Any:
        if self._loaded is None:
            assert self.name_or_path is not None
            source = find_open_clip(self.name_or_path)
            text = {key: source.model["text_cfg"][key] for key in _OF_TOKENIZER if key in source.model["text_cfg"]}
            self._take(open_clip_tokenizer(source.name, text), text)
        return self._loaded

    def _take(self, tokenizer: Any, text: dict[str, Any]) -> None:
        if tokenizer.context_length != self.max_tokens:
            raise CCRError(
                f"the tokeniser is to give captions {self.max_tokens} tokens, and the model of open_clip reads "
                f"{tokenizer.context_length}, neither more nor fewer: pass --data.tokenizer.init_args.max_tokens "
                f"{tokenizer.context_length}."
            )
        self._loaded, self._text = tokenizer, text
        self._usual_language = getattr(self._of_hub, "src_lang", None)

    @property
    def _of_hub(self) -> Any:
        """The tokeniser of transformers within open_clip's; None for its own."""
        return getattr(self._tokenizer, "tokenizer", None)

    @property
    def _is_told_languages(self) -> bool:
        return hasattr(self._of_hub, "src_lang")

    @property
    def _pads_at_start(self) -> bool:
        return False

    def _special_id(self, name: str) -> int:
        if self._of_hub is None and name == "pad":
            return 0  # of which open_clip's own tokeniser has no token
        token_id: int | None = getattr(self._of_hub, f"{name}_token_id", None)
        if token_id is None:
            raise CCRError(f"the tokeniser {self.name_or_path} has no {name} token; choose one that has.")
        return token_id

    def _tell(self, language: str | None) -> None:
        """Says of which language the next texts are; transformers 5 forgets what open_clip's ``set_language`` said."""
        if self._is_told_languages:
            its = self._of_hub
            name = str(self.name_or_path)
            its.src_lang = self._usual_language if language is None else source_code(its, name, language)

    def _encoded(self, texts: list[str], language: str | None) -> list[list[int]]:
        self._tell(language)
        ids = self._tokenizer(texts).numpy()
        lengths = ids.shape[1] - (ids[:, ::-1] != self.pad_token_id).argmax(1)
        lengths[(ids == self.pad_token_id).all(1)] = 0
        return [row[:length].tolist() for row, length in zip(ids, lengths, strict=True)]


class OpenClipTransform(ImageTransform):
    """What open_clip does to pictures for a model, with augmentation for training if asked for.

    Resizing, cropping, mean and deviation are the model's. Training pictures are random crops instead, resized to the
    same size, if ``crop_scale`` says so.

    Args:
        name_or_path: As for :func:`~ccr_lightning.data.open_clip_source.find_open_clip`.
        crop_scale: As for :class:`ImageTransform`; by default training pictures are made as those of evaluation.
        horizontal_flip: As for :class:`ImageTransform`.
        rand_augment: As for :class:`ImageTransform`.

    Raises:
        CCRError: There is no such model, or its images are not square.
    """

    def __init__(
        self,
        name_or_path: str,
        crop_scale: tuple[float, float] = (1.0, 1.0),
        horizontal_flip: bool = False,
        rand_augment: bool = False,
    ) -> None:
        self._preprocess = find_open_clip(name_or_path).preprocess
        settings = import_open_clip().transform.PreprocessCfg(**self._preprocess)
        _, height, width = settings.input_size
        if height != width:
            raise CCRError(f"{name_or_path}: its images are {height} x {width}; only square ones can be made here.")
        super().__init__(width, crop_scale, horizontal_flip, rand_augment, tuple(settings.mean), tuple(settings.std))
        whole = import_open_clip().transform.image_transform_v2(settings, is_train=False)
        self._to_square = whole.transforms[:-2]  # without floats and mean and deviation, which come on the device

    @property
    def evaluation_settings(self) -> dict[str, Any]:
        """What decides the pixels of :meth:`evaluate` and :meth:`normalize`."""
        return {"image_size": self.image_size, **json.loads(json.dumps(self._preprocess))}

    def evaluate(self, image: Image.Image) -> Pixels:
        """Return open_clip's ``(S, S, 3)`` pixels of an RGB picture."""
        for step in self._to_square:
            image = step(image)
        return np.asarray(image)

    def train(self, picture: EncodedPicture, seed: int) -> Pixels:
        """Return the augmented pixels of a picture, a function of the picture and the seed."""
        return self.evaluate(Image.fromarray(picture.pixels())) if self.is_fixed else super().train(picture, seed)
