"""`labn cluster up | submit | tunnel | logs | down`: the commands, and how arguments are quoted."""

from __future__ import annotations

import json
import subprocess

import pytest
from sample import lay_out
from typer.testing import CliRunner

from labn.cli.app import app
from labn.cli.cluster import cluster_app
from labn.distributed.launch import commands
from labn.distributed.launch.cluster_files import read_cluster
from labn.errors import UserError

TRICKY = ["--config", "my search.yaml", "a={b: 'c'}", "$HOME", "x;y", "", "*", "--json"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "search.py").touch()
    return lay_out(tmp_path, monkeypatch)


def test_arguments_arrive_on_the_head_as_they_are_given_here(folder):
    """Ray joins them with spaces for the head's shell; here a shell of our own reads them."""
    file = read_cluster(folder / "gpu.yaml")
    (command,) = commands.submit(file, folder.parent / "search.py", TRICKY)

    start = ["ray", "submit", str(folder / "gpu.yaml"), str(folder.parent / "search.py"), "--"]
    assert command[: len(start)] == start
    joined = " ".join(command[len(start) :])
    script = "import json, sys; print(json.dumps(sys.argv[1:]))"
    done = subprocess.run(
        ["bash", "-c", f"python3 -c '{script}' {joined}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == TRICKY


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["up"], "ray up --yes {file}"),
        (["down"], "ray down --yes {file}"),
        (["tunnel"],
         "ray exec {file} --port-forward 5000 --port-forward 8265 'sleep infinity'"),
        (["logs", "--lines", "7"],
         "ray exec {file} 'tail -n 7 /tmp/ray/session_latest/logs/monitor.log ~/labn/tracker/log'"),
    ],
)  # fmt: skip
def test_the_command_is_printed_before_it_runs(folder, words, command):
    file = folder / "onprem.yaml"
    done = CliRunner().invoke(cluster_app, [words[0], str(file), *words[1:], "--dry-run"])

    assert done.exit_code == 0, done.output
    assert f"$ {command.format(file=file)}\n" in done.stderr


def test_commands_for_kubernetes_are_kubectls(folder):
    file = read_cluster(folder / "kuberay.yaml")
    apply = ["kubectl", "apply", "-f", str(folder / "kuberay.yaml"), "-l"]
    assert commands.up(file) == [[*apply, "labn in (storage, cluster)"]]
    assert commands.submit(file, None, [])[-1] == [*apply, "labn=search"]
    ((*_, selector),) = commands.down(file)
    assert "storage" not in selector
    ((*_, first, second),) = commands.tunnel(file)
    assert (first, second) == ("5000:5000", "8265:8265")
    with pytest.raises(
        UserError, match=r"a RayJob runs the file.s spec.entrypoint; leave out .*search.py x"
    ):
        commands.submit(file, folder.parent / "search.py", ["x"])


def test_a_script_that_is_not_there_is_refused(folder):
    with pytest.raises(UserError, match=r"none.py: is no file; give one that runs on the head"):
        commands.submit(read_cluster(folder / "gpu.yaml"), folder / "none.py", [])


def test_up_refuses_what_its_check_refuses(folder):
    place = folder / "gpu.yaml"
    place.write_text(place.read_text().replace("dist: dist", "dist: none/dist"))

    done = CliRunner().invoke(app, ["cluster", "up", str(place), "--dry-run"])

    assert isinstance(done.exception, UserError)
    assert "file_mounts.~/labn/dist = none/dist: does not exist here" in str(done.exception)


def test_check_prints_one_line_each_and_reports_by_its_exit_code(folder):
    good = CliRunner().invoke(cluster_app, ["check", str(folder / "gcp.yaml"), "--json"])
    assert good.exit_code == 0
    assert json.loads(good.stdout)["status"] in ("ok", "warn")
    place = folder / "gcp.yaml"
    place.write_text(place.read_text().replace("LABN_RAY=2.60.0", "LABN_RAY=2.0.0"))
    assert CliRunner().invoke(cluster_app, ["check", str(place)]).exit_code == 1
