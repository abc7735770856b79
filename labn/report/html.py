"""A report as one HTML page with tables and embedded figures."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from labn.report.tables import Cell, Estimate, Table

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
caption { caption-side: bottom; text-align: left; color: #595959; padding-top: .4rem; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right;
         white-space: nowrap; }
.text { text-align: left; }
img { max-width: 100%; height: auto; }
figure { margin: 1rem 0; } figcaption { font-weight: 600; }
""".strip()


def page(
    title: str,
    lines: Sequence[str],
    figures: Mapping[str, Path],
    tables: Iterable[tuple[str, Table]],
) -> str:
    """Return a self-contained page: a title, lines of text, figures and tables."""
    paragraphs = "\n".join(f"<p>{escape(line)}</p>" for line in lines)
    pictures = "\n".join(_figure(name, path) for name, path in figures.items())
    sections = "\n".join(f"<h2>{escape(name)}</h2>\n{_table(table)}" for name, table in tables)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{_STYLE}
</style>
</head>
<body>
<h1>{escape(title)}</h1>
{paragraphs}
{pictures}
{sections}
</body>
</html>
"""


def _figure(name: str, path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    with Image.open(path) as picture:
        described = picture.info.get("Description", "")
    alternative = f"{name}. {described}" if described else name
    return (
        f"<figure><figcaption>{escape(name)}</figcaption>"
        f'<img alt="{escape(alternative)}" src="data:image/png;base64,{content}"></figure>'
    )


def _table(table: Table) -> str:
    is_text = [
        all(not isinstance(row[j], (int, Estimate)) for row in table.rows)
        for j in range(len(table.columns))
    ]
    heads = "".join(
        _cell("th", column.name + (" ↑" if column.is_better_high else ""), left)
        for column, left in zip(table.columns, is_text, strict=True)
    )
    rows = "\n".join(
        "<tr>"
        + "".join(_cell("td", _text(c), left) for c, left in zip(row, is_text, strict=True))
        + "</tr>"
        for row in table.rows
    )
    return (
        f"<div><table>\n<caption>{escape(table.caption)}</caption>\n"
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>"
    )


def _cell(tag: str, text: str, is_left: bool) -> str:
    style = ' class="text"' if is_left else ""
    return f"<{tag}{style}>{escape(text)}</{tag}>"


def _text(cell: Cell) -> str:
    return "–" if cell is None else str(cell)
