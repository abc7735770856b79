"""Inputs of every kind, made at random: exit codes 0, 1 and 2 only, and never a traceback.

``run_here`` lets every exception but the end of the command pass, so that a defect fails the test.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import run_here, write_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from labn.config.run import known_keys

pytestmark = pytest.mark.slow

NAMES = (
    "a", "b.png", "c.JPG", "positive", "masks", "labels.csv", "2012.csv", "2012.npy", "#1", "50%",
    "what?", "k=v", "sp ace", "é.png", "\udcff.png", ".hidden", "n" * 251 + ".png", "d.tif",
    "e.fits", "f.gif", "train", "validation", "test", "config.yaml", "a\nb.png",
)  # fmt: skip
ODD_VALUES = (
    "", " ", "~", "null", "true", "010", "1:30", "1e3", "-1", "0", "1e400", ".nan", ".inf", "[",
    "[]", "[1, a]", "{}", "{a: 1}", "{1: 2}", "'", '"a', "a #b", "a: b", "*x", "&x", "%", "@", "`",
    "!!python/none", "2012-01-01", "- a", "<<", "=", "?", "| x", "\t", "a\nb: [", "é", "🎉",
    "9" * 400, "0b_", "0x", "~nobody-of-this-name/a", "sqlite:///:memory:", "s3://", "s3://a?b",
    "http://[", "x" * 5000, "\\",
)  # fmt: skip


def fuzz(num_examples):
    """Settings of a test: the same bounded examples on every machine."""
    return settings(
        max_examples=num_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def check(*arguments):
    done = run_here(*arguments)
    assert done.returncode in (0, 1, 2), (arguments, done)
    assert "Traceback" not in done.stderr, (arguments, done.stderr)
    if done.returncode == 2 and not done.stdout and "Usage:" not in done.stderr:
        assert done.stderr.splitlines()[-1].startswith("error: "), (arguments, done.stderr)
    for word in ("Pydantic", "NoneType", "<class", "object at 0x"):
        assert word not in done.stderr, (arguments, done.stderr)
    return done


def encoded(mode, kind):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue()


PNG = encoded("RGB", "PNG")
CONTENTS = (
    PNG, encoded("L", "PNG"), encoded("RGBA", "PNG"), encoded("1", "PNG"), encoded("I;16", "PNG"),
    encoded("RGB", "JPEG"), encoded("P", "GIF"), encoded("CMYK", "TIFF"), PNG[:100], b"", b"text",
    b"\xff\xfe\x00", b"name,label\na,1\nb,0\n", b"Image name,Retinopathy grade\nIDRiD_001,9\n",
    b"\x93NUMPY\x01\x00", b"SIMPLE  =                    T",
)  # fmt: skip
ENTRIES = st.tuples(
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
    st.sampled_from((*CONTENTS, "link to nothing", "link to its folder", "folder")),
)


def make(root, parts, content):
    """Make one entry of a tree, unless the file system or an earlier entry is in its way."""
    path = root.joinpath(*parts)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if content == "folder":
            path.mkdir()
        elif isinstance(content, str):
            path.symlink_to(root / "nothing" if "nothing" in content else path.parent)
        else:
            path.write_bytes(content)
    except OSError:
        pass


@fuzz(40)
@given(st.lists(ENTRIES, min_size=1, max_size=12))
def test_any_tree_is_checked(entries):
    with tempfile.TemporaryDirectory() as place:
        root = Path(place, "tree")
        root.mkdir()
        for parts, content in entries:
            make(root, parts, content)
        check("data", "check", root)


@fuzz(100)
@given(
    st.sampled_from((*known_keys(), "train", "data", "", ".", "train.", "no.such", "TRAIN.EPOCHS")),
    st.one_of(
        st.sampled_from(ODD_VALUES), st.text(max_size=12).filter(lambda text: "\0" not in text)
    ),
)
def test_any_setting_is_taken_or_refused(key, value):
    with tempfile.TemporaryDirectory() as place:
        check("config", "show", write_config(Path(place)), f"{key}={value}")


TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(("type", "low", "uri", "a")), inner),
    ),
    max_leaves=4,
)
KEYS = (
    "data", "model", "loss", "train", "validation", "tracking", "output_dir", "base", "fixed",
    "trials", "space", "objective", "pruning", "conditions", "seeds", "evaluate", "each_run",
)  # fmt: skip


@fuzz(40)
@given(
    st.dictionaries(st.sampled_from(KEYS), TREES, max_size=4), st.binary(max_size=6), st.booleans()
)
def test_any_file_is_a_configuration_or_refused(tree, more, is_cut):
    run = {"data": {"name": "synthetic"}}
    space = {"loss.theta_b": {"type": "float", "low": 0.1, "high": 0.9}}
    for words, base in (
        (("config", "show", "FILE"), run),
        (("search", "FILE", "--dry-run"), {"base": run, "space": space, "trials": 1}),
        (("ablate", "FILE", "--dry-run"), {"base": run, "conditions": {"a": {}}, "seeds": [0]}),
    ):
        with tempfile.TemporaryDirectory() as place:
            file = Path(place, "given.yaml")
            text = yaml.safe_dump(base | {"output_dir": f"{place}/run"} | tree).encode()
            file.write_bytes(text[: len(text) // 2] + more if is_cut else text)
            check(*(file if word == "FILE" else word for word in words))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    assert run_here("train", write_config(folder), "train.epochs=1").returncode == 0
    (folder / "image.png").write_bytes(PNG)
    return folder


@fuzz(25)
@given(
    st.sampled_from(
        ("checkpoints/best.pt", "config.yaml", "summary.json", "data.csv", "history.csv")
    ),
    st.floats(0, 1),
    st.sampled_from((None, b"", b"\0", b"PK\x03\x04", b"{}", b"[1]\n", b"\xff" * 9)),
)
def test_any_damage_to_a_run_is_reported(trained, name, share, more):
    with tempfile.TemporaryDirectory() as place:
        run = Path(place, "run")
        shutil.copytree(trained / "run", run)
        if more is None:
            (run / name).unlink()
        else:
            content = (run / name).read_bytes()
            (run / name).write_bytes(content[: int(share * len(content))] + more)
        check("explain", run, trained / "image.png", "--out", Path(place, "out"))
        check("report", run, "--subset", "validation")
        check("train", "--resume", run, "--dry-run")
