"""The command that checks a run's maps by randomising its network: sanity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from labn.cli.app import (
    AllowChangedData,
    Json,
    Overrides,
    Run,
    SubsetChoice,
    SubsetOption,
    allow_changed,
    app,
    print_result,
    require_run,
)
from labn.cli.progress import ConsoleReporter, starting

if TYPE_CHECKING:
    from labn.explain.randomisation import FigureRow, SanityRow


@app.command()
def sanity(
    run: Run,
    overrides: Overrides = None,
    subset: SubsetOption = SubsetChoice.test,
    methods: Annotated[
        str | None,
        typer.Option(help="As those of `labn evaluate`.", show_default="the quick ones"),
    ] = None,
    num_images: Annotated[int, typer.Option(min=1, help="Positive images to explain.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random weights.")] = 0,
    allow_changed_data: AllowChangedData = False,
    as_json: Json = False,
) -> None:
    """Check that a run's maps change when its weights are randomised layer by layer.

    A map that hardly changes (rank correlation near 1) shows the image rather than what was
    learnt. A map depends only on the layers that compute it: LABN's attention not on those behind
    the attention branch, and `edges`, a control, on none. Two figures follow: the correlation with
    the map of another class, and by how much the map's complexity rises without any trained weight.

    **Examples**

        labn sanity runs/demo

        labn sanity runs/idrid --subset validation --num-images 16
    """
    require_run(run)
    with starting():
        from labn.runs.evaluation.sanity_check import check_run

    given = allow_changed(overrides, allow_changed_data)
    with ConsoleReporter() as reporter:
        names = None if methods is None else methods.split(",")
        files = check_run(run, subset.value, names, num_images, seed, reporter, given)
    rows, figures = files.check.as_rows(), files.check.as_figures()
    content = {"run": str(run), "split": subset.value, "rows": rows, "figures": figures}
    content["picture"] = str(files.picture)
    text = f"{_sanity_as_text(rows)}\n{_figures_as_text(figures)}\npicture:\n  {files.picture}"
    print_result(as_json, content, text)


def _sanity_as_text(rows: Sequence[SanityRow]) -> str:
    means = {(row["stage"], row["method"]): row["mean"] for row in rows}
    title = "rank correlation with the trained map, layers randomised down to"
    return f"{title}\n{_as_table(means)}"


def _figures_as_text(rows: Sequence[FigureRow]) -> str:
    means = {(row["figure"], row["method"]): row["mean"] for row in rows}
    title = "correlation with another class's map, and rise in complexity, all layers randomised"
    return f"{title}\n{_as_table(means)}"


def _as_table(means: Mapping[tuple[str, str], float | None]) -> str:
    heads = list(dict.fromkeys(head for head, _ in means))
    methods = list(dict.fromkeys(method for _, method in means))
    width = max(8, *map(len, heads))
    lines = ["  ".join([f"  {'':{width}}", *methods])]
    for head in heads:
        values = (means[head, method] for method in methods)
        cells = ("-" if value is None else f"{value:.3f}" for value in values)
        padded = (f"{cell:>{len(name)}}" for name, cell in zip(methods, cells, strict=True))
        lines.append("  ".join([f"  {head:{width}}", *padded]))
    return "\n".join(lines)
