from __future__ import annotations

from pathlib import Path

import pytest

from taskflux.cli.reference import metrics_table, renewed, sections, settings_table, variables
from taskflux.telemetry.metrics import DECLARED

DOCS = Path(__file__).parents[3] / "docs"
METRICS_PAGE = DOCS / "observability.md"


def test_the_page_of_settings_is_current_make_docs_writes_it() -> None:
    assert settings_table().strip() in (DOCS / "settings.md").read_text(encoding="utf-8")


def test_every_setting_says_what_it_means() -> None:
    for name, model in sections().items():
        silent = [field for field, info in model.model_fields.items() if not info.description]
        assert not silent, f"{name}: {silent}"


def test_every_variable_is_named_once_and_secrets_are_marked() -> None:
    found = {variable.name: variable for variable in variables()}
    assert len(found) == len(variables())
    assert {"TASKFLUX_POSTGRES__DSN", "TASKFLUX_SMTP__HOST", "TASKFLUX_API__URL"} <= found.keys()
    secret = {name for name, variable in found.items() if variable.secret}
    assert secret == {
        "TASKFLUX_POSTGRES__DSN",
        "TASKFLUX_POSTGRES__MIGRATE_DSN",
        "TASKFLUX_KAFKA__SASL_PASSWORD",
        "TASKFLUX_REDIS__URL",
        "TASKFLUX_SMTP__PASSWORD",
        "TASKFLUX_SMTP__ACCESS_TOKEN",
        "TASKFLUX_MSG91__AUTH_KEY",
        "TASKFLUX_MSG91__WEBHOOK_SECRET",
        "TASKFLUX_OTEL__HEADERS",
        "TASKFLUX_AUTH__BOOTSTRAP_KEY",
        "TASKFLUX_NOTIFY__KEY",
        "TASKFLUX_API__KEY",
    }


def test_the_page_of_metrics_is_current_make_docs_writes_it() -> None:
    page = METRICS_PAGE.read_text(encoding="utf-8")
    assert renewed(page) == page


def test_every_metric_stands_in_the_table_with_its_sentence() -> None:
    lines = {line.split("`")[1]: line for line in metrics_table().splitlines()[2:]}
    assert lines.keys() == DECLARED.keys()
    assert all(DECLARED[name].sentence.replace("|", "\\|") in line for name, line in lines.items())
    assert {line.count(" | ") for line in lines.values()} == {4}


def test_a_page_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="no place"):
        renewed("# Observability\n")
