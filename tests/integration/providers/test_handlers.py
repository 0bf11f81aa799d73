import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from pydantic import SecretStr

from taskflux.handlers.process_email import process_email
from taskflux.handlers.process_sms import process_sms
from taskflux.providers import msg91, smtp
from taskflux.providers.smtp_session import SmtpSettings
from taskflux.tasks.errors import Transient
from taskflux.tasks.model import Task
from taskflux.worker.handler import Handler
from tests.integration.providers.flow_api import Answer, FlowApi
from tests.integration.providers.smtp_server import Postbox, smtp_server

ID = UUID("0199f000-0000-7000-8000-000000000001")
CREATED = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)


def task(handler: Handler[Any], payload: dict[str, Any], **more: Any) -> Task[Any]:
    given = {"attempt": 1, "max_attempts": 6, "replay": 0} | more
    return Task(id=ID, type=handler.type, payload=handler.parse(json.dumps(payload)), created_at=CREATED, **given)


async def test_every_attempt_at_a_mail_has_the_same_message_id_and_date() -> None:
    payload = {"to": ["ann@example.org", "bob@example.org"], "subject": "Hello", "body": "Hi"}
    postbox = Postbox()
    postbox.replies["bob@example.org"] = ["450 4.2.0 later"]
    async with smtp_server(postbox):
        settings = SmtpSettings(host="127.0.0.1", port=postbox.port, tls="none", sender="tasks@example.org")
        async with smtp.connect.connect(settings) as mailer:
            with pytest.raises(Transient) as failure:
                await process_email(task(process_email, payload), mailer)
            receipt = await process_email(
                task(process_email, payload, attempt=2, progress=failure.value.progress), mailer
            )
    assert receipt is not None
    assert set(receipt.result["delivered"]) == {"ann@example.org", "bob@example.org"}
    assert [mail.recipients for mail in postbox.mails] == [["ann@example.org"], ["bob@example.org"]]
    assert {mail.message["Message-ID"] for mail in postbox.mails} == {f"<{ID}@example.org>"}
    assert {mail.message["Date"].datetime for mail in postbox.mails} == {CREATED}


@pytest.mark.parametrize(("said", "known"), [("req-1", {"requestId": "req-1"}), ("null", {})])
async def test_a_short_message_is_known_to_the_provider_by_its_task(
    api: FlowApi, said: str, known: dict[str, str]
) -> None:
    api.answers.append(Answer({"type": "success", "message": said}))
    settings = msg91.Msg91Settings(base_url=api.url, auth_key=SecretStr("key"), template_id="t" * 24)
    async with msg91.connect.connect(settings) as sms:
        receipt = await process_sms(task(process_sms, {"mobile": "+919876543210", "name": "Ann"}, replay=2), sms)
    assert receipt is not None
    assert receipt.result == known | {"status": "accepted"}
    assert api.taken[0].flow["CRQID"] == f"{ID}.2"


def test_mails_are_sent_again_when_in_doubt_and_short_messages_held() -> None:
    assert process_email.policy.ambiguous == "resend"
    assert process_sms.policy.ambiguous == "hold"


def test_an_attempt_may_take_longer_than_its_provider_waits() -> None:
    mail, sms = SmtpSettings(), msg91.Msg91Settings()
    assert process_email.policy.timeout > mail.data_timeout + mail.connect_timeout + mail.command_timeout
    assert process_sms.policy.timeout > 2 * sms.read_timeout + sms.connect_timeout


def test_no_attempt_waits_for_a_connection_by_default() -> None:
    assert process_email.concurrency <= SmtpSettings().connections
    assert process_sms.concurrency <= msg91.Msg91Settings().connections
