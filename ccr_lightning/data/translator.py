"""A translation model of transformers: captions in one language to captions in another."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from ccr_lightning.data.language_codes import LanguageRequest, request_languages
from ccr_lightning.data.sources.reading import is_blank
from ccr_lightning.errors import CCRError


class Translator:
    """Translates captions with any M2M-100, NLLB-200 or Marian (OPUS-MT) model, in float32 and without sampling.

    Args:
        name_or_path: A folder written by transformers, or a name on the Hugging Face hub.
        device: Where to compute: ``cpu``, ``cuda``, ``cuda:1``.
        batch_size: Captions that are translated at once.
        beams: Width of the beam search; 1 takes the likeliest token at each step.

    Raises:
        CCRError: There is no such model, it cannot be loaded, or there is no such device.
    """

    def __init__(self, name_or_path: str, device: str = "cpu", batch_size: int = 64, beams: int = 1) -> None:
        for setting, value in (("batch_size", batch_size), ("beams", beams)):
            if value < 1:
                raise CCRError(f"{setting} is {value}; give 1 or more.")
        self.name = name_or_path
        self.batch_size = batch_size
        self.beams = beams
        self._tokenizer, self._model = _load(name_or_path, device)
        most = int(self._model.config.max_position_embeddings)
        self._longest_translation = most
        self._longest_caption = min(most, int(self._tokenizer.model_max_length))

    def check_languages(self, source_language: str, target_languages: Sequence[str]) -> None:
        """Check that the model can translate from a language into others.

        Raises:
            CCRError: It cannot; the message names the languages that it knows.
        """
        for target_language in target_languages:
            self._request(source_language, target_language)

    def translate(
        self,
        captions: Sequence[str],
        source_language: str,
        target_language: str,
        done: Callable[[int], object] = lambda captions: None,
    ) -> list[str | None]:
        """Return the translation of each caption, in the order of the captions.

        Captions of similar length are computed together, so that little of a batch is padding. In place of a
        translation that cannot be used is None: of a caption with more tokens than the model can read, and where the
        model wrote nothing, or went on to more than three times the tokens of the caption and 32, as models do that
        repeat themselves.

        Args:
            captions: Captions in the source language.
            source_language: Language of the captions.
            target_language: Language to translate into.
            done: Called after each batch with the number of its captions.

        Raises:
            CCRError: The model does not know one of the languages, or a batch does not fit the device's memory.
        """
        if not captions:
            return []
        request = self._request(source_language, target_language)
        if request.src_lang is not None:
            self._tokenizer.src_lang = request.src_lang
        texts = [request.prefix + caption for caption in captions]
        # tokens like </s> that a caption happens to contain are text
        encoded: list[list[int]] = self._tokenizer(texts, split_special_tokens=True, verbose=False)["input_ids"]
        order = sorted(range(len(texts)), key=lambda number: -len(encoded[number]))
        readable = [number for number in order if len(encoded[number]) <= self._longest_caption]
        done(len(order) - len(readable))
        translations: list[str | None] = [None] * len(texts)
        for start in range(0, len(readable), self.batch_size):
            numbers = readable[start : start + self.batch_size]
            batch = self._generate([encoded[number] for number in numbers], request)
            for number, translation in zip(numbers, batch, strict=True):
                translations[number] = translation
            done(len(numbers))
        return translations

    def _request(self, source_language: str, target_language: str) -> LanguageRequest:
        return request_languages(self._tokenizer, self.name, source_language, target_language)

    def _generate(self, encoded: Sequence[Sequence[int]], request: LanguageRequest) -> list[str | None]:
        """Translate a batch; what a caption becomes does not depend on the others in it."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows = [torch.tensor(row) for row in encoded]
        lengths = torch.tensor([len(row) for row in encoded])
        input_ids = pad_sequence(rows, batch_first=True, padding_value=self._tokenizer.pad_token_id)
        mask = torch.arange(input_ids.shape[1]) < lengths[:, None]
        limits = [min(3 * len(row) + 32, self._longest_translation) for row in encoded]
        forced = {} if request.first_token is None else {"forced_bos_token_id": request.first_token}
        try:
            with torch.inference_mode():
                outputs = self._model.generate(
                    input_ids=input_ids.to(self._model.device),
                    attention_mask=mask.long().to(self._model.device),
                    num_beams=self.beams,
                    do_sample=False,
                    max_new_tokens=max(limits),
                    **forced,
                ).tolist()
        except torch.OutOfMemoryError as error:
            raise CCRError(
                f"{len(encoded)} captions at once do not fit the memory of {self._model.device}; use a smaller "
                "batch_size."
            ) from error
        begin = 1 + len(forced)  # after the decoder's start, and the language, which not all tokenisers skip
        return [self._text(row[begin:], limit - len(forced)) for row, limit in zip(outputs, limits, strict=True)]

    def _text(self, tokens: Sequence[int], limit: int) -> str | None:
        """The text of a translation; None if it has none, or no end before the last of the tokens it may have."""
        end = self._tokenizer.eos_token_id
        if end not in tokens[: limit - 1]:  # some models write an end in the last place, wherever they are
            return None
        text = str(self._tokenizer.decode(tokens[: tokens.index(end)], skip_special_tokens=True)).strip()
        return None if is_blank(text) else text


def _load(name_or_path: str, device: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    try:
        with warnings.catch_warnings():  # Marian's tokeniser recommends a package that it has no use for any more
            warnings.filterwarnings("ignore", message="Recommended: pip install sacremoses")
            tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        # 16 bits, as some are stored, differ more between batches, and are slow on a CPU
        model = AutoModelForSeq2SeqLM.from_pretrained(name_or_path, dtype=torch.float32)
    except ImportError as error:
        raise CCRError(
            f"{name_or_path}: its tokeniser needs a package that is not there; run: pip install "
            "'ccr-lightning[translate]'"
        ) from error
    except Exception as error:  # of files that may hold anything
        raise CCRError(
            f"{name_or_path}: no translation model can be loaded from there ({_first_line(error)}); give a folder "
            "written by transformers or a name on the Hugging Face hub."
        ) from error
    model.generation_config.max_length = None  # each batch has its own limit
    try:
        return tokenizer, model.to(device).eval()
    except (AssertionError, RuntimeError) as error:
        raise CCRError(f"the device {device!r} cannot be used ({_first_line(error)}); choose another.") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
