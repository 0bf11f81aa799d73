from __future__ import annotations

import sys
from pathlib import Path

import pytest

from taskflux.handlers.process_email import process_email
from taskflux.http.app import probe_routes
from taskflux.stream.settings import KafkaSettings
from taskflux.worker.loading import (
    BUILT_IN,
    Reads,
    UnknownHandler,
    built_in_handlers,
    check_together,
    load,
    load_own,
    sources_of,
)
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
TWO = """
from taskflux import Receipt, Task, handler

@handler("first", payload=str)
async def first(task: Task[str]) -> Receipt:
    return Receipt()

@handler("second", payload=str)
async def second(task: Task[str]) -> Receipt:
    return Receipt()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An application's own folder, in which the command is called."""
    (tmp_path / "my_app").mkdir()
    (tmp_path / "my_app" / "__init__.py").touch()
    (tmp_path / "my_app" / "tasks.py").write_text(APP)
    (tmp_path / "my_app" / "two.py").write_text(TWO)
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
        ("process_email", "there is no handler"),
        ("my_app", r"'my_app' \(my_app/__init__\.py\) has no handler: .* name one of its modules: .*my_app\.tasks"),
        ("my_app.two", "'my_app.two' has 2 handlers: name one of them, my_app.two:first, my_app.two:second"),
        ("my_app/tasks.py", "'my_app/tasks.py' is a path: name the module as Python does, my_app.tasks"),
        ("my_app.tasks:nosuch", "has no nosuch"),
        ("my_app.tasks:not_a_handler", "is not a handler"),
        ("my_app.nosuch:x", "cannot be imported"),
        ("my_app.broken:x", "nowhere_to_be_found"),
        ("nosuch:x", "cannot be imported"),
    ],
)
def test_an_unknown_name_is_reported_with_a_message(name: str, says: str) -> None:
    with pytest.raises(UnknownHandler, match=says):
        load(name)


@pytest.mark.usefixtures("folder")
def test_a_misspelt_name_is_found_although_the_current_directory_was_another_one_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path_importer_cache", {})
    monkeypatch.chdir("/")
    with pytest.raises(UnknownHandler):
        load("my_ap")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownHandler, match="Did you mean my_app"):
        load("my_ap")


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
def test_an_error_inside_a_module_is_reported_with_its_file_and_line(folder: Path, source: str, says: str) -> None:
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
def test_an_invalid_name_is_reported_with_a_message(name: str) -> None:
    with pytest.raises(UnknownHandler):
        load(name)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("my_app.taks", r"there is no module 'my_app\.taks'\. Did you mean my_app\.tasks\?"),
        ("my_ap.tasks", r"there is no module 'my_ap'\. Did you mean my_app\?"),
        ("my_app.tasks:resize_imag", r"Did you mean my_app\.tasks:resize_image\?"),
        ("process-emial", r"Did you mean process-email\?"),
    ],
)
def test_a_misspelt_name_is_answered_by_the_one_that_may_be_meant(name: str, says: str) -> None:
    with pytest.raises(UnknownHandler, match=says):
        load(name)


@pytest.mark.usefixtures("folder")
def test_a_module_with_one_handler_stands_for_it() -> None:
    assert load("my_app.tasks").name == "resize-image"


@pytest.mark.usefixtures("folder")
def test_the_handlers_of_several_modules_are_each_there_once() -> None:
    assert list(load_own(["my_app.two", "my_app.tasks:resize_image", "my_app.tasks", "my_app.two:second"])) == [
        "my_app.two:first",
        "my_app.two:second",
        "my_app.tasks:resize_image",
    ]


def test_a_handler_that_a_module_only_imports_counts_and_a_built_in_one_does_not(folder: Path) -> None:
    source = "from my_app.two import *\nfrom taskflux.handlers.process_email import process_email\n"
    (folder / "my_app" / "all.py").write_text(source)
    assert list(load_own(["my_app.all"])) == ["my_app.all:first", "my_app.all:second"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("relay", "'relay' is built in: `taskflux dev` runs it by itself"),
        ("router", "'router' is built in: run it beside"),
        ("my_ap", r"there is no module 'my_ap'\. Did you mean my_app\?"),
        ("my_app.tasks:not_a_handler", "is not a handler"),
        ("taskflux.handlers.relay:relay", "is a service, not the handler of a task type"),
    ],
)
def test_an_argument_that_is_not_a_custom_handler_is_refused(name: str, says: str) -> None:
    with pytest.raises(UnknownHandler, match=says):
        load_own([name])


HANDLER = """
from taskflux import Receipt, Task, handler

@handler("{type}", payload={payload}{more})
async def {name}(task: Task[str]) -> Receipt:
    return Receipt()
"""


@pytest.mark.parametrize(
    ("type", "name", "says"),
    [
        ("email", "letters", r"\(my_app/third\.py:4\) declares the task type 'email', .* built-in process-email's"),
        ("third", "relay", r"\(my_app/third\.py:4\) has the name of the built-in relay: rename the function"),
        ("first", "third", r"third\.py:4\) and my_app\.two:first .* have the same task type, 'first'"),
        ("third", "first", r"third\.py:4\) and my_app\.two:first .* have the same name, 'first': rename one"),
    ],
)
def test_duplicate_names_and_types_are_reported_with_file_and_line(
    folder: Path, type: str, name: str, says: str
) -> None:
    (folder / "my_app" / "third.py").write_text(HANDLER.format(type=type, name=name, payload="str", more=""))
    with pytest.raises(UnknownHandler, match=says):
        check_together(load_own(["my_app.two", "my_app.third"]))


def test_a_handler_that_replaces_a_built_in_one_runs_instead_of_it(folder: Path) -> None:
    source = HANDLER.format(type="email", name="process_email", payload="str", more=", replaces=True")
    (folder / "my_app" / "third.py").write_text(source)
    assert check_together(load_own(["my_app.two", "my_app.third"])) == ["process-email"]


def test_the_sources_of_a_handler_are_its_package_and_what_it_imports_from_the_same_folder(folder: Path) -> None:
    (folder / "beside.py").write_text("x = 1\n")
    (folder / "never_imported.py").write_text("x = 1\n")
    (folder / "my_app" / "all.py").write_text("import beside\nfrom my_app.two import first\n")
    try:
        assert list(sources_of(load_own(["my_app.all"]))) == [folder / "beside.py", folder / "my_app"]
    finally:
        sys.modules.pop("beside", None)


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
