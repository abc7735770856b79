"""`labn cluster check`: the shipped files pass, and each kind of mistake is named with its fix."""

from __future__ import annotations

import os
import subprocess

import pytest
import yaml
from sample import FILES, ROOT, VALUES, change, lay_out

from labn.distributed.checks import kuberay_schema
from labn.distributed.checks.cluster_file import check_cluster
from labn.distributed.checks.kuberay_schema import KINDS, schema_of
from labn.distributed.launch.cluster_files import read_cluster
from labn.errors import UserError


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return lay_out(tmp_path, monkeypatch)


def faults(place):
    return {one.name: f"{one.detail}; {one.fix}" for one in check_cluster(place)
            if one.status == "fail"}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_file_with_sample_values_passes(folder, name):
    assert faults(folder / name) == {}


@pytest.mark.parametrize("name", FILES)
def test_a_shipped_file_is_refused_until_its_values_are_set(name):
    path = ROOT / "cluster" / name
    lines = [one for one in check_cluster(path) if (one.name, one.status) == ("values", "fail")]
    text = path.read_text()
    assert len(lines) == text.count("CHANGE_ME") > 0
    for placeholder in VALUES:
        named = [one for one in lines if one.detail.endswith(f": {placeholder} is not set")]
        assert len(named) == text.count(placeholder)
    assert {one.fix for one in lines} == {f"set it at the top of {path}"}


def test_each_variable_that_is_missing_is_a_line(folder):
    place = change(
        folder / "gpu.yaml", (" LABN_TORCH=2.14.1", ""), ("LABN_SHARED=/mnt/labn", "LABN_SHARED=")
    )
    details = [one.detail for one in check_cluster(place) if one.name == "values"]
    assert details == ["LABN_SHARED is not set", "LABN_TORCH is not set"]


@pytest.mark.parametrize("name", FILES)
def test_values_stand_at_the_top_in_one_place(name):
    lines = (ROOT / "cluster" / name).read_text().splitlines()
    begin, end = (
        next(n for n, line in enumerate(lines) if line.startswith(mark))
        for mark in ("# ---- Set these", "# -----------------")
    )
    places = [n for n, line in enumerate(lines) if "CHANGE_ME" in line]
    assert places
    assert all(begin < place < end for place in places)


