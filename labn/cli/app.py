"""Every command: what it takes, what it prints. The work is done below, in ``labn.runs``."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from labn.cli.progress import ConsoleReporter
from labn.config import Config, DataConfig, load_config
from labn.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Train, search and audit LABN: image classifiers that show where they looked.",
)
data_app = typer.Typer(no_args_is_help=True, help="Check a data set, or make the synthetic one.")
app.add_typer(data_app, name="data")


class Layout(StrEnum):
    """How the files of a data set are laid out."""

    idrid = "idrid"
    magnetograms = "magnetograms"
    folder = "folder"


class Part(StrEnum):
    """A part of a data set."""

    train = "train"
    validation = "validation"
    test = "test"


ConfigOrRun = Annotated[
    Path | None,
    typer.Argument(help="A configuration file, or the folder of a run.", show_default=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[key=value]...", help="Settings that replace the file's."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object; everything else to standard error.")
]


def resolve_config(place: Path | None, overrides: list[str] | None) -> Config:
    """Read the configuration that the first two arguments of a command name.

    A run's folder is its ``output_dir``, wherever it was made.
    """
    if place is None or "=" in str(place):
        raise UserError(
            "no configuration given; name a file such as configs/demo.yaml, or a run's folder"
        )
    config = load_config(_find_config(place), overrides or ())
    if place.is_dir() and not any(o.startswith("output_dir=") for o in overrides or ()):
        return config.model_copy(update={"output_dir": place})
    return config


def _find_config(place: Path) -> Path:
    if not place.is_dir():
        return place
    if not (place / "config.yaml").is_file():
        raise UserError(
            f"{place}: is a folder but not a run (it has no config.yaml); give a configuration"
            " file such as configs/demo.yaml, or the output_dir of a training"
        )
    return place / "config.yaml"


def print_result(as_json: bool, content: dict[str, Any], text: str) -> None:
    """Print a command's result, for a program or for a person."""
    typer.echo(json.dumps(content) if as_json else text)


@data_app.command("check")
def data_check(
    place: Annotated[
        Path,
        typer.Argument(
            help="The folder of a data set, a configuration file, or a run.", show_default=False
        ),
    ],
    overrides: Overrides = None,
    name: Annotated[
        Layout | None, typer.Option(help="How it is laid out; else recognised.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Look for defects of a data set: files, labels, duplicates, balance.

    Exits with 2 if something must be mended.

    **Examples**

        labn data check ~/idrid

        labn data check configs/idrid.yaml data.root=~/idrid --json
    """
    from labn.data.audit import audit
    from labn.data.open import detect_layout
    from labn.runs.build import build_reader

    if place.is_dir() and not (place / "config.yaml").is_file():
        layout = name or detect_layout(place)
        reader = build_reader(DataConfig.model_validate({"name": layout, "root": place}))
    else:
        reader = build_reader(resolve_config(place, overrides).data)
    with ConsoleReporter() as reporter:
        found = audit(
            reader,
            report_progress=lambda done, total: reporter.advance("reading images", done, total),
        )
    print_result(as_json, found.as_json(), found.as_text())
    raise typer.Exit(2 if found.has_errors else 0)


@data_app.command("synth")
def data_synth(
    out: Annotated[Path, typer.Argument(help="A new folder.", show_default=False)],
    num_images: Annotated[int, typer.Option(min=20)] = 400,
    image_size: Annotated[int, typer.Option(min=16, help="Side in pixels.")] = 224,
    positive_fraction: Annotated[float, typer.Option(min=0, max=1)] = 0.5,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Write the synthetic fundus set as files: a folder a class, and the lesions' masks.

    **Example**

        labn data synth data/synthetic --num-images 400 --image-size 224
    """
    from labn.data.synthetic import write_synthetic

    write_synthetic(
        out,
        num_images=num_images,
        positive_fraction=positive_fraction,
        seed=seed,
        image_size=image_size,
    )
    print_result(
        as_json,
        {"root": str(out), "num_images": num_images},
        f"{num_images} images in {out}; train on them with"
        f" `labn train configs/demo.yaml data.root={out}`",
    )


@app.command()
def doctor(
    config_or_run: ConfigOrRun = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Check that this machine has what a run needs, and say how to mend what it lacks.

    **Examples**

        labn doctor

        labn doctor configs/idrid.yaml data.root=~/idrid
    """
    from labn.doctor import as_json as checks_as_json
    from labn.doctor import as_text, run_checks

    config = Config.model_validate({"data": {"name": "synthetic"}, "output_dir": "runs"})
    if config_or_run is not None:
        config = resolve_config(config_or_run, overrides)
    checks = run_checks(
        data_root=config.data.root,
        tracking_uri=config.tracking.uri,
        cache_dir=config.data.cache_dir.expanduser(),
        output_dir=config.output_dir,
    )
    print_result(as_json, checks_as_json(checks), as_text(checks))
    raise typer.Exit(1 if any(check.status == "fail" for check in checks) else 0)


def metrics_table(metrics: dict[str, float]) -> str:
    """Write metrics a line each."""
    width = max(map(len, metrics))
    return "\n".join(f"  {name:{width}}  {value:8.4f}" for name, value in metrics.items())
