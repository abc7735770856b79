"""Nothing in the package writes, renames or locks a file but `labn.storage.files`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[3] / "labn"
WRITER = PACKAGE / "storage/files.py"
EXCEPTIONS = {
    ("nodes.py", "write_text"): "a probe of a folder, deleted at once",
    ("decode.py", "open"): "arrays of a folder that is put in place once it is whole",
    ("cache.py", "open"): "the table of that folder",
    ("tracker_server.py", "open"): "the log of a server",
    ("servable.py", "save"): "a folder of its own, which the tracker copies",
    ("mlflow_tracker.py", "save"): "a folder of its own, which the tracker copies",
    ("tracked.py", "write_text"): "a folder of its own, which the tracker copies",
    ("study_storage.py", "open"): "cuts off a torn line, in place, of the file that Optuna writes",
    ("build_commit.py", "write_text"): "the folder of a wheel that is being built",
    ("loop.py", "save"): "a hook of this name",
    ("read_runs.py", "replace"): "of values in a table",
}
"""What a module may call, with the reason."""
SAVERS = {
    "save",
    "savez",
    "savefig",
    "to_csv",
    "to_parquet",
    "to_json",
    "to_pickle",
    "tofile",
    "dump",
}
OTHERS = {
    "rename", "write_text", "write_bytes", "fsync", "FileLock", "flock", "mkstemp",
    "NamedTemporaryFile", "copyfile", "copytree", "copy2", "move", "symlink_to", "hardlink_to",
}  # fmt: skip


def writes(call):
    """Return whether a call may write, rename or lock a file by its path."""
    function, values = call.func, [*call.args, *(word.value for word in call.keywords)]
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name == "replace":  # of a path; text has two arguments, and a dataclass names its fields
        return isinstance(function, ast.Attribute) and len(call.args) == 1 and not call.keywords
    if name == "open":
        modes = [value.value for value in values if isinstance(value, ast.Constant)]
        return any(isinstance(mode, str) and set(mode) & set("wax+") for mode in modes)
    if name in SAVERS:  # into a file that is open, or into text
        is_open = any(isinstance(value, ast.Name) and value.id == "file" for value in values)
        return bool(call.args) and not is_open
    return name in OTHERS


def found_in(source):
    """List the calls of a module that write past the writer, by line and name."""
    return [
        (node.lineno, getattr(node.func, "attr", getattr(node.func, "id", "")))
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and writes(node)
    ]


def test_no_module_writes_past_the_one_writer():
    found = {
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in PACKAGE.rglob("*.py")
        if path != WRITER
        for line, name in found_in(path.read_text())
        if (path.name, name) not in EXCEPTIONS
    }
    assert found == set()


def test_every_exception_is_one():
    found = {
        (path.name, name)
        for path in PACKAGE.rglob("*.py")
        for _, name in found_in(path.read_text())
    }
    assert set(EXCEPTIONS) <= found


@pytest.mark.parametrize(
    "line",
    [
        "temporary.replace(path)",
        "os.rename(temporary, path)",
        'path.open("w")',
        'open(path, mode="ab")',
        "path.write_text(text)",
        "table.to_csv(path, index=False)",
        "figure.savefig(path)",
        "np.savez(folder / 'x.npz', **arrays)",
        "torch.save(content, path)",
        "FileLock(path)",
        "shutil.copyfile(one, other)",
    ],
)
def test_a_call_that_writes_is_seen(line):
    assert found_in(line)


@pytest.mark.parametrize(
    "line",
    [
        'text.replace("a", "b")',
        "replace(scorer, methods=methods)",
        'path.open("rb")',
        'path.open(encoding="utf-8")',
        "table.to_csv(index=False)",
        "np.save(file, attention)",
        "torch.save(content, file)",
    ],
)
def test_a_call_that_writes_nothing_is_left_alone(line):
    assert found_in(line) == []
