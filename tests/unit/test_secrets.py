"""Files set variables, and are read again while a process runs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from taskflux import secrets
from taskflux.providers.smtp_session import SmtpSettings
from taskflux.worker import settings as settings_module
from taskflux.worker.process import keep_secrets
from taskflux.worker.settings import WrongSettings, load, load_provider, renew

DSN = "postgresql://ann:{}@db.example.org/taskflux"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of secrets; nothing else is set, before and after."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.upper().startswith("TASKFLUX_")]:
        del os.environ[name]
    os.environ[secrets.DIRECTORY] = str(tmp_path)
    monkeypatch.setattr(secrets, "_from_files", set())
    monkeypatch.setattr(settings_module, "_renewable", [])
    for name, text in {
        "postgres/TASKFLUX_POSTGRES__DSN": DSN.format("first"),
        "smtp/TASKFLUX_SMTP__PASSWORD": "a",
    }.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    os.environ["TASKFLUX_SMTP__USERNAME"] = "ann"
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


def test_files_set_variables_and_the_environment_takes_precedence(folder: Path) -> None:
    os.environ["TASKFLUX_SMTP__PASSWORD"] = "mine"
    (folder / "TASKFLUX_LOG__LEVEL").write_text("DEBUG")
    (folder / "postgres" / "ca.crt").write_text("no variable")
    assert set(secrets.read()) == {"TASKFLUX_POSTGRES__DSN", "TASKFLUX_LOG__LEVEL"}
    assert load("postgres").postgres.dsn.get_secret_value() == DSN.format("first")
    (folder / "smtp" / "TASKFLUX_SMTP__PASSWORD").write_text("renewed")
    assert secrets.read() == {}, "it is the environment's"
    assert os.environ["TASKFLUX_SMTP__PASSWORD"] == "mine"


def test_renewed_files_reach_whoever_holds_the_settings(folder: Path) -> None:
    secrets.read()
    postgres, smtp = load("postgres").postgres, load_provider("smtp", SmtpSettings)
    assert renew() == ()
    (folder / "postgres" / "TASKFLUX_POSTGRES__DSN").write_text(DSN.format("second"))
    (folder / "smtp" / "TASKFLUX_SMTP__PASSWORD").write_text("b")
    assert renew() == ["TASKFLUX_POSTGRES__DSN", "TASKFLUX_SMTP__PASSWORD"]
    assert postgres.dsn.get_secret_value() == DSN.format("second")
    assert smtp.password is not None
    assert smtp.password.get_secret_value() == "b"


@pytest.mark.parametrize("wrong", ["mysql://db", DSN.format("second") + "\n"])
def test_a_wrong_renewal_changes_nothing_until_it_is_right(folder: Path, wrong: str) -> None:
    secrets.read()
    postgres, file = load("postgres").postgres, folder / "postgres" / "TASKFLUX_POSTGRES__DSN"
    file.write_text(wrong)
    for _ in range(2):
        with pytest.raises(WrongSettings, match="TASKFLUX_POSTGRES__DSN"):
            renew()
    assert postgres.dsn.get_secret_value() == os.environ["TASKFLUX_POSTGRES__DSN"] == DSN.format("first")
    file.write_text(DSN.format("second"))
    renew()
    assert postgres.dsn.get_secret_value() == DSN.format("second")


async def test_a_process_says_once_what_was_renewed_or_why_not(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    secrets.read()
    load("postgres")
    caplog.set_level("INFO")
    keeping, file = asyncio.create_task(keep_secrets(0.005)), folder / "postgres" / "TASKFLUX_POSTGRES__DSN"
    for text in ("mysql://db", DSN.format("second")):
        file.write_text(text)
        async with asyncio.timeout(10):
            said = len(caplog.messages)
            while len(caplog.messages) == said:  # noqa: ASYNC110  # the log sets no event
                await asyncio.sleep(0.005)
    keeping.cancel()
    with suppress(asyncio.CancelledError):
        await keeping
    assert caplog.messages == ["renewed secrets are not used: they are wrong", "secrets were renewed"]
    assert "second" not in caplog.text


def test_the_hidden_folders_of_a_volume_are_not_read(folder: Path) -> None:
    """Kubernetes has the files in `..2026_12_01`, to which `..data` leads, and to that each file."""
    for name in ("..2026_12_01", "..2026_12_02"):
        (folder / name).mkdir()
        (folder / name / "TASKFLUX_LOG__LEVEL").write_text(name)
    (folder / "..data").symlink_to("..2026_12_01")
    assert "TASKFLUX_LOG__LEVEL" not in secrets.read()
    (folder / "TASKFLUX_LOG__LEVEL").symlink_to("..data/TASKFLUX_LOG__LEVEL")
    assert set(secrets.read()) == {"TASKFLUX_LOG__LEVEL"}
    assert os.environ["TASKFLUX_LOG__LEVEL"] == "..2026_12_01"


def test_a_text_that_no_variable_can_hold_is_refused(folder: Path) -> None:
    before = secrets.read()
    assert before
    (folder / "smtp" / "TASKFLUX_SMTP__PASSWORD").write_text("a\0b")
    with pytest.raises(secrets.Unreadable, match="smtp/TASKFLUX_SMTP__PASSWORD has a NUL"):
        secrets.read()
    assert os.environ["TASKFLUX_SMTP__PASSWORD"] == "a"


def test_a_missing_folder_is_named(folder: Path) -> None:
    os.environ[secrets.DIRECTORY] = str(folder / "nowhere")
    with pytest.raises(secrets.Unreadable, match=r"TASKFLUX_SECRETS_DIR: .*nowhere cannot be read: No such file"):
        secrets.read()
