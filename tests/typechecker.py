"""The checker of annotations under pytest."""

from __future__ import annotations

from beartype import BeartypeConf, FrozenDict, beartype
from pydantic import ValidationInfo

check = beartype(
    conf=BeartypeConf(
        is_pep484_tower=True,  # an int is a float to mypy too
        hint_overrides=FrozenDict({ValidationInfo: object}),  # it cannot be checked
    )
)
