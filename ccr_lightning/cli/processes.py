"""Which process of several this one is, before torch and Lightning are loaded, and whether all were asked the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ccr_lightning.cli.differences import differences, is_one_of

# Where things lie on a node, and how many of its cores read them, is its own matter.
_OF_THE_NODE = ("runs_dir", "init_from", "data.source", "data.cache_dir", "data.num_workers")

_NUMBERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def is_first_process() -> bool:
    """Whether this is the only process of a run or the first of several, by what torchrun, srun or Lightning set.

    Example:
        >>> is_first_process()
        True
    """
    return all(os.environ.get(name, "0") == "0" for name in _NUMBERS)


def first_difference(first: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """Names the first setting in which another node differs from the first one, of those that all must share.

    Args:
        first: The configuration of the first node.
        here: That of this node.

    Example:
        >>> first_difference({"data": {"batch_size": 8}}, {"data": {"batch_size": 4}})
        'data.batch_size is 8 on the first node and 4'
        >>> first_difference({"data": {"cache_dir": "a"}}, {"data": {"cache_dir": "b"}}) is None
        True
    """
    for name, one, other in differences(first, here):
        if not is_one_of(name, _OF_THE_NODE):
            return f"{name} is {one} on the first node and {other}"
    return None
