from typing import Any

import pytest
from pydantic import ValidationError

from taskflux.providers.smtp import connect
from taskflux.providers.smtp_session import SmtpSettings
from taskflux.tasks.errors import Misconfigured


@pytest.mark.parametrize(("tls", "port"), [("starttls", 587), ("implicit", 465), ("none", 25)])
def test_the_port_follows_from_tls(tls: str, port: int) -> None:
    assert SmtpSettings.model_validate({"tls": tls}).server_port == port
    assert SmtpSettings.model_validate({"tls": tls, "port": 2525}).server_port == 2525


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"username": "u"}, "username is set, but password is not"),
        ({"password": "p"}, "password is set, but username is not"),
        ({"tls": "none", "ca_file": "/ca.pem"}, "ca_file is set, but tls is none"),
        ({"tls_verify": False, "ca_file": "/ca.pem"}, "ca_file is set, but tls_verify is false"),
        ({"host": "mail.example.org"}, "host is set, but sender is not"),
        ({"sender": "nobody"}, "an address has one @"),
        ({"hostname": "two words"}, "hostname"),
        ({"tls": "maybe"}, "tls"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_contradiction_is_refused_with_a_sentence_that_names_the_field(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        SmtpSettings.model_validate(fields)


def test_every_setting_is_described() -> None:
    assert all(field.description for field in SmtpSettings.model_fields.values())


def test_the_password_is_not_shown() -> None:
    assert "hunter2" not in repr(SmtpSettings.model_validate({"username": "u", "password": "hunter2"}))


async def test_a_server_that_is_not_named_stops_the_start() -> None:
    with pytest.raises(Misconfigured, match="TASKFLUX_SMTP__HOST"):
        async with connect.connect(SmtpSettings()):
            pass


async def test_a_ca_file_that_cannot_be_read_stops_the_start() -> None:
    settings = SmtpSettings(host="127.0.0.1", sender="a@b", ca_file="/nowhere/ca.pem")
    with pytest.raises(Misconfigured, match=r"ca_file /nowhere/ca\.pem cannot be used"):
        async with connect.connect(settings):
            pass
