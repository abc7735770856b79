"""Checks of a KubeRay file, such as cluster/kuberay.yaml."""

from __future__ import annotations

import re
import shutil
from typing import Any

import jsonschema

from labn.distributed.checks.kuberay_schema import KINDS, schema_of
from labn.distributed.checks.machine import Check
from labn.distributed.checks.ray_schema import described
from labn.distributed.checks.versions import check_versions
from labn.distributed.launch.cluster_files import ClusterFile

_IMAGE = re.compile(r"rayproject/ray:([\d.]+)-py(\d)(\d+)(-\w+)?")
_WHEEL = re.compile(r"labn-([^-\s]+)-py3-none-any\.whl")
_TORCH = re.compile(r"torch==([\d.]+)")
_TOKEN = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
_MAX_IDLE_S = 3600


def check_kubernetes(file: ClusterFile) -> list[Check]:
    """Return the checks of schema, versions, storage, token, ports, idle pods and tools."""
    schema = _check_schema(file)
    if schema.status == "fail":
        return [schema]  # the others rely on its shape
    return [
        schema,
        _check_versions(file),
        _check_storage(file),
        _check_token(file),
        _check_ports(file),
        _check_idle(file),
        _check_tools(),
    ]


def _check_schema(file: ClusterFile) -> Check:
    fix = "fix that field; KubeRay's API reference (ray.io/v1) has them all"
    for document in file.documents:
        kind = str(document.get("kind"))
        if kind not in KINDS:
            detail = f"kind = {kind}: not one of those checked ({', '.join(KINDS)})"
            return Check("schema", "fail", detail, "keep other objects in a separate file")
        error = jsonschema.exceptions.best_match(
            jsonschema.Draft202012Validator(schema_of(kind)).iter_errors(document)
        )
        if error is not None:
            return Check("schema", "fail", f"{kind}: {described(error)}", fix)
    if not file.of_kind("RayCluster"):
        return Check("schema", "fail", "there is no RayCluster", "see cluster/kuberay.yaml")
    return Check("schema", "ok", "valid by KubeRay's own definitions")


def _templates(file: ClusterFile) -> list[dict[str, Any]]:
    """Return the templates of the pods that are Ray's nodes."""
    found = []
    for cluster in file.of_kind("RayCluster"):
        spec = cluster["spec"]
        groups = [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]
        found += [group["template"]["spec"] for group in groups]
    return found


def _nodes(file: ClusterFile) -> list[dict[str, Any]]:
    """Return the containers in which Ray runs: the first of each pod."""
    return [template["containers"][0] for template in _templates(file)]


def _check_versions(file: ClusterFile) -> Check:
    found: dict[str, set[str]] = {name: set() for name in ("python", "ray", "torch", "labn")}
    for cluster in file.of_kind("RayCluster"):
        found["ray"].add(str(cluster["spec"].get("rayVersion")))
    for container in _nodes(file):
        image = _IMAGE.fullmatch(container.get("image", ""))
        found["ray"].add(image[1] if image else str(container.get("image")))
        found["python"].add(f"{image[2]}.{image[3]}" if image else "unknown")
        command = " ".join([*container.get("command", []), *container.get("args", [])])
        for name, pattern in (("torch", _TORCH), ("labn", _WHEEL)):
            match = pattern.search(command)
            found[name].add(match[1] if match else "none")
    for name, versions in found.items():
        if len(versions) > 1:
            detail = f"pods differ in {name}: {', '.join(sorted(versions))}"
            return Check("versions", "fail", detail, "give all pods the same image and wheel")
    pinned: dict[str, str | None] = {name: next(iter(one)) for name, one in found.items()}
    return check_versions(pinned, dict.fromkeys(found, "a container"))


def _check_storage(file: ClusterFile) -> Check:
    claims = {
        claim["metadata"].get("name"): claim["spec"]["accessModes"]
        for claim in file.of_kind("PersistentVolumeClaim")
    }
    for name, modes in claims.items():
        if "ReadWriteMany" not in modes:
            detail = f"claim {name}: {', '.join(modes)}: only one node may write it"
            return Check("storage", "fail", detail, "give accessModes: [ReadWriteMany]")
    for template in _templates(file):
        sources = {
            volume["name"]: volume.get("persistentVolumeClaim", {}).get("claimName")
            or volume.get("nfs", {}).get("server")
            for volume in template.get("volumes", [])
        }
        container = template["containers"][0]
        shared = [mount for mount in container.get("volumeMounts", []) if sources[mount["name"]]]
        if not shared:
            detail = f"container {container['name']} mounts nothing that is shared"
            return Check("storage", "fail", detail, "mount the claim at /mnt/labn in every pod")
    trackers = [
        " ".join(container.get("args", []))
        for template in _templates(file)
        for container in template["containers"]
        if "labn cluster tracker" in " ".join(container.get("args", []))
    ]
    if not trackers:
        fix = "add a container that runs `labn cluster tracker --shared /mnt/labn` to the head"
        return Check("storage", "fail", "no pod runs the tracker", fix)
    return Check("storage", "ok", f"claimed: {', '.join(map(str, claims)) or 'elsewhere'}")


def _check_token(file: ClusterFile) -> Check:
    for cluster in file.of_kind("RayCluster"):
        spec = cluster["spec"]
        if spec.get("authOptions", {}).get("mode") == "token":
            continue
        places = {container["name"]: container.get("env", []) for container in _nodes(file)}
        if spec.get("enableInTreeAutoscaling"):
            places["autoscalerOptions"] = spec.get("autoscalerOptions", {}).get("env", [])
        for place, variables in places.items():
            if missing := set(_TOKEN) - {variable["name"] for variable in variables}:
                detail = f"{place}: has no {', '.join(sorted(missing))}, so anyone may run code"
                return Check("token", "fail", detail, "take both from the Secret labn-token")
    return Check("token", "ok", "one for all pods")


def _check_ports(file: ClusterFile) -> Check:
    for cluster in file.of_kind("RayCluster"):
        head = cluster["spec"]["headGroupSpec"]
        kind = head.get("serviceType", "ClusterIP")
        if kind != "ClusterIP" or head.get("enableIngress"):
            opened = "an ingress" if kind == "ClusterIP" else f"serviceType {kind}"
            fix = "use ClusterIP without ingress, and labn cluster tunnel"
            return Check("ports", "fail", f"{opened} opens the head to others", fix)
    return Check("ports", "ok", "ClusterIP only; pages are reached by labn cluster tunnel")


def _check_idle(file: ClusterFile) -> Check:
    for cluster in file.of_kind("RayCluster"):
        spec = cluster["spec"]
        idle_s = spec.get("autoscalerOptions", {}).get("idleTimeoutSeconds")
        if not spec.get("enableInTreeAutoscaling") or not idle_s or idle_s > _MAX_IDLE_S:
            fix = "enableInTreeAutoscaling: true, and idleTimeoutSeconds up to 3600, such as 300"
            return Check("idle pods", "fail", "pods that do nothing stay, and are paid for", fix)
        kept = [
            group["groupName"]
            for group in spec.get("workerGroupSpecs", [])
            if group.get("minReplicas")
        ]
        if kept:
            detail = f"minReplicas keeps pods while they do nothing: {', '.join(kept)}"
            return Check("idle pods", "warn", detail, "set minReplicas: 0, unless you mean it")
    return Check("idle pods", "ok", "released when idle")


def _check_tools() -> Check:
    if shutil.which("kubectl") is None:
        fix = "install kubectl, and point it at your Kubernetes"
        return Check("tools", "warn", "kubectl is not here", fix)
    return Check("tools", "ok", "kubectl is here")
