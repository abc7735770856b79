"""The choice of a Ray cluster, and the surroundings that a local one needs."""

from __future__ import annotations

import os
import socket

import pytest

from labn.distributed import session
from labn.errors import UserError


@pytest.fixture
def started(monkeypatch):
    """The arguments with which Ray is started, in place of starting it."""
    calls = []
    monkeypatch.setattr(session.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(session.ray, "init", lambda *args, **more: calls.append((*args, more)))
    monkeypatch.setattr(session.ray, "shutdown", lambda: None)
    for name in ("RAY_ADDRESS", "RAY_TMPDIR", "TMPDIR", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return calls


def connect():
    with session.connected(lambda _: None, lambda: None):
        pass


@pytest.mark.parametrize("value", [None, "", " ", "local"])
def test_without_an_address_ray_is_local(started, monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("RAY_ADDRESS", value)
    connect()
    ((address, more),) = started
    assert address == "local"
    assert more["_temp_dir"] is None


def test_a_cluster_that_answers_is_joined(started, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        connect()
    assert started[0][0] == address


def test_auto_is_the_cluster_that_this_machine_has_joined(started, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(session, "find_bootstrap_address", lambda _: address)
        connect()
    assert started[0][0] == address


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("auto", "this machine has joined no cluster"),
        ("127.0.0.1:{port}", "no cluster answers at 127.0.0.1:{port} ("),
        ("ray://127.0.0.1:{port}", "no cluster answers at ray://127.0.0.1:{port} ("),
        ("no-such-host.invalid:6379", "no cluster answers at no-such-host.invalid:6379 ("),
        ("127.0.0.1:99999", "no cluster answers at 127.0.0.1:99999 ("),
        ("127.0.0.1", "must be HOST:PORT, auto or local"),
        ("http://127.0.0.1:8265", "must be HOST:PORT, auto or local"),
    ],
)
def test_a_cluster_that_is_away_is_a_mistake_before_ray_waits_for_it(
    started, monkeypatch, address, reason
):
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # bound, so that no other process listens there
        place = {"port": unheard.getsockname()[1]}
        monkeypatch.setenv("RAY_ADDRESS", address.format(**place))
        monkeypatch.setattr(session, "find_bootstrap_address", lambda _: None)
        with pytest.raises(UserError) as raised:
            connect()
    expected = f"RAY_ADDRESS = {address.format(**place)}: {reason.format(**place)}"
    assert str(raised.value).startswith(expected)
    assert "unset RAY_ADDRESS" in str(raised.value)
    assert started == []


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_temporary_folder_too_long_for_sockets_is_replaced(started, monkeypatch, variable):
    monkeypatch.setenv(variable, "/scratch/" + "slurm_jobdir/" * 4)
    connect()
    folder = started[0][1]["_temp_dir"]
    assert folder == f"/tmp/ray-{os.getuid()}"
    # 108 bytes with the null byte at the end, by <sys/un.h>.
    socket_path = f"{folder}/session_2026-11-26_16-19-09_504107_4194304/sockets/plasma_store"
    assert len(socket_path) < 108


def test_a_home_folder_that_cannot_be_written_needs_no_token_there(started, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(session, "can_make", lambda folder: False)
    connect()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


def test_the_token_of_a_home_folder_is_used(started, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    connect()
    assert "RAY_AUTH_TOKEN" not in os.environ
