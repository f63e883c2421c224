"""Which process of several this one is, before torch and Lightning are loaded."""

from __future__ import annotations

import os

_NUMBERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def is_first_process() -> bool:
    """Whether this is the only process of a run or the first of several, by what torchrun, srun or Lightning set.

    Example:
        >>> is_first_process()
        True
    """
    return all(os.environ.get(name, "0") == "0" for name in _NUMBERS)
