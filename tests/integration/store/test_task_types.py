"""Which function declares a task type: the first, unless another one replaces it."""

from __future__ import annotations

import pytest

from taskflux.store.errors import OtherDeclaration
from taskflux.store.tasks import TaskTypes
from taskflux.tasks.model import TaskType
from tests.integration.store.scene import Scene

OURS = TaskType("fax", '{"type": "string"}', 8, "resend", None, declared_by="shop.tasks:send_fax")
THEIRS = OURS._replace(schema='{"type": "integer"}', declared_by="crm.tasks:fax")


@pytest.fixture
def types(scene: Scene) -> TaskTypes:
    return TaskTypes(scene.database)


async def schema(types: TaskTypes) -> str:
    return (await types.all())["fax"].schema


async def test_another_functions_declaration_with_another_schema_is_refused(types: TaskTypes) -> None:
    await types.register(OURS)
    with pytest.raises(OtherDeclaration) as refused:
        await types.register(THEIRS)
    assert str(refused.value).startswith(
        "the task type 'fax' is declared by shop.tasks:send_fax, with another schema than crm.tasks:fax has: "
    )
    assert await schema(types) == OURS.schema
    await types.register(OURS)


async def test_a_declaration_with_replaces_takes_over_and_the_other_is_refused_from_then_on(types: TaskTypes) -> None:
    await types.register(OURS)
    await types.register(THEIRS._replace(replaces=True))
    assert await schema(types) == THEIRS.schema
    with pytest.raises(OtherDeclaration, match=r"declared by crm\.tasks:fax"):
        await types.register(OURS)
    assert await schema(types) == THEIRS.schema


async def test_a_function_may_change_its_own_schema(types: TaskTypes) -> None:
    await types.register(OURS)
    await types.register(OURS._replace(schema="{}"))
    assert await schema(types) == "{}"


async def test_a_function_that_has_moved_keeps_its_type_by_its_schema(types: TaskTypes) -> None:
    await types.register(OURS)
    moved = OURS._replace(declared_by="shop.messages:send_fax", max_attempts=3)
    await types.register(moved)
    assert (await types.all())["fax"].max_attempts == 3
    await types.register(moved._replace(schema="{}"))
    assert await schema(types) == "{}"


async def test_a_type_registered_by_an_older_release_has_no_declaring_function(types: TaskTypes) -> None:
    await types.register(OURS._replace(declared_by=None))
    await types.register(THEIRS)
    assert await schema(types) == THEIRS.schema
