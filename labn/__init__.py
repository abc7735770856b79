"""Lambda Attention Branch Networks: image classifiers that show where they looked.

The names below are loaded on first use, so that the command line starts without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from labn.explain.rise import rise
    from labn.metrics.faithfulness import patch_insertion_deletion
    from labn.model.lambda_layer import LambdaLayer
    from labn.model.network import build_model
    from labn.model.pretrained import load_release_state
    from labn.runs.loaded import load

_MODULES = {
    "LambdaLayer": "labn.model.lambda_layer",
    "build_model": "labn.model.network",
    "load": "labn.runs.loaded",
    "load_release_state": "labn.model.pretrained",
    "patch_insertion_deletion": "labn.metrics.faithfulness",
    "rise": "labn.explain.rise",
}

__all__ = [
    "LambdaLayer",
    "build_model",
    "load",
    "load_release_state",
    "patch_insertion_deletion",
    "rise",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'labn' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
