from __future__ import annotations

import json
import os
import sys
from subprocess import run

import pytest
import yaml
from command_line import COMMAND, ENVIRONMENT, succeed, write_config

from labn.config import known_keys

COMMANDS = [
    ("train",),
    ("evaluate",),
    ("data", "check"),
    ("data", "synth"),
    ("doctor",),
    ("explain",),
    ("report",),
    ("sanity",),
    ("ablate",),
    ("ui",),
    ("search", "run"),
    ("search", "export"),
    ("init",),
    ("cluster", "init"),
    ("config", "show"),
    ("config", "keys"),
    ("config", "explain"),
]
SYNTH = ("--num-images", 20, "--image-size", 32)


@pytest.fixture
def tree(labn, tmp_path):
    root = tmp_path / "synthetic"
    assert labn("data", "synth", root, *SYNTH).returncode == 0
    return root


def test_help_lists_the_commands_and_loads_neither_torch_nor_schemas():
    watch = "import sys, labn.cli\ntry: labn.cli.main()\nfinally: print(*sys.modules)"

    done = run(
        [sys.executable, "-c", watch, "--help"], capture_output=True, text=True, env=ENVIRONMENT
    )

    assert done.returncode == 0
    *text, modules = done.stdout.splitlines()
    assert "labn.cli.app" in modules.split()
    slow = {"labn.config", "pydantic", "torch", "numpy", "pandas", "mlflow", "matplotlib", "ray"}
    assert not slow & set(modules.split())
    for name, *_ in COMMANDS:
        assert any(f" {name} " in line for line in text), name


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_commands_help_shows_an_example(labn, words):
    done = labn(*words, "--help")

    assert done.returncode == 0
    lines = [line.strip() for line in done.stdout.splitlines()]
    heading = next(place for place, line in enumerate(lines) if line.startswith("Example"))
    shown = " ".join(word for word in words if word != "run")  # which goes without saying
    assert any(f"{line} ".startswith(f"labn {shown} ") for line in lines[heading:])


def test_the_module_is_the_command_line():
    assert COMMAND[1:] == ("-m", "labn")
    assert "Train, search and audit LABN" in succeed("--help").stdout


def test_synth_writes_a_tree_of_classes_and_masks_that_training_reads(labn, tmp_path):
    root = tmp_path / "synthetic"

    done = labn("data", "synth", root, *SYNTH, "--positive-fraction", 0.25, "--json")

    assert json.loads(done.stdout) == {"root": str(root), "num_images": 20}
    counts = {
        folder: len(list((root / folder).glob("*.png")))
        for folder in ("negative", "positive", "masks/positive")
    }
    assert counts == {"negative": 15, "positive": 5, "masks/positive": 5}


def test_a_sound_tree_passes_the_check(labn, tree):
    done = labn("data", "check", tree)

    assert done.returncode == 0
    assert done.stderr == ""
    assert "20 images, 20 of them readable" in done.stdout
    assert "errors: 0" in done.stdout

    found = json.loads(labn("data", "check", tree, "--json").stdout)
    assert found["num_errors"] == 0
    assert found["partitions"]["unassigned"]["labels"] == {"negative": 10, "positive": 10}


def test_a_damaged_tree_fails_the_check_which_names_every_damage(labn, tree):
    broken = min((tree / "positive").iterdir())
    broken.write_bytes(b"not a picture")
    copy = tree / "negative" / "copy.png"
    copy.write_bytes(max((tree / "positive").iterdir()).read_bytes())

    done = labn("data", "check", tree)

    assert done.returncode == 2
    assert "Traceback" not in done.stdout + done.stderr
    assert "ERROR unreadable_file" in done.stdout
    assert broken.name in done.stdout
    assert "ERROR conflicting_labels" in done.stdout
    assert "copy.png" in done.stdout

    as_json = labn("data", "check", tree, "--json")
    assert as_json.returncode == 2
    found = json.loads(as_json.stdout)
    kinds = {finding["kind"] for finding in found["findings"] if finding["severity"] == "error"}
    assert kinds == {"unreadable_file", "conflicting_labels"}
    assert found["num_readable"] == 20


