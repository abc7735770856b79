from __future__ import annotations

from pathlib import Path

import pytest

from labn.config.ablation import StudyConfig
from labn.config.reference import SCHEMAS, as_markdown, describe_keys
from labn.config.run import Config, known_keys
from labn.config.search import SearchConfig

PAGE = Path(__file__).parents[3] / "docs/settings.md"


def test_the_page_of_settings_is_that_of_the_schemas():
    assert PAGE.read_text() == as_markdown(), "run `labn config keys --markdown > docs/settings.md`"


def test_every_key_of_a_run_is_described():
    assert [key.name for key in describe_keys(Config)] == known_keys()


@pytest.mark.parametrize("schema", SCHEMAS.values())
def test_every_key_has_a_meaning_and_a_type(schema):
    for key in describe_keys(schema):
        assert key.meaning.endswith("."), key
        assert "value" not in key.type.split(), key


@pytest.mark.parametrize(
    ("schema", "name", "type_", "default"),
    [
        (Config, "train.epochs", "whole number >= 1", "100"),
        (Config, "train.ema_decay", "number > 0, < 1 or null", "null"),
        (Config, "loss.mask_rule", "share | threshold", "share"),
        (Config, "data.root", "path or text or null", "null"),
        (Config, "output_dir", "path", "-"),
        (Config, "tracking.log_model", "true | false", "true"),
        (SearchConfig, "pruning.reduction", "number > 1", "3.0"),
        (SearchConfig, "objective.constraint.at_least", "number >= 0, <= 1", "-"),
        (StudyConfig, "evaluate.methods", "list of text", '["LABN", "random"]'),
    ],
)
def test_a_key_is_described_by_its_rule(schema, name, type_, default):
    (key,) = (key for key in describe_keys(schema) if key.name == name)

    assert (key.type, key.default) == (type_, default)
