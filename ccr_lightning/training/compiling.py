"""``torch.compile`` for the parts of a model where it may help."""

from __future__ import annotations

import os
import shutil
import sys

import torch

from ccr_lightning.errors import CCRError
from ccr_lightning.models.dual_encoder import DualEncoder
from ccr_lightning.models.retriever import Retriever


def compile_parts(retriever: DualEncoder, device: torch.device) -> None:
    """Compiles the image encoder, and each layer of the text and fusion encoders for any number of tokens, in place.

    Of a dual encoder that others wrote, each layer of both encoders.

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
    layers = retriever.layers()
    if isinstance(retriever, Retriever):
        retriever.image_encoder.compile()
        layers = [layer for tower in retriever.towers()[1:] for layer in tower]
    for layer in layers:
        layer.compile(dynamic=True)
