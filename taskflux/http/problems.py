"""Every error of the API as RFC 9457 `application/problem+json`, from one list of kinds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from taskflux.store.errors import RefusedData, SchemaTooOld, StoreError

PROBLEM: Final = "application/problem+json"
RETRY_AFTER: Final = 5
"""Seconds that a submitter is asked to wait while PostgreSQL is unreachable."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of error: the last part of its `type`, its status, and its title."""

    slug: str
    status: int
    title: str

    @property
    def type(self) -> str:
        """A relative URI reference, resolved against the address of the API."""
        return f"/problems/{self.slug}"


KINDS: Final[dict[str, Kind]] = {}


def _kind(slug: str, status: int, title: str) -> Kind:
    KINDS[slug] = Kind(slug, status, title)
    return KINDS[slug]


MALFORMED_JSON: Final = _kind("malformed-json", 400, "The body is not JSON")
BAD_REQUEST: Final = _kind("bad-request", 400, "The request cannot be understood")
UNKNOWN_HOST: Final = _kind("unknown-host", 400, "This server does not serve that host name")
UNAUTHENTICATED: Final = _kind("unauthenticated", 401, "A valid key is needed")
MISSING_SCOPE: Final = _kind("missing-scope", 403, "The key does not allow this")
NOT_FOUND: Final = _kind("not-found", 404, "There is nothing at this address")
UNKNOWN_TASK: Final = _kind("unknown-task", 404, "There is no such task")
UNKNOWN_DEAD_LETTER: Final = _kind("unknown-dead-letter", 404, "There is no such dead letter")
UNKNOWN_REPLAY: Final = _kind("unknown-replay", 404, "There is no such bulk replay")
METHOD_NOT_ALLOWED: Final = _kind("method-not-allowed", 405, "The method is not allowed at this address")
REQUEST_TIMEOUT: Final = _kind("request-timeout", 408, "The request took too long to arrive")
ALREADY_REPLAYED: Final = _kind("already-replayed", 409, "The dead letter was replayed already")
ALREADY_DISCARDED: Final = _kind("already-discarded", 409, "The dead letter was discarded")
WRONG_STATE: Final = _kind("wrong-state", 409, "The task's state does not allow this")
TASK_MOVED_ON: Final = _kind("task-moved-on", 409, "The task is no longer in the state of the dead letter")
TOO_LARGE: Final = _kind("too-large", 413, "The body is too large")
TARGET_TOO_LONG: Final = _kind("target-too-long", 414, "The request's target is too long")
UNSUPPORTED_MEDIA_TYPE: Final = _kind("unsupported-media-type", 415, "The body's content type is not accepted here")
INVALID_TASK: Final = _kind("invalid-task", 422, "The task is not valid")
UNKNOWN_TASK_TYPE: Final = _kind("unknown-task-type", 422, "No worker has registered this task type")
KEY_REUSED: Final = _kind("idempotency-key-reused", 422, "The idempotency key was used for another request")
INVALID_RESOLUTION: Final = _kind("invalid-resolution", 422, "The decision is not valid")
INVALID_QUERY: Final = _kind("invalid-query", 422, "The query is not valid")
INVALID_REPLAY: Final = _kind("invalid-replay", 422, "The dead letter cannot be replayed like this")
INVALID_DISCARD: Final = _kind("invalid-discard", 422, "The dead letter cannot be discarded like this")
EMPTY_FILTER: Final = _kind("empty-filter", 422, "The filter is empty")
INVALID_NOTIFICATION: Final = _kind("invalid-notification", 422, "The notification is not valid")
DELIVERY_REFUSED: Final = _kind("delivery-refused", 422, "The message can never be delivered")
REFUSED_DATA: Final = _kind("refused-data", 422, "The store refuses a value of the task")
HEAD_TOO_LARGE: Final = _kind("head-too-large", 431, "The request's head is too large")
INTERNAL: Final = _kind("internal", 500, "TaskFlux failed")
PROVIDER_UNAVAILABLE: Final = _kind("provider-unavailable", 502, "The provider is unavailable")
PROVIDER_MISCONFIGURED: Final = _kind("provider-misconfigured", 502, "The provider refuses this deployment")
DELIVERY_DEFERRED: Final = _kind("delivery-deferred", 503, "The message must be sent later")
STORE_UNAVAILABLE: Final = _kind("store-unavailable", 503, "The store cannot be reached")
BUSY: Final = _kind("busy", 503, "Too many bytes are in flight")
NOT_STARTED: Final = _kind("not-started", 503, "The process has not started yet")
TOO_MANY_CONNECTIONS: Final = _kind("too-many-connections", 503, "There are too many connections")
NOT_BEGUN: Final = _kind("not-begun", 503, "The request's time was up")
DELIVERY_UNKNOWN: Final = _kind("delivery-unknown", 504, "The message may have been sent")

