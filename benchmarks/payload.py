"""The payload that every system is given: about 430 bytes of JSON, as of a short mail."""

from __future__ import annotations

from typing import Final

PAYLOAD: Final = {
    "to": "someone@example.org",
    "subject": "Your order has been sent",
    "number": 12345,
    "text": "It is on its way, and will be with you within three days. " * 5 + "Kind regards",
}
