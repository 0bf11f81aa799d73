"""A real Apache Kafka whose clients have to encrypt, to log in, or to show a certificate."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from taskflux.local.ports import LOOPBACK, free_port
from taskflux.local.processes import Process, run
from tests.kafka.broker import JVM, LOGGING, KafkaBroker
from tests.kafka.classpath import java, server_classpath

USERNAME: Final = "taskflux"
PASSWORD: Final = "right-6f1c"
PROTOCOLS: Final = {
    "TLS": "SSL",
    "MTLS": "SSL",
    "SASLTLS": "SASL_SSL",
    "SASL": "SASL_PLAINTEXT",
    "MOVED": "PLAINTEXT",
    "NAMELESS": "SSL",
}
"""The protocol of each listener."""


class SecuredKafka(KafkaBroker):
    """Kafka with a listener for each of `PROTOCOLS`, beside the open one.

    The broker's certificate is for 127.0.0.1; that of NAMELESS is for another host. MTLS wants a client certificate of
    `authority`. SASL and SASLTLS let `USERNAME` in, by SCRAM-SHA-512. Clients of MOVED are sent on to a host that does
    not exist.
    """

    def __init__(self, data_dir: Path, authority: trustme.CA) -> None:
        super().__init__(data_dir)
        self.ports = {name: free_port() for name in PROTOCOLS}
        self._authority = authority

    def at(self, listener: str) -> str:
        """The address of a listener."""
        return f"{LOOPBACK}:{self.ports[listener]}"

    async def change_password(self, password: str) -> None:
        """The account's, for logins from now on. It takes a Java program some seconds."""
        to = f"SCRAM-SHA-512=[password={password}]"
        program: list[str | Path] = [java(), *JVM, *LOGGING, "-cp", server_classpath(), "kafka.admin.ConfigCommand"]
        program += ["--bootstrap-server", self.bootstrap_servers, "--alter", "--add-config", to]
        program += ["--entity-type", "users", "--entity-name", USERNAME]
        await run(Process("Kafka's configuration tool", program, log=self.log), timeout=60.0)

    def _accounts(self) -> list[str]:
        return ["--add-scram", f"SCRAM-SHA-512=[name={USERNAME},password={PASSWORD}]"]

    def _properties(self) -> str:
        tls = self.data_dir.with_name(f"{self.data_dir.name}-tls")
        tls.mkdir(exist_ok=True)
        trusted = tls / "ca.pem"
        self._authority.cert_pem.write_to_path(str(trusted))
        settings = {"ssl.truststore.type": "PEM", "ssl.truststore.location": str(trusted)}
        for prefix, host in (("", LOOPBACK), ("listener.name.nameless.", "elsewhere.test")):
            keys = tls / f"{host}.pem"
            keys.write_bytes(keys_of(self._authority.issue_cert(host)))
            settings |= {f"{prefix}ssl.keystore.type": "PEM", f"{prefix}ssl.keystore.location": str(keys)}
        for listener in ("sasltls", "sasl"):
            settings |= {
                f"listener.name.{listener}.sasl.enabled.mechanisms": "SCRAM-SHA-512",
                f"listener.name.{listener}.scram-sha-512.sasl.jaas.config":
                    "org.apache.kafka.common.security.scram.ScramLoginModule required;",
            }  # fmt: skip
        settings["listener.name.mtls.ssl.client.auth"] = "required"
        listeners = "".join(f",{name}://{self.at(name)}" for name in PROTOCOLS)
        lines = []
        for line in super()._properties().splitlines():
            name, _, value = line.partition("=")
            match name:
                case "listeners":
                    value += listeners
                case "advertised.listeners":
                    value += listeners.replace(self.at("MOVED"), f"gone.invalid:{self.ports['MOVED']}")
                case "listener.security.protocol.map":
                    value += "".join(f",{name}:{protocol}" for name, protocol in PROTOCOLS.items())
            lines.append(f"{name}={value}")
        lines += [f"{name}={value}" for name, value in settings.items()]
        return "".join(f"{line}\n" for line in lines)


def keys_of(certificate: trustme.LeafCert) -> bytes:
    """A key as Java takes it (PKCS #8), and its certificates."""
    key = load_pem_private_key(certificate.private_key_pem.bytes(), None)
    chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + chain
