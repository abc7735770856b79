"""Exceptions from half precision."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Return bfloat16 and float16 as float32; other types unchanged."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
