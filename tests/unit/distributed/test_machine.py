from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import psutil
import pytest
import torch
from sample import ROOT

from labn.distributed.checks import machine as doctor
from labn.distributed.checks.machine import Check, as_json, as_text, run_checks

_COMPILERS = {"g++": "/usr/bin/g++"}


@pytest.fixture
def sound_machine(monkeypatch):
    """Room, memory and no accelerator, whatever the machine that runs the tests has."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=16e9))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100e9))
    monkeypatch.setattr(shutil, "which", lambda program: _COMPILERS.get(program))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def checks(tmp_path, sound_machine):
    def run(**changes):
        options = {
            "data_root": None,
            "tracking_uri": "none",
            "cache_dir": tmp_path / "cache",
            "output_dir": tmp_path / "runs" / "first",
        }
        found = run_checks(**(options | changes))
        for check in found:
            assert (check.fix is None) == (check.status == "ok")
            assert "\n" not in check.detail + (check.fix or "")
        return {check.name: check for check in found}

    return run


def test_all_is_well_on_a_sound_machine_and_nothing_is_created(checks, tmp_path):
    found = checks(data_root=tmp_path, tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    assert {check.status for check in found.values()} == {"ok"}
    assert found["accelerator"].detail == "no accelerator: training runs on the CPU"
    assert torch.__version__ in found["torch"].detail
    assert list(tmp_path.iterdir()) == []


def test_the_checks_do_not_import_ray():
    code = (
        "import sys; from pathlib import Path;"
        "from labn.distributed.checks.machine import run_checks;"
        "here = Path('.'); run_checks(data_root=None, tracking_uri='none', cache_dir=here,"
        " output_dir=here); sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_an_old_python_fails(checks, monkeypatch):
    monkeypatch.setattr(doctor, "MIN_PYTHON", (99, 1))
    check = checks()["python"]
    assert check.status == "fail"
    assert "Python 99.1 or newer" in check.fix


def test_a_torch_that_cannot_be_imported_fails_and_the_other_checks_continue(checks, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    found = checks()
    assert found["torch"].status == "fail"
    assert found["accelerator"].status == "fail"
    assert found["memory"].status == "ok"


@pytest.mark.parametrize(
    ("capabilities", "message"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16 in the CPU's hardware"),
        ({"avx512_bf16": False}, "no bf16 detected"),
    ],
)
def test_bf16_of_the_cpu_is_reported(checks, monkeypatch, capabilities, message):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert f", {message}" in checks()["torch"].detail


def test_what_computes_the_network_is_reported(checks, monkeypatch):
    monkeypatch.setenv("LABN_COMPILE", "0")
    assert checks()["compiler"].detail.startswith("not used: LABN_COMPILE=0")
    monkeypatch.delenv("LABN_COMPILE")
    assert checks()["compiler"].detail.startswith("/usr/bin/g++")
    monkeypatch.setattr(shutil, "which", lambda program: None)
    check = checks()["compiler"]
    assert check.status == "warn"
    assert "install g++" in check.fix


def test_every_gpu_is_listed_with_its_memory(checks, monkeypatch):
    gpus = [SimpleNamespace(name=f"GPU {n}", total_memory=24e9 * (n + 1)) for n in range(2)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_properties", gpus.__getitem__)
    assert checks()["accelerator"].detail == "GPU 0 (24.0 GB, bf16), GPU 1 (48.0 GB, bf16)"


def test_a_gpu_that_torch_does_not_see_is_a_warning(checks, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/bin/{program}")
    check = checks()["accelerator"]
    assert check.status == "warn"
    assert "CUDA build" in check.fix


def test_little_memory_is_a_warning(checks, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=3.9e9))
    check = checks()["memory"]
    assert (check.status, check.detail) == ("warn", "3.9 GB available, less than 4")


def test_a_missing_psutil_is_a_warning(checks, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert checks()["memory"].status == "warn"


def test_a_full_disk_is_a_warning_that_names_the_setting(checks, monkeypatch, tmp_path):
    (tmp_path / "cache").mkdir()
    free = {tmp_path / "cache": 1e9, tmp_path: 50e9}
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free[folder]))
    found = checks()
    assert found["output_dir space"].status == "ok"
    assert found["data.cache_dir space"].status == "warn"
    assert "data.cache_dir=PATH" in found["data.cache_dir space"].fix


def test_a_file_in_the_place_of_a_folder_fails(checks, tmp_path):
    (tmp_path / "runs").write_text("")
    check = checks()["output_dir"]
    assert check.status == "fail"
    assert str(tmp_path / "runs") in check.detail


def test_a_folder_that_refuses_writes_fails(checks, monkeypatch):
    def refuse(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    check = checks()["data.cache_dir"]
    assert check.status == "fail"
    assert "Read-only file system" in check.detail
    assert "data.cache_dir=PATH" in check.fix


def test_a_ray_that_lacks_what_is_called_fails_with_the_version_that_has_it(checks, monkeypatch):
    installed = importlib.metadata.version
    for version, status in (("2.57.1", "fail"), ("2.58.0", "ok"), ("3.0.0.dev0", "ok")):
        versions = {"ray": version}
        monkeypatch.setattr(
            importlib.metadata,
            "version",
            lambda name, versions=versions: versions.get(name) or installed(name),
        )
        check = checks()["ray"]
        assert (check.status, check.detail.split(",")[0]) == (status, version)
        assert check.fix == (
            'install "ray[train,tune,default]>=2.58"' if status == "fail" else None
        )


def test_the_oldest_ray_that_is_accepted_is_the_one_that_is_required():
    requirement = re.search(r'"ray\[.*\]>=([\d.]+),', (ROOT / "pyproject.toml").read_text())[1]
    assert tuple(map(int, requirement.split("."))) == doctor.MIN_RAY


def test_a_missing_ray_is_a_warning(checks, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check = checks()["ray"]
    assert check.status == "warn"
    assert "ray[train,tune,default]" in check.fix


def test_an_existing_sqlite_store_is_well(checks, tmp_path):
    store = sqlite3.connect(tmp_path / "mlflow.db")
    store.execute("CREATE TABLE runs (id TEXT)")
    store.close()
    assert checks(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")["tracking.uri"].status == "ok"


def test_a_file_that_is_no_database_fails(checks, tmp_path):
    (tmp_path / "mlflow.db").write_text("these are words, and no database at all " * 50)
    check = checks(tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")["tracking.uri"]
    assert check.status == "fail"
    assert "not a database" in check.detail


def test_a_sqlite_store_under_a_file_fails(checks, tmp_path):
    (tmp_path / "file").write_text("")
    uri = f"sqlite:///{tmp_path}/file/mlflow.db"
    assert checks(tracking_uri=uri)["tracking.uri"].status == "fail"


@pytest.mark.parametrize("uri", ["mlruns", "file:///tmp/mlruns"])
def test_a_folder_as_the_store_fails(checks, uri):
    check = checks(tracking_uri=uri)["tracking.uri"]
    assert check.status == "fail"
    assert "tracking.uri=sqlite:///mlflow.db" in check.fix


def test_a_database_server_is_not_looked_at_and_its_password_not_shown(checks):
    check = checks(tracking_uri="postgresql://me:secret@host/db")["tracking.uri"]
    assert check.status == "warn"
    assert "secret" not in check.detail + check.fix


class _Health(BaseHTTPRequestHandler):
    status = 200
    paths: tuple[str, ...] = ()

    def do_GET(self):
        type(self).paths += (self.path,)
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *args):
        """Do nothing."""


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = type("Handler", (_Health,), {})
    with HTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_tracking_server_that_answers_is_well(checks, server):
    address = f"127.0.0.1:{server.server_port}"
    check = checks(tracking_uri=f"http://me:secret@{address}/mlflow/")["tracking.uri"]
    assert (check.status, check.detail) == ("ok", f"http://{address}/mlflow/ answers")
    assert server.RequestHandlerClass.paths == ("/mlflow/health",)


def test_a_tracking_server_that_refuses_fails_with_the_host_setting(checks, server):
    server.RequestHandlerClass.status = 403
    check = checks(tracking_uri=f"http://127.0.0.1:{server.server_port}")["tracking.uri"]
    assert check.status == "fail"
    assert "answers 403" in check.detail
    assert "MLFLOW_SERVER_ALLOWED_HOSTS" in check.fix


@pytest.mark.parametrize("listens", [True, False], ids=["silent", "absent"])
def test_a_tracking_server_that_does_not_answer_fails(checks, monkeypatch, listens):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(doctor, "TRACKER_TIMEOUT_S", 0.2)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        if listens:
            held.listen()
        uri = f"http://127.0.0.1:{held.getsockname()[1]}"
        check = checks(tracking_uri=uri)["tracking.uri"]
    assert check.status == "fail"
    assert ("timed out" if listens else "refused") in check.detail


@pytest.mark.parametrize("uri", ["http://", "http://[bad", "http://host:port"])
def test_an_address_that_is_none_fails(checks, uri):
    assert checks(tracking_uri=uri)["tracking.uri"].status == "fail"


def test_a_data_root_is_looked_for_only_where_one_is_given(checks, tmp_path):
    assert "data.root" not in checks()
    check = checks(data_root=tmp_path / "absent")["data.root"]
    assert check.status == "fail"
    assert "data.root=PATH" in check.fix


EXAMPLES = [
    Check("memory", "ok", "16.0 GB available"),
    Check("data.root", "warn", "a detail", "fix it"),
]


def test_the_text_is_aligned_and_has_the_fix():
    assert as_text([*EXAMPLES, Check("ray", "fail", "not there", "install it")]) == (
        "ok    memory     16.0 GB available\n"
        "warn  data.root  a detail\n"
        "                 -> fix it\n"
        "FAIL  ray        not there\n"
        "                 -> install it"
    )


@pytest.mark.parametrize(("num_checks", "status"), [(0, "ok"), (1, "ok"), (2, "warn")])
def test_the_json_holds_every_check_and_the_gravest_status(num_checks, status):
    tree = as_json(EXAMPLES[:num_checks])
    assert json.loads(json.dumps(tree)) == tree
    assert tree["status"] == status
    assert [check["name"] for check in tree["checks"]] == ["memory", "data.root"][:num_checks]
