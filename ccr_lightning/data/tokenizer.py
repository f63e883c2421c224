"""Captions to token ids: a tokeniser trained on the captions themselves, or any of transformers'."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ccr_lightning.errors import CCRError
from ccr_lightning.files import sha256_of
from ccr_lightning.hub import TEXTS, local_folder

SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # the first four numbered as in XLM-R
_ROLES = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
_ROLES |= {"unk_token": "<unk>", "mask_token": "<mask>"}
_REMEMBERED = 200_000
_RULES = 1  # raise it when train() changes, so that no cached vocabulary of older rules is used


class CaptionTokenizer:
    """One tokeniser for all languages, built on transformers' and tokenizers' own.

    Without ``name_or_path`` it is trained on captions: byte-pair encoding over NFKC-normalised text, where a space
    becomes part of the following word, so that languages without spaces need nothing special. The same captions give
    the same tokeniser. Its special tokens are ``<s>`` 0, ``<pad>`` 1, ``</s>`` 2, ``<unk>`` 3, ``<mask>`` 4 and a
    caption is ``<s> text </s>``. It is not XLM-R's Unigram model because the Unigram trainer of tokenizers gives other
    scores and ids in every run, so a seed would not repeat a run; BPE gives the same result, and about a fifth fewer
    tokens here.

    A special token that is written in a caption is no special token, with a trained and with a loaded tokeniser.

    Args:
        name_or_path: A folder written by transformers, or a name on the Hugging Face hub.
        vocab_size: Size of the trained vocabulary; ignored with ``name_or_path``. Few captions may fill less of it.
        max_tokens: Longer captions are cut to this many tokens, ``<s>`` and ``</s>`` included.
        pads_to_max: Whether all captions are padded to ``max_tokens``, which some models (SigLIP) were trained with,
            instead of to the longest of a batch. Padding is on the side that a loaded tokeniser says, else at the end.
        subfolder: Where the files are within ``name_or_path``, as those of sentence-transformers' models may be.

    Raises:
        CCRError: There is no such tokeniser, or it lacks what is asked of it.

    Example:
        >>> tokenizer = CaptionTokenizer(vocab_size=60)
        >>> tokenizer.train(["a red apple", "ein roter Apfel", "赤いりんご"])
        >>> input_ids, attention_mask = tokenizer.encode(["a red apple", "a"])
        >>> input_ids[1].tolist()[:3], attention_mask.sum(dim=1)[1].item()
        ([0, 23, 2], 3)
    """

    def __init__(
        self,
        name_or_path: str | None = None,
        vocab_size: int = 6000,
        max_tokens: int = 40,
        pads_to_max: bool = False,
        subfolder: str = "",
    ) -> None:
        if max_tokens < 3:
            raise CCRError(f"CaptionTokenizer got max_tokens {max_tokens}; two go to <s> and </s>, so give 3 or more.")
        self.name_or_path = name_or_path
        self.max_tokens = max_tokens
        self.pads_to_max = pads_to_max
        self.subfolder = subfolder
        self._vocab_size = vocab_size
        self._loaded: Any = None
        self._remembered: dict[tuple[str, str | None], list[int]] = {}

    @property
    def is_ready(self) -> bool:
        """Whether it can encode: it is trained, or it has a name or path and needs no training."""
        return self._loaded is not None or self.name_or_path is not None

    @property
    def vocab_size(self) -> int:
        """Number of rows that an embedding table needs; known before the training."""
        return self._vocab_size if self.name_or_path is None else len(self._tokenizer)

    @property
    def recipe(self) -> tuple[int, str, int]:
        """What decides the trained vocabulary besides the captions, as a key for keeping it."""
        from tokenizers import __version__

        return _RULES, __version__, self._vocab_size

    @property
    def pad_token_id(self) -> int:
        """Id of the padding token."""
        return self._special_id("pad")

    @property
    def mask_token_id(self) -> int:
        """Id of the mask token."""
        return self._special_id("mask")

    @property
    def special_token_ids(self) -> tuple[int, ...]:
        """Ids of all special tokens, sorted."""
        return tuple(sorted(self._tokenizer.all_special_ids))

    @property
    def is_numbered_as_xlm_r(self) -> bool:
        """Whether a caption begins with token 0, ends with 2 and is padded with 1."""
        ids: list[int] = self._tokenizer("a")["input_ids"]
        return (ids[0], self.pad_token_id, ids[-1]) == (0, 1, 2)

    def train(self, captions: Iterable[str]) -> None:
        """Learn the vocabulary from captions, in place.

        Raises:
            CCRError: The tokeniser is a ready one, or ``vocab_size`` is smaller than the number of characters.
        """
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

        if self.name_or_path is not None:
            raise CCRError(
                f"the tokeniser {self.name_or_path} is trained already; leave out name_or_path to train one."
            )
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=self._vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False
        )
        tokenizer.train_from_iterator(captions, trainer)
        learned = tokenizer.get_vocab_size()
        if learned == len(SPECIAL_TOKENS):
            raise CCRError("the tokeniser got no captions to train on; check the training split.")
        if learned > self._vocab_size:
            raise CCRError(
                f"the captions have {learned - len(SPECIAL_TOKENS)} different characters, too many for a vocab_size of "
                f"{self._vocab_size}; raise it to {2 * learned} or more."
            )
        self._loaded = _wrap(tokenizer, _ROLES)
        self._remembered = {}

    def encode(self, texts: Sequence[str], languages: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
        """Return the token ids ``(N, L)`` int64 of texts, padded, and their mask ``(N, L)`` bool.

        Args:
            texts: N captions.
            languages: Of each caption, for models that are told it, such as NLLB-CLIP; all others read the text alone.

        Raises:
            CCRError: ``texts`` is a single text.
        """
        if isinstance(texts, str):
            raise CCRError(f"encode takes a list of captions, and got the text {texts[:40]!r}: pass [text].")
        rows = self._ids(texts, languages)
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
        places = np.arange(self.max_tokens if self.pads_to_max else max(map(len, rows), default=0))
        mask = (places[::-1] if self._pads_at_start else places) < lengths[:, None]
        input_ids = np.full(mask.shape, self.pad_token_id, dtype=np.int64)
        input_ids[mask] = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(lengths.sum()))
        return torch.from_numpy(input_ids), torch.from_numpy(mask)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings and the tokeniser as plain types, for a checkpoint."""
        state: dict[str, Any] = {
            "name_or_path": self.name_or_path,
            "vocab_size": self._vocab_size,
            "max_tokens": self.max_tokens,
            "pads_to_max": self.pads_to_max,
            "subfolder": self.subfolder,
        }
        if self.is_ready and self._tokenizer.is_fast:
            backend = self._tokenizer.backend_tokenizer
            backend.no_truncation()
            state["tokenizer"] = backend.to_str()
            tokens = self._tokenizer.special_tokens_map
            state["roles"] = {role: str(tokens[role]) for role in _ROLES if role in tokens}
            state["padding_side"] = self._tokenizer.padding_side
        return state

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the token ids of a caption, as plain types, wherever the tokeniser lies."""
        state = self.to_dict()
        if not self.is_ready:
            return state
        own = ["tokenizer", "roles", "max_tokens", "pads_to_max", "padding_side"]
        if "tokenizer" not in state:  # in Python: its vocabulary is files
            own = ["vocabulary", "max_tokens", "pads_to_max"]
            with tempfile.TemporaryDirectory() as folder:
                names = [name for name in self.save(folder) if not name.endswith("_config.json")]
                state["vocabulary"] = {name: sha256_of(Path(folder) / name) for name in names}
        return {key: state[key] for key in own}

    def save(self, folder: str | Path) -> list[str]:
        """Save the files that ``name_or_path`` loads, and return their names.

        Raises:
            CCRError: They cannot be written, or the tokeniser is not trained yet.
        """
        self._tokenizer.model_max_length = self.max_tokens
        try:
            paths = self._tokenizer.save_pretrained(str(folder))
        except OSError as error:
            raise CCRError(f"{folder}: the tokeniser could not be written ({error}); choose another place.") from error
        return sorted({Path(path).name for path in paths if Path(path).is_file()})

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> CaptionTokenizer:
        """Return the tokeniser that :meth:`to_dict` described; what it holds is not looked for elsewhere.

        Raises:
            CCRError: The state is not one of a tokeniser.
        """
        from tokenizers import Tokenizer

        try:
            settings = ("name_or_path", "vocab_size", "max_tokens", "pads_to_max")
            tokenizer = cls(**{key: state[key] for key in settings}, subfolder=state.get("subfolder", ""))
            if "tokenizer" in state:
                tokenizer._loaded = _wrap(
                    Tokenizer.from_str(state["tokenizer"]), state["roles"], padding_side=state["padding_side"]
                )
        except CCRError:
            raise
        except Exception as error:
            raise CCRError(f"the saved tokeniser cannot be read ({error}); save it again.") from error
        return tokenizer

    @property
    def _tokenizer(self) -> Any:
        if self._loaded is None:
            if self.name_or_path is None:
                raise CCRError("the tokeniser is not trained yet; train it, load a checkpoint, or give name_or_path.")
            self._loaded = _from_pretrained(self.name_or_path, self.subfolder)
        return self._loaded

    @property
    def _is_told_languages(self) -> bool:
        return False

    @property
    def _pads_at_start(self) -> bool:
        return bool(self._tokenizer.padding_side == "left")

    def _special_id(self, name: str) -> int:
        token_id: int | None = getattr(self._tokenizer, f"{name}_token_id")
        if token_id is None:
            raise CCRError(f"the tokeniser {self.name_or_path} has no {name} token; choose one that has.")
        return token_id

    def _ids(self, texts: Sequence[str], languages: Sequence[str] | None) -> list[list[int]]:
        """Token ids of each text; captions come back every epoch, so what was encoded is remembered."""
        known = self._remembered
        told: Iterable[str | None] = languages if languages and self._is_told_languages else [None] * len(texts)
        asked = list(zip(texts, told, strict=True))
        new = [one for one in dict.fromkeys(asked) if one not in known]
        if new:
            if len(known) + len(new) > _REMEMBERED:
                known.clear()
                new = list(dict.fromkeys(asked))
            for language in dict.fromkeys(language for _, language in new):
                of_language = [text for text, its in new if its == language]
                for text, ids in zip(of_language, self._encoded(of_language, language), strict=True):
                    known[text, language] = ids
        return [known[one] for one in asked]

    def _encoded(self, texts: list[str], language: str | None) -> list[list[int]]:
        """Token ids of different texts in a language, without padding."""
        encoded = self._tokenizer(
            texts,
            truncation=True,
            max_length=self.max_tokens,
            split_special_tokens=True,
            return_attention_mask=False,
            return_special_tokens_mask=True,
        )
        # A Unigram model such as XLM-R's reads "<mask>" as its mask token all the same: that is left out.
        stray = set(self._tokenizer.all_special_ids) - {self._tokenizer.unk_token_id}
        return [
            [i for i, is_added in zip(ids, added, strict=True) if is_added or i not in stray]
            for ids, added in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)
        ]


def _wrap(tokenizer: Any, roles: dict[str, str], padding_side: str = "right") -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side=padding_side, **roles)


def _from_pretrained(name_or_path: str, subfolder: str) -> Any:
    from transformers import AutoTokenizer

    try:
        folder = local_folder(name_or_path, *TEXTS, subfolder=subfolder)
        tokenizer = AutoTokenizer.from_pretrained(folder, subfolder=subfolder, trust_remote_code=False)
    except ImportError as error:
        reason = " ".join(str(error).split()).partition(". ")[0]
        raise CCRError(f"the tokeniser {name_or_path!r} cannot be loaded: {reason}; install it.") from error
    except Exception as error:
        raise CCRError(
            f"the tokeniser {name_or_path!r} cannot be loaded; give the path of a folder with its files, "
            "or a name on the Hugging Face hub and a connection to it."
        ) from error
    check_vocabulary(tokenizer, name_or_path)
    return tokenizer


def check_vocabulary(tokenizer: Any, name_or_path: str) -> None:
    """Checks that a tokeniser of transformers has words: without its files transformers makes one of special tokens.

    Raises:
        CCRError: It has none.
    """
    if len(tokenizer) <= len(tokenizer.all_special_ids) + 1:
        raise CCRError(f"the tokeniser {name_or_path!r} has no vocabulary; complete its files.")
