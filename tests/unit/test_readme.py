from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_readme_has_a_line_for_every_module():
    listed = (ROOT / "README.md").read_text()
    modules = [path.relative_to(ROOT) for path in (ROOT / "labn").rglob("*.py")]
    assert modules
    assert [str(m) for m in modules if f"| `{m}` |" not in listed] == []