MISTAKES = [
    # file, check, message, and what is changed
    ("gpu.yaml", "schema", 'unknown key max_worker. Did you mean "max_workers"?',
     ("max_workers: 4\nprovider", "max_worker: 4\nprovider")),
    ("gpu.yaml", "schema", 'provider.type = awz: must be one of', ("type: aws", "type: awz")),
    ("gpu.yaml", "schema", "idle_timeout_minutes = 'soon'",
     ("idle_timeout_minutes: 5", "idle_timeout_minutes: soon")),
    ("gpu.yaml", "schema", "head_node_type", ("head_node_type: head", "head_node_type: chief")),
    ("onprem.yaml", "schema", "Please supply a `head_ip`", ("  head_ip: 10.0.0.10", "  ip: x")),
    ("gcp.yaml", "schema", "available_node_types.gpu.spot: unknown key min_worker.",
     ("min_workers: 0\n    max_workers: 4", "min_worker: 0\n    max_workers: 4")),
    ("gpu.yaml", "files", "file_mounts.~/labn/configs = config: does not exist here",
     ("configs: configs", "configs: config")),
    ("gpu.yaml", "files", "pip wheel . --no-deps -w dist", ("dist: dist", "dist: nowhere/dist")),
    ("gpu.yaml", "files", "LABN_WHEEL = labn-0.0.9-py3-none-any.whl: is in no folder",
     ("labn-0.1.0-py3", "labn-0.0.9-py3")),
    ("onprem.yaml", "ssh key", "auth.ssh_private_key = ~/.ssh/none: does not exist here",
     ("~/.ssh/id_ed25519     #", "~/.ssh/none #")),
    ("onprem.yaml", "versions", "LABN_RAY has ray 2.9.0, but", ("RAY=2.60.0", "RAY=2.9.0")),
    ("gcp.yaml", "versions", "LABN_PYTHON has python 3.10, but", ("PYTHON=3.11", "PYTHON=3.10")),
    ("gcp.yaml", "versions", "LABN_TORCH names no version of torch", (" LABN_TORCH=2.14.1", "")),
    ("gpu.yaml", "versions", "LABN_WHEEL has labn 0.0.9", ("labn-0.1.0-py3", "labn-0.0.9-py3")),
    ("gpu.yaml", "storage", "LABN_SHARED = shared: must be an absolute path",
     ("LABN_SHARED=/mnt/labn", "LABN_SHARED=shared")),
    ("gpu.yaml", "storage", "nothing shared is mounted there", ("LABN_NFS=", "LABN_NFT=")),
    ("onprem.yaml", "storage", "only the head sees them",
     ("tracker --shared $LABN_SHARED", "tracker --shared ~/mlflow")),
    ("onprem.yaml", "storage", "the head starts no tracker",
     ("- labn cluster tracker", "- echo labn tracker")),
    ("gpu.yaml", "token", "anyone may run code", ("  ~/.ray/auth_token: ~/.ray", "  ~/t: ~/.ray")),
    ("gpu.yaml", "ports", "--dashboard-host=0.0.0.0 listens on all addresses",
     ("dashboard-host=127.0.0.1", "dashboard-host=0.0.0.0")),
    ("onprem.yaml", "ports", "--host 0.0.0.0 listens on all addresses",
     ("--host $LABN_ADDRESS --b", "--host 0.0.0.0 --b")),
    ("gpu.yaml", "ports", "opens ports 8265-8265 to the world",
     ("    GroupName: labn ", "    IpPermissions: [{FromPort: 8265, ToPort: 8265, IpProtocol: tcp,"
      " IpRanges: [{CidrIp: 0.0.0.0/0}]}]\n    GroupName: labn ")),
    ("gpu.yaml", "idle nodes", "idle_timeout_minutes = 0: machines that do nothing stay",
     ("idle_timeout_minutes: 5", "idle_timeout_minutes: 0")),
    ("kuberay.yaml", "schema", "spec.headGroupSpec: unknown key serviceTyp. Did you mean",
      ("serviceType: ClusterIP", "serviceTyp: ClusterIP")),
    ("kuberay.yaml", "schema", "'groupName' is a required property",
     ("- groupName: gpu\n      replicas: 0", "- replicas: 0")),
    ("kuberay.yaml", "schema", "apiVersion = 'ray.io/v1alpha1'",
     ("apiVersion: ray.io/v1\nkind: RayCluster", "apiVersion: ray.io/v1alpha1\nkind: RayCluster")),
    ("kuberay.yaml", "schema", "RayJob: spec: unknown key backofLimit. Did you mean",
     ("backoffLimit: 0", "backofLimit: 0")),
    ("kuberay.yaml", "schema", "kind = RayClusters: not one of those checked",
     ("kind: RayCluster\n", "kind: RayClusters\n")),
    ("kuberay.yaml", "schema", "memory = '8 GB'", ("limits: {cpu: \"4\", memory: 8Gi}",
     "limits: {cpu: \"4\", memory: 8 GB}")),
    ("kuberay.yaml", "versions", "pods differ in ray: 2.60.0, 2.9.0",
     ("rayVersion: 2.60.0", "rayVersion: 2.9.0")),
    ("kuberay.yaml", "versions", "a container has python 3.12", ("py311-gpu", "py312-gpu")),
    ("kuberay.yaml", "storage", "claim labn: ReadWriteOnce: only one node may write it",
     ("ReadWriteMany", "ReadWriteOnce")),
    ("kuberay.yaml", "storage", "container ray-head mounts nothing that is shared",
     ("persistentVolumeClaim: {claimName: labn}", "emptyDir: {}")),
    ("kuberay.yaml", "storage", "no pod runs the tracker", ("labn cluster tracker", "sleep")),
    ("kuberay.yaml", "token", "ray-head: has no RAY_AUTH_TOKEN",
     ("env: &environment\n              - {name: RAY_AUTH_MODE, value: token}\n"
      "              - name: RAY_AUTH_TOKEN", "env: &environment\n              - {name:"
      " RAY_AUTH_MODE, value: token}\n              - name: RAY_TOKEN")),
    ("kuberay.yaml", "ports", "serviceType LoadBalancer opens the head",
     ("serviceType: ClusterIP", "serviceType: LoadBalancer")),
    ("kuberay.yaml", "idle pods", "pods that do nothing stay",
     ("enableInTreeAutoscaling: true", "enableInTreeAutoscaling: false")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "check", "message", "edit"), MISTAKES)
