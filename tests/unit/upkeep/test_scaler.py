from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from typing import Any, cast

import pytest
from grpclib.exceptions import GRPCError

from taskflux.store.upkeep import Needed
from taskflux.stream.positions import Behind, Log
from taskflux.upkeep.scaler import RATE_WINDOW, Needs, Queue, Scaler, replicas

EMAIL = Queue("email", Log("tasks.email", "taskflux.email"), waiting=50, running=10, most=12)
SINK = Queue(None, Log("tasks.dlq", "taskflux.dlq-sink"), waiting=100, most=2)
RELAY = Queue(overdue=2000, most=4)
IDLE = Behind(0, 12)


def pods(queue: Queue = EMAIL, lag: int = 0, partitions: int = 12, overdue: int = 0, **needed: int | bool) -> float:
    behind = Behind(lag, partitions) if queue.log is not None else None
    return replicas(queue, behind, Needed(**needed), overdue)  # type: ignore[arg-type]


def test_a_handler_sleeps_while_nothing_waits_and_nothing_runs() -> None:
    assert pods() == 0


def test_a_single_record_wakes_a_handler() -> None:
    assert 0 < pods(lag=1) <= 1


def test_a_task_that_is_due_soon_wakes_its_handler_before_it_is_published() -> None:
    assert 0 < pods(due=1) <= 1


def test_what_waits_in_kafka_and_tasks_due_soon_count_together() -> None:
    assert pods(lag=60, due=40) == 2


def test_running_tasks_keep_their_pods_though_nothing_waits() -> None:
    assert pods(running=35) == 3.5


def test_pods_are_for_what_waits_or_for_what_runs_whichever_needs_more() -> None:
    assert pods(lag=200, running=10) == 4
    assert pods(lag=50, running=30) == 3


def test_pods_for_what_waits_divide_the_partitions() -> None:
    """keda#5096: pods with fewer partitions than others, and a rebalance at every step."""
    assert pods(lag=210) == 6
    assert pods(lag=310) == 12
    assert pods(lag=25) == 0.5
    assert pods(lag=150, partitions=7) == 7


def test_there_are_never_more_pods_than_partitions() -> None:
    assert pods(lag=100_000, partitions=3) == 3


def test_there_are_never_more_pods_than_the_handler_s_maximum() -> None:
    assert pods(lag=100_000, partitions=100) == 12


def test_tasks_beyond_what_the_provider_takes_call_for_no_pods() -> None:
    limited = EMAIL._replace(rate=100 / RATE_WINDOW)
    assert pods(limited, lag=100_000) == 2
    assert pods(limited, lag=10) == pods(lag=10)


def test_a_provider_s_rate_takes_no_pod_from_tasks_that_run() -> None:
    assert pods(EMAIL._replace(rate=0.01), lag=1000, running=40) == 4


@pytest.mark.parametrize("probe", [{"lag": 1}, {"running": 1}, {"due": 500, "probe_soon": True}])
def test_while_a_circuit_is_open_one_pod_is_there_for_a_probe_that_waits_or_runs(probe: dict[str, Any]) -> None:
    assert pods(open=True, **probe) == 1


def test_while_a_circuit_is_open_a_flood_has_one_pod() -> None:
    assert pods(open=True, lag=10_000, due=10_000, running=400) == 1


def test_while_a_circuit_is_open_and_no_probe_waits_there_is_no_pod() -> None:
    assert pods(open=True, due=10_000) == 0
    assert pods(open=True, probe_soon=True) == 0


def test_a_handler_without_a_type_is_woken_by_its_topic_alone() -> None:
    assert pods(SINK, lag=1) > 0
    assert pods(SINK, lag=150) == 2
    assert pods(SINK) == 0


def test_the_relay_is_scaled_by_what_is_overdue() -> None:
    assert pods(RELAY, overdue=5000) == 2.5
    assert pods(RELAY, overdue=50_000) == 4
    assert pods(RELAY) == 0


def test_a_trigger_says_what_it_scales_by() -> None:
    metadata = {
        "scalerAddress": "relay:8090",
        "taskType": "email",
        "topic": "tasks.email",
        "consumerGroup": "taskflux.email",
        "lagThreshold": "50",
        "runningThreshold": "10",
        "maxReplicas": "12",
        "rate": "14.5",
    }
    assert Queue.parse(metadata) == EMAIL._replace(rate=14.5)
    assert Queue.parse({"dueThreshold": "2000", "maxReplicas": "4"}) == RELAY


def test_a_threshold_of_0_counts_nothing() -> None:
    assert Queue.parse({"taskType": "email", "runningThreshold": "10", "lagThreshold": "0"}).waiting is None


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({}, "set lagThreshold, runningThreshold or dueThreshold"),
        ({"topic": "tasks.email", "lagThreshold": "50"}, "belong together"),
        ({"lagThreshold": "50"}, "lagThreshold needs topic and consumerGroup"),
        ({"runningThreshold": "50"}, "runningThreshold needs taskType"),
        ({"dueThreshold": "many"}, "dueThreshold must be a number above 0"),
        ({"dueThreshold": "-1"}, "dueThreshold must be a number above 0"),
        ({"dueThreshold": "nan"}, "dueThreshold must be a number above 0"),
        ({"dueThreshold": "inf"}, "dueThreshold must be a number above 0"),
        ({"dueThreshold": "1e307"}, "dueThreshold must be a number above 0, and at most 1,000,000,000"),
        ({"dueThreshold": "1", "rate": "1e308"}, "rate must be a number above 0, and at most"),
        ({"dueThreshold": "1", "lagThreshold": "1e17"}, "lagThreshold must be a number above 0, and at most"),
        ({"dueThreshold": "1", "maxReplicas": "0.5"}, "maxReplicas must be a number from 1 to 100,000"),
        ({"dueThreshold": "1", "maxReplicas": "100001"}, "maxReplicas must be a number from 1 to 100,000"),
    ],
)
def test_metadata_that_says_nothing_clear_is_refused_with_a_sentence(metadata: dict[str, str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Queue.parse(metadata)


class Draining:
    """A process that is not draining yet; fails the test of one who asks without end."""

    def __init__(self) -> None:
        self.draining = self
        self._asked = 0

    def is_set(self) -> bool:
        self._asked += 1
        assert self._asked < 100, "the event loop hangs"
        return False


class Asked:
    metadata: Mapping[str, str] = {"dueThreshold": "2000"}

    @property
    def ref(self) -> Asked:
        return self

    async def recv_message(self) -> Asked:
        return self


async def test_calls_end_when_the_looking_fails() -> None:
    process: Any = Draining()
    nothing: Any = None
    needs = Needs(nothing, nothing, 3.0)
    needs.ask(RELAY)
    with pytest.raises(AttributeError):
        await needs.keep_looking(process)
    calls, stream = Scaler(process, needs).__mapping__(), cast("Any", Asked())
    await calls["/externalscaler.ExternalScaler/StreamIsActive"].func(stream)
    with pytest.raises(GRPCError, match="cannot be read"):
        await calls["/externalscaler.ExternalScaler/GetMetrics"].func(stream)


OTHERS = ("ingest", "router", "process_email", "process_sms", "process_simulated", "notify", "dlq_sink", "relay")


@pytest.mark.parametrize("deployment", OTHERS)
def test_no_process_loads_grpc_unless_it_serves_keda(deployment: str) -> None:
    """The relay does so when TASKFLUX_SCALER__PORT is set, and only then."""
    look = (
        f"import sys, taskflux.__main__, taskflux.handlers.{deployment}\n"
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'grpclib', 'grpc', 'h2', 'multidict'}))"
    )
    found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
