"""Checkpoints, written atomically."""

from __future__ import annotations

import logging
import re
from io import BufferedWriter
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import torch

from labn.errors import UserError
from labn.storage.files import write_atomically

_STEP_FILE = re.compile(r"step-(\d+)\.pt")
_log = logging.getLogger(__name__)


class TrainingCheckpoint(TypedDict):
    """All that a training run needs to resume as if it had never stopped.

    Batches and augmentation are functions of (seed, epoch, step), so ``progress`` is the
    sampler's position too. ``kernels`` is the value of ``labn.model.kernels.compiled.form`` and
    ``precision`` the resolved one; these, ``threads`` and ``vectors`` are absent from the first
    checkpoints.
    """

    model: dict[str, Any]
    average: dict[str, Any] | None
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    progress: dict[str, Any]
    random_states: dict[str, Any]
    config: dict[str, Any]
    kernels: NotRequired[str]
    threads: NotRequired[str]
    vectors: NotRequired[str]
    precision: NotRequired[str]


class ModelCheckpoint(TypedDict):
    """A trained network with what is needed to use it on an image."""

    model: dict[str, Any]
    config: dict[str, Any]
    class_names: list[str]
    num_channels: int
    mean: torch.Tensor
    std: torch.Tensor
    bias_image: torch.Tensor
    epoch: int
    metrics: dict[str, float]


def random_states() -> dict[str, Any]:
    """Return the states of torch's generators, of the CPU and of every CUDA device."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def restore_random_states(states: dict[str, Any]) -> None:
    """Restore the states of torch's generators that ``random_states`` returned."""
    torch.set_rng_state(states["cpu"])
    if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def save_atomically(content: TrainingCheckpoint | ModelCheckpoint, path: Path) -> None:
    """Write a checkpoint atomically: a crash leaves the old file or the whole new one.

    Raises:
        UserError: the disk is full or the folder is not writable; the old file is intact.
    """

    def save(file: BufferedWriter) -> None:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # On a full disk torch's writer raises an error of its own while it closes.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise

    write_atomically(path, save)


def step_path(folder: Path, step: int) -> Path:
    """Return the path of the checkpoint of a global step."""
    return folder / f"step-{step:08d}.pt"


def step_of(path: Path) -> int:
    """Return the global step of a checkpoint."""
    match = _STEP_FILE.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def keep_newest(folder: Path, num_kept: int) -> None:
    """Delete all but the newest step checkpoints, and files that a killed writer left behind."""
    for path in _newest_first(folder)[num_kept:]:
        path.unlink()
    for path in folder.glob("*.tmp"):
        path.unlink()


def load_newest(folder: Path) -> tuple[Path, TrainingCheckpoint] | None:
    """Return the newest step checkpoint that is whole; warn about newer ones that are not."""
    for path in _newest_first(folder):
        try:
            return path, cast(TrainingCheckpoint, load(path))
        except UserError as error:
            _log.warning("%s; the one before is used", error)
    return None


def newest_path(folder: Path) -> Path | None:
    """Return the path of the newest step checkpoint, or None."""
    return next(iter(_newest_first(folder)), None)


def load(path: Path) -> Any:
    """Load a checkpoint to the CPU as data only, without running code.

    Raises:
        UserError: the file is missing, truncated, or holds more than tensors and plain values.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path}: the checkpoint cannot be read ({error.strerror})") from error
    except Exception as error:  # torch raises half a dozen types for a bad file
        raise UserError(
            f"{path}: not a whole checkpoint: damaged, or more than tensors and plain values"
        ) from error


def _newest_first(folder: Path) -> list[Path]:
    found = [
        (int(match[1]), path)
        for path in folder.glob("step-*.pt")
        if (match := _STEP_FILE.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]
