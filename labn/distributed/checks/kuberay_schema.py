"""JSON schemas of the Kubernetes objects in a KubeRay file, without unknown keys.

Those of ray.io/v1 are KubeRay's own definitions, without descriptions: the files in
``kuberay_crd`` (github.com/ray-project/kuberay at feeaf72, Apache License 2.0). Kubernetes itself
silently drops a misspelt field.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path
from typing import Any

Schema = dict[str, Any]

KINDS = ("PersistentVolumeClaim", "RayCluster", "RayJob")
_FOLDER = Path(__file__).with_name("kuberay_crd")
_MODES = ("ReadWriteMany", "ReadWriteOnce", "ReadOnlyMany", "ReadWriteOncePod")
# Kubernetes ships no definition of its own objects as these; this has what the checks rely on.
_CLAIM: Schema = {
    "properties": {
        "apiVersion": {"const": "v1"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["accessModes", "resources"],
            "properties": {"accessModes": {"type": "array", "items": {"enum": list(_MODES)}}},
        },
    },
    "required": ["apiVersion", "metadata", "spec"],
}


@cache
def schema_of(kind: str) -> Schema:
    """Return the schema of one of the ``KINDS``."""
    if kind == "PersistentVolumeClaim":
        return _CLAIM
    place = _FOLDER / f"ray.io_{kind.lower()}s.json.gz"
    definition = json.loads(gzip.decompress(place.read_bytes()))
    (version,) = [one for one in definition["spec"]["versions"] if one["name"] == "v1"]
    schema: Schema = _closed(version["schema"]["openAPIV3Schema"])
    schema["properties"]["apiVersion"] = {"const": "ray.io/v1"}
    schema["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return schema


def _closed(schema: Any) -> Any:
    """Return a schema that refuses keys which it does not know."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        closed.setdefault("additionalProperties", False)
    return closed
