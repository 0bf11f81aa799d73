"""`python -m tests.e2e.cluster.machine up`: a whole cluster on this machine, with TaskFlux in it; `down` removes it.

It goes on where it stopped, and leaves alone what runs already as it should. `smoke` does both, with the shortest of
the tests between them, and builds nothing that takes long. Exit 75, with the reason as the last line, where it cannot
be had.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from taskflux.local.console import Trouble
from tests.chart import crds, tools
from tests.chart.tools import Missing
from tests.e2e import programs
from tests.e2e.cluster.kube import Kube
from tests.e2e.cluster.machine import node, outside
from tests.e2e.cluster.machine.control_plane import ControlPlane
from tests.e2e.cluster.machine.image import image
from tests.e2e.cluster.machine.node import Node
from tests.e2e.cluster.machine.operators import METRICS, POLICIES, Operators
from tests.e2e.cluster.machine.outside import Outside
from tests.e2e.cluster.machine.place import Place
from tests.e2e.cluster.machine.release import Release
from tests.image.debian import install
from tests.image.unavailable import Unavailable
from tests.k8s import gotools
from tests.kafka.classpath import server_classpath

SKIPPED = 75
INSIDE = "--inside"
SMOKE = "policies or test_helm_test_passes or test_a_mail_wakes"
say = partial(print, flush=True)


def main() -> int:
    """0 when the cluster is up, or gone; 75 where it cannot be had; else something is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.cluster.machine", description=__doc__)
    parser.add_argument("what", choices=["build", "up", "down", "smoke"], help="build: only what `up` needs")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long building may take (%(default).0f)")
    parser.add_argument("--without-taskflux", action="store_true", help="do not install the chart")
    parser.add_argument(INSIDE, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    place = Place()
    try:
        if arguments.what == "down":
            place.down()
            return 0
        if arguments.what == "smoke":
            return _smoke(place)
        if arguments.inside is None:
            _prepare(arguments.minutes * 60)
            if arguments.what == "build":
                return 0
            with _step("an image of TaskFlux"):
                made = image(place)
            place.up()
            place.enter(INSIDE, made)
        _up(place, arguments.inside, taskflux=not arguments.without_taskflux)
    except (Missing, Unavailable) as missing:
        print(f"no cluster on this machine: {missing}".replace("\n", " "))
        return SKIPPED
    except Trouble as trouble:
        print(trouble, file=sys.stderr)
        return 1
    return 0


def _smoke(place: Place) -> int:
    """Exit code of the tests; the cluster is left as it was found."""
    programs.built(programs.CLUSTER)
    was_up = place.is_up()
    try:
        for module, *more in (("tests.e2e.cluster.machine", "up"), ("tests.e2e.cluster", "test", "-k", SMOKE)):
            code = subprocess.run([sys.executable, "-m", module, *more], check=False).returncode
            if code != 0:
                return code
        return 0
    finally:
        if not was_up:
            place.down()


def _prepare(seconds: float) -> None:
    """All that is fetched or built; nothing of it can be had inside."""
    with _step("Debian's packages"):
        install(*node.PACKAGES, *outside.PACKAGES)
    with _step("the programs"):
        programs.build(say, seconds=seconds, programs=programs.CLUSTER)
        gotools.mailpit()
    with _step("helm, manifests, Kafka's jars"):
        tools.helm()
        for module in (POLICIES, METRICS, crds.KEDA):
            crds.directory(module)
        server_classpath()


def _up(place: Place, made: str, *, taskflux: bool) -> None:
    began = time.monotonic()
    binaries = programs.built(programs.CLUSTER)
    control_plane = ControlPlane(place, binaries)
    nodes = Node(place, binaries, control_plane)
    servers = Outside(place)
    release = Release(place, nodes, control_plane.kubeconfig, servers)
    with _step("etcd, API server, controllers, scheduler"):
        control_plane.up()
    with _step("the node: containerd, kubelet, kube-proxy"):
        nodes.up()
    with _step("Kafka, PostgreSQL, Valkey, Mailpit, MSG91"):
        servers.up()
    with _step("policies, CoreDNS, metrics-server, KEDA"):
        Operators(nodes, Kube(control_plane.kubeconfig, "", place.directory / "home")).up()
    if taskflux:
        with _step("TaskFlux, by its chart"):
            release.install(made)
    say(f"the cluster is up ({time.monotonic() - began:.0f} s); KUBECONFIG={control_plane.kubeconfig}, and everything")
    say(f"in its namespaces: nsenter -t {place.node.pid} -n -m -- kubectl get pods -A; make cluster-down ends it")


@contextmanager
def _step(what: str) -> Iterator[None]:
    began = time.monotonic()
    say(f"{what} …")
    yield
    say(f"{what}: {time.monotonic() - began:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
