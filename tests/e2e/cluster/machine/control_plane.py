"""etcd, kube-apiserver, controller manager and scheduler, with credentials for everybody who talks to them."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final

import httpx

from taskflux.local.console import Trouble
from tests.e2e.apiserver.credentials import Credentials
from tests.e2e.cluster.machine.place import NODE, Place

SERVICES: Final = "10.96.0.0/16"
API: Final = f"https://{NODE}:6443"
ETCD: Final = "https://127.0.0.1:2379"
SYNC: Final = "15s"
"""How often the HorizontalPodAutoscaler looks, as by default."""


class ControlPlane:
    """The four programs, and the files with which others reach them."""

    def __init__(self, place: Place, programs: Path) -> None:
        self._place = place
        self._programs = programs
        self.credentials = Credentials(place.directory / "credentials", NODE, "10.96.0.1", "kubernetes")
        self._tls = self.credentials.context("readiness", "system:masters")
        self.kubeconfig = self.credentials.kubeconfig(API, "admin", "system:masters")

    def up(self) -> None:
        """Start what does not run, and wait until each says that it is ready."""
        self._etcd()
        self._apiserver()
        self._controllers()
        self._scheduler()

    def _etcd(self) -> None:
        known = self.credentials
        self._start(
            "etcd",
            answers(f"{ETCD}/readyz", self._tls),
            f"--data-dir={self._place.directory / 'etcd'}",
            f"--listen-client-urls={ETCD}",
            f"--advertise-client-urls={ETCD}",
            f"--cert-file={known.certificate}",
            f"--key-file={known.key}",
            f"--trusted-ca-file={known.ca}",
            "--client-cert-auth=true",
            "--unsafe-no-fsync=true",
        )

    def _apiserver(self) -> None:
        known = self.credentials
        to_etcd, etcd_key = known.client("kube-apiserver")
        to_kubelets, kubelet_key = known.client("kube-apiserver-kubelet-client", "system:masters")
        to_extensions, extension_key = known.client("front-proxy")
        self._start(
            "kube-apiserver",
            answers(f"{API}/readyz", self._tls),
            f"--etcd-servers={ETCD}",
            f"--etcd-cafile={known.ca}",
            f"--etcd-certfile={to_etcd}",
            f"--etcd-keyfile={etcd_key}",
            f"--advertise-address={NODE}",
            "--secure-port=6443",
            *self._certificate(),
            f"--client-ca-file={known.ca}",
            "--authorization-mode=Node,RBAC",
            f"--kubelet-client-certificate={to_kubelets}",
            f"--kubelet-client-key={kubelet_key}",
            f"--kubelet-certificate-authority={known.ca}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={known.service_accounts_key}",
            f"--service-account-signing-key-file={known.service_accounts_key}",
            f"--service-cluster-ip-range={SERVICES}",
            "--allow-privileged=true",
            # Of KEDA's and metrics-server's own API servers.
            "--enable-aggregator-routing=true",
            f"--requestheader-client-ca-file={known.ca}",
            "--requestheader-allowed-names=front-proxy",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={to_extensions}",
            f"--proxy-client-key-file={extension_key}",
        )

    def _controllers(self) -> None:
        known = self.credentials
        self._start(
            "kube-controller-manager",
            answers("https://127.0.0.1:10257/healthz", self._tls),
            *self._client("system:kube-controller-manager"),
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={known.service_accounts_key}",
            f"--root-ca-file={known.ca}",
            f"--horizontal-pod-autoscaler-sync-period={SYNC}",
        )

    def _scheduler(self) -> None:
        self._start(
            "kube-scheduler",
            answers("https://127.0.0.1:10259/healthz", self._tls),
            *self._client("system:kube-scheduler"),
        )

    def _client(self, user: str) -> list[str]:
        kubeconfig = self.credentials.kubeconfig(API, user)
        return [
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
            *self._certificate(),
        ]

    def _certificate(self) -> list[str]:
        return [
            f"--tls-cert-file={self.credentials.certificate}",
            f"--tls-private-key-file={self.credentials.key}",
        ]

    def _start(self, name: str, ready: Callable[[], object], *arguments: str) -> None:
        self._place.start(name, self._programs / name, *arguments, ready=ready)


def answers(url: str, tls: ssl.SSLContext | bool = True) -> Callable[[], None]:
    """A look at a page that says whether a server is ready."""

    def look() -> None:
        try:
            answer = httpx.get(url, verify=tls, trust_env=False, timeout=5.0)
        except httpx.TransportError as error:
            raise Trouble(f"{url}: {error}") from error
        if not answer.is_success:
            raise Trouble(f"{url}: {answer.status_code} {answer.text[-300:]}")

    return look
