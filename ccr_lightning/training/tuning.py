"""Which parts of a pretrained model are trained: all, the last layers, the projections, or low-rank adapters."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from ccr_lightning.errors import CCRError
from ccr_lightning.models.dual_encoder import DualEncoder
from ccr_lightning.models.retriever import Retriever

Tuned = Literal["all", "last_layers", "projections", "lora"]


def tune(model: DualEncoder, tuned: Tuned, last_layers: int = 2, lora_rank: int = 16) -> None:
    """Freezes what is not trained, in place, and puts adapters into the layers where these are.

    The projections, the heads, the temperature and the bias of the logits are trained in all cases.

    Args:
        model: With its weights; adapters change the names of those inside layers, and begin as if they were not there.
        tuned: ``all``; ``last_layers`` of each encoder; ``projections``; or ``lora``: adapters of low rank on each
            linear map inside the layers (Hu et al., 2022), by peft.
        last_layers: How many layers of each encoder ``last_layers`` trains.
        lora_rank: Rank of the adapters; their scale is 2.

    Raises:
        CCRError: A number is below 1, an encoder has fewer layers, or peft is not installed.
    """
    if last_layers < 1 or lora_rank < 1:
        raise CCRError(f"tuned_layers is {last_layers} and lora_rank {lora_rank}: give 1 or more.")
    if tuned == "all":
        return
    trained: list[nn.Module | nn.Parameter] = list(model.projections())
    if isinstance(model, Retriever) and model.fusion is not None:
        trained += [model.matching_head, model.masked_lm_head]
    if tuned == "last_layers":
        fewest = min(len(tower) for tower in model.towers() if tower)
        if last_layers > fewest:
            raise CCRError(
                f"tuned_layers is {last_layers}, and an encoder has only {fewest} layers: give at most that."
            )
        trained += [layer for tower in model.towers() for layer in tower[-last_layers:]]
    idle = {id(parameter) for parameter in model.parameters() if not parameter.requires_grad}
    model.requires_grad_(False)
    for part in trained:
        part.requires_grad_(True)
    for own in (model.log_logit_scale, model.logit_bias):
        if own is not None:
            own.requires_grad_(True)
    if tuned == "lora":
        _add_adapters(model, lora_rank)
    for parameter in model.parameters():
        if id(parameter) in idle:
            parameter.requires_grad_(False)


def merge_adapters(model: nn.Module) -> None:
    """Adds adapters to the weights that they adapt, in place: the same function, under the names of before."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if _is_adapted(child):
                adapted: Any = child
                adapted.merge()
                setattr(parent, name, adapted.base_layer)


def _is_adapted(part: nn.Module) -> bool:
    return hasattr(part, "lora_A") and hasattr(part, "base_layer")


def _add_adapters(model: DualEncoder, rank: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise CCRError("model.tuned lora needs peft: pip install 'ccr-lightning[lora]'.") from error
    if any(map(_is_adapted, model.modules())):  # of an earlier stage
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or ".lora_" in name)
        return
    # Of torch's own attention a map of another class is read, not called: an adapter would do nothing there.
    inside = {id(part) for layer in model.layers() for part in layer.modules() if type(part) is nn.Linear}
    targets = [name for name, part in model.named_modules() if id(part) in inside]
    settings: dict[str, Any] = {"r": rank, "lora_alpha": 2 * rank, "lora_dropout": 0.0, "bias": "none"}
    requires_grad = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    inject_adapter_in_model(LoraConfig(target_modules=targets, **settings), model)
    for name, parameter in model.named_parameters():  # peft freezes all else
        if requires_grad.get(name):
            parameter.requires_grad_(True)
