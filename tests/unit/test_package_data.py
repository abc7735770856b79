"""Everything that the package reads at run time is in the wheel."""

from __future__ import annotations

from pathlib import Path

from setuptools import Distribution

ROOT = Path(__file__).parents[2]


def test_every_file_that_is_no_module_is_shipped(monkeypatch):
    monkeypatch.chdir(ROOT)  # whose pyproject.toml names its packages relative to it
    distribution = Distribution()
    distribution.parse_config_files(["pyproject.toml"])
    distribution.include_package_data = False  # no manifest, which would be written beside it
    command = distribution.get_command_obj("build_py")
    command.ensure_finalized()
    shipped = {
        Path(folder, name).as_posix()
        for _, folder, _, names in command.data_files
        for name in names
    }

    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "labn").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert "labn/model/kernels/position_lambda.cpp" in files
    assert shipped >= files
