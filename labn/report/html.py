"""A report as one HTML page with tables and embedded figures."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from PIL import Image

from labn.report.tables import Cell, Table
from labn.report.threshold import SCRIPT, AttentionMap, threshold_section

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff; overflow-wrap: anywhere; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; }
@media (max-width: 40rem) { dl { display: block; } }
nav ul { columns: 16rem; padding-left: 1.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; }
th, td { padding: .25rem .7rem; border-bottom: 1px solid #ddd; text-align: right;
         white-space: nowrap; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
.text { text-align: left; } .long { white-space: normal; min-width: min(40rem, 70vw); }
img { max-width: 100%; height: auto; }
figure { margin: 1rem 0; } figcaption { color: #595959; padding-top: .4rem; }
.maps { display: grid; gap: 1rem;
        grid-template-columns: repeat(auto-fill, minmax(min(16rem, 45%), 1fr)); }
.map { margin: 0; } .map img { width: 100%; image-rendering: pixelated; }
.slider input { width: min(100%, 30rem); display: block; }
@media print {
  body { max-width: none; margin: 0; font-size: 10pt; } nav, .slider input { display: none; }
  .scroll { overflow: visible; } img { min-width: 0 !important; max-height: 22cm; }
  table { font-size: 8pt; } th, td { white-space: normal; padding: .15rem .4rem; }
  .long { min-width: 0; }
  h2 { break-after: avoid; } tr, .map, .scroll > img { break-inside: avoid; }
}
""".strip()
_MAPS = "Maps by threshold"
_CSS_PIXELS_PER_INCH = 96
_LONG_TEXT = 80
"""The number of characters from which a cell's text is broken into lines."""
_LEAST_SCALE = 0.75
"""How far a figure shrinks on a narrow screen before it scrolls, so that its words stay legible."""


def page(
    title: str,
    conclusion: Sequence[str],
    facts: Sequence[tuple[str, str]],
    figures: Mapping[str, Path],
    tables: Iterable[tuple[str, Table]],
    maps: Sequence[AttentionMap] = (),
    theta_alpha: float = 0,
) -> str:
    """Return a self-contained page: the conclusion, facts, contents, maps, figures and tables.

    Its own script draws the ``maps`` at any threshold, from ``theta_alpha`` on; no other can run.
    """
    sections = {_MAPS: threshold_section(maps, theta_alpha)} if maps else {}
    sections |= {name: _figure(name, path) for name, path in figures.items()}
    sections |= {name: _table(name, table) for name, table in tables}
    paragraphs = "\n".join(f"<p>{escape(line)}</p>" for line in conclusion)
    about = "\n".join(f"<dt>{escape(key)}</dt><dd>{escape(text)}</dd>" for key, text in facts)
    links = "\n".join(
        f'<li><a href="#section-{number}">{escape(name)}</a></li>'
        for number, name in enumerate(sections)
    )
    body = "\n".join(
        f'<h2 id="section-{number}">{escape(name)}</h2>\n{content}'
        for number, (name, content) in enumerate(sections.items())
    )
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode("ascii")
    scripts = f"<script>{SCRIPT}</script>" if maps else ""
    script = f"'sha256-{digest}'" if maps else "'none'"
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {script}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
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
<dl>
{about}
</dl>
<nav aria-label="Contents">
<h2>Contents</h2>
<ul>
{links}
</ul>
</nav>
{body}
{scripts}
</body>
</html>
"""


def _figure(name: str, path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    with Image.open(path) as picture:
        described = picture.info.get("Description", "")
        dots_per_inch = picture.info.get("dpi", (_CSS_PIXELS_PER_INCH,))[0]
        width = picture.width / dots_per_inch * _CSS_PIXELS_PER_INCH
    alternative = f"{name}. {described}" if described else name
    return _scrolling(
        name,
        f'<img style="width: {round(width)}px; min-width: {round(_LEAST_SCALE * width)}px"'
        f' alt="{escape(alternative)}" src="data:image/png;base64,{content}">',
    )


def _scrolling(name: str, content: str) -> str:
    """Return what scrolls within itself where the screen is too narrow, also by the keyboard."""
    label = escape(name)
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">{content}</div>'


def _table(name: str, table: Table) -> str:
    is_text = [not all(_is_number(row[j]) for row in table.rows) for j in range(len(table.columns))]
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
    content = f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>"
    # Outside of what scrolls: a caption within would be as wide as the table.
    return (
        f"<figure>{_scrolling(name, f'<table>{content}</table>')}\n"
        f"<figcaption>{escape(table.caption)}</figcaption></figure>"
    )


def _cell(tag: str, text: str, is_left: bool) -> str:
    names = f"text{' long' if len(text) > _LONG_TEXT else ''}"
    style = f' class="{names}"' if is_left else ""
    return f"<{tag}{style}>{escape(text)}</{tag}>"


def _is_number(cell: Cell) -> bool:
    try:
        return not isinstance(cell, str) or math.isfinite(float(cell))
    except ValueError:
        return False


def _text(cell: Cell) -> str:
    return "–" if cell is None else str(cell)