def test_names_that_are_not_utf_8_are_shown_in_every_output(labn, tree, tmp_path):
    for number, name in enumerate((b"ol\xe9.png", b"z\xe9ro.png")):
        image = min((tree / "positive").iterdir())
        path = image.rename(image.with_name(os.fsdecode(name)))
        if number:
            path.write_bytes(b"not a picture")

    done = labn("data", "check", tree)

    assert done.returncode == 2
    assert "positive/z\\xe9ro.png" in done.stdout
    found = json.loads(labn("data", "check", tree, "--json").stdout)
    assert found["files"]["left_out"][-1]["file"] == "positive/z\\xe9ro.png"
    config = write_config(tmp_path, data__name="folder", data__root=tree)
    done = labn("train", config, "--dry-run")
    assert done.returncode == 2 and "positive/z\\xe9ro.png" in done.stderr
    (tree / "positive" / os.fsdecode(b"z\xe9ro.png")).unlink()
    assert labn("train", config, "--dry-run").returncode == 0


def test_training_says_that_files_are_left_out(labn, tree, tmp_path, caplog):
    (tree / "positive" / "eye.heic").write_bytes(b"")
    config = write_config(tmp_path, data__name="folder", data__root=tree)
    assert labn("train", config, "--dry-run").returncode == 0
    assert "data.root: 1 warnings, first positive/eye.heic" in caplog.text


def test_the_check_takes_the_layouts_name_but_only_a_known_one(labn, tree):
    assert labn("data", "check", tree, "--name", "folder").returncode == 0

    done = labn("data", "check", tree, "--name", "floder")

    assert done.returncode == 2
    for name in ("floder", "idrid", "magnetograms", "folder"):
        assert f"'{name}'" in done.stderr


def test_a_shipped_configuration_can_be_checked(labn, tree):
    done = labn("data", "check", "demo", "data.name=folder", f"data.root={tree}", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(labn("data", "check", tree, "--json").stdout)


def test_the_doctor_finds_this_machine_fit(labn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    done = labn("doctor", "--json")

    checks = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert {"python", "torch", "output_dir", "tracking.uri"} <= {
        check["name"] for check in checks["checks"]
    }
    assert list(tmp_path.iterdir()) == []


def test_settings_are_shown_listed_and_explained(labn):
    shown = labn("config", "show", "demo", "train.epochs=3")
    listed = labn("config", "keys", "loss.", "--json")
    explained = labn("config", "explain", "loss.theta_b")
    misspelt = labn("config", "explain", "loss.thetab")

    assert yaml.safe_load(shown.stdout)["train"]["epochs"] == 3
    keys = [key["name"] for key in json.loads(listed.stdout)["keys"]]
    assert keys == [key for key in known_keys() if key.startswith("loss.")]
    assert explained.stdout.startswith("loss.theta_b (labn train): number >= 0, <= 1; default 0.2")
    assert misspelt.returncode == 2
    assert 'Did you mean "loss.theta_b"?' in misspelt.stderr


def test_a_search_is_shown_before_it_runs(labn, tmp_path):
    folder = tmp_path / "search"

    shown = labn("search", "demo", "--dry-run", f"output_dir={folder}", "trials=3")
    plan = labn("search", "demo", "--dry-run", f"output_dir={folder}", "trials=3", "--json")

    assert f": 3 trials of up to 10 epochs, in {folder}" in shown.stdout.splitlines()[0]
    content = json.loads(plan.stdout)
    assert content["trials"] == 3
    assert content["first"][0]["model.theta_alpha"] == content["base"]["model"]["theta_alpha"]
    assert all(f"  {key} " in shown.stdout for key in content["space"])
    assert not folder.exists()


def test_an_error_is_an_object_too_where_json_was_asked_for(labn):
    done = labn("evaluate", "nowhere", "--json")

    assert done.returncode == 2
    content = json.loads(done.stdout)
    assert content["exit_code"] == 2
    assert done.stderr == f"error: {content['error']}\n"
    assert labn("evaluate", "nowhere").stdout == ""
