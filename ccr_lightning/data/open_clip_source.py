"""Where a model of open_clip comes from, and what its configuration says, before anything is built."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ccr_lightning.data.tokenizer import check_vocabulary
from ccr_lightning.errors import CCRError
from ccr_lightning.files import load_json
from ccr_lightning.libraries import quiet, reason

PREFIX = "open_clip:"
CONFIG = "open_clip_config.json"


class OpenClipSource(NamedTuple):
    """A model by the name that open_clip gives it.

    Attributes:
        name: Of an architecture, or a folder or a name on the hub after open_clip's ``local-dir:`` or ``hf-hub:``.
        tag: Of open_clip's own weights of an architecture.
        model: Arguments of the model, ``model_cfg`` in open_clip's files.
        preprocess: What makes its pixels, ``preprocess_cfg`` in open_clip's files, with what they leave out.
    """

    name: str
    tag: str | None
    model: dict[str, Any]
    preprocess: dict[str, Any]

    @property
    def context_length(self) -> int:
        """Tokens of each caption, padding included."""
        return int(self.model["text_cfg"].get("context_length", import_open_clip().tokenizer.DEFAULT_CONTEXT_LENGTH))


def import_open_clip() -> Any:
    """Returns the library.

    Raises:
        CCRError: It is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise CCRError("models of open_clip need open_clip_torch: pip install 'ccr-lightning[open_clip]'.") from error
    return open_clip


def find_open_clip(name_or_path: str) -> OpenClipSource:
    """Returns where a model comes from; of its files only the configuration is read.

    Args:
        name_or_path: A folder or a name on the Hugging Face hub, with an ``open_clip_config.json``; or
            ``open_clip:ARCHITECTURE/TAG``, of the weights that open_clip knows.

    Raises:
        CCRError: open_clip is not installed, there is no such model, or its configuration is damaged.
    """
    library = import_open_clip()
    if name_or_path.startswith(PREFIX):
        name, tag, model, given = _built_in(name_or_path)
    else:
        is_folder = Path(name_or_path).is_dir()
        name, tag = f"{'local-dir' if is_folder else 'hf-hub'}:{name_or_path}", None
        model, given = _read(Path(name_or_path) / CONFIG if is_folder else _download(name_or_path))
    preprocess = library.transform.merge_preprocess_dict(library.transform.PreprocessCfg(), given)
    preprocess["size"] = model["vision_cfg"].get("image_size", preprocess["size"])
    return OpenClipSource(name, tag, model, preprocess)


def _built_in(given: str) -> tuple[str, str, dict[str, Any], dict[str, Any]]:
    library = import_open_clip()
    architecture, _, tag = given.removeprefix(PREFIX).rpartition("/")
    architecture = architecture.replace("/", "-")
    if architecture not in library.list_models():
        close = ", ".join(difflib.get_close_matches(architecture, library.list_models(), n=3)) or "any"
        raise CCRError(
            f"{given}: open_clip has no architecture {architecture!r}; give {PREFIX}ARCHITECTURE/TAG with one of its "
            f"own, {close}."
        )
    weights = library.get_pretrained_cfg(architecture, tag)
    if not weights:
        known = ", ".join(library.list_pretrained_tags_by_model(architecture)) or "none"
        raise CCRError(f"{given}: open_clip has no weights {tag!r} of this architecture; choose among {known}.")
    model = library.get_model_config(architecture)
    if weights.get("quick_gelu"):
        model["quick_gelu"] = True  # what these weights were trained with
    return architecture, tag, model, weights


def _download(name: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, CONFIG))
    except Exception as error:  # the hub's client raises anything from OSError to ValueError
        raise CCRError(
            f"{name}: there is no such folder here, and the Hugging Face hub has no {CONFIG} of this name or cannot be "
            f"reached ({type(error).__name__}): pass the path of a folder with the model's files."
        ) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        content = load_json(path.read_text(encoding="utf-8"))
        model, preprocess = content["model_cfg"], content.get("preprocess_cfg", {})
        is_whole = all(isinstance(of, dict) for of in (model["vision_cfg"], model["text_cfg"], preprocess))
    except FileNotFoundError as error:
        raise CCRError(f"{path}: there is no such file, which models of open_clip have; pass their folder.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CCRError(f"{path}: cannot be read ({reason(error)}); fetch or save the model again.") from error
    if not is_whole:
        raise CCRError(f"{path}: a part of it is no mapping; fetch or save the model again.")
    return model, preprocess


def open_clip_tokenizer(name: str, text_cfg: Mapping[str, Any]) -> Any:
    """Returns open_clip's own tokeniser of a model.

    Args:
        name: ``OpenClipSource.name``.
        text_cfg: Of its configuration.

    Raises:
        CCRError: It cannot be loaded.
    """
    library = import_open_clip()
    of_transformers = {"trust_remote_code": False} if text_cfg.get("hf_tokenizer_name") else {}
    try:
        with quiet():
            tokenizer = library.get_tokenizer(name, **of_transformers)
    except Exception as error:  # transformers and the hub raise anything
        raise CCRError(
            f"{name}: the tokeniser cannot be loaded ({reason(error)}); complete its files, or connect to the Hugging "
            "Face hub."
        ) from error
    if of_transformers:
        check_vocabulary(tokenizer.tokenizer, name)
    return tokenizer
