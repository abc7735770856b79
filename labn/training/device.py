"""The choice of a device, and the process's arithmetic and handling of freed memory."""

from __future__ import annotations

import ctypes
import os

import torch

from labn.config import TrainConfig
from labn.errors import UserError
from labn.training.precision import allow_precision, resolve_precision

# Of mallopt, in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = -1
_LARGEST_B = 1 << 30
_CHOSEN_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def choose_device(settings: TrainConfig) -> torch.device:
    """Return the device of the settings; for ``auto``, the best available one.

    From now on this process computes in the configured precision, and on a CPU keeps the memory
    that it frees.

    Raises:
        UserError: the device does not exist, or not in this precision.
    """
    if settings.device == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        device = _named_device(settings.device)
    allow_precision(resolve_precision(settings, device))
    if device.type == "cpu":
        keep_freed_memory()
    return device


def _named_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"train.device = {name}: not usable here ({reason}); use auto, cpu or cuda"
        ) from None
    return device


def keep_freed_memory() -> bool:
    """Make this process keep the memory that it frees; return whether that succeeded.

    By default glibc returns blocks of 32 MiB and more, and the end of its heap, to the system as
    they are freed. A training step on the CPU would then request the memory of the last step's
    activations again, and the system fill it with zeros, page by page. Nothing changes without
    glibc, or where the environment sets its thresholds.
    """
    if any(name in os.environ for name in _CHOSEN_BY_USER):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_B) and mallopt(_TRIM_THRESHOLD, _NEVER))


def release_freed_memory() -> None:
    """Return free memory to the system, for work with blocks of other sizes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
