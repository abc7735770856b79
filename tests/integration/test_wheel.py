"""What a user has who installed the wheel alone: no repository, an empty folder, an empty home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ENVIRONMENT, TIMEOUT_S

REPOSITORY = Path(__file__).parents[2]
SHIPPED = (
    "labn",
    "configs",
    "cluster",
    "tune",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the installed wheel; the other packages are those of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SHIPPED:
        place = REPOSITORY / name
        copy = shutil.copytree if place.is_dir() else shutil.copy
        copy(place, source / name)
    git = ["git", "-C", source, "-c", "user.name=n", "-c", "user.email=e@example.org"]
    for words in ("init --quiet", "add .", "commit --quiet --no-verify --message all"):
        subprocess.run([*git, *words.split()], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, check=True, text=True)
    (folder / "commit.txt").write_text(commit.stdout)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--no-build-isolation", source, "-w", folder / "dist"],
        check=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    (wheel,) = (folder / "dist").glob("labn-*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", folder / "site", wheel],
        check=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    shutil.rmtree(source)
    return folder / "site"


@pytest.fixture
def user(installed, tmp_path):
    """Return a function that runs a command in an empty folder, as the wheel's user."""
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    environment = ENVIRONMENT | {"PYTHONPATH": str(installed), "HOME": str(tmp_path / "home")}

    def run(*words, script=("-m", "labn")):
        return subprocess.run(
            [sys.executable, *script, *words], cwd=tmp_path / "work", env=environment,
            capture_output=True, text=True, timeout=TIMEOUT_S,
        )  # fmt: skip

    return run


def test_the_commands_find_what_they_need_in_the_wheel(user, installed, tmp_path):
    work = tmp_path / "work"
    where = user("-c", "import labn; print(labn.__file__)", script=())
    assert str(REPOSITORY) not in where.stdout, where
    assert user("--version").stdout.startswith("labn ")
    built_from = (installed.parent / "commit.txt").read_text()
    script = "from labn.tracking.provenance import package_commit; print(package_commit())"
    assert user("-c", script, script=()).stdout == built_from

    small = ["data.image_size=32", "data.synthetic.num_images=40", "train.epochs=1"]
    small += ["train.warmup_epochs=0", "validation.pid_num_points=3", "tracking.log_model=false"]
    done = user("train", "demo", *small)
    assert done.returncode == 0, done.stderr
    assert (work / "runs/demo/summary.json").is_file()
    assert not (work / "configs").exists()

    assert user("init").returncode == 0
    (work / "configs/demo.yaml").write_text("changed: true\n")
    again = user("init")
    assert again.returncode == 0
    assert "kept configs/demo.yaml" in again.stderr
    assert (work / "configs/demo.yaml").read_text() == "changed: true\n"
    shipped = sorted(path.name for path in (REPOSITORY / "configs").rglob("*.yaml"))
    assert sorted(path.name for path in (work / "configs").rglob("*.yaml")) == shipped

    assert user("cluster", "init").returncode == 0
    assert os.access(work / "cluster/node.sh", os.X_OK) == os.access(
        REPOSITORY / "cluster/node.sh", os.X_OK
    )
    checked = user("cluster", "check", "cluster/onprem.yaml")
    assert "CHANGE_ME" in checked.stdout, checked.stderr
    helped = user("--help", script=("tune/search.py",))
    assert helped.returncode == 0
