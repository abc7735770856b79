"""Tables as Markdown, LaTeX (booktabs) and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "≥": r"$\geq$",
        "≤": r"$\leq$",
        "<": r"$<$",
        ">": r"$>$",
        "±": r"$\pm$",
        "θ": r"$\theta$",
        **{character: f"\\{character}" for character in "&%$#_{}"},
    }
)
_MARKDOWN = str.maketrans({"|": r"\|", "\n": " "})


@dataclass(frozen=True)
class Estimate:
    """A mean and the standard deviation (of the sample), None if there is only one value."""

    mean: float
    std: float | None

    def __str__(self) -> str:
        deviation = "" if self.std is None else f" ± {self.std:.3f}"
        return f"{self.mean:z.3f}{deviation}"


Cell = str | int | Estimate | None
"""A cell of a row; None is shown as a dash."""


@dataclass(frozen=True)
class Column:
    """A heading; if higher is better, the highest estimate below is set in bold."""

    name: str
    is_better_high: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells under headings, with a caption.

    Raises:
        ValueError: a row does not have one cell for each column.
    """

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str

    def __post_init__(self) -> None:
        for place, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"rows: got {len(row)} cells in row {place}, must be {len(self.columns)}, one"
                    " for each column"
                )


def estimate(values: ArrayLike) -> Estimate:
    """Return the mean and the standard deviation (n - 1) of values.

    Raises:
        ValueError: there are no values.
    """
    values_n = np.asarray(values, dtype=np.float64)
    if not values_n.size:
        raise ValueError("values: got none, must be at least one")
    std = float(values_n.std(ddof=1)) if values_n.size > 1 else None
    return Estimate(float(values_n.mean()), std)


def as_markdown(table: Table) -> str:
    """Return a table as Markdown, with the caption below."""
    best = _best_cells(table)
    rows = [
        [
            f"**{text}**" if (i, j) in best else text
            for j, cell in enumerate(row)
            for text in [_text(cell).translate(_MARKDOWN)]
        ]
        for i, row in enumerate(table.rows)
    ]
    heads = [
        column.name.translate(_MARKDOWN) + (" ↑" if column.is_better_high else "")
        for column in table.columns
    ]
    lines = [heads, _rules(table), *rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{table.caption}\n"


def as_latex(table: Table) -> str:
    """Return a table as LaTeX for the package booktabs, with all text escaped."""
    best = _best_cells(table)
    heads = [
        column.name.translate(_LATEX) + (r" $\uparrow$" if column.is_better_high else "")
        for column in table.columns
    ]
    rows = [
        " & ".join(_latex_cell(cell, (i, j) in best) for j, cell in enumerate(row))
        for i, row in enumerate(table.rows)
    ]
    alignment = "".join("l" if is_text else "r" for is_text in _text_columns(table))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{table.caption.translate(_LATEX)}}}",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            rf"{' & '.join(heads)} \\",
            r"\midrule",
            *(rf"{row} \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def as_json(table: Table) -> dict[str, Any]:
    """Return a table's caption, headings, and a mapping from heading to value for each row."""
    names = [column.name for column in table.columns]
    return {
        "caption": table.caption,
        "columns": names,
        "rows": [
            {
                name: vars(cell) if isinstance(cell, Estimate) else cell
                for name, cell in zip(names, row, strict=True)
            }
            for row in table.rows
        ],
    }


def _best_cells(table: Table) -> set[tuple[int, int]]:
    """Return the cells with the highest printed estimate of each column where higher is better."""
    best = set()
    for j, column in enumerate(table.columns):
        means = {
            i: round(cell.mean, 3)
            for i, row in enumerate(table.rows)
            if isinstance(cell := row[j], Estimate) and math.isfinite(cell.mean)
        }
        if column.is_better_high and len(means) > 1:
            best |= {(i, j) for i, mean in means.items() if mean == max(means.values())}
    return best


def _text(cell: Cell) -> str:
    return "–" if cell is None else str(cell)


def _latex_cell(cell: Cell, is_best: bool) -> str:
    if cell is None:
        return "--"
    if not isinstance(cell, Estimate):
        return str(cell).translate(_LATEX)
    number = str(cell).replace("±", r"\pm")
    return rf"$\mathbf{{{number}}}$" if is_best else f"${number}$"


def _text_columns(table: Table) -> list[bool]:
    """Return which columns contain text, to be aligned to the left."""
    return [any(isinstance(row[j], str) for row in table.rows) for j in range(len(table.columns))]


def _rules(table: Table) -> Sequence[str]:
    return [":--" if is_text else "--:" for is_text in _text_columns(table)]
