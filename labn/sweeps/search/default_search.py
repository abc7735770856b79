"""The search that runs where none is named: its file, data, GPUs, and where its results go."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labn.config.shipped import shipped_folder
from labn.config.strict_yaml import read_yaml
from labn.data.readers.open_reader import detect_layout
from labn.distributed.capacity import bootstrap_file, live_nodes
from labn.distributed.launch.cluster_files import PLACEHOLDER
from labn.distributed.session import connected
from labn.errors import UserError
from labn.storage.remote import is_remote

FILE = Path("configs/search/cluster.yaml")
_EMBEDDED = {
    "data.name": "synthetic",
    "base": "../demo.yaml",
    "trials": "6",
    "train.epochs": "10",
    "validation.pid_num_points": "9",
    "validation.pid_max_images": "24",
}
_OWN_DATA = (
    "your own data: add data.root=FOLDER to the command, or set LABN_DATA=FOLDER, a folder that all"
    " nodes share; your own search: --config FILE"
)


@contextmanager
def default_search(
    overrides: Sequence[str], message: Callable[[str], None]
) -> Iterator[tuple[Path, list[str]]]:
    """Yield the default search's file and the overrides that it needs, connected to Ray.

    ``overrides`` of the user come first. Messages name the file, the data, the results' folder, and
    how to give other ones.

    Raises:
        UserError: the data's folder is absent or of no known layout.
    """
    path = _find_file()
    tree = read_yaml(path)
    given = dict(one.split("=", 1) for one in overrides if "=" in one)
    known = (tree.get("fixed") or {}) | given
    chosen = _choose_data(known)
    chosen = {key: value for key, value in chosen.items() if key not in given}
    folder = given.get("output_dir")
    if folder is None:
        suffix = "" if "data.root" in known | chosen else "-embedded"
        folder = str(Path(os.environ.get("LABN_SHARED", ""), f"{tree['output_dir']}{suffix}"))
        chosen["output_dir"] = folder
    message(f"search: {path}, the default, since no --config is given")
    message(f"data: {_describe_data(known | chosen)}")
    message(f"results: {Path(folder).absolute()}, with best.yaml, summary.md and figures")
    message(_OWN_DATA)
    with connected(message, lambda: None):
        if "trial.gpus" not in given:
            settings, reason = _choose_gpus()
            message(f"trial.gpus = {settings['trial.gpus']}: {reason}")
            chosen |= {key: value for key, value in settings.items() if key not in given}
        yield path, [*overrides, *(f"{key}={value}" for key, value in chosen.items())]


def _find_file() -> Path:
    """Return the file as it is here, or as `ray up` copied it to a node, or as it was shipped."""
    copied = [Path("~/labn").expanduser(), Path(os.environ.get("LABN_SHARED", "~/labn"))]
    found = (place / FILE for place in (Path(), *copied) if (place / FILE).is_file())
    return next(found, None) or shipped_folder() / FILE


def _choose_data(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings for the data of ``LABN_DATA``, or for the embedded set."""
    place = str(known.get("data.root") or os.environ.get("LABN_DATA") or "")
    if not place:
        return dict(_EMBEDDED)
    source = "data.root" if known.get("data.root") else "LABN_DATA"
    if not is_remote(place) and not Path(place).expanduser().is_dir():
        fix = "set it in the cluster's file" if PLACEHOLDER in place else "copy the data there"
        raise UserError(
            f"{source} = {place}: is no folder here; {fix}, or leave it out for the embedded set"
        )
    chosen = {} if known.get("data.root") else {"data.root": place}
    if "data.name" not in known and not is_remote(place):
        chosen["data.name"] = detect_layout(Path(place).expanduser())
    return chosen


def _describe_data(settings: Mapping[str, Any]) -> str:
    if "data.root" in settings:
        return f"{settings.get('data.name', 'idrid')} in {settings['data.root']}"
    return "the embedded set, since neither LABN_DATA nor data.root names a folder"


def _choose_gpus() -> tuple[dict[str, int], str]:
    """Return the settings for the GPUs of trials, and why.

    As many trials are started as there may be GPUs, so that the nodes are added all at once.
    """
    num_up = sum(int(node["Resources"].get("GPU", 0)) for node in live_nodes())
    num_possible = _num_possible_gpus()
    if not num_up and not num_possible:
        return {"trial.gpus": 0}, "the cluster has no GPUs, so trials run on CPUs"
    if num_up >= num_possible:
        return {"trial.gpus": 1}, f"the cluster has {num_up} GPUs"
    reason = f"the cluster has {num_up} GPUs, and starts nodes for up to {num_possible}"
    return {"trial.gpus": 1, "trial.max_concurrent": num_possible}, reason


def _num_possible_gpus() -> int:
    """Return how many GPUs the nodes have that the cluster may start, by its file on the head."""
    tree, num_gpus = bootstrap_file(), []
    for kind in (tree.get("available_node_types") or {}).values():
        each = int((kind.get("resources") or {}).get("GPU", 0))
        num_gpus += [each] * int(kind.get("max_workers", 0))
    return sum(sorted(num_gpus, reverse=True)[: int(tree.get("max_workers", 0))])
