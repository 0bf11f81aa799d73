"""A key for tests whose subject is something else: what they run takes it, and their clients send it."""

from __future__ import annotations

from typing import Final

from pydantic import SecretStr

from taskflux.http.access import Access
from taskflux.worker.settings import AuthSettings

KEY: Final = "a-key-for-tests-0123456789abcdefghijklmnop"
AUTH: Final = AuthSettings(bootstrap_key=SecretStr(KEY))
HEADERS: Final = {"authorization": f"Bearer {KEY}"}
SERVER: Final = {"TASKFLUX_AUTH__BOOTSTRAP_KEY": KEY}
"""What a process that serves the API gets."""
CLIENT: Final = {"TASKFLUX_API__KEY": KEY}
"""What a command that calls the API gets."""
OPEN: Final = Access("off", None)
"""For an application whose callers are not looked at."""
