"""The only file that talks to ``torch.distributed``; without a process group everything behaves as a group of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

# torch 2.14 renames these two and warns of the names that 2.11 knows.
_all_gather: Any = getattr(dist, "all_gather_single", getattr(dist, "all_gather_into_tensor", None))
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", getattr(dist, "reduce_scatter_tensor", None))

# What gloo, NCCL, and the store that processes meet at, say of a process that has ended.
_ENDED = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Connection was likely closed",
    "Broken pipe",
    "remote process exited",
)


_is_alone = ContextVar("is_alone", default=False)  # of this thread


@contextmanager
def alone() -> Iterator[None]:
    """In which this process behaves as a group of one, whatever the others do meanwhile.

    Example:
        >>> with alone():
        ...     world_size()
        1
    """
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


def _in_group() -> bool:
    return not _is_alone.get() and dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process in the group, from 0.

    Example:
        >>> rank()
        0
    """
    return dist.get_rank() if _in_group() else 0


def world_size() -> int:
    """Number of processes in the group.

    Example:
        >>> world_size()
        1
    """
    return dist.get_world_size() if _in_group() else 1


def gather(tensor: Tensor) -> Tensor:
    """Concatenates the tensors of all ranks along dimension 0, in rank order, without gradient.

    Every rank has to call it with the same shape and dtype (any dtype, bool and integers too). In a group of one it
    returns the input itself, detached.

    Example:
        >>> gather(torch.tensor([True, False]))
        tensor([ True, False])
    """
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    gathered = tensor.new_empty((world_size() * tensor.shape[0], *tensor.shape[1:]))
    _all_gather(gathered, tensor.contiguous())
    return gathered


