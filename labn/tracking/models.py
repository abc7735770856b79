"""The tracker's model registry: networks with a name and numbered versions."""

from __future__ import annotations

from collections.abc import Mapping

from labn.errors import UserError
from labn.tracking.provenance import redact
from labn.tracking.store import store_url


def register_model(
    uri: str, run_id: str, *, name: str, card: str, tags: Mapping[str, str]
) -> int | None:
    """Register a run's network, with a model card in Markdown; return its version.

    A run that is registered already keeps its version, with the new card and tags. None if the run
    logged no network.

    Raises:
        UserError: the tracker cannot register it.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    client = MlflowClient(store_url(uri))
    try:
        run = client.get_run(run_id)
        logged = [
            model
            for model in client.search_logged_models(
                [run.info.experiment_id], f"source_run_id = '{run_id}'"
            )
            if model.status == "READY"
        ]
        if not logged:
            return None
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        known = client.search_model_versions(f"name = '{name}' AND run_id = '{run_id}'")
        version = known[0] if known else client.create_model_version(
            name, source=logged[0].artifact_location, run_id=run_id,
            model_id=logged[0].model_id,
        )  # fmt: skip
        client.update_model_version(name, version.version, card)
        for key, value in tags.items():
            client.set_model_version_tag(name, version.version, key, redact(value))
    except MlflowException as error:
        reason = redact(" ".join(str(error).split()))
        raise UserError(
            f"tracking.uri = {redact(uri)}: cannot register a model ({reason}); run the same"
            " command again when it can"
        ) from error
    return int(version.version)
