"""The names of topics and consumer groups.

A task type `email` under the prefix `shop-` has the topic `shop-tasks.email` and the group `shop-taskflux.email`. Dead
letters of every type go to `shop-tasks.dlq`, which the group `shop-taskflux.dlq-sink` consumes.
"""

from __future__ import annotations

import re
from functools import cache

Place = tuple[str, int]
"""A topic, and the number of one of its partitions."""

_TYPE = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_RESERVED = frozenset({"dlq", "dlq-sink", "router"})
_TOPIC = "tasks."
_GROUP = "taskflux."


def is_task_type(name: str) -> bool:
    """Whether `name` is a valid task type: it becomes part of the names of a topic and a group."""
    return _TYPE.fullmatch(name) is not None and name not in _RESERVED


def check_task_type(name: str) -> str:
    """`name`; raises ValueError with the rule if it is not a valid task type."""
    if name in _RESERVED:
        raise ValueError(f"{name!r} cannot name a task type: it is reserved, give the type another name")
    if not is_task_type(name):
        raise ValueError(
            f"{name[:120]!r} cannot name a task type: lower-case letters, digits, '.', '_' and '-',"
            " a letter or digit first, 100 characters at most"
        )
    return name


def check_topic(name: str) -> str:
    """`name`; raises ValueError with the rule if Kafka does not allow it as a topic."""
    if re.fullmatch(r"[A-Za-z0-9._-]{0,249}", name) is None:
        raise ValueError("may have only letters without accents, digits, '.', '_' and '-', 249 characters at most")
    return name


@cache  # it is called for each record
def task_topic(prefix: str, task_type: str) -> str:
    """The topic of a type's records. Raises ValueError if `task_type` is invalid."""
    return f"{prefix}{_TOPIC}{check_task_type(task_type)}"


def task_group(prefix: str, task_type: str) -> str:
    """The consumer group of a type's handler; its lag is what KEDA scales by."""
    return f"{prefix}{_GROUP}{check_task_type(task_type)}"


def dead_letter_topic(prefix: str) -> str:
    """The topic of all dead letters."""
    return f"{prefix}{_TOPIC}dlq"


def dead_letter_group(prefix: str) -> str:
    """The group that moves dead letters into PostgreSQL."""
    return f"{prefix}{_GROUP}dlq-sink"


def router_group(prefix: str) -> str:
    """The group that reads the topic of mixed types."""
    return f"{prefix}{_GROUP}router"


def is_own_topic(prefix: str, topic: str) -> bool:
    """Whether this is the name of a topic of TaskFlux."""
    return topic == dead_letter_topic(prefix) or type_of_topic(prefix, topic) is not None


def type_of_topic(prefix: str, topic: str) -> str | None:
    """The task type whose topic this is; None for the dead-letter topic and any other."""
    head = f"{prefix}{_TOPIC}"
    name = topic[len(head) :]
    return name if topic.startswith(head) and is_task_type(name) else None
