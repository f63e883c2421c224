"""GPUs, and whether torch can use them; it is imported only where there may be one."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from ccr_lightning.doctor.finding import Finding
from ccr_lightning.memory import in_words

_TOPIC = "devices"
_SIGNS_OF_NVIDIA = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/nvidia0")


def examine() -> Iterator[Finding]:
    """Yield what is found about GPUs."""
    build = cuda_build()
    yield Finding(_TOPIC, "torch's build", "for the CPU" if build is None else f"for CUDA {build}, and the CPU")
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        yield Finding(_TOPIC, "GPU", "Apple's: --trainer.accelerator mps")
    elif not has_nvidia():
        yield Finding(_TOPIC, "GPU", "none: --trainer.accelerator cpu")
    elif os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        remedy = "unset CUDA_VISIBLE_DEVICES, or give it the numbers of GPUs"
        yield Finding(_TOPIC, "GPU", "hidden by CUDA_VISIBLE_DEVICES", "advice", remedy)
    elif build is None:
        yield Finding(_TOPIC, "GPU", "NVIDIA's, which this torch cannot use", "problem", "pip install --upgrade torch")
    else:
        yield from _gpus(build)


def has_nvidia() -> bool:
    """Return whether an NVIDIA driver is there, without asking it."""
    return any(os.path.exists(path) for path in _SIGNS_OF_NVIDIA) or shutil.which("nvidia-smi") is not None


def cuda_build() -> str | None:
    """Return the version of CUDA that the installed torch was built for, without importing it; None for the CPU."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    found = re.search(r"^cuda\b[^=]*= *['\"]([\d.]+)", text, re.MULTILINE)
    return found and found[1]


def _gpus(build: str) -> Iterator[Finding]:
    import torch

    try:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        reason = "no GPU answers"
    except RuntimeError as error:  # of a driver that is too old
        count, reason = 0, str(error).splitlines()[0]
    if not count:
        driver = _driver()
        remedy = f"install a driver for CUDA {build}, or a torch that was built for an older CUDA"
        yield Finding(_TOPIC, "GPU", f"torch cannot use it ({reason}; driver {driver})", "problem", remedy)
    for number in range(count):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        yield Finding(_TOPIC, f"GPU {number}", f"{name}, {in_words(free)} of {in_words(total)} free")


def _driver() -> str:
    try:
        text = Path(_SIGNS_OF_NVIDIA[0]).read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    found = re.search(r"\b\d{3}\.\d+[\d.]*", text)
    return found[0] if found else "unknown"
