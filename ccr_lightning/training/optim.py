"""What is trained and how fast: frozen parts, AdamW's parameter groups, the learning-rate schedule of the paper."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ccr_lightning.errors import CCRError
from ccr_lightning.models.dual_encoder import DualEncoder
from ccr_lightning.models.retriever import Retriever


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, *, new_parameters: Collection[str] = (), new_lr_scale: float = 2.0
) -> list[dict[str, Any]]:
    """Sorts parameters into optimiser groups: decayed or not, pretrained or newly initialised.

    Biases, norms and other vectors and scalars are not decayed (Nie et al., KDD 2024, training settings).

    Args:
        model: The model; parameters that need no gradient are left out.
        lr: Learning rate of pretrained parameters, and of all when ``new_parameters`` is empty.
        weight_decay: Weight decay of matrices.
        new_parameters: Names of the parameters that start from random values beside pretrained ones.
        new_lr_scale: Factor on ``lr`` for these.

    Returns:
        At most four groups for :func:`adamw`, every parameter in exactly one.

    Raises:
        CCRError: If a number is below 0.

    Example:
        >>> groups = parameter_groups(nn.Linear(2, 3), 1e-4, 0.01, new_parameters={"bias"})
        >>> [(group["lr"], group["weight_decay"], len(group["params"])) for group in groups]
        [(0.0001, 0.01, 1), (0.0002, 0.0, 1)]
    """
    for setting, value in {"lr": lr, "weight_decay": weight_decay, "new_lr_scale": new_lr_scale}.items():
        if not value >= 0:  # not a number is out of range too
            raise CCRError(f"{setting}={value} is out of range: choose 0 or more.")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            scale = new_lr_scale if name in new_parameters else 1.0
            groups.setdefault((lr * scale, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": group_lr, "weight_decay": decay}
        for (group_lr, decay), parameters in groups.items()
    ]


def adamw(groups: list[dict[str, Any]], betas: tuple[float, float], *, is_mixed: bool = False) -> AdamW:
    """Returns AdamW, as one fused operation, for what :func:`parameter_groups` sorted.

    Args:
        groups: Parameters with their learning rate and weight decay.
        betas: Decay rates of the averages of the gradient and of its square, each in [0, 1).
        is_mixed: Whether training is in mixed precision. The fused operation would then take gradients as the scaler
            scaled them, which nobody could clip before; with this the scaler puts them right first.

    Raises:
        CCRError: If a beta is out of range.

    Example:
        >>> adamw(parameter_groups(nn.Linear(2, 3), 1e-4, 0.01), (0.9, 0.98)).param_groups[1]["weight_decay"]
        0.0
    """
    if not all(0 <= beta < 1 for beta in betas):
        raise CCRError(f"betas={tuple(betas)} is out of range: choose two numbers from 0 to below 1.")
    optimizer = AdamW(groups, betas=betas, fused=True)
    if is_mixed:
        optimizer._step_supports_amp_scaling = False
    return optimizer


def freeze_unused(retriever: DualEncoder, loss_weights: Mapping[str, float], objective: str) -> None:
    """Freezes what only other losses would train: ddp stops at parameters without a gradient.

    Args:
        retriever: The model, changed in place.
        loss_weights: Weights of ``contrastive``, ``matching`` and ``masked_lm``.
        objective: The contrastive objective, of which only a sigmoid one has a bias.
    """
    unused: list[nn.Module | nn.Parameter] = []
    if not loss_weights["contrastive"]:
        unused += [*retriever.projections(), retriever.log_logit_scale]
    if retriever.logit_bias is not None and objective != "one_to_k_sigmoid":
        unused.append(retriever.logit_bias)
    if isinstance(retriever, Retriever) and retriever.fusion is not None:
        if not loss_weights["matching"]:
            unused.append(retriever.matching_head)
        if not loss_weights["masked_lm"]:
            unused.append(retriever.masked_lm_head)
        if not (loss_weights["matching"] or loss_weights["masked_lm"]):
            unused.append(retriever.fusion)
    for part in unused:
        part.requires_grad_(False)


def linear_warmup_decay(optimizer: Optimizer, total_steps: int, warmup_fraction: float) -> LambdaLR:
    """Linear warm-up to the learning rate, then linear decay that reaches 0 after the last step.

    Args:
        optimizer: The optimiser whose groups' learning rates are the peaks.
        total_steps: Number of optimiser steps of the whole training, at least 1.
        warmup_fraction: Share of them in [0, 1) that warms up.

    Raises:
        CCRError: If ``warmup_fraction`` is out of range.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule = linear_warmup_decay(optimizer, total_steps=6, warmup_fraction=0.34)
        >>> lrs = []
        >>> for _ in range(6):
        ...     lrs.append(optimizer.param_groups[0]["lr"])
        ...     optimizer.step()
        ...     schedule.step()
        >>> lrs
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if not 0 <= warmup_fraction < 1:
        raise CCRError(f"warmup_fraction={warmup_fraction} is out of range: choose a share from 0 to below 1.")
    warmup = int(total_steps * warmup_fraction)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup))

    return LambdaLR(optimizer, factor)
