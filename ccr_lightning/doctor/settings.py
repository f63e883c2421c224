"""What the environment says to commands: text encodings, and variables that change what they do."""

from __future__ import annotations

import locale
import os
import sys
from collections.abc import Iterator

from ccr_lightning.doctor.finding import Finding

_TOPIC = "environment"

# What torchrun and srun set for the processes that they start; a shell should not have them.
_OF_A_JOB = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID")
_TOLD = ("CCR_CACHE_DIR", "CCR_TRACEBACK", "CUDA_VISIBLE_DEVICES", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE")


def examine() -> Iterator[Finding]:
    """Yield what is found in the environment."""
    yield from _encodings()
    if left := [name for name in _OF_A_JOB if name in os.environ]:
        found = ", ".join(f"{name}={os.environ[name]}" for name in left)
        remedy = f"ccr takes itself for one of several processes and waits for the others: unset {' '.join(left)}"
        yield Finding(_TOPIC, "a job's variables", found, "problem", remedy)
    for name in _TOLD:
        if name in os.environ:
            offline = name == "HF_HUB_OFFLINE" and os.environ[name].lower() in ("1", "on", "yes", "true")
            remedy = f"no model is fetched from the hub: unset {name} for that" if offline else ""
            yield Finding(_TOPIC, name, os.environ[name] or "empty", "ok", remedy)


def _encodings() -> Iterator[Finding]:
    encodings = {"files": locale.getencoding(), "names of files": sys.getfilesystemencoding()}
    encodings["terminal"] = getattr(sys.stdout, "encoding", None) or "none"
    found = ", ".join(f"{name} {encoding}" for name, encoding in encodings.items())
    if any(encoding.lower().replace("-", "") not in ("utf8", "none") for encoding in encodings.values()):
        remedy = "captions in other scripts may not be shown: export PYTHONUTF8=1, or LC_ALL=C.UTF-8"
        yield Finding(_TOPIC, "text", found, "advice", remedy)
    else:
        yield Finding(_TOPIC, "text", found)
