"""A real SMTP server that can stop and start again on the same port, and can refuse the password."""

from __future__ import annotations

import asyncio
import logging
import warnings
from typing import cast

from aiosmtpd.smtp import SMTP

from taskflux.local.ports import free_port
from tests.integration.providers.smtp_server import Postbox

USER, PASSWORD = "taskflux", "a-password"
GONE = "gone.example"
"""A recipient of this domain is refused permanently."""


class _Postbox(Postbox):
    """Refuses recipients who do not exist."""

    async def _reply(self, server: SMTP, key: str) -> str:
        return "550 5.1.1 no such user" if key.endswith(f"@{GONE}") else await super()._reply(server, key)


class MailServer:
    """Takes mail with a user and a password, while it runs."""

    def __init__(self) -> None:
        self.port = free_port()
        self.postbox = _Postbox((USER, PASSWORD))
        self._server: asyncio.Server | None = None
        self._sessions: list[SMTP] = []

    @property
    def environment(self) -> dict[str, str]:
        """How a handler reaches it."""
        return {
            "TASKFLUX_SMTP__HOST": "127.0.0.1",
            "TASKFLUX_SMTP__PORT": str(self.port),
            "TASKFLUX_SMTP__TLS": "none",
            "TASKFLUX_SMTP__USERNAME": USER,
            "TASKFLUX_SMTP__PASSWORD": PASSWORD,
            "TASKFLUX_SMTP__SENDER": "tasks@example.org",
            "TASKFLUX_SMTP__RATE": "200",
        }

    async def start(self) -> None:
        """Serve."""
        logging.getLogger("mail.log").setLevel(logging.ERROR)  # each connection is warned of
        self._server = await asyncio.get_running_loop().create_server(self._session, "127.0.0.1", self.port)

    async def stop(self) -> None:
        """Become unreachable: the port is closed, and connections are cut."""
        if self._server is None:
            return
        self._server.close()
        for session in self._sessions:
            if session.transport is not None:
                cast("asyncio.Transport", session.transport).abort()
        self._sessions.clear()
        await self._server.wait_closed()
        self._server = None

    async def refuse_the_password(self) -> None:
        """From now on it refuses the password."""
        await self.stop()
        self.postbox.credentials = (USER, "another")
        await self.start()

    async def take_the_password(self) -> None:
        """Accept the password again."""
        await self.stop()
        self.postbox.credentials = (USER, PASSWORD)
        await self.start()

    def _session(self) -> SMTP:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # AUTH without STARTTLS is what it warns of
            session = SMTP(
                self.postbox,
                hostname="mail.test",
                authenticator=self.postbox.authenticate,
                auth_required=True,
                auth_require_tls=False,
            )
        self._sessions.append(session)
        return session
