"""A stand-in for MSG91's Flow API (`POST /api/v5/flow/`), refusing what the real one refuses, in its words.

Errors come with HTTP 200 and `"type": "error"`, as the real ones can; only a missing key is a 401.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_TEMPLATE = re.compile(r"[0-9a-fA-F]{24}")
_MOBILE = re.compile(r"[1-9][0-9]{7,14}")  # international, without + or leading zeros
_REFERENCE = re.compile(r"[A-Za-z0-9_.-]{1,80}")


@dataclass(frozen=True, slots=True)
class Sms:
    """One recipient's message, as MSG91 would fill a template with it."""

    mobile: str
    variables: dict[str, str]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the caller hears, and what was accepted."""

    status: int
    body: Mapping[str, Any]
    request_id: str = ""
    template_id: str = ""
    reference: str = ""
    sms: tuple[Sms, ...] = ()


def answer(authkey: str | None, body: object) -> Answer:
    """Answer one call with this `authkey` header and decoded JSON body."""
    if not authkey:
        unauthorized = {"status": "fail", "hasError": True, "errors": "Unauthorized", "code": "401", "apiError": "201"}
        return Answer(401, unauthorized)
    if not isinstance(body, dict):
        return _refused("invalid JSON", "400")
    template = body.get("template_id")
    if not isinstance(template, str) or not _TEMPLATE.fullmatch(template):
        return _refused("template id missing or invalid", "211")
    reference = body.get("CRQID", "")
    if reference and not (isinstance(reference, str) and _REFERENCE.fullmatch(reference)):
        return _refused("invalid CRQID", "400")
    recipients = body.get("recipients")
    if not isinstance(recipients, list) or not recipients:
        return _refused("recipients missing", "101")
    taken: list[Sms] = []
    for recipient in recipients:
        mobile = str(recipient.get("mobiles", "")) if isinstance(recipient, dict) else ""
        if not _MOBILE.fullmatch(mobile):
            return _refused("invalid mobile number", "202")
        taken.append(Sms(mobile, {str(name): str(value) for name, value in recipient.items() if name != "mobiles"}))
    request_id = secrets.token_hex(12)
    return Answer(200, {"type": "success", "message": request_id}, request_id, template, reference, tuple(taken))


def _refused(message: str, code: str) -> Answer:
    return Answer(200, {"type": "error", "message": message, "code": code})
