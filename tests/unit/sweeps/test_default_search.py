"""The search that runs where none is named, on nodes that stand in for a cluster's."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from labn.config import load_search
from labn.config.reading import resolve_base
from labn.errors import UserError
from labn.sweeps.search import default_search as module
from labn.sweeps.search.default_search import FILE, default_search

ROOT = Path(__file__).parents[3]
CPUS, GPUS = [{"Resources": {"CPU": 4.0}}], [{"Resources": {"CPU": 4.0, "GPU": 2.0}}] * 2


@pytest.fixture
def choose(tmp_path, monkeypatch):
    """Choose the default search on a node; return its file, its settings and what is said."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("LABN_SHARED", raising=False)
    monkeypatch.delenv("LABN_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "connected", lambda message, check: nullcontext())

    def call(*overrides, nodes=CPUS, **environment):
        monkeypatch.setattr(module, "live_nodes", lambda: nodes)
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        said = []
        with default_search(overrides, said.append) as (path, settings):
            return path, settings, said

    return call


def test_without_data_it_is_a_short_search_on_the_embedded_set(choose):
    path, settings, said = choose(LABN_SHARED="/mnt/labn")

    assert path == ROOT / FILE
    assert said == [
        f"search: {path}, the default, since no --config is given",
        "data: the embedded set, since neither LABN_DATA nor data.root names a folder",
        "results: /mnt/labn/runs/search-cluster-embedded, with best.yaml, summary.md and figures",
        "your own data: add data.root=FOLDER to the command, or set LABN_DATA=FOLDER, a folder that"
        " all nodes share; your own search: --config FILE",
        "trial.gpus = 0: the cluster has no GPUs, so trials run on CPUs",
    ]
    search = load_search(path, settings)
    run = resolve_base(search, path)
    assert (search.trials, search.trial.gpus) == (6, 0)
    assert (run.data.name, run.data.root, run.train.epochs) == ("synthetic", None, 10)


def lay_out(root, *files):
    """Make files of these names: a layout is known by them, whatever is in them."""
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (("B. Disease Grading/1. Original Images/a. Training Set/IDRiD_001.jpg",), "idrid"),
        (("2010.npy",), "magnetograms"),
        (("a.png", "labels.csv"), "magnetograms"),
        (("negative/1.png", "positive/1.png"), "folder"),
    ],
)
def test_data_of_the_environment_is_searched_by_the_reader_of_its_layout(
    choose, tmp_path, files, name
):
    lay_out(tmp_path / "data", *files)

    path, settings, said = choose(nodes=GPUS, LABN_DATA=tmp_path / "data")

    assert said[1] == f"data: {name} in {tmp_path}/data"
    assert said[2].startswith(f"results: {tmp_path}/runs/search-cluster, with")
    assert said[-1] == "trial.gpus = 1: the cluster has 4 GPUs"
    search = load_search(path, settings)
    run = resolve_base(search, path)
    assert (search.trials, search.trial.gpus, run.data.name) == (24, 1, name)
    assert (run.data.root, run.model.backbone) == (tmp_path / "data", "lambda_resnet50")


def test_what_the_user_gives_comes_first(choose, tmp_path):
    given = [
        f"data.root={tmp_path}", "data.name=folder", "trial.gpus=0.5", "output_dir=mine", "trials=3"
    ]  # fmt: skip

    _, settings, said = choose(*given, nodes=GPUS, LABN_DATA="/nowhere", LABN_SHARED="/mnt/labn")

    assert settings == given
    assert said[1:3] == [
        f"data: folder in {tmp_path}",
        f"results: {tmp_path}/mine, with best.yaml, summary.md and figures",
    ]


def test_data_may_be_named_in_the_file_beside_the_wheel(choose, tmp_path):
    """As on a node, where labn is installed and `ray up` has copied the configurations."""
    assert choose()[0] == ROOT / FILE
    lay_out(tmp_path / "images", "negative/1.png", "positive/1.png")
    tree = yaml.safe_load((ROOT / FILE).read_text())
    tree["fixed"]["data.root"] = str(tmp_path / "images")
    place = tmp_path / "labn" / FILE
    place.parent.mkdir(parents=True)
    place.write_text(yaml.safe_dump(tree))
    (tmp_path / "labn/configs/idrid.yaml").write_text((ROOT / "configs/idrid.yaml").read_text())

    path, settings, said = choose(LABN_DATA="/nowhere")

    assert path == place
    assert said[1] == f"data: folder in {tmp_path}/images"
    assert resolve_base(load_search(path, settings), path).data.root == tmp_path / "images"


def test_gpus_that_the_cluster_has_yet_to_start_are_used(choose, tmp_path):
    tree = yaml.safe_load((ROOT / "cluster/gpu.yaml").read_text())
    (tmp_path / "ray_bootstrap_config.yaml").write_text(yaml.safe_dump(tree))

    path, settings, said = choose()

    reason = "the cluster has 0 GPUs, and starts nodes for up to 4"
    assert said[-1] == f"trial.gpus = 1: {reason}"
    trial = load_search(path, settings).trial
    assert (trial.gpus, trial.max_concurrent) == (1, 4)


@pytest.mark.parametrize(
    ("place", "fix"),
    [("/nowhere", "copy the data there"), ("/mnt/CHANGE_ME_DATA", "set it in the cluster's file")],
)
def test_data_that_is_not_there_is_one_line(choose, place, fix):
    with pytest.raises(UserError) as error:
        choose(LABN_DATA=place)

    assert str(error.value) == (
        f"LABN_DATA = {place}: is no folder here; {fix}, or leave it out for the embedded set"
    )


def test_the_shipped_file_shows_where_data_is_set(choose):
    text = (ROOT / FILE).read_text()
    named = re.sub(r"# (data.root: \S+) .*", r"\1", text)

    assert named != text
    assert yaml.safe_load(named)["fixed"]["data.root"] == "/mnt/labn/idrid"
