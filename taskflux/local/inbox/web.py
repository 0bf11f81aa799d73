"""The inbox's HTTP side: the page, its JSON, and a stand-in for MSG91's Flow API.

| call | answer |
|---|---|
| `GET /` | the page |
| `GET /api/messages?kind=&id=&before=&after=&limit=` | newest first; `id` is a Message-ID or CRQID |
| `GET /api/messages/{n}` | one message with its text, headers and attachments |
| `GET /api/messages/{n}/html` `…/source` `…/attachments/{k}` | its html part, its bytes, one attachment |
| `GET /api/counts` | for each kind: received, distinct, and what arrived more than once |
| `DELETE /api/messages` | deletes all |
| `POST /api/v5/flow/` | as MSG91 |

The stand-in refuses what the real one refuses, in its words: errors come with HTTP 200 and `"type": "error"`, as the
real ones can; only a missing key is a 401.
"""

from __future__ import annotations

import importlib.resources
import json
import re
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from taskflux.http.requests import KnownHosts
from taskflux.local.inbox.mailbox import KINDS, Kind, Mailbox, Message, preview, read_mail
from taskflux.local.ports import LOOPBACK_NAME

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
    """What the caller gets, and what was accepted."""

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


_PREVIEW_FROM = 16 * 1024
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; frame-src 'self';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_NO_SNIFFING = {"x-content-type-options": "nosniff"}
# A mail's html runs no script, loads nothing and has no origin. Its links open in a tab of their own.
_MAIL_POLICY = (
    "sandbox allow-popups allow-popups-to-escape-sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
)
_BASE = '<base target="_blank">'
_DOCTYPE = re.compile(r"\s*(<!doctype\b[^>]*>)?", re.IGNORECASE)


def application(mailbox: Mailbox, names: Sequence[str] = ()) -> Starlette:
    """The application over a mailbox.

    It answers to localhost, to `names` and to addresses only, so that no website can rebind its own name to it.
    """
    views = _Views(mailbox)
    return Starlette(
        routes=[
            Route("/", views.page),
            Route("/livez", views.livez),
            Route("/api/messages", views.messages),
            Route("/api/messages", views.clear, methods=["DELETE"]),
            Route("/api/counts", views.counts),
            Route("/api/messages/{number:int}", views.message),
            Route("/api/messages/{number:int}/html", views.html),
            Route("/api/messages/{number:int}/source", views.source),
            Route("/api/messages/{number:int}/attachments/{index:int}", views.attachment),
            Route("/api/v5/flow", views.send, methods=["POST"]),
            Route("/api/v5/flow/", views.send, methods=["POST"]),
        ],
        middleware=[Middleware(KnownHosts, [LOOPBACK_NAME, *names])],
    )


class _Views:
    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._page = (importlib.resources.files("taskflux.local") / "inbox.html").read_text(encoding="utf-8")

    async def page(self, request: Request) -> Response:
        headers = {"content-security-policy": _PAGE_POLICY, "cache-control": "no-store", **_NO_SNIFFING}
        return HTMLResponse(self._page, headers=headers)

    async def livez(self, request: Request) -> Response:
        return PlainTextResponse("ok")

    async def messages(self, request: Request) -> Response:
        query = request.query_params
        found = self._mailbox.list(
            kind=_kind(query.get("kind")),
            reference=query["id"].strip("<>") if "id" in query else None,
            before=_number(query.get("before")),
            after=_number(query.get("after")),
            limit=min(_number(query.get("limit")) or 50, 1000),
        )
        lines = [self._line(message) for message in found]
        return JSONResponse({"totals": self._mailbox.totals(), "messages": lines})

    async def counts(self, request: Request) -> Response:
        return JSONResponse({kind: asdict(self._mailbox.count(kind)) for kind in KINDS})

    async def clear(self, request: Request) -> Response:
        self._mailbox.clear()
        return Response(status_code=204)

    async def message(self, request: Request) -> Response:
        message, content = self._find(request)
        answer = self._line(message) | {"kept": content is not None}
        if content is not None and message.kind == "email":
            mail = read_mail(content)
            answer |= {"headers": mail.headers, "text": mail.text, "html": mail.html is not None}
            answer["attachments"] = [
                {"name": each.name, "type": each.type, "size": len(each.content)} for each in mail.attachments
            ]
        elif content is not None:
            answer |= json.loads(content)
        return JSONResponse(answer)

    async def html(self, request: Request) -> Response:
        mail = read_mail(self._content(request))
        headers = {"content-security-policy": _MAIL_POLICY, "referrer-policy": "no-referrer", **_NO_SNIFFING}
        html = mail.html or ""
        start = _DOCTYPE.match(html)
        at = start.end() if start else 0  # before the doctype it would change how the page is laid out
        return HTMLResponse(html[:at] + _BASE + html[at:], headers=headers)

    async def source(self, request: Request) -> Response:
        return Response(self._content(request), media_type="text/plain", headers=_NO_SNIFFING)

    async def attachment(self, request: Request) -> Response:
        attachments = read_mail(self._content(request)).attachments
        index = int(request.path_params["index"])
        if index >= len(attachments):
            raise HTTPException(404, "no such attachment")
        found = attachments[index]
        disposition = f"attachment; filename*=UTF-8''{quote(found.name)}"
        headers = {"content-disposition": disposition, **_NO_SNIFFING}
        return Response(found.content, media_type="application/octet-stream", headers=headers)

    async def send(self, request: Request) -> Response:
        try:
            body: object = await request.json()
        except ValueError:
            body = None
        reply = answer(request.headers.get("authkey"), body)
        try:
            for sms in reply.sms:
                self._keep(reply, sms)
        except sqlite3.Error as error:
            return JSONResponse({"type": "error", "message": f"not kept: {error}"}, 500)
        return JSONResponse(reply.body, reply.status)

    def _keep(self, answer: Answer, sms: Sms) -> None:
        content = {"requestId": answer.request_id, "templateId": answer.template_id, "variables": sms.variables}
        self._mailbox.add(
            "sms",
            reference=answer.reference,
            sender="MSG91",
            recipients=[sms.mobile],
            subject=" · ".join(sms.variables.values()),
            content=json.dumps(content).encode(),
        )

    def _line(self, message: Message) -> dict[str, Any]:
        begin = self._mailbox.beginning(message.id, _PREVIEW_FROM) if message.kind == "email" else b""
        return {
            "id": message.id,
            "kind": message.kind,
            "reference": message.reference,
            "receivedAt": message.received_at,
            "from": message.sender,
            "to": message.recipients,
            "subject": message.subject,
            "preview": preview(begin) if begin else "",
            "size": message.size,
            "copies": self._mailbox.copies(message),
        }

    def _find(self, request: Request) -> tuple[Message, bytes | None]:
        found = self._mailbox.get(int(request.path_params["number"]))
        if found is None:
            raise HTTPException(404, "no such message")
        return found

    def _content(self, request: Request) -> bytes:
        content = self._find(request)[1]
        if content is None:
            raise HTTPException(410, "its content was removed to keep the inbox small")
        return content


def _kind(text: str | None) -> Kind | None:
    if not text:
        return None
    for kind in KINDS:
        if text == kind:
            return kind
    raise HTTPException(400, f"kind is one of {', '.join(KINDS)}")


def _number(text: str | None) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdigit():
        raise HTTPException(400, f"{text!r} is not a number")
    return min(int(text), 2**53)
