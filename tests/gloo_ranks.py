"""Runs a function on real gloo ranks, each a process of its own."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def results_of_ranks(compute: Callable[[int, int], Any], world_size: int, folder: Path) -> list[Any]:
    """What ``compute(rank, world_size)`` returned on each rank, in rank order; a deprecated collective is an error."""
    multiprocessing.set_forkserver_preload(["torch", compute.__module__])  # imported once for all ranks
    torch.multiprocessing.start_processes(
        _run_rank, (world_size, folder, compute), nprocs=world_size, start_method="forkserver"
    )
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world_size)]


def _run_rank(rank: int, world_size: int, folder: Path, compute: Callable[[int, int], Any]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=120),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        torch.save(compute(rank, world_size), folder / f"{rank}.pt")
    dist.destroy_process_group()
