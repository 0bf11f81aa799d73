"""What runs before an install and an upgrade, beside it, and to test it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from taskflux.worker.handler import Handler
from taskflux.worker.loading import BUILT_IN, load
from tests.chart.cases import full, least, stand_in, stand_ins
from tests.chart.containers import containers
from tests.chart.objects import Object, pods
from tests.chart.rendering import Rendering

BEFORE: Final = frozenset({"pre-install", "pre-upgrade"})
OWN_IMAGE: Final = {
    "handlers": {
        "resize-image": {
            "target": "my_app.handlers:resize_image",
            "taskType": "resize-image",
            "image": {"registry": "registry.example.com", "repository": "my-app", "tag": "1.4"},
        },
        "crop-image": {
            "target": "my_app.handlers:crop_image",
            "taskType": "crop-image",
            "image": {"registry": "registry.example.com", "repository": "my-app", "tag": "1.4"},
        },
        "read-text": {
            "target": "other.handlers:read_text",
            "taskType": "read-text",
            "image": {"registry": "registry.example.com", "repository": "other", "tag": "2.0"},
        },
    }
}


def jobs(rendering: Rendering) -> Sequence[Object]:
    return sorted(rendering.of("Job"), key=lambda job: (job.weight, job.name))


def words(job: Object) -> list[list[str]]:
    assert job.pod is not None
    return [list(container["args"]) for container in job.pod.all_containers]


def test_the_set_up_runs_before_an_install_and_before_an_upgrade() -> None:
    for job in jobs(full(OWN_IMAGE)):
        assert job.hooks == BEFORE, str(job)


def test_a_successful_set_up_job_is_deleted_and_a_failed_one_is_kept() -> None:
    rendering = full(OWN_IMAGE)
    for each in rendering.objects:
        if each.hooks & BEFORE:
            policy = set(each.annotations["helm.sh/hook-delete-policy"].split(","))
            assert policy == {"before-hook-creation", "hook-succeeded"}, str(each)


def test_what_a_set_up_job_needs_exists_before_it_runs() -> None:
    """The release's own ConfigMaps, ServiceAccount and policies are made after its hooks."""
    rendering = full(OWN_IMAGE)
    hooks = {(each.kind, each.name): each for each in rendering.objects if each.hooks >= BEFORE}
    for job in jobs(rendering):
        pod = job.pod
        assert pod is not None
        account = hooks["ServiceAccount", pod.spec["serviceAccountName"]]
        maps = [
            hooks["ConfigMap", source["configMapRef"]["name"]]
            for container in pod.all_containers
            for source in container.get("envFrom") or []
            if "configMapRef" in source
        ]
        policies = [each for (kind, _), each in hooks.items() if kind == "NetworkPolicy"]
        assert maps
        assert policies
        for each in (account, *maps, *policies):
            assert each.weight < job.weight, f"{each} does not come before {job}"


def test_no_object_of_the_release_has_the_name_of_a_hook() -> None:
    rendering = full(OWN_IMAGE)
    hooks = {(each.kind, each.name) for each in rendering.objects if each.hooks}
    own = {(each.kind, each.name) for each in rendering.objects if not each.hooks}
    assert not hooks & own


def test_there_is_one_job_for_each_distinct_image() -> None:
    rendering = full(OWN_IMAGE)
    images = {container["image"] for pod in pods(rendering.of("Deployment")) for container in pod.containers}
    of_jobs = [job.pod.containers[0]["image"] for job in jobs(rendering) if job.pod is not None]
    assert sorted(of_jobs) == sorted(images)
    assert len(images) == 3


def test_the_chart_s_own_image_migrates_first_and_the_others_register_their_types() -> None:
    first, *others = jobs(full(OWN_IMAGE))
    assert [each[0] for each in words(first)] == ["migrate", "topics"]
    named = sorted([word for each in words(job) for word in each if ":" in word] for job in others)
    assert named == [["my_app.handlers:crop_image", "my_app.handlers:resize_image"], ["other.handlers:read_text"]]
    assert all(each[0] == "topics" for job in others for each in words(job))
    assert all(first.weight < job.weight for job in others), "a type is registered in a schema that is there"


def test_a_custom_handler_in_the_chart_s_image_is_registered_by_its_job() -> None:
    mine = {"handlers": {"mine": {"target": "my_app.handlers:mine", "taskType": "mine"}}}
    found = [each for job in jobs(full(mine)) for each in words(job)]
    assert any("my_app.handlers:mine" in each for each in found if each[0] == "topics")
    built_in = [each for each in found if each[0] == "topics" and not any(":" in word for word in each)]
    assert built_in, "the built-in types are registered too: naming some leaves out the others"


def left_out(values: Mapping[str, Any], option: str = "--off") -> set[str]:
    """The handlers whose types are off, or not registered."""
    topics = next(each for each in words(jobs(full(values))[0]) if each[0] == "topics")
    return {name for each, name in pairwise(topics) if each == option}