def test_a_mistake_is_named(folder, name, check, message, edit):
    found = faults(change(folder / name, edit))

    assert message in found[check]
    assert not found[check].endswith("; None")


def test_a_key_that_others_may_read_is_refused(folder, tmp_path):
    (tmp_path / "home/.ssh/id_ed25519").chmod(0o644)
    assert "chmod 600" in faults(folder / "onprem.yaml")["ssh key"]


def test_a_token_that_is_not_there_yet_is_made_later(folder, tmp_path):
    (tmp_path / "home/.ray/auth_token").unlink()
    (token,) = [one for one in check_cluster(folder / "gpu.yaml") if one.name == "token"]
    assert token.status == "warn"
    assert "labn cluster up makes it" in token.fix


def test_machines_that_are_kept_idle_are_a_warning(folder):
    place = change(folder / "gpu.yaml", ("min_workers: 0\n    max_workers: 4",
                                         "min_workers: 2\n    max_workers: 4"))  # fmt: skip
    (idle,) = [one for one in check_cluster(place) if one.name == "idle nodes"]
    assert (idle.status, idle.detail.endswith("gpu.spot (2)")) == ("warn", True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read (No such file or directory)"),
        ("a: [", "is not valid YAML"),
        ("- a", "must be a mapping"),
        ("a: 1\n---\nb: 2", "has 2 documents"),
    ],
)
def test_a_file_that_is_none_ends_in_one_line(tmp_path, content, message):
    place = tmp_path / "x.yaml"
    if content is not None:
        place.write_text(content)
    with pytest.raises(UserError) as error:
        read_cluster(place)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_schema_of_kubernetes_knows_every_object_that_is_shipped():
    documents = list(yaml.safe_load_all((ROOT / "cluster/kuberay.yaml").read_text()))
    assert {document["kind"] for document in documents} == set(KINDS)


@pytest.mark.real_data
def test_the_definitions_of_kuberay_are_the_published_ones(test_data):
    published = {place.name: place.read_bytes() for place in test_data.glob("kuberay_crd/*.gz")}
    shipped = {place.name: place.read_bytes() for place in kuberay_schema._FOLDER.glob("*.gz")}
    assert len(published) == 2
    assert shipped == published


def test_the_definitions_of_kuberay_refuse_unknown_keys_at_every_depth():
    def objects(schema):
        if isinstance(schema, dict):
            if isinstance(schema.get("properties"), dict):
                yield schema
            for value in schema.values():
                yield from objects(value)

    for kind in ("RayCluster", "RayJob"):
        every = list(objects(schema_of(kind)))
        assert len(every) > 500
        assert not [one for one in every if one.get("additionalProperties") is not False]


def test_all_files_install_the_same():
    exports = [read_cluster(ROOT / "cluster" / name).exports() for name in FILES[:3]]
    names = ("LABN_WHEEL", "LABN_PYTHON", "LABN_RAY", "LABN_TORCH")
    assert len({tuple(one[name] for name in names) for one in exports}) == 1


def test_a_node_that_lacks_values_is_not_set_up_and_names_each_on_a_line(tmp_path):
    given = {
        "LABN_SHARED": "/mnt/labn",
        "LABN_NFS": "CHANGE_ME_FILE_SYSTEM.efs.us-west-2.amazonaws.com:/",
        "LABN_WHEEL": "labn-0.1.0-py3-none-any.whl",
        "LABN_PYTHON": "3.11",
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
    }

    done = subprocess.run(
        ["bash", ROOT / "cluster/node.sh"], env=given, capture_output=True, text=True
    )

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: LABN_RAY: is not set; export it in setup_commands of the cluster's file",
        "error: LABN_TORCH: is not set; export it in setup_commands of the cluster's file",
        "error: LABN_NFS = CHANGE_ME_FILE_SYSTEM.efs.us-west-2.amazonaws.com:/: is not set; set it"
        " at the top of the cluster's file",
    ]
    assert list(tmp_path.iterdir()) == []
