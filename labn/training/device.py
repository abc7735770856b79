"""The device that computes, and what its process does with freed memory."""

from __future__ import annotations

import ctypes
import os

import torch

from labn.errors import UserError

# Of mallopt, in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_NEVER = -1
_LARGEST_B = 1 << 30
_CHOSEN_BY_USER = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def choose_device(name: str) -> torch.device:
    """Return the device of that name; for ``auto``, the best there is.

    On a CPU the process keeps the memory that it frees, from now on.

    Raises:
        UserError: no such device.
    """
    if name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        device = _named_device(name)
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
            f"train.device = {name}: not usable here ({reason}); give auto, cpu or cuda"
        ) from None
    return device


def keep_freed_memory() -> bool:
    """Have this process keep what it frees, from now on; tell whether it does.

    By default glibc returns blocks of 32 MiB and more, and the end of its heap, to the system as
    they are freed. A training step on the CPU frees the activations of the step before, so that it
    had to ask for them again, and the system to fill them with zeros, page by page. Nothing
    happens without glibc, or where the environment sets its thresholds.
    """
    if any(name in os.environ for name in _CHOSEN_BY_USER):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_B) and mallopt(_TRIM_THRESHOLD, _NEVER))


def release_freed_memory() -> None:
    """Return what is free now, for work whose blocks have other sizes and would not fit into it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