def test_the_types_of_handlers_that_are_not_deployed_are_off() -> None:
    built_in = {name for name in BUILT_IN if isinstance(load(name), Handler)}
    off: dict[str, Any] = {"handlers": {name: {"enabled": False} for name in built_in}}
    assert left_out({"handlers": {key: {"enabled": True} for key in built_in}}) == set()
    assert left_out(off) == built_in
    assert left_out({"handlers": dict.fromkeys(built_in)}) == built_in
    assert left_out(off | {"setup": {"elsewhere": sorted(built_in)}}) == set()
    assert left_out(off | {"setup": {"elsewhere": ["process-sms"]}}) == built_in - {"process-sms"}
    off["handlers"]["mail-of-the-shop"] = {"target": "process-email", "taskType": "email"}
    assert left_out(off) == built_in - {"process-email"}


def test_the_type_of_an_own_handler_that_is_off_is_off_in_its_name() -> None:
    mine = {"target": "my_app.handlers:mine", "taskType": "mine", "enabled": False}
    assert left_out({"handlers": {"my-own": mine}}) == {"my-own=mine"}
    assert left_out({"handlers": {"my-own": mine}, "setup": {"elsewhere": ["my-own"]}}) == set()
    assert left_out({"handlers": {"my-own": mine, "another": {**mine, "enabled": True}}}) == set()


def test_a_built_in_type_that_an_own_handler_declares_is_left_to_it() -> None:
    mine = {"target": "my_app.handlers:mine", "taskType": "email"}
    values = {"handlers": {"process-email": {"enabled": False}, "mine": mine}}
    assert left_out(values, "--without") == {"process-email"}
    assert "process-email" not in left_out(values)


def test_the_job_of_a_handler_has_what_its_code_needs_at_import() -> None:
    code = {"name": "code", "configMap": {"name": "mine"}}
    mount = {"name": "code", "mountPath": "/app", "readOnly": True}
    mine = {
        "target": "mine:mine",
        "taskType": "mine",
        "extraVolumes": [code],
        "extraVolumeMounts": [mount],
        "extraEnv": [{"name": "MODEL", "value": "small"}],
    }
    (job,) = jobs(full({"handlers": {"mine": mine}}))
    assert job.pod is not None
    (container,) = (each for each in job.pod.all_containers if "mine:mine" in each["args"])
    assert mount in container["volumeMounts"]
    assert code in job.pod.spec["volumes"]
    assert {"name": "MODEL", "value": "small"} in container["env"]


def test_a_disabled_handler_has_no_job() -> None:
    off = {"handlers": {name: {"enabled": False} for name in OWN_IMAGE["handlers"]}}
    assert len(jobs(full(OWN_IMAGE, off))) == 1


def test_a_set_up_waits_for_the_servers_and_gives_up() -> None:
    rendering = full({"setup": {"waitSeconds": 45, "backoffLimit": 2, "activeDeadlineSeconds": 333}})
    for job in jobs(rendering):
        for each in words(job):
            assert each[each.index("--wait") + 1] in ("45", "45s"), each
        assert job.pod is not None
        assert (job.spec["backoffLimit"], job.pod.spec["activeDeadlineSeconds"]) == (2, 333)
        assert job.pod.spec["restartPolicy"] == "Never"


def test_the_deadline_of_a_set_up_job_is_longer_than_its_wait() -> None:
    for job in jobs(full()):
        waits = sum(float(each[each.index("--wait") + 1].rstrip("s")) for each in words(job))
        assert job.pod is not None
        assert job.pod.spec["activeDeadlineSeconds"] > waits


def test_a_set_up_job_gets_no_secret_of_a_provider() -> None:
    for job in jobs(full()):
        assert job.pod is not None
        for container in job.pod.all_containers:
            names = {each["name"] for each in container.get("env") or []}
            assert not {name for name in names if name.startswith(("TASKFLUX_SMTP__", "TASKFLUX_MSG91__"))}


def test_migrations_take_the_direct_dsn() -> None:
    rendering = full({"secrets": {"postgres": {"migrateDsnKey": "direct"}}})
    first = jobs(rendering)[0]
    assert first.pod is not None
    migrate = containers(first.pod, rendering, stand_ins(rendering))[0]
    assert migrate.environment["TASKFLUX_POSTGRES__MIGRATE_DSN"] == stand_in("postgres", "direct")


def test_the_set_up_jobs_can_be_disabled() -> None:
    rendering = full({"setup": {"enabled": False}})
    assert not [each for each in rendering.objects if each.hooks & BEFORE]


WITHOUT_HOOKS: Final = {"setup": {"useHelmHooks": False}}


