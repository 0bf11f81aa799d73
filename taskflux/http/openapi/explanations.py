"""What each kind of problem means, and what to do about it: the pages at /problems/…"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from taskflux.http.problems import Kind


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
        "The body cannot be read as JSON: it breaks off, holds a value that JSON does not know (NaN), is not UTF-8, or"
        " is nested too deeply. `detail` says where.",
        _AGAIN,
        "Expecting ',' delimiter at line 3, column 12",
    ),
    "bad-request": Explanation(
        "The request contradicts itself in a way that leaves open what is meant, for example by a header given twice.",
        _AGAIN,
        "Idempotency-Key is given more than once: give it once",
    ),
    "not-found": Explanation(
        "Nothing is served at this address. A slash at the end makes another address; nothing is redirected.",
        "Look the address up at /docs.",
        "nothing is served at /task",
    ),
    "unknown-task": Explanation(
        "No task has this id: it was never given out, or the task was deleted after its retention.",
        "Check the id. What is past its retention cannot be had back.",
        "no task has the id '01890a5d-ac96-774b-bcce-b302099a8057'; it may have been deleted after its retention",
    ),
    "unknown-dead-letter": Explanation(
        "No dead letter has this id: it was never given out, or it was deleted after its retention.",
        "Look through `GET /dead-letters?state=all`.",
        "no dead letter has this id",
    ),
    "unknown-replay": Explanation(
        "No bulk replay has this id.",
        "Use the `Location` that the start of the replay was answered with.",
        "no bulk replay has this id",
    ),
    "method-not-allowed": Explanation(
        "There is something at this address, but it does not know the method. The header `Allow` names those it knows.",
        "Look the call up at /docs.",
        "PUT is not possible here; possible is POST",
    ),
    "already-replayed": Explanation(
        "The dead letter has been sent again before. Once more could repeat its side effect, so it is not done.",
        "Look at `replays` of the dead letter: it names the task, and how it went. If that one died again, it has a"
        " dead letter of its own.",
        "this dead letter was replayed before",
    ),
    "already-discarded": Explanation(
        "Somebody has put the dead letter aside, with a reason that stands in `discarded`.",
        "Ask whoever did. A discarded dead letter stays readable, and is not replayed.",
        "this dead letter was discarded before",
    ),
    "task-moved-on": Explanation(
        "Since the dead letter was stored its task has gone on: it was replayed or has ended in another way, so that"
        " the dead letter no longer tells how it stands.",
        "Look at the task itself; its timeline tells what happened.",
        "the task is not dead any more",
    ),
    "wrong-state": Explanation(
        "The task's state does not allow this: only a task that waits can be cancelled, only an uncertain one resolved."
        " `taskStatus` says how it stands.",
        "Look at the task. A running one cannot be called back; a dead one is replayed from its dead letter.",
        "the task is running and was not cancelled: a worker has taken it: it cannot be called back",
    ),
    "invalid-resolution": Explanation(
        "The decision on an uncertain task is not valid. `errors` names each bad field.",
        _AGAIN,
        "not valid: outcome",
        {"outcome": "must be one of succeeded, resend, dead"},
    ),
    "too-large": Explanation(
        "The body, or an item of a batch, is larger than is taken here (`TASKFLUX_HTTP__MAX_BODY_BYTES`).",
        "Send less at once: a batch in several, a large file as a link to where it lies.",
        "the body is larger than 33,554,432 bytes, the most that is taken here",
    ),
    "unsupported-media-type": Explanation(
        "Content-Type is missing or names something else than JSON, or the body is compressed.",
        "Send `Content-Type: application/json` (or `application/x-ndjson` for a batch of lines), uncompressed.",
        "Content-Type is 'text/plain': send the body as application/json",
    ),
    "invalid-task": Explanation(
        "The request is JSON, and no valid task: a field is unknown, missing, of the wrong form, or the payload is not"
        " what the type's handler declares. `errors` names every such field.",
        _AGAIN,
        "not valid: payload.subject",
        {"payload.subject": "is required"},
    ),
    "unknown-task-type": Explanation(
        "No worker has ever registered this type. A type is registered when a worker of it first starts, or by"
        " `taskflux topics`. `knownTypes` lists those there are.",
        "Check the spelling, or start the type's handler.",
        "did you mean 'email'? no worker has registered 'emial'; registered are: email, simulated, sms",
        {"taskType": "is not registered"},
    ),
    "idempotency-key-reused": Explanation(
        "The idempotency key came with another request before. A key names one request: the same key with the same"
        " request is answered like the first time, with another one it is refused.",
        "Use a new key for a new task.",
        "this idempotency key came with another request before: use a new key for a new task",
        {"Idempotency-Key": "stands for another request"},
    ),
    "invalid-query": Explanation(
        "A query parameter is unknown, or is not of the form it must have. `errors` names every such parameter.",
        "Correct the query. A cursor is used as it came, with the same filters as before.",
        "not valid: limit",
        {"limit": "must be a whole number from 1 to 200"},
    ),
    "invalid-replay": Explanation(
        "The dead letter cannot be sent again like this: a mended payload does not fit its type, a poison record is"
        " sent without being mended, or the request has a field that is not known.",
        _AGAIN,
        "not valid: payload.to",
        {"payload.to": "is required"},
    ),
    "invalid-discard": Explanation(
        "The request to discard says no reason, or has a field that is not known.",
        "Give a `reason`: whoever finds the dead letter later will want it.",
        "not valid: reason",
        {"reason": "is required"},
    ),
    "empty-filter": Explanation(
        "A bulk replay without a filter would send everything again, and is refused.",
        "Say which: by taskType, errorClass, createdAfter, createdBefore or originTopic. Try it with dryRun first.",
        "say which dead letters: the filter names nothing",
    ),
    "invalid-notification": Explanation(
        "The notification is not what the channel takes, or one of the headers Taskflux-… is not of the form it must"
        " have. `errors` names each field. Nothing was sent.",
        _AGAIN,
        "not valid: mobile",
        {"mobile": "a mobile number is written internationally, digits only, such as +919876543210"},
    ),
    "delivery-refused": Explanation(
        "The provider says that this message can never be delivered: `errorClass` is Permanent.",
        "Correct the message; sending the same one again changes nothing.",
        "550 5.1.1 no such user",
    ),
    "provider-unavailable": Explanation(
        "The provider cannot be reached, or serves nobody: `errorClass` is Unavailable. Nothing was sent.",
        "Try again later. A task would wait for it by itself, without spending attempts.",
        "the SMTP server cannot be reached",
    ),
    "provider-misconfigured": Explanation(
        "The provider refuses this deployment: wrong credentials, an empty balance, a template that is not approved."
        " `errorClass` is Misconfigured. Nothing was sent.",
        "A person has to mend it: `taskflux doctor` looks at the credentials.",
        "535 5.7.8 authentication failed",
    ),
    "delivery-deferred": Explanation(
        "The provider asks to be tried later: `errorClass` is Transient. `progress` says who has the message already.",
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
        "PostgreSQL does not take a value of the request. Sending it again changes nothing.",
        "Correct the value; if it looks right to you, report it.",
        "PostgreSQL does not take a value of this task; sending it again changes nothing",
    ),
    "internal": Explanation(
        "A fault of TaskFlux. Its log says where it happened, without the request's values.",
        "Try again later, a submission with the same idempotency key; report it if it stays.",
        "this is a fault of TaskFlux; its log says where it happened",
    ),
    "store-unavailable": Explanation(
        "PostgreSQL cannot be reached, does not answer in time, or has not been migrated yet. A task that was being"
        " submitted may or may not have been accepted.",
        "Try again after `Retry-After` seconds, a submission with the same idempotency key.",
        "PostgreSQL cannot be reached or does not answer in time; a task that was being submitted may or may not have"
        " been accepted, so send it again with the same idempotency key",
    ),
    "not-started": Explanation(
        "The process has not begun its work yet.", "Wait; this is meant for probes.", "it is not ready yet"
    ),
}


def explanation(kind: Kind) -> Explanation:
    """The kind's explanation; one that nobody has written yet says what its title says."""
    return EXPLANATIONS.get(kind.slug) or Explanation(f"{kind.title}.", "`detail` says more.", f"{kind.title}.")
