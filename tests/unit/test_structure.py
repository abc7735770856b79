"""The house's rules, and the figures of `python -m tests.structure` on a small package."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path, PurePosixPath
from textwrap import dedent

import pytest

from tests.structure import PACKAGE, ROOT, main, measure, read_folder

MOST_ENTRIES = 14


def unmirrored(found):
    folders = {path.name for path in (ROOT / PACKAGE).iterdir() if (path / "__init__.py").is_file()}
    return folders - {path.parent.name for path in (ROOT / "tests/unit").glob("*/test_*.py")}


RULES = {
    "no two modules share a name": lambda found: found.duplicates,
    "at most 14 entries stand at the top level": lambda found: found.entries[MOST_ENTRIES:],
    "every package is mirrored in tests/unit": unmirrored,
    "ray is imported in two packages alone": (
        lambda found: found.importers["ray"].keys() - {"distributed", "sweeps"}
    ),
    "optuna is imported in two packages alone": (
        lambda found: found.importers["optuna"].keys() - {"distributed", "sweeps"}
    ),
    "mlflow is imported in tracking alone": (
        lambda found: found.importers["mlflow"].keys() - {"tracking"}
    ),
}
"""What breaks each rule of the layout."""


@pytest.fixture(scope="module")
def package():
    return measure(read_folder(ROOT / PACKAGE))


@pytest.mark.parametrize("rule", RULES)
def test_the_layout_keeps_its_rule(rule, package):
    assert not RULES[rule](package)


FILES = {
    "__init__.py": "",
    "errors.py": """\
        class Wrong(Exception):
            def text(self):
                return str(self)
        """,
    "cli/__init__.py": "",
    "cli/names.py": "from labn.data.names import names\n",
    "data/__init__.py": "",
    "data/names.py": """\
        from labn import errors

        def names(config: Config, *, strict: bool) -> list[str]:
            import ray.data
            return []

        async def later(given: "Config | None") -> None: ...
        """,
    "model/__init__.py": "from labn.errors import Wrong\n",
    "model/names.py": """\
        import optuna

        def of(section: DataConfig, by_name: dict[str, Config]):
            def inner():
                pass

            return inner
        """,
    "model/kernel.cpp": "int main() {\n}\n",
}


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / PACKAGE
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(dedent(text))
    return tmp_path


def test_a_small_package_has_the_figures_that_were_counted_by_hand(repository):
    found = measure(read_folder(repository / PACKAGE))

    assert found.entries == ["cli", "data", "errors", "model"]
    assert found.num_modules == 8
    assert found.num_lines_py == 3 + 1 + 7 + 1 + 7
    assert found.num_lines_cpp == 2
    assert found.duplicates == {"names": ["data/names.py", "model/names.py"]}
    assert found.importers == {"ray": {"data": 1}, "optuna": {"model": 1}, "mlflow": {}}
    assert found.num_functions == 5  # of 2, 3, 1, 5 and 2 lines
    assert (found.median_length, found.p95_length) == (2, 5)
    assert found.long_functions == found.long_modules == []
    assert found.config_takers == ["data/names.py:later", "data/names.py:names"]
    assert found.single_importer == ["data/names.py"]


def test_what_is_too_long_is_named():
    body = "    pass\n"
    text = f"def fits():\n{body * 39}def is_long():\n{body * 40}" + "\n" * 219
    sources = {PurePosixPath("fits.py"): text, PurePosixPath("is_long.py"): f"{text}\n"}

    found = measure(sources)

    assert found.long_functions == ["fits.py:is_long (41)", "is_long.py:is_long (41)"]
    assert found.long_modules == ["is_long.py"]


def test_a_revision_is_measured_beside_a_folder(repository, monkeypatch, capsys):
    def git(*words):
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        subprocess.run(("git", "-C", repository, *identity, *words), check=True)

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "x")
    (repository / PACKAGE / "errors.py").unlink()
    monkeypatch.setattr("tests.structure.ROOT", Path(repository))

    main(["--at", "HEAD", str(repository / PACKAGE)])
    table = capsys.readouterr().out.splitlines()
    main(["--at", "HEAD", str(repository / PACKAGE), "--json"])
    tree = json.loads(capsys.readouterr().out)

    assert table[0].split() == ["HEAD", "now"]
    assert "modules                                        8           7" in table
    assert [tree[title]["num_modules"] for title in ("HEAD", "now")] == [8, 7]
