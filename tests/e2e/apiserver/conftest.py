"""One control plane for the session; without its programs the tests skip, and say why."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.chart.tools import Missing
from tests.e2e.apiserver.cluster import Cluster
from tests.e2e.apiserver.control_plane import ControlPlane
from tests.e2e.programs import built


@pytest_asyncio.fixture(scope="session")
async def control_plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    try:
        binaries = built()
    except Missing as missing:
        pytest.skip(str(missing))
    async with ControlPlane(binaries, tmp_path_factory.mktemp("control-plane")) as control_plane:
        yield control_plane


@pytest.fixture(scope="session")
def cluster(control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The cluster, with a node and all definitions."""
    cluster = Cluster(control_plane.kubeconfig, tmp_path_factory.mktemp("client"))
    cluster.prepare()
    return cluster


@pytest.fixture
def namespace(cluster: Cluster) -> str:
    """An empty namespace that enforces restricted Pod Security."""
    return cluster.new_namespace()
