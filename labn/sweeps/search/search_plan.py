"""What a search would do, before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from labn.config.search import SearchConfig
from labn.sweeps.search.space import Space


def plan_search(search: SearchConfig, path: Path) -> dict[str, Any]:
    """Return what is searched, how, and where the results go.

    Raises:
        UserError: as for the search itself.
    """
    space = Space(search, path)
    first = [space.decode(one) for one in space.first_parameters()]
    return {
        "search": str(path),
        "output_dir": str(search.output_dir),
        "space": {key: domain.model_dump(mode="json") for key, domain in space.domains.items()},
        "first": first,
        "trials": search.trials,
        "epochs": space.base.train.epochs,
        "objective": search.objective.model_dump(mode="json"),
        "sampler": search.sampler.model_dump(mode="json"),
        "pruning": search.pruning and search.pruning.model_dump(mode="json"),
        "trial": search.trial.model_dump(mode="json"),
        "base": space.base.model_dump(mode="json"),
    }


def plan_as_text(plan: dict[str, Any]) -> str:
    """Return a plan as text."""
    width = max(map(len, plan["space"]))
    lines = [
        f"{plan['search']}: {plan['trials']} trials of up to {plan['epochs']} epochs, in"
        f" {plan['output_dir']}",
        *(f"  {key:{width}}  {_short(domain)}" for key, domain in plan["space"].items()),
        *(f"tried first: {_short(one)}" for one in plan["first"]),
    ]
    sections = ("objective", "sampler", "pruning", "trial")
    return "\n".join([*lines, *(f"{name}: {_short(plan[name])}" for name in sections)])


def _short(values: dict[str, Any] | None) -> str:
    if values is None:
        return "none"
    return ", ".join(
        f"{key} {value if isinstance(value, str) else json.dumps(value)}"
        for key, value in values.items()
        if value is not None
    )
