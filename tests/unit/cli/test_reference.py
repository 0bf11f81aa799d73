from __future__ import annotations

from pathlib import Path

from taskflux.cli.reference import sections, settings_table

PAGE = Path(__file__).parents[3] / "docs" / "settings.md"


def test_the_page_of_settings_is_current_make_docs_writes_it() -> None:
    assert settings_table().strip() in PAGE.read_text(encoding="utf-8")


def test_every_setting_says_what_it_means() -> None:
    for name, model in sections().items():
        silent = [field for field, info in model.model_fields.items() if not info.description]
        assert not silent, f"{name}: {silent}"
