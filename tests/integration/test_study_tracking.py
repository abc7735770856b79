"""What becomes of a study whose tracker, or whose network's export, fails."""

from __future__ import annotations

import json
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml
from command_line import SMALL

pytestmark = pytest.mark.slow

PASSWORD = "hunter2"
_EXPERIMENT = {"experiment_id": "1", "name": "e", "lifecycle_stage": "active"}
_RUN = {
    "info": {"run_id": "0123", "run_uuid": "0123", "experiment_id": "1", "status": "RUNNING"},
    "data": {},
}
_ANSWERS = {
    "experiments/get-by-name": {"experiment": _EXPERIMENT},
    "runs/create": {"run": _RUN},
    "runs/update": {"run_info": _RUN["info"]},
    "runs/get": {"run": _RUN},
}


class OpensOnly(BaseHTTPRequestHandler):
    """A tracker that opens entries, and then is away."""

    def do_GET(self):
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        call = self.path.partition("?")[0].partition("/mlflow/")[2]
        body = json.dumps(_ANSWERS.get(call, {})).encode()
        is_opening = call in _ANSWERS or (call == "runs/log-batch" and _is_parent_alone(sent))
        self.send_response(200 if is_opening else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *arguments):
        pass


def _is_parent_alone(sent):
    batch = json.loads(sent)
    tags = [tag["key"] for tag in batch.get("tags", [])]
    return not batch.get("params") and tags == ["mlflow.parentRunId"]


@pytest.fixture
def tracker_uri():
    with ThreadingHTTPServer(("127.0.0.1", 0), OpensOnly) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://me:{PASSWORD}@127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def write_study(folder, uri, conditions, floor=0.6):
    base = SMALL | {
        "data": SMALL["data"] | {"cache_dir": str(folder / "cache")},
        "train": SMALL["train"] | {"epochs": 1, "warmup_epochs": 0},
        "tracking": {"uri": uri, "log_model": False},
    }
    tree = {"base": base, "conditions": conditions, "seeds": [0], "register_min_auroc": floor}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(tree | {"output_dir": str(folder / "study")}))
    return path


def test_a_password_in_the_trackers_address_is_never_shown(tmp_path, labn, tracker_uri, caplog):
    """The tracker opens each entry, and takes nothing after; each condition fails at its start."""
    broken = {f"broken-{number}": {"loss.class_weights": [1] * number} for number in (3, 4)}

    done = labn("ablate", write_study(tmp_path, tracker_uri, broken), "--serial")

    assert done.returncode == 1
    assert caplog.text.count("cannot be reached") == 3  # of the study and of each run
    assert PASSWORD not in done.stderr + done.stdout + caplog.text
    own = {"tracker.json", "config.yaml", "study.yaml"}  # which name where to resume
    shown = [path for path in (tmp_path / "study").rglob("*") if path.is_file()]
    assert sum(path.name == "untracked.jsonl" for path in shown) == 3
    assert [
        path
        for path in shown
        if PASSWORD.encode() in path.read_bytes()
        and (path.name not in own or "untracked" in path.parts)
    ] == []


def test_a_network_that_cannot_be_exported_is_reported_and_breaks_no_study(
    tmp_path, labn, monkeypatch
):
    def cannot_export(*arguments, **options):
        raise ValueError("this operator\nhas no name")

    path = write_study(
        tmp_path,
        f"sqlite:///{tmp_path}/mlflow.db",
        {"full": {}, "no-kl": {"loss.lambda_kl": 0}},
        floor=0,
    )
    with monkeypatch.context() as broken:
        broken.setattr(torch.export, "export", cannot_export)
        done = labn("ablate", path, "--serial")

    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "this operator" in line]
    assert "/seed-0 is not registered: the network cannot be exported" in line
    assert "ValueError: this operator has no name" in line
    assert (tmp_path / "study" / "report" / "report.html").is_file()
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("select distinct status from runs").fetchall() == [("FINISHED",)]
        assert store.execute("select * from registered_models").fetchall() == []

    again = labn("ablate", path, "--serial")

    assert again.returncode == 0, again.stderr
    assert "registered " in again.stderr and ", version 1" in again.stderr


def test_a_network_at_chance_is_not_registered(tmp_path, labn):
    path = write_study(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", {"full": {}}, floor=1)

    done = labn("ablate", path, "--serial")

    assert done.returncode == 0, done.stderr
    assert "full/seed-0 is not registered: its val_auroc is 0." in done.stderr
    assert "below register_min_auroc = 1 (0.5 is chance)" in done.stderr
    assert not (tmp_path / "study" / "report" / "model_card.md").exists()
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("select * from registered_models").fetchall() == []
