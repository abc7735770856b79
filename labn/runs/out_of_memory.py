"""Memory of an accelerator: its end as one line for the user, and its release after a run."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from labn.config import Config
from labn.errors import OutOfMemory, UserError
from labn.training.device import release_freed_memory


@contextmanager
def training_memory(config: Config) -> Iterator[None]:
    """State what to set if the block, which trains, runs out of memory or images.

    Raises:
        OutOfMemory: it ran out of memory.
        UserError: a process had one image, whose deepest map is one pixel.
    """
    settings = config.train
    if settings.accumulation_steps < settings.batch_size:
        steps = min(2 * settings.accumulation_steps, settings.batch_size)
        fix = f"set train.accumulation_steps={steps} (batch norm sees the parts), or a smaller"
    else:
        fix = "set a smaller"
    with _explained(config, "train.batch_size", settings.batch_size, f"{fix} train.batch_size"):
        try:
            yield
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                f"train.batch_size = {settings.batch_size} at data.image_size ="
                f" {config.data.image_size}: a process has one image of a batch, whose deepest map"
                " is one pixel, which batch norm cannot normalise; set a larger data.image_size or"
                " train.batch_size, or use fewer workers"
            ) from error


@contextmanager
def evaluation_memory(config: Config) -> Iterator[None]:
    """State what to set if the block, which evaluates, runs out of memory.

    Raises:
        OutOfMemory: it did.
    """
    fix = "set a smaller validation.batch_size, which changes no result"
    with _explained(config, "validation.batch_size", config.validation.batch_size, fix):
        yield


@contextmanager
def _explained(config: Config, key: str, batch_size: int, fix: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = ". ".join(" ".join(str(error).split()).split(". ")[:2]).rstrip(".")
        raise OutOfMemory(
            f"{key} = {batch_size} at data.image_size = {config.data.image_size}: out of memory"
            f" ({reason}); {fix}"
        ) from None


def release_memory() -> None:
    """Return the memory of a run that has ended to the device and to the system."""
    gc.collect()
    torch.cuda.empty_cache()
    release_freed_memory()
