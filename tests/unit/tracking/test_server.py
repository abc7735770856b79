"""MLflow's server on this machine: how it is found to answer."""

from __future__ import annotations

import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from labn.tracking import server


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


class Running(subprocess.Popen):
    """A process that runs, without one."""

    def __init__(self):
        pass

    def __del__(self):
        pass

    def poll(self):
        return None


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_the_environments_proxy_is_not_asked_for_a_server_of_this_machine(monkeypatch, name):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr(server, "_START_S", 5)
    with (
        HTTPServer(("127.0.0.1", 0), Healthy) as mlflow,
        HTTPServer(("127.0.0.1", 0), Healthy) as away,
    ):
        proxy = away.server_address[1]
        away.server_close()
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy}")
        threading.Thread(target=mlflow.handle_request, daemon=True).start()
        server._wait_until_answered(Running(), "sqlite:///m.db", "127.0.0.1", mlflow.server_port)
