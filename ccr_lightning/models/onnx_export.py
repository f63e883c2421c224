"""Both encoders of a model as ONNX files, each checked against torch before it is there."""

from __future__ import annotations

import copy
import io
import logging
import tempfile
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ccr_lightning.errors import CCRError
from ccr_lightning.models.dual_encoder import DualEncoder
from ccr_lightning.models.retriever import Retriever

_IMAGES, _TEXTS = "image_encoder.onnx", "text_encoder.onnx"
_TOLERANCE = 1e-4  # of an embedding's coordinate
_MOST_BYTES_IN_A_FILE = 2**30  # of weights; protobuf, hence an ONNX file, ends at twice that
_SIZES = ((60, 40), (48, 48), (20, 90), (90, 30))  # of pictures to check with
_CAPTIONS = ("a", "ein roter Apfel auf dem Tisch", "two dogs, running", "a long story about a cat " * 100)


class _ImageTower(nn.Module):
    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images).embeds


class _TextTower(nn.Module):
    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model.encode_text(input_ids, attention_mask.bool()).embeds


def export_onnx(model: DualEncoder, folder: str | Path) -> list[str]:
    """Writes both encoders of a model as ONNX files, for onnxruntime and others that read such files.

    They compute what the model does in evaluation mode and float32, whatever mode and type it is in; it stays as it is.

    - ``image_encoder.onnx`` takes ``images``, what ``model.transform`` makes of any number of pictures (batch, 3, H, W)
      float32, normalised, and gives ``image_embeds`` (batch, D).
    - ``text_encoder.onnx`` takes ``input_ids`` and ``attention_mask`` (batch, tokens), both int64, and gives
      ``text_embeds`` (batch, D). The number of tokens is free up to ``model.max_positions``, but for models whose
      tokeniser always pads to one length.

    Embeddings are L2-normalised. Weights of more than 1 GiB lie in a file beside, named as theirs with ``.data`` after
    it; keep both in one folder. Each file is run by onnxruntime on batches of several sizes, and compared to torch.

    Args:
        model: Its ``transform`` and ``tokenizer``, where known, make the inputs that the files are checked with.
        folder: Made if need be; such files that are there are replaced once the new ones have passed.

    Returns:
        The names of the files.

    Raises:
        CCRError: A package is missing, the model cannot be exported, a file differs from torch by more than 1e-4, or
            it cannot be written.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            import_module(package)
        except ImportError as error:
            raise CCRError(f"ONNX files need the package {package!r}; pip install 'ccr-lightning[onnx]'.") from error
    folder = Path(folder)
    reference = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    batch, tokens = Dim("batch"), Dim("tokens", max=model.max_positions)
    if reference.tokenizer is not None and not reference.tokenizer.is_ready:
        reference.tokenizer = None
    is_fixed = reference.tokenizer is not None and reference.tokenizer.pads_to_max
    text_shape = {0: batch} if is_fixed else {0: batch, 1: tokens}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".onnx-", dir=folder) as made:
            _write_checked(
                Path(made, _IMAGES), _ImageTower(reference), "image_embeds", {"images": {0: batch}}, _images(reference)
            )
            _write_checked(
                Path(made, _TEXTS),
                _TextTower(reference),
                "text_embeds",
                {"input_ids": text_shape, "attention_mask": text_shape},
                _texts(reference),
            )
            files = sorted(Path(made).iterdir())
            for name in (_IMAGES, _TEXTS):
                (folder / f"{name}.data").unlink(missing_ok=True)
            for file in files:
                file.replace(folder / file.name)
    except OSError as error:
        raise CCRError(f"{folder}: the ONNX files could not be written ({error}); choose another place.") from error
    return [file.name for file in files]


def _write_checked(
    path: Path, tower: nn.Module, output: str, shapes: dict[str, dict[int, Any]], batches: list[tuple[Tensor, ...]]
) -> None:
    """Writes a tower as its first batch shows it, and compares the file to it on all batches.

    ``shapes`` tells the free axes of each input.
    """
    try:
        with _quiet():
            exported = torch.export.export(tower, batches[0], dynamic_shapes=tuple(shapes.values()), strict=False)
            _drop_checks(exported)
            program: Any = torch.onnx.export(
                exported, dynamo=True, dynamic_shapes=shapes, input_names=list(shapes), output_names=[output],
                verbose=False,
            )  # fmt: skip
            weights = (weight.const_value for weight in program.model.graph.initializers.values())
            size = sum(weight.nbytes for weight in weights if weight is not None)
            program.save(path, external_data=size > _MOST_BYTES_IN_A_FILE)
            difference = _difference(path, tower, list(shapes), batches)
    except (CCRError, OSError):
        raise
    except Exception as error:  # the exporter and onnxruntime raise anything
        raise CCRError(
            f"{path.name}: this model cannot be exported to ONNX ({_reason(error)}); try other versions of torch, "
            "onnxscript and transformers, or use it with torch."
        ) from error
    if not difference <= _TOLERANCE:
        raise CCRError(
            f"{path.name}: its embeddings differ from those of torch by {difference:.2g}, more than {_TOLERANCE}, so "
            "it was not kept; try other versions of torch, onnxscript and onnxruntime, or use the model with torch."
        )


def _drop_checks(exported: ExportedProgram) -> None:
    """Removes what only checks values, as SigLIP 2 does: ONNX has no such thing."""
    for node in list(exported.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            exported.graph.erase_node(node)
    exported.graph.eliminate_dead_code()


def _difference(path: Path, tower: nn.Module, inputs: list[str], batches: list[tuple[Tensor, ...]]) -> float:
    """The largest absolute difference between what onnxruntime and torch compute."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    differences = []
    for batch in batches:
        (found,) = session.run(None, {name: tensor.numpy() for name, tensor in zip(inputs, batch, strict=True)})
        differences.append(np.abs(found - tower(*batch).numpy()).max())
    return float(np.max(differences))


def _images(model: DualEncoder) -> list[tuple[Tensor, ...]]:
    """Batches of images."""
    rng = np.random.default_rng(0)
    if model.transform is not None:
        pictures = [Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in _SIZES]
        pixels = np.stack([model.transform.evaluate(picture) for picture in pictures])
        images = model.transform.normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    elif isinstance(model, Retriever):
        size = model.image_encoder.image_size
        images = torch.from_numpy(rng.standard_normal((len(_SIZES), 3, size, size), np.float32))
    else:
        raise CCRError(f"{_IMAGES}: this model does not know what makes its images: set its transform, then export it.")
    return [(images[:3],), (images[:1],), (images,)]


def _texts(model: DualEncoder) -> list[tuple[Tensor, ...]]:
    """Batches of token ids and masks, with padding and without."""
    if model.tokenizer is not None:
        encoded = [model.tokenizer.encode(texts) for texts in (_CAPTIONS[:3], _CAPTIONS[:1], _CAPTIONS)]
    else:
        generator = torch.Generator().manual_seed(0)
        encoded = []
        for longest, shorter in ((8, 2), (4, 0), (model.max_positions, 3)):
            length = min(longest, model.max_positions)
            ids = torch.randint(model.vocab_size, (1 + shorter, length), generator=generator)
            lengths = torch.randint(1, length + 1, (shorter, 1), generator=generator)
            encoded.append((ids, torch.arange(length) < torch.cat([torch.tensor([[length]]), lengths])))
    return [(ids, mask.long()) for ids, mask in encoded]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter prints, warns of and logs."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(level)


def _reason(error: BaseException) -> str:
    """The first line of what was at the root of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return textwrap.shorten(str(error).strip().partition("\n")[0] or type(error).__name__, 200)
