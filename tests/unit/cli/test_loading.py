from __future__ import annotations

import sys
from pathlib import Path

import pytest

from taskflux.cli.loading import BUILT_IN, Reads, UnknownHandler, built_in_handlers, load
from taskflux.handlers.process_email import process_email
from taskflux.http.app import probe_routes
from taskflux.stream.settings import KafkaSettings
from taskflux.worker.settings import RouterSettings, Settings
from tests.chart.deployments import (
    DRAIN_SECONDS,
    LIVENESS,
    METRICS,
    PORT,
    READINESS,
    Deployment,
    deployment,
    deployments,
)

APP = """
from taskflux import Receipt, Task, handler

@handler("image", payload=str)
async def resize_image(task: Task[str]) -> Receipt:
    return Receipt()

not_a_handler = 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An application's own folder, in which the command is called."""
    (tmp_path / "my_app").mkdir()
    (tmp_path / "my_app" / "__init__.py").touch()
    (tmp_path / "my_app" / "tasks.py").write_text(APP)
    (tmp_path / "my_app" / "broken.py").write_text("import nowhere_to_be_found\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    for name in [name for name in sys.modules if name.split(".")[0] == "my_app"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_deployment_can_be_run_by_its_name(name: str) -> None:
    assert load(name).name == name


def test_every_module_of_handlers_is_a_deployment() -> None:
    assert {"ingest", "relay", "dlq-sink", "process-email", "process-sms", "process-simulated"} <= set(BUILT_IN)


def test_the_task_handlers_among_them_have_a_type_each() -> None:
    types = [handler.type for handler in built_in_handlers()]
    assert {"email", "sms", "simulated"} <= set(types)
    assert len(set(types)) == len(types)


@pytest.mark.usefixtures("folder")
def test_a_handler_of_ones_own_is_found_where_the_command_is_called() -> None:
    assert load("my_app.tasks:resize_image").name == "resize-image"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nosuch", "choose dlq-sink, ingest"),
        ("handlers", "there is no handler"),
        ("process_email", "there is no handler"),
        ("my_app.tasks", "there is no handler"),
        ("my_app.tasks:nosuch", "has no nosuch"),
        ("my_app.tasks:not_a_handler", "is no handler"),
        ("my_app.nosuch:x", "cannot be imported"),
        ("my_app.broken:x", "nowhere_to_be_found"),
        ("nosuch:x", "cannot be imported"),
    ],
)
def test_a_name_that_leads_nowhere_is_a_sentence(name: str, says: str) -> None:
    with pytest.raises(UnknownHandler, match=says):
        load(name)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import os\nTOKEN = os.environ.get('NOT_SET').strip()\n", "AttributeError: 'NoneType'.* at line 2"),
        ("import os\n\nTOKEN = os.environ['NOT_SET']\n", "KeyError: 'NOT_SET', in .* at line 3"),
        ("PORT = int('eighty')\n", r"ValueError: invalid literal.*faulty\.py at line 1"),
        ("import json\n\n\njson.loads('{')\n", r"JSONDecodeError: .*faulty\.py at line 4"),
        ("import datetime\ndatetime.nosuch\n", "AttributeError: .* at line 2"),
        ("import nowhere_to_be_found\n", r"No module named 'nowhere_to_be_found', in .*faulty\.py at line 1"),
        ("from my_app.tasks import nosuch\n", "ImportError: cannot import name 'nosuch'.* at line 1"),
        ("x = (\n\ndef y(): pass\n", r"SyntaxError: '\(' was never closed, in .*faulty\.py at line 1"),
        ("raise SystemExit\n", r"SystemExit, in .*faulty\.py at line 1"),
        ("assert not 1, 'no key'\n", "AssertionError: no key"),
        (
            "from taskflux import handler\n\n@handler('x', payload=dict)\nasync def f(task):\n    yield 1\n",
            "TypeError: the handler of 'x' is a generator.* at line 3",
        ),
    ],
)
def test_what_goes_wrong_inside_a_module_is_told_with_its_place(folder: Path, source: str, says: str) -> None:
    (folder / "my_app" / "faulty.py").write_text(source, encoding="utf-8")
    with pytest.raises(UnknownHandler, match=says) as refused:
        load("my_app.faulty:f")
    assert "has no" not in str(refused.value) or "has no attribute" in str(refused.value)
    assert "Is its folder" not in str(refused.value)


@pytest.mark.usefixtures("folder")
def test_a_wrong_name_is_answered_by_those_that_are_there() -> None:
    with pytest.raises(UnknownHandler, match="has no resize; handlers in it: resize_image"):
        load("my_app.tasks:resize")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", ["", "my_app.tasks:", "my app:x"])
def test_what_is_no_name_at_all_is_a_sentence_too(name: str) -> None:
    with pytest.raises(UnknownHandler):
        load(name)


@pytest.fixture
def settings() -> Settings:
    return Settings(kafka=KafkaSettings(topic_prefix="shop-"), router=RouterSettings(topic="task-topic"))


def test_every_module_of_handlers_is_one_deployment(settings: Settings) -> None:
    modules = {path.stem for path in Path("handlers").glob("*.py")} - {"__init__"}
    assert {each.name.replace("-", "_") for each in deployments(settings)} == modules


def test_a_task_handler_says_what_it_reads_and_how_long_it_may_take(settings: Settings) -> None:
    assert deployment(process_email, settings) == Deployment(
        "process-email",
        needs=("postgres", "kafka"),
        serves_api=False,
        reads=Reads("shop-taskflux.email", "shop-tasks.email"),
        task_type="email",
        provider="smtp",
        timeout=process_email.policy.timeout,
        concurrency=process_email.concurrency,
    )


def test_the_others_say_what_they_need_and_whether_their_lag_counts(settings: Settings) -> None:
    found = {each.name: each for each in deployments(settings)}
    assert found["notify"].needs == ("postgres",)
    assert {name for name, each in found.items() if each.serves_api} == {"ingest", "notify"}
    assert found["dlq-sink"].reads == Reads("shop-taskflux.dlq-sink", "shop-tasks.dlq")
    assert found["router"].reads == Reads("shop-taskflux.router", "task-topic")
    assert {name for name, each in found.items() if each.reads is None} == {"ingest", "relay", "notify"}


def test_the_probes_are_those_that_are_served() -> None:
    async def nothing(accept: str) -> tuple[bytes, str]:
        return b"", ""

    assert [route.path for route in probe_routes(lambda: True, nothing)] == [LIVENESS, READINESS, METRICS]
    assert (PORT, DRAIN_SECONDS) == (8080, 25.0)