COMMON: Final = (INVALID_TASK, MALFORMED_JSON, UNKNOWN_TASK_TYPE, KEY_REUSED, STORE_UNAVAILABLE)
"""The most common problems of a submission."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field; `field` is a path such as `payload.to[0]`, or the name of a header."""

    field: str
    message: str


class Problem(Exception):
    """An error that is reported to the caller.

    Args:
        kind: its kind.
        detail: one sentence on this occurrence, with what to do about it.
        errors: each bad field.
        headers: further headers of the answer.
        extra: further members of the document.
    """

    def __init__(
        self,
        kind: Kind,
        detail: str,
        errors: Sequence[FieldError] = (),
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(kind.slug)  # never the detail, which may quote the caller: this text can reach a log
        self.kind = kind
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.kind.status

    def document(self) -> dict[str, Any]:
        """The problem as a JSON object."""
        document: dict[str, Any] = {
            "type": self.kind.type,
            "title": self.kind.title,
            "status": self.kind.status,
            "detail": self.detail,
        }
        if self.errors:
            document["errors"] = [{"field": error.field, "message": error.message} for error in self.errors]
        return document | self.extra


def not_valid(kind: Kind, errors: Sequence[FieldError]) -> Problem:
    """The problem of these fields."""
    names = ", ".join(dict.fromkeys(error.field for error in errors))
    return Problem(kind, shortened(f"not valid: {names}", 400), errors)


def unknown_fields(given: Iterable[str], known: Sequence[str], root: str = "") -> list[FieldError]:
    """An error for each unknown name, at most twenty of them; `root` is the prefix of each."""
    verb = "is" if len(known) == 1 else "are"
    return [
        FieldError(root + shortened(name, 100), f"is not known here; known {verb} {', '.join(known)}")
        for name in sorted(set(given) - set(known))[:20]
    ]


def field_error(path: Sequence[str | int], message: str) -> FieldError:
    """An error at a path, such as `payload.attachments[0].name`; both texts are cut to a bounded length."""
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
    return FieldError(shortened(name, 200), shortened(message, 300))


def shortened(text: str, longest: int) -> str:
    """At most `longest` characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def store_problem(error: StoreError) -> Problem:
    """The problem of a request that the store did not serve."""
    if isinstance(error, RefusedData):
        return Problem(REFUSED_DATA, "PostgreSQL cannot store a value of this task; sending it again does not help")
    if isinstance(error, SchemaTooOld):
        detail = "the database has not been migrated to this version yet; nothing was changed, try again later"
    else:
        detail = (
            "PostgreSQL cannot be reached or does not answer in time; a task that was being submitted may or may not"
            " have been accepted, so send it again with the same idempotency key"
        )
    headers = {"Retry-After": str(RETRY_AFTER)}
    return Problem(STORE_UNAVAILABLE, detail, headers=headers, extra={"retryAfter": RETRY_AFTER})


@dataclass(frozen=True, slots=True)
class Explanation:
    """`means` and `do` are for a person; `detail` and `errors` are an example of one occurrence."""

    means: str
    do: str
    detail: str
    errors: Mapping[str, str] = field(default_factory=dict)


_AGAIN = "Nothing was changed. Correct the request and send it again."

EXPLANATIONS: Final[dict[str, Explanation]] = {
    "malformed-json": Explanation(
        "The body is not valid JSON: it is incomplete, holds a value that JSON does not have (NaN), is not UTF-8, or"
        " all of it is nested more than 64 levels deep. `detail` says where.",
        _AGAIN,
        "Expecting ',' delimiter at line 3, column 12",
    ),
    "bad-request": Explanation(
        "The request contradicts itself in a way that leaves open what is meant, for example by a header given twice.",
        _AGAIN,
        "Idempotency-Key is given more than once: give it once",
    ),
    "unauthenticated": Explanation(
        "The call has no key, or one that is unknown, revoked or expired. A key that was just made works at once; one"
        " that was revoked stops working within ten seconds.",
        "Send `Authorization: Bearer <key>` or `X-Api-Key: <key>`. `taskflux keys create` makes a key, where PostgreSQL"
        " is reached; it needs no other key.",
        "a key is needed: send `Authorization: Bearer <key>` or `X-Api-Key: <key>`; `taskflux keys create` makes one",
    ),
    "missing-scope": Explanation(
        "The key is valid, but does not allow this call: it has not the scope that the call needs (`scope`), or it is"
        " bound to other task types (`types`). Nothing was done.",
        "Use a key with that scope: `taskflux keys create` makes one with the scopes that are named.",
        "this needs the scope operate, and the key has read, submit",
    ),
    "not-found": Explanation(
        "Nothing is served at this address. A slash at the end makes it another address; there are no redirects.",
        "Look the address up at /docs.",
        "nothing is served at /task",
    ),
    "unknown-host": Explanation(
        "The request names a host (in its Host header) that is not one of `TASKFLUX_HTTP__ALLOWED_HOSTS`. Under"
        " `taskflux dev` those are localhost and addresses: otherwise a website could point its own name here.",
        "Use one of the names, or add the name to the setting.",
        "this server answers to localhost and to addresses",
    ),
    "unknown-task": Explanation(
        "No task has this id: it was never assigned, or the task was deleted after its retention.",
        "Check the id. A task that is past its retention cannot be restored.",
        "no task has the id '01890a5d-ac96-774b-bcce-b302099a8057'; it may have been deleted after its retention",
    ),
    "unknown-dead-letter": Explanation(
        "No dead letter has this id: it was never assigned, or it was deleted after its retention.",
        "Look through `GET /dead-letters?state=all`.",
        "no dead letter has this id",
    ),
    "unknown-replay": Explanation(
        "No bulk replay has this id.",
        "Use the `Location` from the answer that started the replay.",
        "no bulk replay has this id",
    ),
    "method-not-allowed": Explanation(
        "This address does not support the method. The header `Allow` names those that it supports.",
        "Look the call up at /docs.",
        "PUT is not allowed here; allowed: POST",
    ),
    "already-replayed": Explanation(
        "The dead letter has been replayed already. A second replay could repeat its side effect, so it is refused.",
        "Look at `replays` of the dead letter: it names the task and its outcome. If that task died again, it has a"
        " dead letter of its own.",
        "this dead letter was replayed before",
    ),
    "already-discarded": Explanation(
        "The dead letter was discarded, for the reason in `discarded`.",
        "Ask the person who discarded it. A discarded dead letter stays readable, and is not replayed.",
        "this dead letter was discarded before",
    ),
    "task-moved-on": Explanation(
        "Since the dead letter was stored, its task has changed: it was replayed or has ended in another way, so that"
        " the dead letter no longer shows its state.",
        "Look at the task itself; its timeline shows what happened.",
        "the task is not dead any more",
    ),
    "wrong-state": Explanation(
        "The task's state does not allow this: only a task that waits can be cancelled, only an uncertain one resolved."
        " `taskStatus` is its state.",
        "Look at the task. A running one cannot be cancelled; a dead one is replayed from its dead letter.",
        "the task is running and was not cancelled: a worker has started it",
    ),
    "invalid-resolution": Explanation(
        "The decision on an uncertain task is not valid. `errors` names each bad field.",
        _AGAIN,
        "not valid: outcome",
        {"outcome": "must be one of succeeded, resend, dead"},
    ),
    "too-large": Explanation(
        "The body, or an item of a batch, is larger than the limit (`TASKFLUX_HTTP__MAX_BODY_BYTES`): it has more"
        " bytes, its payload has more than the task's type allows, or it holds more than 100,000 values.",
        "Send less at once: a batch in several, a large file as a link.",
        "the body is larger than 16,777,216 bytes, the limit",
    ),
    "target-too-long": Explanation(
        "The target, between the method and the version in the request's first line, is longer than 8 KiB.",
        "Shorten the query: no call of this API needs so much.",
        "the request's target is longer than 8,192 bytes",
    ),
    "head-too-large": Explanation(
        "The request's first line and headers are larger than the limit (`TASKFLUX_HTTP__MAX_HEAD_BYTES`, 100"
        " fields). Its body was not read.",
        "Send fewer or shorter headers: look at cookies, and at what proxies add.",
        "the head of the request is larger than the limit: 100 fields and 32,768 bytes",
    ),
    "too-many-connections": Explanation(
        "There are more connections than allowed (`TASKFLUX_HTTP__MAX_CONNECTIONS`), and those that wait longest are"
        " closed. The rest of the request was not read; what is answered as accepted was accepted.",
        "Try again after `Retry-After` seconds, and keep connections for further requests.",
        "all 1,000 connections have a request that is being answered",
    ),
    "request-timeout": Explanation(
        "The request had not arrived when its time was up: its head (`TASKFLUX_HTTP__HEAD_SECONDS`), or all of it"
        " (`TASKFLUX_HTTP__REQUEST_SECONDS`), or it came at less than 1,024 bytes a second. In the answer to a batch,"
        " nothing from this item on was read; the items before it have their results.",
        "Send the rest in another request: a batch in several, or over a faster connection.",
        "the request took longer than 60 s",
    ),
    "unsupported-media-type": Explanation(
        "Content-Type is missing or names something other than JSON, or the body is compressed.",
        "Send `Content-Type: application/json` (or `application/x-ndjson` for a batch of lines), uncompressed.",
        "Content-Type is 'text/plain': send the body as application/json",
    ),
    "invalid-task": Explanation(
        "The request is JSON, but not a valid task: a field is unknown, missing, of the wrong form, holds a lone"
        " surrogate or is nested more than 64 levels deep, or the payload does not match the type's schema."
        " `errors` names every such field.",
        _AGAIN,
        "not valid: payload.subject",
        {"payload.subject": "is required"},
    ),
    "unknown-task-type": Explanation(
        "No worker has ever registered this type. A type is registered when a worker of it first starts, or by"
        " `taskflux topics`. `knownTypes` lists the registered ones. Or the handler of the type is off: then the"
        " detail names it.",
        "Check the spelling, or start the type's handler.",
        "did you mean 'email'? no worker has registered 'emial'; registered are: email, simulated, sms",
        {"taskType": "is not registered"},
    ),
    "idempotency-key-reused": Explanation(
        "The idempotency key was used with another request. A key identifies one request: sent again with the same"
        " request, it gets the same answer; with another one, it is refused.",
        "Use a new key for a new task.",
        "this idempotency key was used with another request: use a new key for a new task",
        {"Idempotency-Key": "belongs to another request"},
    ),
    "invalid-query": Explanation(
        "A query parameter is unknown or invalid. `errors` names every such parameter.",
        "Correct the query. Pass a cursor on unchanged, with the same filters.",
        "not valid: limit",
        {"limit": "must be a whole number from 1 to 200"},
    ),
    "invalid-replay": Explanation(
        "The dead letter cannot be replayed like this: a repaired payload does not match its type, a poison message"
        " is replayed without a repair, or the request has an unknown field.",
        _AGAIN,
        "not valid: payload.to",
        {"payload.to": "is required"},
    ),
    "invalid-discard": Explanation(
        "The request to discard has no reason, or has an unknown field.",
        "Give a `reason`: it helps those who find the dead letter later.",
        "not valid: reason",
        {"reason": "is required"},
    ),
    "empty-filter": Explanation(
        "A bulk replay without a filter would replay everything, and is refused.",
        "Filter by taskType, errorClass, createdAfter, createdBefore or originTopic. Try it with dryRun first.",
        "say which dead letters: the filter is empty",
    ),
    "invalid-notification": Explanation(
        "The notification is not valid for its channel, or one of the headers Taskflux-… is invalid."
        " `errors` names each field. Nothing was sent.",
        _AGAIN,
        "not valid: mobile",
        {"mobile": "a mobile number is digits with the country code, e.g. 918812345678"},
    ),
    "delivery-refused": Explanation(
        "The provider says that this message can never be delivered: `errorClass` is Permanent.",
        "Correct the message; sending the same one again does not help.",
        "550 5.1.1 no such user",
    ),
    "provider-unavailable": Explanation(
        "The provider cannot be reached, or serves no client: `errorClass` is Unavailable. Nothing was sent.",
        "Try again later. A task would wait for it by itself, without spending attempts.",
        "the SMTP server cannot be reached",
    ),
    "provider-misconfigured": Explanation(
        "The provider refuses this deployment: wrong credentials, an empty balance, a template that is not approved."
        " `errorClass` is Misconfigured. Nothing was sent.",
        "An operator has to fix it: `taskflux doctor` checks the credentials.",
        "535 5.7.8 authentication failed",
    ),
    "delivery-deferred": Explanation(
        "The provider asks for a later attempt: `errorClass` is Transient. `progress` says who has the message.",
        "Try again after `retryAfter` seconds, with the same Taskflux-Task-Id, the next Taskflux-Attempt and the"
        " `progress` of this answer.",
        "450 4.2.0 greylisted",
    ),
    "delivery-unknown": Explanation(
        "The message may have been sent: the answer was lost after it was handed over. `errorClass` is Ambiguous.",
        "Look at the provider, or wait for its delivery report, before sending it again.",
        "the message was sent, and the SMS service's answer was lost: ReadTimeout",
    ),
    "refused-data": Explanation(
        "PostgreSQL cannot store a value of the request. Sending it again does not help.",
        "Correct the value; if it looks right to you, report it.",
        "PostgreSQL cannot store a value of this task; sending it again does not help",
    ),
    "internal": Explanation(
        "An internal error of TaskFlux. Its log says where it happened, without the request's values.",
        "Try again later, a submission with the same idempotency key; report it if it persists.",
        "this is an internal error of TaskFlux; its log says where it happened",
    ),
    "store-unavailable": Explanation(
        "PostgreSQL cannot be reached, does not answer in time, or has not been migrated yet. A task that was being"
        " submitted may or may not have been accepted.",
        "Try again after `Retry-After` seconds, a submission with the same idempotency key.",
        "PostgreSQL cannot be reached or does not answer in time; a task that was being submitted may or may not have"
        " been accepted, so send it again with the same idempotency key",
    ),
    "not-begun": Explanation(
        "The request's time was up (`TASKFLUX_HTTP__REQUEST_SECONDS`) before this was started. Nothing was changed.",
        "Send it again after `Retry-After` seconds; of a batch, the items with this answer.",
        "the request took longer than 60 s",
    ),
    "busy": Explanation(
        "The process is at its limit for requests in flight (`TASKFLUX_HTTP__BYTES_IN_FLIGHT`). Nothing was done.",
        "Try again after `Retry-After` seconds.",
        "this process is at its limit for requests in flight: send this one again",
    ),
    "not-started": Explanation(
        "The process has not started its work yet.", "Wait; this is meant for probes.", "it is not ready yet"
    ),
}


def explanation(kind: Kind) -> Explanation:
    """The kind's explanation; without one, its title."""
    return EXPLANATIONS.get(kind.slug) or Explanation(f"{kind.title}.", "`detail` says more.", f"{kind.title}.")
