"""A Kubernetes control plane on the loopback, without a kubelet: kwok reports nodes and pods as ready."""

from __future__ import annotations

import signal
import ssl
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from taskflux.local.ports import LOOPBACK, free_port
from taskflux.local.processes import Process
from taskflux.local.servers import Server
from tests.e2e.apiserver.credentials import SERVICE, Credentials

# What a chart's life needs of the controller manager; the rest would only take time.
CONTROLLERS = (
    "clusterrole-aggregation-controller",
    "cronjob-controller",
    "deployment-controller",
    "disruption-controller",
    "endpointslice-controller",
    "garbage-collector-controller",
    "horizontal-pod-autoscaler-controller",
    "job-controller",
    "namespace-controller",
    "node-lifecycle-controller",  # takes the taint off a node that is ready
    "pod-garbage-collector-controller",
    "replicaset-controller",
    "root-ca-certificate-publisher-controller",
    "serviceaccount-controller",
    "ttl-after-finished-controller",
)
ADMIN, ADMINS = "admin", "system:masters"
HELM_TESTS = Path(__file__).with_name("stages") / "helm-test.yaml"


class Component(Server):
    """One program of the control plane; it answers once its own page says that it is ready."""

    start_timeout = 120.0  # two seconds each, and much more where tests run beside

    def __init__(self, name: str, argv: Sequence[str | Path], ready: str, *, tls: ssl.SSLContext, log: Path) -> None:
        """`ready` is the address of that page."""
        super().__init__(port=httpx.URL(ready).port, log=log)
        self.name = name
        self._argv = argv
        self._ready = ready
        self._tls = tls

    async def start(self) -> None:
        """As every server's."""
        # It writes only where its arguments say, not into its working directory.
        await self._launch(Process(self.name, self._argv, log=self.log, cwd=self.log.parent))

    async def stop(self) -> None:
        """End it in good order, or kill it after ten seconds."""
        if self._process is not None:
            await self._process.stop((signal.SIGTERM, 10.0))

    async def answers(self) -> bool:
        """True when it says that it is ready."""
        try:
            async with httpx.AsyncClient(verify=self._tls, trust_env=False, timeout=5.0) as client:
                return (await client.get(self._ready)).is_success
        except httpx.TransportError:
            return False


class ControlPlane:
    """etcd, kube-apiserver, controller manager, scheduler and kwok; all of them end with the block."""

    def __init__(self, binaries: Path, directory: Path) -> None:
        """`binaries` as `build` made them; `directory` takes data, credentials and logs."""
        self._binaries = binaries
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._credentials = Credentials(directory / "credentials")
        self._tls = self._credentials.context("readiness")
        self._stack = AsyncExitStack()
        self.url = f"https://{LOOPBACK}:{free_port()}"
        self.kubeconfig = self._credentials.kubeconfig(self.url, ADMIN, ADMINS)

    async def __aenter__(self) -> Self:
        try:
            for component in (self._etcd, self._apiserver, self._controllers, self._scheduler, self._kwok):
                await self._stack.enter_async_context(component())
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    def _etcd(self) -> Component:
        self._etcd_url = _address()
        peer = _address().replace("https:", "http:")
        return self._component(
            "etcd",
            f"{self._etcd_url}/readyz",
            f"--data-dir={self._directory / 'etcd'}",
            f"--listen-client-urls={self._etcd_url}",
            f"--advertise-client-urls={self._etcd_url}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            f"--cert-file={self._credentials.certificate}",
            f"--key-file={self._credentials.key}",
            f"--trusted-ca-file={self._credentials.ca}",
            "--client-cert-auth=true",
            "--unsafe-no-fsync=true",
        )

    def _apiserver(self) -> Component:
        known = self._credentials
        certificate, key = known.client("kube-apiserver")
        return self._component(
            "kube-apiserver",
            f"{self.url}/readyz",
            f"--etcd-servers={self._etcd_url}",
            f"--etcd-cafile={known.ca}",
            f"--etcd-certfile={certificate}",
            f"--etcd-keyfile={key}",
            *self._secure(self.url),
            f"--client-ca-file={known.ca}",
            "--authorization-mode=RBAC",
            f"--service-account-issuer=https://{SERVICE}",
            f"--service-account-key-file={known.service_accounts_key}",
            f"--service-account-signing-key-file={known.service_accounts_key}",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--advertise-address={LOOPBACK}",
            # The addresses of its own service may not be of the loopback.
            "--endpoint-reconciler-type=none",
        )

    def _controllers(self) -> Component:
        known, url = self._credentials, _address()
        return self._component(
            "kube-controller-manager",
            f"{url}/healthz",
            *self._client_of_the_apiserver("system:kube-controller-manager", url),
            f"--controllers={','.join(CONTROLLERS)}",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={known.service_accounts_key}",
            f"--root-ca-file={known.ca}",
            "--kube-api-qps=200",
            "--kube-api-burst=400",
        )

    def _scheduler(self) -> Component:
        url = _address()
        return self._component(
            "kube-scheduler", f"{url}/healthz", *self._client_of_the_apiserver("system:kube-scheduler", url)
        )

    def _kwok(self) -> Component:
        port = free_port()
        stages = [*sorted((self._binaries / "stages").glob("*.yaml")), HELM_TESTS]
        return self._component(
            "kwok",
            f"http://{LOOPBACK}:{port}/readyz",
            f"--kubeconfig={self.kubeconfig}",
            f"--server-address={LOOPBACK}:{port}",
            f"--node-ip={LOOPBACK}",
            "--manage-all-nodes=true",
            "--node-lease-duration-seconds=40",
            *(f"--config={stage}" for stage in stages),
        )

    def _client_of_the_apiserver(self, user: str, url: str) -> list[str]:
        kubeconfig = self._credentials.kubeconfig(self.url, user)
        return [
            f"--kubeconfig={kubeconfig}",
            f"--authentication-kubeconfig={kubeconfig}",
            f"--authorization-kubeconfig={kubeconfig}",
            "--leader-elect=false",
            *self._secure(url),
        ]

    def _secure(self, url: str) -> list[str]:
        return [
            f"--bind-address={LOOPBACK}",
            f"--secure-port={httpx.URL(url).port}",
            f"--tls-cert-file={self._credentials.certificate}",
            f"--tls-private-key-file={self._credentials.key}",
        ]

    def _component(self, name: str, ready: str, *arguments: str) -> Component:
        argv: list[str | Path] = [self._binaries / name, *arguments]
        return Component(name, argv, ready, tls=self._tls, log=self._directory / f"{name}.log")


def _address() -> str:
    return f"https://{LOOPBACK}:{free_port()}"
