"""The structure of the package in figures, side by side with that of earlier revisions.

`python -m tests.structure` measures the working tree, `--at REV` (may be repeated) a revision
before it. `--json` prints all of it, with the names behind each number.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import math
import statistics
import subprocess
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
PACKAGE = "labn"
WATCHED = ("ray", "optuna", "mlflow")
LONGEST_FUNCTION, LONGEST_MODULE = 40, 300
COMMANDS = "cli"  # its files are named as their commands, so they may share a name

Sources = Mapping[PurePosixPath, str]
"""Texts of the package's files, by their paths within it."""
Imported = Mapping[PurePosixPath, set[str]]
"""The dotted names that each file imports."""
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, kw_only=True)
class Structure:
    """Figures of a package; an entry is a module or package at its top level."""

    entries: list[str]
    num_modules: int
    num_lines_py: int
    num_lines_cpp: int
    duplicates: dict[str, list[str]]
    """Modules that share a name, by that name."""
    importers: dict[str, dict[str, int]]
    """Number of modules in each entry that import a library, by library."""
    num_functions: int
    median_length: float
    p95_length: int
    long_functions: list[str]
    long_modules: list[str]
    config_takers: list[str]
    single_importer: list[str]


def read_folder(folder: Path) -> Sources:
    """Read the package's files in a folder."""
    paths = (path for kind in ("py", "cpp") for path in folder.rglob(f"*.{kind}"))
    return {PurePosixPath(path.relative_to(folder)): path.read_text("utf-8") for path in paths}


def read_revision(revision: str) -> Sources:
    """Read the package's files as they are at a revision."""
    command = ("git", "-C", str(ROOT), "archive", revision, PACKAGE)
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    with TemporaryDirectory() as folder, tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")
        return read_folder(Path(folder, PACKAGE))


def measure(sources: Sources) -> Structure:
    """Measure a package."""
    trees = {path: ast.parse(text) for path, text in sources.items() if path.suffix == ".py"}
    num_lines = {path: len(text.splitlines()) for path, text in sources.items()}
    imported = {path: imports(path, tree) for path, tree in trees.items()}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    functions = [(path, node) for path, node in nodes if isinstance(node, Function)]
    lengths = sorted(length_of(node) for _, node in functions)
    long = [(path, node) for path, node in functions if length_of(node) > LONGEST_FUNCTION]
    return Structure(
        entries=sorted({entry_of(path) for path in trees} - {"__init__", "__main__"}),
        num_modules=len(trees),
        num_lines_py=sum(num_lines[path] for path in trees),
        num_lines_cpp=sum(num_lines.values()) - sum(num_lines[path] for path in trees),
        duplicates=duplicates_among(trees),
        importers={name: importers_of(name, imported) for name in WATCHED},
        num_functions=len(functions),
        median_length=statistics.median(lengths),
        p95_length=lengths[math.ceil(0.95 * len(lengths)) - 1],
        long_functions=sorted(f"{path}:{node.name} ({length_of(node)})" for path, node in long),
        long_modules=sorted(str(path) for path in trees if num_lines[path] > LONGEST_MODULE),
        config_takers=sorted(
            f"{path}:{node.name}" for path, node in functions if takes_config(node)
        ),
        single_importer=single_importers(imported),
    )


def entry_of(path: PurePosixPath) -> str:
    """Return the entry at the package's top level that a file belongs to."""
    return path.with_suffix("").parts[0]


def duplicates_among(paths: Iterable[PurePosixPath]) -> dict[str, list[str]]:
    """Return the modules that share a name."""
    by_name = defaultdict(list)
    for path in sorted(paths):
        if path.stem != "__init__" and entry_of(path) != COMMANDS:
            by_name[path.stem].append(str(path))
    return {name: same for name, same in sorted(by_name.items()) if len(same) > 1}


def length_of(node: Function) -> int:
    """Return a function's lines, from its `def` to its end."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def takes_config(node: Function) -> bool:
    """Return whether a parameter is a whole configuration, or None."""
    given = node.args
    arguments = (*given.posonlyargs, *given.args, *given.kwonlyargs)
    texts = [ast.unparse(argument.annotation) for argument in arguments if argument.annotation]
    return any("Config" in text.strip("'\"").split(" | ") for text in texts)


def imports(path: PurePosixPath, tree: ast.Module) -> set[str]:
    """Return the dotted names that a module imports, inside functions too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: imports are absolute here"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def importers_of(library: str, imported: Imported) -> dict[str, int]:
    """Return how many modules of each entry import a library."""
    entries = Counter(
        entry_of(path)
        for path, names in imported.items()
        if library in {name.split(".")[0] for name in names}
    )
    return dict(sorted(entries.items()))


def single_importers(imported: Imported) -> list[str]:
    """Return the modules that exactly one other module imports."""
    importers = Counter(name for names in imported.values() for name in names)
    modules = {".".join((PACKAGE, *path.with_suffix("").parts)): path for path in imported}
    return sorted(str(path) for name, path in modules.items() if importers[name] == 1)


def as_rows(found: Structure) -> dict[str, float]:
    """Return the printed figures by name."""
    return {
        "entries at the top level": len(found.entries),
        "modules": found.num_modules,
        "lines of Python": found.num_lines_py,
        "lines of C++": found.num_lines_cpp,
        "names that several modules share": len(found.duplicates),
        **{f"entries that import {name}": len(rows) for name, rows in found.importers.items()},
        "functions": found.num_functions,
        "median of their lines": found.median_length,
        "95th percentile of their lines": found.p95_length,
        f"functions above {LONGEST_FUNCTION} lines": len(found.long_functions),
        f"modules above {LONGEST_MODULE} lines": len(found.long_modules),
        "functions that take a whole Config": len(found.config_takers),
        "modules with exactly one importer": len(found.single_importer),
    }


def as_text(columns: Mapping[str, Structure]) -> str:
    """Return a table of several structures side by side, and the names that matter."""
    rows = {title: as_rows(found) for title, found in columns.items()}
    lines = [f"{'':36}" + "".join(f"  {title:>10.10}" for title in rows)]
    for name in next(iter(rows.values())):
        lines.append(f"{name:36}" + "".join(f"  {row[name]:>10g}" for row in rows.values()))
    for title, found in columns.items():
        lines += ["", f"{title}: {', '.join(found.entries)}"]
        lines += [f"  {name}: {', '.join(same)}" for name, same in found.duplicates.items()]
        for library, entries in found.importers.items():
            where = (f"{entry} ({number})" for entry, number in entries.items())
            lines.append(f"  {library} is imported in: {', '.join(where)}")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> None:
    """Print the figures of the revisions that are named, then those of a folder."""
    parser = argparse.ArgumentParser(prog="python -m tests.structure", description=__doc__)
    parser.add_argument("path", nargs="?", type=Path, default=ROOT / PACKAGE)
    parser.add_argument("--at", action="append", default=[], metavar="REV")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(words)
    columns = {revision: measure(read_revision(revision)) for revision in given.at}
    columns["now"] = measure(read_folder(given.path))
    tree = {title: asdict(found) for title, found in columns.items()}
    print(json.dumps(tree, indent=2) if given.json else as_text(columns))


if __name__ == "__main__":
    main()