class _GatherWithGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return gather(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        own = grad.new_empty((grad.shape[0] // world_size(), *grad.shape[1:]))
        _reduce_scatter(own, grad.contiguous())
        return own


def gather_with_grad(tensor: Tensor) -> Tensor:
    """Concatenates the tensors of all ranks along dimension 0, in rank order, with the gradient of all ranks.

    The backward pass sums over ranks the gradient of this rank's slice, because every rank's loss may use it: keeping
    only the own part would lose what the other ranks' losses say about this rank's tensor. Every rank has to call it
    with the same shape and dtype, and to run the backward pass. In a group of one it returns the input itself.

    Example:
        >>> embeds = torch.ones(2, 3, requires_grad=True)
        >>> gather_with_grad(embeds) is embeds
        True
    """
    if world_size() == 1:
        return tensor
    gathered: Tensor = _GatherWithGrad.apply(tensor)
    return gathered


def mean(tensor: Tensor) -> Tensor:
    """Mean of the tensors of all ranks, element by element, without gradient.

    Every rank has to call it with the same shape and dtype.

    Example:
        >>> mean(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    return total(tensor.detach() / world_size())


def total(tensor: Tensor) -> Tensor:
    """Sum of the tensors of all ranks, element by element, without gradient.

    Every rank has to call it with the same shape and dtype. In a group of one it returns the input itself, detached.

    Example:
        >>> total(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor


def largest(tensor: Tensor) -> Tensor:
    """Largest of the tensors of all ranks, element by element, without gradient.

    Every rank has to call it with the same shape and dtype. In a group of one it returns the input itself, detached.

    Example:
        >>> largest(torch.tensor([1, 2]))
        tensor([1, 2])
    """
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def global_mean(total: Tensor, count: Tensor) -> Tensor:
    """This rank's share of a mean over the items of all ranks: ``total * world size / sum of counts``.

    The mean over ranks of these shares (and so the gradient that ``DistributedDataParallel`` averages) is that of
    ``sum of totals / sum of counts``, however unevenly the items are spread. A mean of each rank's own mean is not.

    Args:
        total: Scalar, the sum over this rank's items; carries the gradient.
        count: Scalar, the number of this rank's items.

    Returns:
        Scalar; 0, still attached to the graph of ``total``, if no rank has an item.

    Example:
        >>> global_mean(torch.tensor(6.0), torch.tensor(4))
        tensor(1.5000)
    """
    count = count.detach().clone()
    if world_size() > 1:
        dist.all_reduce(count)
    return total * world_size() / count.clamp(min=1)


def keep_constants(module: nn.Module) -> None:
    """Keeps ddp from sending the buffers that no checkpoint holds, such as tables of positions, at each step.

    Args:
        module: What ddp will wrap, with all its buffers.
    """
    saved = module.state_dict()
    constants = [name for name, _ in module.named_buffers() if name not in saved]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, constants)  # type: ignore[no-untyped-call]


def shard(module: nn.Module, layers: Iterable[nn.Module], mesh: Any, steps: Iterable[str]) -> None:
    """Shards parameters, their gradients and optimiser states over processes (torch's FSDP2).

    A layer's parameters are gathered while it is at work, all others during the whole step. Gradients are averaged over
    the processes. Does nothing if the module is sharded already.

    Args:
        module: Changed in place; the same on all processes.
        layers: Parts of it that are used in steps only by calling them.
        mesh: The ``DeviceMesh`` of the processes, of one dimension.
        steps: Names of the methods of ``module`` that use its parameters.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    if _sharded_parts(module):
        return
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    for step in steps:
        register_fsdp_forward_method(module, step)


def load_sharded(
    module: nn.Module, weights: Mapping[str, Any], optimizers: Iterable[tuple[Optimizer, Mapping[str, Any]]]
) -> None:
    """Loads whole weights and optimiser states, of which each process takes its part.

    Args:
        module: It is sharded.
        weights: Its whole state.
        optimizers: Each with its whole state, in which parameters have their names in the module for numbers.
    """
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(module, dict(weights), options=options)
    for optimizer, state in optimizers:
        set_optimizer_state_dict(module, optimizer, optim_state_dict=dict(state), options=options)


def gather_parameters(module: nn.Module) -> None:
    """Keeps all parameters of a sharded module on each process, for steps of which some processes do more than others.

    Every rank has to call it. Modules that are not sharded stay as they are.
    """
    for part in _sharded_parts(module):
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()


def release_parameters(module: nn.Module) -> None:
    """Ends what :func:`gather_parameters` began."""
    for part in _sharded_parts(module):
        part.set_reshard_after_forward(part is not module, recurse=False)
        part.reshard()


def _sharded_parts(module: nn.Module) -> list[Any]:
    if not _in_group():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def store(name: str) -> Any | None:
    """The keys and values that all processes of the group share, over a connection of its own.

    What the caller waits for there holds up nobody else.

    Args:
        name: What the caller's keys begin with.

    Returns:
        A ``torch.distributed.Store``; None if there is no group.
    """
    if not _in_group():
        return None
    own_connection = dist.distributed_c10d._get_default_store().clone()
    return dist.distributed_c10d.PrefixStore(name, own_connection)


def begun_collectives() -> int:
    """How many collectives this process has begun, in all groups together: one that waits in one has begun it.

    Example:
        >>> begun_collectives()
        0
    """
    groups: list[Any] = list(dist.distributed_c10d._world.pg_map) if _in_group() else []
    return sum(group._get_sequence_number_for_group() for group in groups)


def never_met(error: BaseException) -> bool:
    """Whether a process group could not be formed, since a process has not come or cannot be reached.

    Example:
        >>> never_met(dist.DistStoreError("Timed out waiting for clients. 1/2 clients joined."))
        True
    """
    return isinstance(error, dist.DistStoreError | dist.DistNetworkError) and not _in_group()


def lost_another_process(error: BaseException) -> bool:
    """Whether a collective failed since another process has ended, which alone knows why.

    Example:
        >>> lost_another_process(RuntimeError("Connection closed by peer [10.0.0.2]:4711"))
        True
    """
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _ENDED)
