"""Credentials of the control plane: a CA of its own, certificates, kubeconfigs, the key of service accounts."""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import trustme

from taskflux.local.ports import LOOPBACK

SERVICE = "kubernetes.default.svc"


class Credentials:
    """Files in one directory that only this user may read."""

    def __init__(self, directory: Path, *names: str) -> None:
        """The servers' certificate is for the loopback and for `names`, host names and addresses.

        The CA and the key of service accounts are made once for a directory: what they signed stays good.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory = directory
        self.ca, ca_key = directory / "ca.pem", directory / "ca.key"
        if ca_key.exists():
            self._authority = trustme.CA.from_pem(self.ca.read_bytes(), ca_key.read_bytes())
        else:
            self._authority = trustme.CA(organization_name="kubernetes")
            self._authority.cert_pem.write_to_path(str(self.ca))
            _write_key(ca_key, self._authority.private_key_pem)
        self.certificate, self.key = self.server("server", "control-plane", LOOPBACK, "localhost", SERVICE, *names)
        self.service_accounts_key = directory / "service-accounts.key"
        if not self.service_accounts_key.exists():
            self._write("service-accounts", self._authority.issue_cert("service-accounts"))

    def server(self, name: str, user: str, *names: str, group: str = "kubernetes") -> tuple[Path, Path]:
        """Certificate and key of a server at `names`, which is the client `user` of group `group`, too."""
        issued = self._authority.issue_cert(*names, common_name=user, organization_name=group)
        return self._write(name, issued)

    def client(self, user: str, group: str = "kubernetes") -> tuple[Path, Path]:
        """Certificate and key of a client; RBAC knows it as `user`, a member of `group`."""
        name = user.replace(":", "-")
        # With no name of a host its list of names would be empty, and Go refuses an empty one that is critical.
        return self._write(name, self._authority.issue_cert(name, common_name=user, organization_name=group))

    def kubeconfig(self, server: str, user: str, group: str = "kubernetes") -> Path:
        """A kubeconfig for `user`; JSON is YAML, too."""
        certificate, key = self.client(user, group)
        file = certificate.with_suffix(".kubeconfig")
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": str(self.ca)}}],
            "users": [{"name": user, "user": {"client-certificate": str(certificate), "client-key": str(key)}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        }
        file.write_text(json.dumps(content, indent=1))
        return file

    def context(self, user: str, group: str = "kubernetes") -> ssl.SSLContext:
        """How Python talks to the servers: as `user`."""
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(*map(str, self.client(user, group)))
        return context

    def _write(self, name: str, issued: trustme.LeafCert) -> tuple[Path, Path]:
        certificate, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        if not (certificate.exists() and key.exists()):
            issued.cert_chain_pems[0].write_to_path(str(certificate))
            _write_key(key, issued.private_key_pem)
        return certificate, key


def _write_key(file: Path, key: trustme.Blob) -> None:
    file.touch(mode=0o600)
    key.write_to_path(str(file))
