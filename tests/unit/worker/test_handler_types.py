"""What mypy says of declarations: a handler's arguments are checked against its payload and its provider.

Each case is a function below the same imports, all checked in one run. `says` is a part of the first error; None: there
is none.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).parents[3]

PREAMBLE = """
    from collections.abc import AsyncIterator
    from contextlib import asynccontextmanager
    from typing import Annotated, Any, Protocol
    from pydantic import BaseModel, Field
    from taskflux import Handler, Receipt, RetryPolicy, Task, handler, provider
    from taskflux.testing import FakeClient, arun_once, run_once

    class Resize(BaseModel):
        width: int

    class Thumbnail(Resize):
        name: str

    class NoSettings(BaseModel): ...

    class Camera:
        async def shoot(self) -> int:
            return 7

    class Shoots(Protocol):
        async def shoot(self) -> int: ...

    class Billing: ...

    @provider("camera", settings=NoSettings)
    @asynccontextmanager
    async def camera(settings: NoSettings) -> AsyncIterator[Camera]:
        yield Camera()
"""

CASES: Mapping[str, tuple[str, str | None]] = {
    "the payload's model": (
        """
        @handler("resize", payload=Resize, retry=RetryPolicy(), timeout=5, concurrency=1)
        async def resize(task: Task[Resize]) -> Receipt:
            return Receipt({"width": task.payload.width})

        declared: Handler[Resize] = resize
        """,
        None,
    ),
    "a handler that returns nothing": (
        """
        @handler("resize", payload=Resize)
        async def resize(task: Task[Resize]) -> None: ...
        """,
        None,
    ),
    "plain functions": (
        """
        @handler("resize", payload=Resize)
        def resize(task: Task[Resize]) -> Receipt:
            return Receipt({"width": task.payload.width})

        @handler("shoot", payload=Resize, provider=camera)
        def shoot(task: Task[Resize], client: Camera) -> None: ...
        """,
        None,
    ),
    "a plain function of another model": (
        """
        @handler("resize", payload=Resize)
        def resize(task: Task[Thumbnail]) -> Receipt | None: ...
        """,
        'expected "Callable[[Task[Resize]]',
    ),
    "a base of the payload's model": (
        """
        @handler("resize", payload=Thumbnail)
        async def resize(task: Task[Resize]) -> None: ...
        """,
        None,
    ),
    "the provider's client": (
        """
        @handler("shoot", payload=Resize, provider=camera)
        async def shoot(task: Task[Resize], client: Camera) -> Receipt:
            return Receipt({"picture": await client.shoot()})
        """,
        None,
    ),
    "a protocol that the client follows": (
        """
        @handler("shoot", payload=Resize, provider=camera)
        async def shoot(task: Task[Resize], client: Shoots) -> None: ...
        """,
        None,
    ),
    "annotations that are no class": (
        """
        @handler("a", payload=list[int])
        async def a(task: Task[list[int]]) -> None: ...

        @handler("b", payload=int | None)
        async def b(task: Task[int | None]) -> None: ...

        @handler("c", payload=Annotated[str, Field(min_length=1)], provider=camera)
        async def c(task: Task[str], client: Camera) -> None: ...

        @handler("d", payload=Any)
        async def d(task: Task[Any]) -> None: ...
        """,
        None,
    ),
    "tests": (
        """
        @handler("shoot", payload=Resize, provider=camera)
        async def shoot(task: Task[Resize], client: Camera) -> None: ...

        state: str = run_once(shoot, {"width": 1}, client=FakeClient(Camera, shoot=7), attempt=2, key="k").state
        """,
        None,
    ),
    "another model": (
        """
        @handler("resize", payload=Resize)
        async def resize(task: Task[Thumbnail]) -> None: ...
        """,
        '"Callable[[Task[Thumbnail]], Coroutine[Any, Any, None]]"; expected "Callable[[Task[Resize]]',
    ),
    "the payload itself": (
        """
        @handler("resize", payload=Resize)
        async def resize(payload: Resize) -> None: ...
        """,
        'expected "Callable[[Task[Resize]]',
    ),
    "another list": (
        """
        @handler("resize", payload=list[int])
        async def resize(task: Task[list[str]]) -> None: ...
        """,
        'expected "Callable[[Task[list[int]]]',
    ),
    "a field that the model does not have": (
        """
        @handler("resize", payload=Resize)
        async def resize(task: Task[Resize]) -> Receipt:
            return Receipt({"height": task.payload.height})
        """,
        '"Resize" has no attribute "height"',
    ),
    "another client": (
        """
        @handler("shoot", payload=Resize, provider=camera)
        async def shoot(task: Task[Resize], client: Billing) -> None: ...
        """,
        'expected "Callable[[Task[Resize], Camera]',
    ),
    "no client though there is a provider": (
        """
        @handler("shoot", payload=Resize, provider=camera)
        async def shoot(task: Task[Resize]) -> None: ...
        """,
        'expected "Callable[[Task[Resize], Camera]',
    ),
    "a client though there is no provider": (
        """
        @handler("shoot", payload=Resize)
        async def shoot(task: Task[Resize], client: Camera) -> None: ...
        """,
        'expected "Callable[[Task[Resize]]',
    ),
    "something else than a receipt": (
        """
        @handler("resize", payload=Resize)
        async def resize(task: Task[Resize]) -> int:
            return task.payload.width
        """,
        'expected "Callable[[Task[Resize]], ',
    ),
    "an option that does not exist": (
        """
        @handler("resize", payload=Resize, retries=3)
        async def resize(task: Task[Resize]) -> None: ...
        """,
        'Unexpected keyword argument "retries"',
    ),
    "an option of the wrong type": (
        """
        @handler("resize", payload=Resize, ambiguous="never")
        async def resize(task: Task[Resize]) -> None: ...
        """,
        "No overload variant of",
    ),
    "a test of a bare function": (
        """
        async def resize(task: Task[Resize]) -> None: ...

        run_once(resize, {"width": 1})
        """,
        'expected "Handler[Any]"',
    ),
    "a test with an unknown field": (
        """
        @handler("resize", payload=Resize)
        async def resize(task: Task[Resize]) -> None: ...

        run_once(resize, {"width": 1}, tenent="a")
        """,
        'Unexpected keyword argument "tenent"',
    ),
}


@pytest.fixture(scope="module")
def errors(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Sequence[str]]:
    """The errors of each case, all found by one run of mypy."""
    directory = tmp_path_factory.mktemp("types")
    files = {Path(f"case_{number}.py"): name for number, name in enumerate(CASES)}
    for file, name in files.items():
        (directory / file).write_text(dedent(PREAMBLE) + dedent(CASES[name][0]))
    options = ["--strict", "--config-file", "", "--cache-dir", "cache", "--follow-imports", "silent"]
    command = [sys.executable, "-m", "mypy", *options, *map(str, files)]
    environment = os.environ | {"MYPYPATH": str(ROOT)}  # where it is installed from its sources, mypy does not find it
    done = subprocess.run(command, capture_output=True, text=True, cwd=directory, env=environment, check=False)
    assert done.stderr == ""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for file, error in re.findall(r"^(.+?):\d+: error: (.*)$", done.stdout, re.MULTILINE):
        found[files[Path(file)]].append(error)
    return found


@pytest.mark.timeout(240)
@pytest.mark.parametrize("case", CASES)
def test_mypy_holds_a_function_against_its_declaration(case: str, errors: Mapping[str, Sequence[str]]) -> None:
    _, says = CASES[case]
    found = errors.get(case, [])
    if says is None:
        assert found == []
    else:
        assert says in found[0], found  # others may follow from it
