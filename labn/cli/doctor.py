"""The command that checks this machine: doctor."""

from __future__ import annotations

import typer

from labn.cli.app import ConfigOrRun, Json, Overrides, app, print_result, resolve_config


@app.command()
def doctor(
    config_or_run: ConfigOrRun = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Check that this machine meets the requirements of a run, and show fixes.

    **Examples**

        labn doctor

        labn doctor configs/idrid.yaml data.root=~/idrid
    """
    from labn.config import Config
    from labn.distributed.checks.machine import as_json as checks_as_json
    from labn.distributed.checks.machine import as_text, run_checks
    from labn.storage.files import cache_folder

    config = Config.model_validate({"data": {"name": "synthetic"}, "output_dir": "runs"})
    if config_or_run is not None:
        config = resolve_config(config_or_run, overrides)
    checks = run_checks(
        data_root=config.data.root,
        tracking_uri=config.tracking.uri,
        cache_dir=cache_folder(config.data.cache_dir),
        output_dir=config.output_dir,
    )
    print_result(as_json, checks_as_json(checks), as_text(checks))
    raise typer.Exit(1 if any(check.status == "fail" for check in checks) else 0)
