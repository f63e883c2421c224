"""Parts of models that others wrote: which of them their embeddings depend on, and their layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

if TYPE_CHECKING:
    from ccr_lightning.models.dual_encoder import DualEncoder


def unreached(module: nn.Module, outputs: Sequence[Tensor]) -> list[str]:
    """Returns the names of the parameters that outputs do not depend on, as far as gradients go.

    Args:
        module: Its parameters are asked about.
        outputs: What it computed, with their graphs.

    Example:
        >>> import torch
        >>> module = nn.ModuleDict({"used": nn.Linear(2, 2, bias=False), "idle": nn.Linear(2, 2, bias=False)})
        >>> unreached(module, [module["used"](torch.ones(1, 2))])
        ['idle.weight']
    """
    nodes = [output.grad_fn for output in outputs]
    seen = set(nodes)
    reached: set[int] = set()
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        if (variable := getattr(node, "variable", None)) is not None:
            reached.add(id(variable))
        before = [of for of, _ in node.next_functions if of not in seen]
        seen.update(before)
        nodes += before
    return [name for name, of in module.named_parameters() if of.requires_grad and id(of) not in reached]


def freeze_unreached(model: DualEncoder) -> None:
    """Freezes what embeddings do not depend on, such as a pooling layer: ddp stops at what has no gradient.

    Args:
        model: A new one, with its ``tokenizer`` and ``transform``; changed in place, and in training mode afterwards.
    """
    assert model.tokenizer is not None
    assert model.transform is not None
    model.eval()
    pixels = torch.from_numpy(np.array(model.transform.evaluate(Image.new("RGB", (64, 48)))))
    images = model.transform.normalize(pixels.permute(2, 0, 1)[None])
    embeds = [model.encode_image(images).embeds, model.encode_text(*model.tokenizer.encode(["a"])).embeds]
    of_the_loss = ("log_logit_scale", "logit_bias")
    for name in set(unreached(model, embeds)).difference(of_the_loss):
        model.get_parameter(name).requires_grad_(False)
    model.train()


def layers_of(module: nn.Module) -> list[nn.Module]:
    """Returns the layers of an encoder: the longest list of modules in it, its first if there are several.

    Example:
        >>> len(layers_of(nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.ModuleList(nn.Linear(2, 2) for _ in range(3))})))
        3
    """
    lists = [of for of in module.modules() if isinstance(of, nn.ModuleList | nn.Sequential)]
    return list(max(lists, key=len, default=()))
