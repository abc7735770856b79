"""Ray's own checks of a launcher's file, with errors on one line."""

from __future__ import annotations

import copy
import logging
from typing import Any

import click
import jsonschema
from ray.autoscaler._private.providers import _NODE_PROVIDERS
from ray.autoscaler._private.util import prepare_config, validate_config

from labn.errors import did_you_mean


def why_not_launchable(tree: dict[str, Any]) -> str | None:
    """Return what Ray's launcher would refuse in a file, if anything."""
    provider = tree.get("provider")
    kind = provider.get("type") if isinstance(provider, dict) else None
    if kind not in _NODE_PROVIDERS:
        known = sorted(_NODE_PROVIDERS)
        return f"provider.type = {kind}: must be one of {', '.join(known)}." + did_you_mean(
            str(kind), known
        )
    logger = logging.getLogger("ray.autoscaler._private.util")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        validate_config(prepare_config(copy.deepcopy(tree)))
    except jsonschema.ValidationError as error:
        return described(error)
    except click.ClickException as error:
        return error.message
    # Raised by Ray for a tree of an unexpected shape.
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    finally:
        logger.setLevel(level)
    return None


def described(error: jsonschema.ValidationError) -> str:
    """Return on one line where a tree violates a schema, and how."""
    place = ".".join(str(part) for part in error.absolute_path) or "the file"
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = list(error.schema.get("properties", {})) if isinstance(error.schema, dict) else []
        unknown = [key for key in error.instance if key not in known]
        return f"{place}: unknown key {unknown[0]}.{did_you_mean(unknown[0], known)}"
    if error.validator == "required":
        return f"{place}: {error.message}"
    return f"{place} = {error.instance!r}: {error.message}"
