"""The weights and inputs behind the golden numbers, rebuilt by the rules in README.md."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labn.model.network import LABN, build_model
from labn.model.pretrained import load_release_state

FOLDER = Path(__file__).parent

IDRID = "labn-idrid-b7"
MAGNETOGRAM = "labn-magnetogram-b0"


def golden(name: str) -> dict[str, np.ndarray]:
    """Read the arrays of one file."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return dict(arrays)


def released_shapes(name: str) -> dict[str, list[int]]:
    """Return the shapes of the tensors in the released checkpoint of one of the two networks."""
    shapes: dict[str, dict[str, list[int]]] = json.loads(
        (FOLDER / "state_dict_shapes.json").read_text()
    )
    return shapes[name]


def released_state(name: str) -> dict[str, Tensor]:
    """Rebuild the released checkpoint of one of the two networks."""
    return rebuilt_state(released_shapes(name))


def released_network(name: str) -> LABN:
    """Build the network of one golden file, with its weights and theta_alpha."""
    plan: dict[str, Any] = {}
    if name == MAGNETOGRAM:
        plan = {"backbone": "lambda_cnn", "in_channels": 1, "split": 0}
    network = build_model(theta_alpha=float(golden(name)["theta_alpha"]), **plan)
    load_release_state(network, released_state(name))
    return network


def rebuilt_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Draw every tensor of a state dict by its key."""
    return {key: _rebuilt_tensor(key, tuple(shape)) for key, shape in shapes.items()}


def rebuilt_input(name: str, shape: Sequence[int]) -> Tensor:
    """Draw the images (or features, or output gradients) of that name."""
    return torch.from_numpy(_generator(name).standard_normal(shape).astype(np.float32))


def _rebuilt_tensor(key: str, shape: tuple[int, ...]) -> Tensor:
    rng, leaf = _generator(key), key.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.tensor(0)
    if leaf in ("running_mean", "bias"):
        values = 0.1 * rng.standard_normal(shape)
    elif leaf == "running_var":
        values = rng.uniform(0.5, 1.5, shape)
    elif len(shape) == 1:
        values = (1 + 0.1 * rng.standard_normal(shape)) * _norm_scale(key)
    else:
        fan_in = math.prod(shape[1:])
        values = rng.standard_normal(shape) * np.sqrt(1 / fan_in)
        values *= 0.2 if "lambda_conv" in key else 1
    return torch.from_numpy(values.astype(np.float32))


def _norm_scale(key: str) -> float:
    if key == "attention_branch.bn3.weight":
        return 1.5
    return 0.3 if ".bn3." in key else 1


def _generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))
