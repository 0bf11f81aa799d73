"""A bare sender: `python -m benchmarks.floors.mail PORT SESSIONS MAILS [CA USER PASSWORD]`.

Every session sends one mail after the other, with the envelope in one group (RFC 2920). With a CA, it uses STARTTLS
and AUTH. Prints the seconds from the first mail to the last answer; sessions are opened before.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
import time
from base64 import b64encode

import uvloop

from benchmarks.payload import PAYLOAD

ENVELOPE = b"MAIL FROM:<bench@example.org>\r\nRCPT TO:<someone@example.org>\r\nDATA\r\n"
MAIL = "From: bench@example.org\r\nTo: someone@example.org\r\nSubject: {subject}\r\n\r\n{text}\r\n.\r\n"


class Session:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def expect(self, code: bytes) -> None:
        """Read a reply, which has this code."""
        while True:
            line = await self._reader.readline()
            if line[3:4] != b"-":
                break
        if line[:3] != code:
            raise RuntimeError(f"{line!r} instead of {code!r}")

    async def say(self, said: bytes, *codes: bytes) -> None:
        """Write, and read as many replies as there are codes."""
        self._writer.write(said)
        for code in codes:
            await self.expect(code)

    async def secure(self, authority: str, user: str, password: str) -> None:
        """STARTTLS and AUTH."""
        await self.say(b"STARTTLS\r\n", b"220")
        await self._writer.start_tls(ssl.create_default_context(cafile=authority), server_hostname="127.0.0.1")
        await self.say(b"EHLO bench\r\n", b"250")
        plain = b64encode(f"\0{user}\0{password}".encode())
        await self.say(b"AUTH PLAIN " + plain + b"\r\n", b"235")


async def main(port: int, sessions: int, mails: int, *credentials: str) -> None:
    """Send."""
    mail = MAIL.format(**PAYLOAD).encode()
    opened = []
    for _ in range(sessions):
        session = Session(*await asyncio.open_connection("127.0.0.1", port))
        await session.expect(b"220")
        await session.say(b"EHLO bench\r\n", b"250")
        if credentials:
            await session.secure(*credentials)
        opened.append(session)
    left = iter(range(mails))

    async def send(session: Session) -> None:
        for _ in left:
            await session.say(ENVELOPE, b"250", b"250", b"354")
            await session.say(mail, b"250")

    began = time.perf_counter()
    await asyncio.gather(*map(send, opened))
    print(time.perf_counter() - began)


if __name__ == "__main__":
    port, sessions, mails = map(int, sys.argv[1:4])
    uvloop.run(main(port, sessions, mails, *sys.argv[4:]))
