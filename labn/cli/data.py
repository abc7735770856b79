"""The commands for data sets: data check, data split, data synth."""

from __future__ import annotations

import shlex
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from labn.cli.app import (
    Commands,
    ConfigOrRun,
    Group,
    Json,
    Overrides,
    app,
    print_result,
    resolve_config,
)
from labn.cli.progress import ConsoleReporter
from labn.errors import UserError

data_app = Commands(
    cls=Group,
    no_args_is_help=True,
    help="Check a data set, fix its subsets, or make the synthetic one.",
)
app.add_typer(data_app, name="data")


class Layout(StrEnum):
    """The layout of a data set's files."""

    idrid = "idrid"
    magnetograms = "magnetograms"
    folder = "folder"


@data_app.command("check")
def data_check(
    path: Annotated[
        Path,
        typer.Argument(
            help="A data set's folder, or a configuration: a file, a shipped one's name, or a run.",
            show_default=False,
        ),
    ],
    overrides: Overrides = None,
    name: Annotated[
        Layout | None, typer.Option(help="The layout of its files.", show_default="detected")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a data set for defects: files, labels, duplicates, groups, balance.

    Exits with 2 if something must be fixed.

    **Examples**

        labn data check ~/idrid

        labn data check configs/idrid.yaml data.root=~/idrid --json
    """
    from labn.config import DataConfig
    from labn.config.shipped import CONFIGS, shipped_names
    from labn.data.audit import audit
    from labn.data.readers.open_reader import detect_layout
    from labn.runs.build import build_reader

    if not path.exists() and str(path) not in (known := shipped_names(CONFIGS)):
        raise UserError(
            f"{path}: no such folder or configuration file, nor a shipped one's name"
            f" ({', '.join(known)})"
        )
    if path.is_dir() and not (path / "config.yaml").is_file():
        layout = name or detect_layout(path)
        if overrides:
            given = shlex.join([f"data.name={layout}", f"data.root={path}", *overrides])
            raise UserError(
                f"{overrides[0]}: a folder is checked with the default settings; give a"
                f" configuration, as in `labn data check demo {given}`"
            )
        settings = DataConfig.model_validate({"name": layout, "root": path})
    elif name is not None:
        raise UserError(f"--name {name}: is for folders; of a configuration, set data.name={name}")
    else:
        settings = resolve_config(path, overrides).data
    reader = build_reader(settings)
    with ConsoleReporter() as reporter:
        found = audit(
            reader,
            report_progress=lambda done, total: reporter.advance("reading images", done, total),
            group_by=settings.group_by,
            group_gap_s=settings.group_gap_s,
        )
    print_result(as_json, found.as_json(), found.as_text())
    raise typer.Exit(2 if found.has_errors else 0)


@data_app.command("split")
def data_split(
    config: ConfigOrRun,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="A new file.")] = Path("split.csv"),
    as_json: Json = False,
) -> None:
    """Write which image belongs to which subset (and fold), for all runs that are to agree on it.

    The table has the columns name, sha256, partition, label, and fold where there are folds. A run,
    a search or a study uses it by `data.split_file=FILE`. Of a run, its own subsets are written.

    **Examples**

        labn data split configs/idrid.yaml data.root=~/idrid --out idrid-split.csv

        labn data split configs/idrid.yaml data.root=~/idrid data.folds=5 --out idrid-folds.csv
    """
    from labn.data.manifest import SubsetTable
    from labn.runs.folder import RunFolder
    from labn.runs.split_file import draw_split
    from labn.storage.files import write_atomically

    settings = resolve_config(config, overrides)
    is_run = config is not None and config.is_dir()
    for override in overrides or () if is_run else ():
        if override.startswith("data.fold"):
            raise UserError(
                f"{override}: a run's own subsets are written; for other folds give a configuration"
            )
    if out.exists():
        raise UserError(f"--out {out}: exists already; give a new file, or delete it")
    with ConsoleReporter() as reporter:
        known, further = None, ""
        if config is not None and is_run:
            known = RunFolder(config).known_subsets(settings.data)
            further = " data.folds=null" if settings.data.folds else ""
            # Of its folds a run knows only the one that validates: its subsets have none.
            own = settings.data.model_copy(update={"folds": None, "fold": 0})
            settings = settings.model_copy(update={"data": own})
        elif settings.data.split_file is not None:
            known = SubsetTable.read(settings.data.split_file.expanduser())
        write_atomically(out, draw_split(settings, reporter, known))
    counts = Counter(entry.place for entry in SubsetTable.read(out).entries.values())
    shown = ", ".join(f"{count} {place}" for place, count in sorted(counts.items()))
    print_result(
        as_json,
        {"file": str(out), "counts": dict(counts)},
        f"{out}: {shown}; use it by data.split_file={out}{further}",
    )


@data_app.command("synth")
def data_synth(
    out: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    num_images: Annotated[int, typer.Option(min=20)] = 400,
    image_size: Annotated[int, typer.Option(min=16, help="Side in pixels.")] = 224,
    positive_fraction: Annotated[float, typer.Option(min=0, max=1)] = 0.5,
    lesions: Annotated[Literal["plain", "varied"], typer.Option(help="As in settings.")] = "plain",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Write the synthetic fundus set as files: one folder per class, and the lesions' masks.

    **Example**

        labn data synth data/synthetic --num-images 400 --image-size 224
    """
    from labn.data.readers.synthetic import write_synthetic

    write_synthetic(
        out,
        num_images=num_images,
        positive_fraction=positive_fraction,
        seed=seed,
        image_size=image_size,
        lesions=lesions,
    )
    print_result(
        as_json,
        {"root": str(out), "num_images": num_images},
        f"{num_images} images in {out}; train on them with"
        f" `labn train configs/demo.yaml data.root={out}`",
    )
