"""`labn export`: a network as one file, equal to the network."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from command_line import assert_mistake, write_config

from labn.config import load_config
from labn.runs import export_network as module
from labn.runs.reporter import Reporter
from labn.runs.train import train_run
from labn.runs.trained import TrainedRun, without_data

NAMES = ["logits", "probabilities", "attention"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    train_run(
        load_config(write_config(folder, train__epochs=1, data__local_contrast=0.2)), Reporter()
    )
    return folder / "run"


@pytest.fixture(scope="module")
def expected(run_folder):
    """Images, and what the run itself makes of them."""
    trained = TrainedRun.open(run_folder, without_data())
    images = np.random.default_rng(3).integers(0, 256, (5, 32, 32, 3), np.uint8)
    output = trained.predict(images)
    return images, (output.logits, output.logits.softmax(dim=1), output.attention)


def run_onnx(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map
    metadata = {name: json.loads(text) for name, text in found.items()}
    assert [one.name for one in session.get_outputs()] == NAMES
    return session.run(NAMES, {"images": images}), metadata


def run_pt2(path, images):
    extra_files = {"labn.json": ""}
    program = torch.export.load(path, extra_files=extra_files).module()
    outputs = program(torch.from_numpy(images))
    assert list(outputs) == NAMES
    return [one.detach().numpy() for one in outputs.values()], json.loads(extra_files["labn.json"])


@pytest.mark.parametrize(("format", "run_file"), [("onnx", run_onnx), ("pt2", run_pt2)])
def test_an_exported_network_equals_the_run_and_carries_how_it_is_used(
    labn, run_folder, expected, format, run_file
):
    done = labn("export", run_folder, "--format", format, "--json")

    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    assert Path(content["out"]) == run_folder / f"network.{format}"
    assert max(content["largest_difference"].values()) <= content["tolerance"]
    images, outputs = expected
    for number in (5, 1):  # the size of a batch is free
        found, metadata = run_file(run_folder / f"network.{format}", images[:number])
        for one, other in zip(found, outputs, strict=True):
            np.testing.assert_allclose(one, other[:number], rtol=0, atol=1e-5)
    assert metadata == content["metadata"]
    assert metadata["class_names"] == ["negative", "positive"]
    assert (metadata["image_size"], metadata["contrast_window"]) == (32, 0.2)
    assert len(metadata["mean"]) == len(metadata["std"]) == 3


@pytest.fixture
def export_with_an_error(monkeypatch):
    """Let the export to pt2 write a few bytes, whose outputs are the network's and an error."""

    def replace(error):
        networks = []

        def write(network, images, metadata):
            networks.append(network)
            return b"written"

        def run(images):
            with torch.inference_mode():
                return {name: one.numpy() + error for name, one in networks[-1](images).items()}

        kind = module._FORMATS["pt2"]._replace(write=write, load=lambda content: run)
        monkeypatch.setitem(module._FORMATS, "pt2", kind)

    return replace


def test_a_file_of_something_else_is_kept_and_an_earlier_export_is_replaced(
    labn, run_folder, tmp_path, export_with_an_error
):
    for suffix in ("onnx", "pt2"):
        other = tmp_path / f"other.{suffix}"
        other.write_text("mine")
        done = labn("export", run_folder, "--format", suffix, "--out", other)
        assert_mistake(done, f"--out = {other}", "another network")
        assert other.read_text() == "mine"
    out = tmp_path / "network.pt2"
    arguments = ("export", run_folder, "--format", "pt2", "--out", out)
    assert labn(*arguments).returncode == 0
    # Another threshold is another network.
    assert_mistake(labn(*arguments, "model.theta_alpha=0.5"), "another network")
    export_with_an_error(0)
    assert labn(*arguments).returncode == 0
    assert out.read_bytes() == b"written"


@pytest.mark.parametrize(("error", "shown"), [(1e-3, "1.0e-03"), (float("nan"), "inf")])
def test_a_network_that_differs_once_it_is_exported_is_not_written(
    labn, run_folder, tmp_path, export_with_an_error, error, shown
):
    export_with_an_error(error)
    out = tmp_path / "network.pt2"

    done = labn("export", run_folder, "--format", "pt2", "--out", out)

    assert_mistake(done, "--format pt2", f"attention by {shown}", "at most 0.0001")
    assert not out.exists()


def test_a_missing_package_is_named_with_the_command_that_installs_it(
    labn, run_folder, monkeypatch
):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr(module, "find_spec", lambda name: None if name == "onnxscript" else name)

    done = labn("export", run_folder)

    assert_mistake(done, "--format onnx", "onnxscript", "pip install 'labn[onnx]'", "pt2")


def test_a_network_without_a_branch_is_exported_with_a_map_of_ones(labn, tmp_path):
    config = write_config(tmp_path, model__branch="none", train__epochs=1)
    train_run(load_config(config), Reporter())

    done = labn("export", tmp_path / "run", "--format", "pt2")

    assert done.returncode == 0, done.stderr
    program = torch.export.load(io.BytesIO((tmp_path / "run/network.pt2").read_bytes())).module()
    attention = program(torch.zeros(3, 32, 32, 3, dtype=torch.uint8))["attention"]
    assert len(attention) == 3
    assert (attention == 1).all()
