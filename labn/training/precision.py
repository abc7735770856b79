"""The arithmetic of a network: the types of products, and what may stand in for float32."""

from __future__ import annotations

from typing import Literal

import torch

from labn.config import TrainConfig
from labn.errors import UserError

Precision = Literal["float32", "tf32", "bf16"]


def resolve_precision(settings: TrainConfig, device: torch.device) -> Precision:
    """Return the precision of the settings; for ``auto``, bf16 on a GPU that has it.

    Raises:
        UserError: the device has no instructions for it, and it is not forced.
    """
    if settings.precision == "auto":
        return "bf16" if device.type == "cuda" and _gpu_has_bf16() else "float32"
    if settings.precision == "tf32" and device.type != "cuda":
        raise UserError(
            f"train.precision = tf32: only CUDA has it, and the device is {device.type};"
            " set train.precision=float32, or auto"
        )
    is_slow = settings.precision == "bf16" and not (
        _gpu_has_bf16() if device.type == "cuda" else device.type != "cpu" or cpu_has_bf16()
    )
    if is_slow and not settings.force_precision:
        raise UserError(
            f"train.precision = bf16: this {device.type.upper()} has no bf16 instructions, and a"
            " step takes several times as long as in float32; set train.precision=auto, or train"
            " with --force"
        )
    return settings.precision


def cpu_has_bf16() -> bool:
    """Return whether the processor multiplies bf16 in hardware; False if that is unknown."""
    # Absent before torch 2.10.
    get_capabilities = getattr(torch.cpu, "get_capabilities", dict)
    return any(value for name, value in get_capabilities().items() if "bf16" in name)


def _gpu_has_bf16() -> bool:
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def allow_precision(precision: Precision) -> None:
    """Let this process's products on CUDA use TF32 where float32 is meant, or forbid it.

    It holds for backward passes, too, which autocast does not cover. Products of bf16 always add
    up in float32.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def autocast(settings: TrainConfig, device: torch.device) -> torch.autocast:
    """Return the context in which the network runs at the configured precision."""
    is_half = resolve_precision(settings, device) == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_half)
