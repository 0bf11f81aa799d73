"""A real Postfix on 127.0.0.1 that accepts mails as durably as ever, and throws them away where it would deliver them.

Debian's packages: postfix, libsasl2-modules and sasl2-bin (Cyrus SASL, for AUTH). It runs from a directory of its own.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from asyncio import open_connection, wait_for
from pathlib import Path
from typing import Final

import trustme

from taskflux.local.console import Trouble
from taskflux.local.ports import LOOPBACK, free_port
from taskflux.local.processes import Process
from taskflux.local.servers import Server

INSTALL: Final = "on Debian: apt-get install --no-install-recommends postfix sasl2-bin libsasl2-modules"
USER, PASSWORD, DOMAIN = "bench", "a-password-of-the-benchmark", "example.org"
FOLDERS: Final = ("/usr/sbin", "/usr/lib/postfix/sbin")

MAIN: Final = """
compatibility_level = 3.6
queue_directory = {directory}/spool
data_directory = {directory}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
maillog_file_prefixes = {directory}
maillog_file = {directory}/mail.log
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
myhostname = mail.{domain}
mydestination =
mynetworks = 127.0.0.0/8
default_transport = discard:
local_transport = discard:
alias_maps =
local_recipient_maps =
smtpd_tls_cert_file = {directory}/chain.pem
smtpd_tls_key_file = {directory}/key.pem
smtpd_sasl_path = smtpd
smtpd_sasl_local_domain = {domain}
in_flow_delay = 0
default_process_limit = 200
"""
MASTER: Final = """
127.0.0.1:{plain} inet n - n - - smtpd
 -o smtpd_tls_security_level=none
 -o smtpd_relay_restrictions=permit_mynetworks,reject
127.0.0.1:{port} inet n - n - - smtpd
 -o smtpd_tls_security_level=encrypt
 -o smtpd_sasl_auth_enable=yes
 -o smtpd_relay_restrictions=permit_sasl_authenticated,reject
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""
SASL: Final = """pwcheck_method: auxprop
auxprop_plugin: sasldb
mech_list: PLAIN LOGIN
sasldb_path: {directory}/users
"""


class Postfix(Server):
    """Listens on `port`, which wants STARTTLS and AUTH, and on `plain`, which has neither."""

    name = "Postfix"
    start_timeout = 30.0

    def __init__(self, directory: Path) -> None:
        """All that it has is in `directory`, which is made."""
        super().__init__(log=directory / "master.log")
        self.plain = free_port()
        self.directory = directory.absolute()

    @property
    def ca_file(self) -> Path:
        """The certificate of the CA."""
        return self.directory / "ca.pem"

    async def start(self) -> None:
        """Write its settings, start it, and wait until it answers.

        Raises:
            Trouble: it is not installed, we are not root, or it does not start.
        """
        master, check = program("master"), program("postfix")
        self._prepare()
        etc = self.directory / "etc"
        _run([check, "-c", etc, "check"])
        await self._launch(Process(self.name, [master, "-c", etc, "-d"], log=self.log, cwd=self.directory))

    async def stop(self) -> None:
        """End it, within 10 s."""
        if self._process is not None:
            await self._process.stop((signal.SIGTERM, 10.0))

    async def answers(self) -> bool:
        """Whether it greets."""
        try:
            reader, writer = await open_connection(LOOPBACK, self.plain)
        except OSError:
            return False
        try:
            return (await wait_for(reader.readline(), 5.0)).startswith(b"220 ")
        except (OSError, TimeoutError):
            return False
        finally:
            writer.close()

    def _prepare(self) -> None:
        if os.geteuid():
            raise Trouble("only root can start Postfix here")
        for name in ("etc/sasl", "spool", "data"):
            (self.directory / name).mkdir(parents=True)
        owner = pwd.getpwnam("postfix")
        os.chown(self.directory / "data", owner.pw_uid, owner.pw_gid)
        for parent in (self.directory, *self.directory.parents):
            if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)  # it leaves root, and must get through
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca_file))
        certificate = authority.issue_cert(LOOPBACK)
        certificate.private_key_pem.write_to_path(str(self.directory / "key.pem"))
        for blob in certificate.cert_chain_pems:
            blob.write_to_path(str(self.directory / "chain.pem"), append=True)
        place = {"directory": self.directory, "domain": DOMAIN, "port": self.port, "plain": self.plain}
        (self.directory / "etc" / "main.cf").write_text(MAIN.format(**place))
        (self.directory / "etc" / "master.cf").write_text(MASTER.format(**place))
        (self.directory / "etc" / "sasl" / "smtpd.conf").write_text(SASL.format(**place))
        users = self.directory / "users"
        _run([program("saslpasswd2"), "-p", "-c", "-f", users, "-u", DOMAIN, USER], PASSWORD)
        os.chown(users, owner.pw_uid, owner.pw_gid)


def program(name: str) -> Path:
    """One of Postfix's, or of its packages.

    Raises:
        Trouble: it is not installed.
    """
    found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(FOLDERS))
    if found is None:
        raise Trouble(f"mails are measured with a real Postfix, and there is no {name} here ({INSTALL})")
    return Path(found)


def _run(argv: list[str | Path], said: str = "") -> None:
    done = subprocess.run(argv, input=said, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Trouble(f"{Path(argv[0]).name} failed: {(done.stderr or done.stdout).strip()}")
