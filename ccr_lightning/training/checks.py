"""What has to fit together before a run starts; whatever does not is one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ccr_lightning.data.tokenizer import CaptionTokenizer
from ccr_lightning.data.transforms import ImageTransform
from ccr_lightning.errors import CCRError
from ccr_lightning.evaluation.protocol import EvaluationProtocol
from ccr_lightning.models.dual_encoder import DualEncoder

if TYPE_CHECKING:
    from ccr_lightning.data.datamodule import CaptionDataModule


def check_tokenizer(retriever: DualEncoder, tokenizer: CaptionTokenizer) -> None:
    """Checks that the model can read what the tokeniser writes.

    This loads a tokeniser that has only a name so far; call it once a checkpoint's tokeniser has taken its place.

    Raises:
        CCRError: If it cannot.
    """
    own = retriever.tokenizer
    if own is not None and {**own.identity, "max_tokens": 0} != {**tokenizer.identity, "max_tokens": 0}:
        raise CCRError(
            "the data's tokeniser is not the one that the model was trained with: leave data.tokenizer out beside "
            "--init_from or --ckpt_path, or give it the model's name_or_path and pads_to_max."
        )
    if own is not None and own.pads_to_max and own.max_tokens != tokenizer.max_tokens:
        raise CCRError(
            f"data.tokenizer's max_tokens is {tokenizer.max_tokens}, and the model reads captions of {own.max_tokens} "
            "tokens, padding included: leave it out."
        )
    # Of a model's own tokeniser some ids may lie beyond its embeddings: those of tokens that no text has.
    if own is None and tokenizer.vocab_size > retriever.vocab_size:
        raise CCRError(
            f"the tokeniser has {tokenizer.vocab_size} tokens but the text encoder only {retriever.vocab_size}: set "
            "model.retriever's text_encoder.vocab_size to at least the tokeniser's size."
        )
    if tokenizer.max_tokens > retriever.max_positions:
        raise CCRError(
            f"the tokeniser allows captions of {tokenizer.max_tokens} tokens but the text encoder has only "
            f"{retriever.max_positions} positions: pass --data.tokenizer.init_args.max_tokens "
            f"{retriever.max_positions}, or raise the text encoder's max_positions if it is not trained yet."
        )


def check_transform(own: ImageTransform, transform: ImageTransform) -> None:
    """Checks that the data's images are made as the model's own are.

    Raises:
        CCRError: If not.
    """
    if own.evaluation_settings != transform.evaluation_settings:
        raise CCRError(
            "the data's transform is not the one that the model was trained with: leave data.transform out beside "
            "--init_from or --ckpt_path, or give it the model's name_or_path."
        )


def check_mrv_languages(mrv_languages: Sequence[str] | None, data: CaptionDataModule) -> None:
    """Checks that MRV is asked for over languages of the data.

    Raises:
        CCRError: If not.
    """
    unknown = [language for language in mrv_languages or () if language not in data.languages]
    if unknown:
        raise CCRError(
            f"model.protocol.mrv_languages names {unknown[0]!r}, which is not among the data's languages "
            f"{', '.join(data.languages)}: remove it."
        )


def check_galleries(protocol: EvaluationProtocol, data: CaptionDataModule) -> None:
    """Checks before anything is encoded that the test split can be cut into folds and has galleries to re-rank.

    Raises:
        CCRError: If not.
    """
    images, galleries = data.gallery_sizes("test")
    if images < 2:
        raise CCRError("the test split has one image only, and nothing to rank it against: give it two or more.")
    if images % protocol.folds:
        raise CCRError(
            f"the test split has {images} images, which cannot be split into {protocol.folds} equal folds: choose "
            "another number of model.protocol.folds."
        )
    language, smallest = min(galleries.items(), key=lambda item: item[1])
    if protocol.rerank_depth > smallest:
        raise CCRError(
            f"model.protocol.rerank_depth is {protocol.rerank_depth}, but the gallery of {language!r} has {smallest} "
            f"items: give at most {smallest}."
        )


def check_pivot(pivot: str, data: CaptionDataModule) -> None:
    """Checks that every batch has captions in the pivot language.

    Raises:
        CCRError: If not.
    """
    always = data.languages if data.languages_per_step is None else data.required_languages
    if pivot not in always:
        raise CCRError(
            f"english_pivot needs {pivot!r} in every batch: have it among the data's languages and pass "
            f"--data.required_languages '[{pivot}]'."
        )
