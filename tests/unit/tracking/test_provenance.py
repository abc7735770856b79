"""Provenance of a run, without secrets."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from labn.tracking import environment_tags, provenance, redact
from labn.tracking.provenance import package_commit


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("postgresql://me:hunter2@host:5432/db", "postgresql://host:5432/db"),
        ("postgresql://me:hunt/er2@host/db", "postgresql://host/db"),
        ("postgresql://me:hunt@er2@host/db", "postgresql://host/db"),
        ("https://hunter2@host/path", "https://host/path"),
        ("https://host/path?token=hunter2&page=1", "https://host/path?token=***&page=1"),
        ("s3://b?X-Amz-Signature=hunter2", "s3://b?X-Amz-Signature=***"),
        ("a=http://m:hunter2@h b=http://m:hunter2@g/x", "a=http://h b=http://g/x"),
        ("https://host/user@example.org", "https://host/user@example.org"),
        ("mail me@host", "mail me@host"),
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("data.name=idrid model.split=7", "data.name=idrid model.split=7"),
    ],
)
def test_credentials_in_addresses_are_removed_and_nothing_else(text: str, clean: str) -> None:
    assert redact(text) == clean
    assert redact(clean) == clean


def test_the_tags_give_versions_and_a_command_line_without_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["labn", "train", "my config.yaml", "tracking.uri=http://me:hunter2@host"]
    )
    tags = environment_tags()
    assert tags["version.python"] == platform.python_version()
    assert tags["version.torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"version.torch", "version.mlflow", "version.numpy", "version.labn"} <= set(tags)
    assert tags["command"] == "labn train 'my config.yaml' tracking.uri=http://host"
    assert platform.node() not in tags.values()


@pytest.mark.parametrize(
    ("policy", "spins", "tag"),
    [("PASSIVE", "2000", "passive, 2000 spins"), ("ACTIVE", "", "active"), ("", "", None)],
)
def test_how_threads_wait_is_a_tag(
    policy: str, spins: str, tag: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    monkeypatch.setenv("GOMP_SPINCOUNT", spins)

    assert environment_tags().get("waiting") == tag


def _git(*arguments: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    answer = subprocess.run(
        ("git", *identity, *arguments), capture_output=True, check=True, text=True
    )
    return answer.stdout.strip()


def test_the_commit_is_of_the_checkout_around_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _git("init", "--quiet")
    (tmp_path / "code.py").write_text("one")
    _git("add", "code.py")
    _git("commit", "--quiet", "--no-verify", "--message", "first")
    _git("tag", "v1")
    tags = environment_tags()
    assert (tags["git.commit"], tags["git.dirty"]) == (_git("rev-parse", "HEAD"), "false")
    (tmp_path / "code.py").write_text("two")
    assert environment_tags()["git.dirty"] == "true"


def test_without_a_checkout_or_without_git_there_is_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "git.commit" not in environment_tags()
    monkeypatch.setenv("PATH", "")
    assert "git.commit" not in environment_tags()


def test_the_commit_of_this_package_is_its_checkouts_or_the_one_that_its_wheel_carries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "labn" / "tracking" / "here.py"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labn" / "tracking").mkdir(parents=True)
    assert package_commit() is None
    assert "labn.commit" not in environment_tags()
    _git("init", "--quiet")
    _git("commit", "--quiet", "--allow-empty", "--no-verify", "--message", "first")
    assert package_commit() == _git("rev-parse", "HEAD")
    (tmp_path / "labn" / "commit.txt").write_text("0123abc-dirty\n")
    assert environment_tags()["labn.commit"] == "0123abc-dirty"


def test_an_installed_package_has_not_the_commit_of_a_checkout_around_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "venv" / "site-packages" / "labn"
    (package / "tracking").mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(package / "tracking" / "here.py"))
    monkeypatch.chdir(tmp_path)
    _git("init", "--quiet")
    _git("commit", "--quiet", "--allow-empty", "--no-verify", "--message", "another project's")
    assert package_commit() is None
