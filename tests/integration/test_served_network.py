"""A registered network behind MLflow's server, asked over HTTP."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import ENVIRONMENT, wait_for, write_config
from PIL import Image

import labn
from labn.config import load_config
from labn.runs.export_network import export_network
from labn.runs.reporter import Reporter
from labn.runs.train import train_run
from labn.tracking import register_model

pytestmark = pytest.mark.slow
# A server imports MLflow and torch first.
PATIENCE_S = 240


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """A run whose network is registered; its folder and the store."""
    folder = tmp_path_factory.mktemp("served")
    uri = f"sqlite:///{folder}/mlflow.db"
    config = load_config(
        write_config(folder, train__epochs=1, data__local_contrast=0.2, tracking={"uri": uri})
    )
    train_run(config, Reporter())
    run_id = json.loads((folder / "run" / "tracker.json").read_text())["run_id"]
    assert register_model(uri, run_id, name="labn-synthetic", card="", tags={}) == 1
    return folder / "run", uri


@pytest.fixture(scope="module")
def address(registered):
    """The address of a server of the registered network, on loopback."""
    folder, uri = registered
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local",
                "-m", "models:/labn-synthetic/1", "-h", "127.0.0.1", "-p", str(port),
            ],
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            # It starts its server by name, from the folder of this interpreter's programs.
            env=ENVIRONMENT
            | {"MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
            | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )  # fmt: skip

        def answers():
            with suppress(OSError):
                return urllib.request.urlopen(f"http://127.0.0.1:{port}/ping").status == 200

        try:
            wait_for(answers, process)
            yield f"http://127.0.0.1:{port}/invocations"
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(PATIENCE_S)


def ask(address, inputs):
    content = json.dumps({"inputs": inputs}).encode()
    request = urllib.request.Request(address, content, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return {name: np.array(value) for name, value in json.load(answer)["predictions"].items()}


@pytest.mark.timeout(PATIENCE_S)
def test_the_server_returns_the_probabilities_and_maps_of_the_run_and_of_its_export(
    address, registered, tmp_path
):
    run = registered[0]
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for image, path in zip(images, paths, strict=True):
        Image.fromarray(image).save(path)

    as_numbers = ask(address, images.tolist())
    as_files = ask(address, [base64.b64encode(path.read_bytes()).decode() for path in paths])

    export_network(run, "pt2", tmp_path / "network.pt2", [])
    program = torch.export.load(tmp_path / "network.pt2").module()
    exported = program(torch.from_numpy(images))
    loaded = [list(one.probabilities.values()) for one in labn.load(run).predict(paths)]
    for answer in (as_numbers, as_files):
        np.testing.assert_allclose(answer["probabilities"], loaded, rtol=0, atol=1e-5)
        for name, values in answer.items():
            expected = exported[name].detach().numpy()
            np.testing.assert_allclose(values, expected, rtol=0, atol=1e-5)
