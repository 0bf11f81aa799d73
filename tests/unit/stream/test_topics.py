import pytest

from taskflux.stream.topics import (
    check_task_type,
    dead_letter_group,
    dead_letter_topic,
    is_task_type,
    task_group,
    task_topic,
    type_of_topic,
)


def test_names_follow_from_prefix_and_type() -> None:
    assert task_topic("", "email") == "tasks.email"
    assert task_topic("shop-", "email") == "shop-tasks.email"
    assert task_group("shop-", "email") == "shop-taskflux.email"
    assert dead_letter_topic("shop-") == "shop-tasks.dlq"
    assert dead_letter_group("") == "taskflux.dlq-sink"


@pytest.mark.parametrize("name", ["email", "resize-image", "a", "0", "a.b_c-d", "x" * 100])
def test_a_type_may_be_any_short_lower_case_name(name: str) -> None:
    assert is_task_type(name)
    assert check_task_type(name) == name


@pytest.mark.parametrize("name", ["", "Email", "-a", ".a", "a b", "ä", "x" * 101, "a\n", "a/b"])
def test_a_name_that_cannot_be_a_topic_is_refused_with_what_it_may_be(name: str) -> None:
    assert not is_task_type(name)
    with pytest.raises(ValueError, match="lower-case letters"):
        task_topic("", name)


@pytest.mark.parametrize("name", ["dlq", "dlq-sink"])
def test_names_of_the_dead_letter_queue_are_not_valid_types(name: str) -> None:
    with pytest.raises(ValueError, match="reserved"):
        task_group("", name)


def test_a_topic_tells_its_type_and_only_its_own_prefix_counts() -> None:
    assert type_of_topic("shop-", "shop-tasks.email") == "email"
    assert type_of_topic("", "shop-tasks.email") is None
    assert type_of_topic("", "tasks.dlq") is None
    assert type_of_topic("", "orders") is None