def test_without_hooks_the_set_up_is_made_of_ordinary_objects_that_the_release_has() -> None:
    rendering = full(OWN_IMAGE, WITHOUT_HOOKS)
    assert not [each for each in rendering.objects if each.hooks & BEFORE]
    found = jobs(rendering)
    assert len(found) == 3
    names = rendering.names()
    for job in found:
        assert job.pod is not None
        assert ("ServiceAccount", job.pod.spec["serviceAccountName"]) in names
        for container in job.pod.all_containers:
            assert ("ConfigMap", container["envFrom"][0]["configMapRef"]["name"]) in names
    assert ("NetworkPolicy", "tf-taskflux-setup") in names, "it may reach its servers"


def test_without_hooks_a_job_has_another_name_when_what_it_does_changes_and_only_then() -> None:
    """A Job cannot be changed: applied again under its name, it would be refused."""

    def named(*more: Mapping[str, Any]) -> set[str]:
        return {job.name for job in jobs(full(OWN_IMAGE, WITHOUT_HOOKS, *more))}

    before = named()
    assert all(name.startswith("tf-taskflux-setup-") for name in before)
    assert named() == before
    assert named({"handlers": {"process-email": {"scaling": {"maxReplicas": 3}}}}) == before
    assert not named({"image": {"tag": "0.2.0"}}) & {min(before, key=len)}
    assert not named({"settings": {"kafka": {"partitions": 24}}}) & before
    assert not named({"setup": {"waitSeconds": 99}}) & before
    long = jobs(full(OWN_IMAGE, WITHOUT_HOOKS, release="r" * 53))
    assert len({job.name for job in long}) == 3
    assert all(len(job.name) <= 63 for job in long)


def test_without_hooks_every_handler_s_pod_waits_for_the_schema() -> None:
    mount = {"initContainers": [{"name": "mine", "image": "mine:1"}]}
    rendering = full(OWN_IMAGE, WITHOUT_HOOKS, {"handlers": {"crop-image": mount}})
    for deployment in rendering.of("Deployment"):
        assert deployment.pod is not None
        first, *others = deployment.pod.init_containers
        assert first["args"] == ["migrate", "--check", "--wait", "900s"], str(deployment)
        assert first["image"].startswith("ghcr.io/taskflux/taskflux:"), "of the image that migrates"
        assert [each["name"] for each in others] == (["mine"] if deployment.component == "crop-image" else [])
        waiting = containers(deployment.pod, rendering, stand_ins(rendering))[0]
        assert set(waiting.files) == {"/etc/taskflux/postgres/TASKFLUX_POSTGRES__DSN"}, "and no other secret"
    for deployment in full(WITHOUT_HOOKS, {"setup": {"enabled": False}}).of("Deployment"):
        assert deployment.pod is not None
        assert not deployment.pod.init_containers
    for deployment in full().of("Deployment"):
        assert deployment.pod is not None
        assert not deployment.pod.init_containers


def test_pruning_runs_one_job_at_a_time_on_its_own_schedule() -> None:
    (prune,) = full({"prune": {"schedule": "5 4 * * 0"}}).of("CronJob")
    assert prune.spec["schedule"] == "5 4 * * 0"
    assert prune.spec["concurrencyPolicy"] == "Forbid"
    assert prune.pod is not None
    assert prune.pod.spec["restartPolicy"] in ("Never", "OnFailure")
    assert ages(prune) == {"--succeeded": "30d", "--cancelled": "30d"}


def test_only_states_with_an_age_are_pruned() -> None:
    (prune,) = full({"prune": {"succeeded": "", "cancelled": "", "dead": "90d"}}).of("CronJob")
    assert ages(prune) == {"--dead": "90d"}
    assert not full({"prune": {"enabled": False}}).of("CronJob")


def ages(prune: Object) -> dict[str, str]:
    assert prune.pod is not None
    command, *options = prune.pod.containers[0]["args"]
    assert command == "prune"
    return dict(zip(options[::2], options[1::2], strict=True))


def test_test_pods_are_kept_until_the_next_run_replaces_them() -> None:
    rendering = full()
    found = [each for each in rendering.objects if "test" in each.hooks and each.kind == "Pod"]
    assert found
    for each in found:
        assert each.hooks == {"test"}
        assert "before-hook-creation" in each.annotations["helm.sh/hook-delete-policy"]
        assert each.pod is not None
        assert each.pod.spec["restartPolicy"] == "Never"
        (container,) = each.pod.containers
        assert container["args"][:2] == ["send", "simulated"]
        assert "--wait" in container["args"]
        timeout = container["args"][container["args"].index("--timeout") + 1]
        assert timeout in ("180", "180s")
    assert not [each for each in least({"tests": {"enabled": False}}).objects if "test" in each.hooks]


def test_without_ingest_or_its_handler_there_is_no_test_pod() -> None:
    for handler in ("ingest", "process-simulated"):
        rendering = full(
            {"handlers": {handler: {"enabled": False}}, "ingress": {"enabled": False}, "httpRoute": {"enabled": False}}
        )
        assert not [
            each
            for each in rendering.objects
            if "test" in each.hooks and each.pod and "simulated" in each.pod.containers[0]["args"]
        ]
