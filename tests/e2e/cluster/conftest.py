"""One cluster for the session, with everything installed. Without one the tests skip, and say why."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Final

import pytest
import yaml
from pytest_kubernetes.options import ClusterOptions  # type: ignore[import-untyped]
from pytest_kubernetes.providers.base import AClusterManager  # type: ignore[import-untyped]

from taskflux.local.console import Trouble
from taskflux.local.ports import free_port
from tests.chart import tools
from tests.chart.tools import Missing
from tests.e2e.cluster.evidence import collect
from tests.e2e.cluster.installation import Installation
from tests.e2e.cluster.kube import Kube
from tests.e2e.cluster.machine.outside import MAILPIT
from tests.e2e.cluster.machine.place import Place
from tests.e2e.cluster.machine.release import VALUES
from tests.e2e.cluster.place import IMAGE, Existing, Kind, OfThisMachine, Where, docker_works, of_this_machine, place
from tests.e2e.cluster.taskflux import Api, Mailpit
from tests.e2e.cluster.waiting import until
from tests.k8s import gotools
from tests.k8s.files import K8S, NAMESPACE, RELEASE, ROOT

NAME: Final = "taskflux-e2e"
"""The name of our own cluster: never that of k8s/kind.yaml, which a person may be using."""
BUILD_TIMEOUT: Final = 900.0
HTTP: Final = 80

Managers = Callable[[str], type[AClusterManager]]
Kill = Callable[[str], None]


@pytest.fixture(scope="session")
def where() -> Where:
    try:
        tools.helm()
        chosen = place(os.environ, docker_works, of_this_machine)
        if isinstance(chosen, Kind):
            gotools.kind()
    except Missing as missing:
        pytest.skip(str(missing))
    return chosen


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """k8s/kind.yaml under a name and at ports of its own."""
    document = yaml.safe_load((K8S / "kind.yaml").read_text())
    document["name"] = NAME
    for node in document["nodes"]:
        for mapping in node["extraPortMappings"]:
            mapping["hostPort"] = free_port()
    file = tmp_path_factory.mktemp("kind") / "kind.yaml"
    file.write_text(yaml.safe_dump(document))
    return file


@pytest.fixture(scope="session")
def manager(
    where: Where, config: Path, k8s_manager: Managers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AClusterManager]:
    """The cluster, made where it is ours to make."""
    if not isinstance(where, Kind):
        # The provider deletes the file that it is given.
        copied = tmp_path_factory.mktemp("kubeconfig") / "config"
        shutil.copyfile(where.kubeconfig, copied)
        yield k8s_manager("external")(None, None, copied)
        return
    with pytest.MonkeyPatch.context() as patch:
        # It takes its programs from the PATH.
        patch.setenv("PATH", f"{gotools.kind().parent}:{tools.kubectl().parent}", prepend=os.pathsep)
        _build_image()
        made = k8s_manager("kind")(None, str(config))
        made.create(ClusterOptions(cluster_timeout=900), timeout=180)
        try:
            made.load_image(IMAGE)
            yield made
        finally:
            if not where.keep:
                made.delete()


def _build_image() -> None:
    done = subprocess.run(
        [ROOT / "image" / "build"],
        env={**os.environ, "IMAGE": IMAGE, "ENGINE": "docker"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BUILD_TIMEOUT,
        check=False,
    )
    if done.returncode != 0:
        raise Trouble(f"the image could not be built: {done.stderr[-2000:]}")


@pytest.fixture(scope="session")
def kube(manager: AClusterManager, tmp_path_factory: pytest.TempPathFactory) -> Kube:
    assert manager.kubeconfig is not None
    return Kube(manager.kubeconfig, NAMESPACE, tmp_path_factory.mktemp("client"))


@pytest.fixture(scope="session")
def installation(where: Where, kube: Kube, request: pytest.FixtureRequest) -> Iterator[Installation]:
    """TaskFlux and all that it needs, installed and ready."""
    if isinstance(where, OfThisMachine):
        yield from _of_this_machine(where, kube, request)
        return
    existing = isinstance(where, Existing)
    image = where.image if isinstance(where, Existing) else IMAGE
    made = Installation(kube, image, where.ingress_class if isinstance(where, Existing) else "traefik")
    wanted = [] if existing else ["traefik", "metrics-server"]
    try:
        made.third_parties([*wanted, *([] if made.has_keda() else ["keda"])])
        made.dependencies()
        made.wait_for_dependencies()
        made.taskflux()
        yield made
    finally:
        if request.session.testsfailed:
            collect(kube, ROOT / "build" / "e2e")
        if existing and not where.keep:
            made.remove()


def _of_this_machine(where: OfThisMachine, kube: Kube, request: pytest.FixtureRequest) -> Iterator[Installation]:
    """All is there, and stays."""
    made = Installation(kube, where.image, "traefik", VALUES)
    try:
        made.taskflux()
        yield made
    finally:
        if request.session.testsfailed:
            collect(kube, ROOT / "build" / "e2e")


@pytest.fixture(scope="session")
def api(installation: Installation, where: Where, config: Path) -> Iterator[Api]:
    """The API, through the ingress; on this machine's cluster, which has none, through the Service."""
    client = Api(_address(where, installation, config))
    try:
        until("the ingress leads to the API", lambda: client.answers() or None, 120)
        yield client
    finally:
        client.close()


def _address(where: Where, installation: Installation, config: Path) -> str:
    if isinstance(where, OfThisMachine):
        return f"http://{installation.kube.get('service', f'{RELEASE}-ingest')['spec']['clusterIP']}"
    return where.ingress if isinstance(where, Existing) else f"http://127.0.0.1:{_mapped(config)}"


def _mapped(config: Path) -> int:
    """The port of this machine that is the ingress's."""
    (node,) = yaml.safe_load(config.read_text())["nodes"]
    (port,) = (each["hostPort"] for each in node["extraPortMappings"] if each["containerPort"] == HTTP)
    return int(port)


@pytest.fixture(scope="session")
def mailpit(installation: Installation, where: Where, kube: Kube) -> Iterator[Mailpit]:
    outside = isinstance(where, OfThisMachine)
    with nullcontext(MAILPIT) if outside else kube.forwarded("service/mailpit", 8025) as url:
        client = Mailpit(url)
        try:
            yield client
        finally:
            client.close()


@pytest.fixture(scope="session")
def kill(where: Where, kube: Kube) -> Kill:
    """`kill -9` for the container of a pod. Deleting it by force would not do: the kubelet still lets it end kindly."""
    if isinstance(where, OfThisMachine):
        command = ["ctr", f"--address={Place().directory / 'containerd.sock'}"]
    elif isinstance(where, Kind):
        command = ["docker", "exec", f"{NAME}-control-plane", "ctr"]
    else:
        pytest.skip("only the node itself can kill a container")

    def kill(pod: str) -> None:
        (container,) = kube.get("pod", pod)["status"]["containerStatuses"]
        name = container["containerID"].rpartition("/")[2]
        subprocess.run([*command, "--namespace=k8s.io", "tasks", "kill", "--signal=SIGKILL", name], check=True)

    return kill
