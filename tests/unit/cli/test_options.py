"""The options of commands: their names, and what they set."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
import typer

import labn.cli
from labn.cli import (  # noqa: F401
    ablate,
    cluster,
    config,
    data,
    doctor,
    evaluate,
    explain,
    init,
    report,
    sanity,
    search,
    train,
    ui,
)
from labn.cli.app import app, resolve_config
from labn.errors import UserError
from labn.explain.registry import METHODS
from labn.metrics.map_metrics import METRICS

PAGE = Path(__file__).parents[3] / "docs/explanations.md"
SCRIPTS = Path(__file__).parents[3] / "tune"


def parsed(*words):
    """Return the parameters that a command reads from its words, without running it."""
    group, *rest = words
    command = typer.main.get_command(app).commands[group]
    if hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    return command.make_context(command.name, list(rest)).params


@pytest.mark.parametrize("name", ["--subset", "--split"])
@pytest.mark.parametrize("command", ["evaluate", "report", "sanity"])
def test_a_subset_is_chosen_by_its_name_or_by_the_older_one(command, name):
    assert parsed(command, "runs/demo", name, "validation")["subset"] == "validation"
    assert parsed(command, "runs/demo")["subset"] == "test"


def test_the_best_trials_of_a_search_are_retrained_by_an_option_of_that_name():
    params = parsed("search", "run", "search.yaml", "--retrain-best", "2", "--seeds", "4")

    assert (params["confirm_best"], params["seeds"]) == (2, 4)


@pytest.mark.parametrize(("option", "names"), [("methods", METHODS), ("metrics", METRICS)])
def test_the_help_and_the_page_know_every_method_and_every_metric(option, names):
    command = typer.main.get_command(app).commands["evaluate"]
    (shown,) = (one.help for one in command.params if one.name == option)

    assert not names.keys() - set(re.split(r", (?:or )?|; |: ", shown))
    assert not names.keys() - set(re.findall(r"`([^`\n]+)`", PAGE.read_text(encoding="utf-8")))


@pytest.mark.parametrize("script", ["search", "ablation"])
def test_a_script_for_clusters_passes_its_arguments_to_the_command(monkeypatch, script):
    seen = []
    monkeypatch.setattr(labn.cli, "main", lambda: seen.extend(sys.argv))
    own = ["--retrain-best", "2", "--seeds", "4"] if script == "search" else []
    given = ["--config", "a.yaml", "train.epochs=3", "--json", *own]
    monkeypatch.setattr(sys, "argv", [f"tune/{script}.py", *given])

    runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")

    command = ["search", "run"] if script == "search" else ["ablate"]
    assert seen == ["labn", *command, "a.yaml", "train.epochs=3", *own, "--json"]


@pytest.mark.parametrize("name", ["lr=0.1", "runs/lr=0.1", "a b=c"])
def test_a_path_with_an_equals_sign_is_a_path_and_not_a_setting(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(UserError, match=f"{name}: is a folder but not a run"):
        resolve_config(Path(name), [])


@pytest.mark.parametrize("word", ["train.epochs=3", "train.batch-size=3", "data.root=/a/b=c"])
def test_a_setting_in_the_place_of_the_configuration_is_seen(word):
    with pytest.raises(UserError, match="no configuration given"):
        resolve_config(Path(word), [])


def every_command(command, name):
    """Return each command and each group below one, by their names."""
    found = {name: command}
    for word, one in getattr(command, "commands", {}).items():
        found |= every_command(one, f"{name} {word}")
    return found


def test_help_shows_flags_as_flags(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    for name, command in every_command(typer.main.get_command(app), "labn").items():
        with pytest.raises(SystemExit):
            command.main(["--help"], prog_name=name)

        text = capsys.readouterr().out
        assert "--help" in text, name
        assert "<bool>" not in text, name
