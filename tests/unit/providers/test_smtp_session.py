from __future__ import annotations

import asyncio
import ssl
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import certifi
import pytest
import trustme
from pydantic import ValidationError

from taskflux.providers.smtp import connect
from taskflux.providers.smtp_replies import Throttled
from taskflux.providers.smtp_session import CALM, WELL, Logins, Slots, SmtpSettings, _raise_for_certificate
from taskflux.tasks.errors import Misconfigured, ProviderError, Unavailable

CA_FILE = certifi.where()


@pytest.mark.parametrize(("tls", "port"), [("starttls", 587), ("implicit", 465), ("none", 25)])
def test_the_port_follows_from_tls(tls: str, port: int) -> None:
    assert SmtpSettings.model_validate({"tls": tls}).server_port == port
    assert SmtpSettings.model_validate({"tls": tls, "port": 2525}).server_port == 2525


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"username": "u"}, "username is set, but password is not"),
        ({"password": "p"}, "password is set, but username is not"),
        ({"access_token": "t"}, "access_token is set, but username is not"),
        ({"username": "u", "password": "p", "access_token": "t"}, "password and access_token are set"),
        (
            {"username": "u", "access_token": "t", "access_token_file": "/t"},
            "access_token and access_token_file are set",
        ),
        ({"tls": "none", "ca_file": CA_FILE}, "ca_file is set, but tls is none"),
        ({"tls_verify": False, "ca_file": CA_FILE}, "ca_file is set, but tls_verify is false"),
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
    for name in ("password", "access_token"):
        assert "hunter2" not in repr(SmtpSettings.model_validate({"username": "u", name: "hunter2"}))


async def test_a_server_that_is_not_named_stops_the_start() -> None:
    with pytest.raises(Misconfigured, match="TASKFLUX_SMTP__HOST"):
        async with connect.connect(SmtpSettings()):
            pass


def test_a_ca_file_that_cannot_be_read_stops_the_start() -> None:
    with pytest.raises(ValidationError, match=r"/nowhere/ca\.pem cannot be read: No such file"):
        SmtpSettings(host="127.0.0.1", sender="a@b", ca_file="/nowhere/ca.pem")


async def test_a_ca_file_that_was_deleted_since_the_start_opens_the_circuit(tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    settings = SmtpSettings(host="127.0.0.1", sender="a@b", ca_file=str(tmp_path / "ca.pem"))
    (tmp_path / "ca.pem").unlink()
    with pytest.raises(Misconfigured, match=r"ca\.pem cannot be used"):
        async with connect.connect(settings):
            pass


async def test_a_token_file_that_cannot_be_read_stops_the_start() -> None:
    settings = SmtpSettings(host="127.0.0.1", sender="a@b", username="u", access_token_file="/nowhere/token")
    with pytest.raises(Misconfigured, match=r"access_token_file /nowhere/token cannot be read: No such file"):
        async with connect.connect(settings):
            pass


@pytest.mark.parametrize("reason", ["WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"])
def test_a_greeting_in_plaintext_is_known_by_what_openssl_calls_it(reason: str) -> None:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    with pytest.raises(Misconfigured, match="set tls to starttls"):
        _raise_for_certificate(error, "the server")


async def complain(slots: Slots) -> None:
    """The server wants fewer connections."""
    with pytest.raises(Throttled):
        async with slots.slot():
            raise Throttled("421 busy")


async def go_well(slots: Slots, mails: int) -> None:
    for _ in range(mails):
        async with slots.slot():
            pass


async def test_a_complaint_halves_the_connections_but_leaves_one() -> None:
    slots = Slots(8)
    for wanted in (4, 2, 1, 1):
        await complain(slots)
        assert slots.wanted == wanted


async def test_a_slot_too_many_is_not_given_out_again() -> None:
    slots = Slots(2)
    async with slots.slot():
        await complain(slots)
        assert (slots.wanted, slots.busy) == (1, 1)
        assert slots._free.locked()
    assert not slots._free.locked()


async def test_a_run_of_mails_that_went_well_brings_back_one_connection_at_a_time() -> None:
    slots = Slots(4)
    await complain(slots)
    await go_well(slots, CALM - 1)
    assert slots.wanted == 2
    await go_well(slots, 1)
    assert slots.wanted == 3
    await go_well(slots, 5 * CALM)
    assert slots.wanted == 4


async def test_as_many_slots_as_at_first_remain_after_a_complaint_was_lived_down() -> None:
    slots = Slots(4)
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(slots.slot())
        await complain(slots)
    await go_well(slots, 5 * CALM)
    async with AsyncExitStack() as stack:
        for _ in range(4):
            assert not slots._free.locked()
            await stack.enter_async_context(slots.slot())
        assert slots._free.locked()


class Server:
    """Answers logins with `error`, if there is one, after all who can have come; notes how many came at once."""

    def __init__(self, error: ProviderError | None = None) -> None:
        self.error = error
        self.logins = 0
        self.at_once = 0
        self._now = 0

    async def dial(self) -> Any:
        self.logins += 1
        self._now += 1
        self.at_once = max(self.at_once, self._now)
        for _ in range(20):
            await asyncio.sleep(0)
        self._now -= 1
        if self.error is not None:
            raise self.error
        return self


async def together(logins: Logins, server: Server, times: int) -> list[Any]:
    return await asyncio.gather(*(logins.run(server.dial) for _ in range(times)), return_exceptions=True)


@pytest.mark.parametrize("error", [Misconfigured("535 no"), Unavailable("nobody answers")])
async def test_who_waited_for_a_login_that_failed_gets_its_error_and_does_not_try(error: ProviderError) -> None:
    logins, server = Logins(), Server(error)
    outcomes = await together(logins, server, 10)
    assert server.logins == 1
    assert {(type(outcome), outcome.reason) for outcome in outcomes} == {(type(error), error.reason)}
    assert len(set(map(id, outcomes))) == 10
    await together(logins, server, 10)
    assert server.logins == 2


async def test_once_a_login_has_succeeded_all_log_in_at_once() -> None:
    logins, server = Logins(), Server()
    assert await together(logins, server, 10) == [server] * 10
    assert (server.logins, server.at_once) == (10, 9)


async def test_after_a_refused_login_one_at_a_time_tries_again() -> None:
    logins, server = Logins(), Server()
    await logins.run(server.dial)
    server.error = Misconfigured("535 no")
    await together(logins, server, 1)
    assert server.logins == 2
    await together(logins, server, 10)
    assert server.logins == 3
    server.error = None
    assert await together(logins, server, 5) == [server] * 5


async def test_some_time_after_a_login_that_went_well_one_at_a_time_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logins, server = Logins(), Server()
    await logins.run(server.dial)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + WELL + 1)
    server.error = Misconfigured("535 no")
    await together(logins, server, 10)
    assert server.logins == 2


async def test_a_login_that_is_cut_off_lets_the_next_one_try() -> None:
    logins, server = Logins(), Server()
    first, second = (asyncio.create_task(logins.run(server.dial)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert server.logins == 2
