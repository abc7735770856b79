"""JSON schemas of the Kubernetes objects in use, without unknown keys.

Written by hand from the API references of KubeRay (ray.io/v1) and Kubernetes: the fields in
cluster/kuberay.yaml and their neighbours, not all fields. Kubernetes itself silently drops a
misspelt field.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
QUANTITY: Schema = {"type": ["string", "number"], "pattern": r"^\d+(\.\d+)?([munkKMGTP]i?)?$"}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


def _object(*required: str, **fields: Schema) -> Schema:
    return {
        "type": "object",
        "properties": fields,
        "required": list(required),
        "additionalProperties": False,
    }


def _list(item: Schema, at_least: int = 0) -> Schema:
    return {"type": "array", "items": item, "minItems": at_least}


_METADATA = _object(name=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS)
_KEY = _object("name", "key", name=TEXT, key=TEXT, optional=FLAG)
_VARIABLE = _object(
    "name",
    name=TEXT,
    value={"type": "string"},
    valueFrom=_object(
        secretKeyRef=_KEY,
        configMapKeyRef=_KEY,
        fieldRef=_object("fieldPath", fieldPath=TEXT, apiVersion=TEXT),
    ),
)
_AMOUNTS: Schema = {"type": "object", "additionalProperties": QUANTITY}
_RESOURCES = _object(requests=_AMOUNTS, limits=_AMOUNTS)
_MOUNT = _object("name", "mountPath", name=TEXT, mountPath=TEXT, subPath=TEXT, readOnly=FLAG)
_CONTAINER = _object(
    "name",
    name=TEXT,
    image=TEXT,
    imagePullPolicy={"enum": ["Always", "IfNotPresent", "Never"]},
    command=_list(TEXT),
    args=_list(TEXT),
    workingDir=TEXT,
    env=_list(_VARIABLE),
    ports=_list(
        _object(
            "containerPort",
            name=TEXT,
            containerPort={"type": "integer", "minimum": 1, "maximum": 65535},
            protocol={"enum": ["TCP", "UDP", "SCTP"]},
        )
    ),
    resources=_RESOURCES,
    volumeMounts=_list(_MOUNT),
    securityContext={"type": "object"},
    lifecycle={"type": "object"},
)
_VOLUME = _object(
    "name",
    name=TEXT,
    persistentVolumeClaim=_object("claimName", claimName=TEXT, readOnly=FLAG),
    nfs=_object("server", "path", server=TEXT, path=TEXT, readOnly=FLAG),
    emptyDir={"type": "object"},
    configMap={"type": "object"},
    secret={"type": "object"},
)
_TEMPLATE = _object(
    "spec",
    metadata=_METADATA,
    spec=_object(
        "containers",
        containers=_list(_CONTAINER, 1),
        initContainers=_list(_CONTAINER),
        volumes=_list(_VOLUME),
        nodeSelector=TEXTS,
        tolerations=_list({"type": "object"}),
        affinity={"type": "object"},
        serviceAccountName=TEXT,
        imagePullSecrets=_list({"type": "object"}),
        securityContext={"type": "object"},
        restartPolicy={"enum": ["Always", "OnFailure", "Never"]},
        terminationGracePeriodSeconds=COUNT,
    ),
)
_CLUSTER = _object(
    "headGroupSpec",
    rayVersion=TEXT,
    enableInTreeAutoscaling=FLAG,
    suspend=FLAG,
    authOptions=_object(mode={"enum": ["disabled", "token"]}, secretName=TEXT),
    autoscalerOptions=_object(
        resources=_RESOURCES,
        image=TEXT,
        imagePullPolicy=TEXT,
        env=_list(_VARIABLE),
        idleTimeoutSeconds=COUNT,
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        version=TEXT,
    ),
    headGroupSpec=_object(
        "rayStartParams",
        "template",
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        enableIngress=FLAG,
        rayStartParams=TEXTS,
        template=_TEMPLATE,
    ),
    workerGroupSpecs=_list(
        _object(
            "groupName",
            "rayStartParams",
            "template",
            groupName=TEXT,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            numOfHosts=COUNT,
            idleTimeoutSeconds=COUNT,
            suspend=FLAG,
            rayStartParams=TEXTS,
            template=_TEMPLATE,
        )
    ),
)
_JOB = _object(
    "entrypoint",
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    clusterSelector=TEXTS,
    rayClusterSpec=_CLUSTER,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    submitterPodTemplate=_TEMPLATE,
    backoffLimit=COUNT,
    activeDeadlineSeconds=COUNT,
    ttlSecondsAfterFinished=COUNT,
    shutdownAfterJobFinishes=FLAG,
    suspend=FLAG,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    metadata=TEXTS,
)
_CLAIM = _object(
    "accessModes",
    "resources",
    storageClassName=TEXT,
    volumeName=TEXT,
    accessModes=_list({"enum": ["ReadWriteMany", "ReadWriteOnce", "ReadOnlyMany"]}, 1),
    resources=_RESOURCES,
)


def _resource(version: str, kind: str, spec: Schema) -> Schema:
    whole = _object(
        "metadata",
        "spec",
        apiVersion={"const": version},
        kind={"const": kind},
        metadata=_METADATA,
        spec=spec,
    )
    whole["required"] += ["apiVersion", "kind"]
    return whole


SCHEMAS: dict[str, Schema] = {
    "PersistentVolumeClaim": _resource("v1", "PersistentVolumeClaim", _CLAIM),
    "RayCluster": _resource("ray.io/v1", "RayCluster", _CLUSTER),
    "RayJob": _resource("ray.io/v1", "RayJob", _JOB),
}
