"""``torch.compile`` for the parts of a model where it may help."""

from __future__ import annotations

import os
import shutil
import sys

import torch

from ccr_lightning.errors import CCRError
from ccr_lightning.models.retriever import Retriever


def compile_parts(retriever: Retriever, device: torch.device) -> None:
    """Compiles the image encoder, and each layer of the text and fusion encoders for any number of tokens, in place.

    The names of the parameters stay. The first steps take minutes longer.

    Args:
        retriever: The model.
        device: Where it will run.

    Raises:
        CCRError: If that is the CPU, and there is no C++ compiler.
    """
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(compiler.split()[0]) is None:
        raise CCRError(
            f"model.is_compiled needs a C++ compiler on a CPU, and there is no {compiler}: install it, name another in "
            "CXX, or leave is_compiled out."
        )
    retriever.image_encoder.compile()
    for encoder in (retriever.text_encoder, retriever.fusion):
        if encoder is not None:
            for layer in encoder.layers:
                layer.compile(dynamic=True)
