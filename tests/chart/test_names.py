"""Names, labels and selectors: unique, short enough, and the same over every upgrade."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from tests.chart.cases import EACH_CI_FILE, EVERYTHING, LEAST, WITH_ALL_SERVERS, full
from tests.chart.objects import pods, selects
from tests.chart.rendering import CHART, Refused, Rendering, render

LONGEST: Final = "r" * 53
"""Helm takes no longer release name."""

THREE: Final = {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component"}


@EACH_CI_FILE
def test_every_object_has_a_name_of_its_own(ci: Path) -> None:
    for release in ("tf", LONGEST):
        rendering = render(ci, release=release)
        twice = [
            key for key, times in Counter((each.kind, each.name) for each in rendering.objects).items() if times > 1
        ]
        assert not twice


@EACH_CI_FILE
@pytest.mark.parametrize("release", ["a", "taskflux", LONGEST])
def test_names_fit_whatever_the_release_is_called(ci: Path, release: str) -> None:
    for each in render(ci, release=release).objects:
        if each.kind == "KafkaTopic":  # named as its topic, whatever the release is called
            continue
        # A Job's name is a label of its pods, and a CronJob's has a time appended for its Jobs.
        longest = 52 if each.kind == "CronJob" else 63
        assert len(each.name) <= longest, f"{each}: {len(each.name)}"
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", each.name), str(each)
        places = [each.labels] + ([each.pod.labels] if each.pod else [])
        assert all(len(value) <= 63 for labels in places for value in labels.values()), str(each)


def test_two_releases_in_one_namespace_share_nothing() -> None:
    for one, other in (("tf", "tf-2"), (LONGEST, LONGEST[:-1] + "q")):
        first, second = full(release=one), full(release=other)
        assert not first.names() & second.names()
        for each in first.of("Deployment"):
            assert all(not selects(each.spec["selector"], pod.labels) for pod in pods(second.objects))


def test_a_release_named_like_the_chart_does_not_repeat_the_name() -> None:
    assert "taskflux-ingest" in {each.name for each in full(release="taskflux").of("Deployment")}


def test_names_can_be_chosen() -> None:
    names = {each.name for each in full({"fullnameOverride": "mail"}).of("Deployment")}
    assert "mail-ingest" in names
    labels = full({"nameOverride": "mail"}).of("Deployment")[0].labels
    assert labels["app.kubernetes.io/name"] == "mail"


def test_a_handler_s_longest_name_fits_or_is_refused() -> None:
    for length in (30, 40, 50, 63):
        name = "h" * length
        mine = {"handlers": {name: {"target": "a.b:c", "taskType": "mine"}}}
        try:
            rendering = full(mine, release=LONGEST)
        except Refused:
            assert length > 40, "so short a name should do"
            continue
        for each in rendering.objects:
            assert len(each.name) <= (52 if each.kind == "CronJob" else 63), str(each)
        assert len(rendering.names()) == len(rendering.objects)


def selectors(rendering: Rendering) -> dict[str, object]:
    return {each.component or "": each.spec["selector"] for each in rendering.of("Deployment")}


def test_selectors_have_three_labels_and_match_only_their_own_pods() -> None:
    rendering = full()
    for deployment in rendering.of("Deployment"):
        assert deployment.spec["selector"].keys() == {"matchLabels"}
        assert deployment.spec["selector"]["matchLabels"].keys() == THREE
        taken = [pod.owner for pod in pods(rendering.objects) if selects(deployment.spec["selector"], pod.labels)]
        assert taken == [deployment]


def test_services_and_budgets_match_only_the_pods_of_their_handler() -> None:
    rendering = full()
    for each in rendering.of("Service", "PodDisruptionBudget"):
        selector = each.spec["selector"]
        if each.kind == "Service":
            selector = {"matchLabels": selector}
        (taken,) = (pod.owner for pod in pods(rendering.objects) if selects(selector, pod.labels))
        assert taken == rendering.handler("Deployment", each.component or "")


def test_selectors_stay_as_they_are_over_every_upgrade(tmp_path: Path) -> None:
    """Kubernetes refuses to change a Deployment's selector."""
    newer = tmp_path / "taskflux"
    shutil.copytree(CHART, newer)
    described = (newer / "Chart.yaml").read_text()
    described = re.sub(r"(?m)^(version|appVersion):.*$", r"\1: 9.9.9", described)
    (newer / "Chart.yaml").write_text(described)
    changed = {
        "image": {"tag": "other"},
        "commonLabels": {"team": "mail"},
        "handlerDefaults": {"podLabels": {"more": "labels"}},
        "settings": {"kafka": {"topicPrefix": "shop-"}},
        "keda": {"enabled": False},
    }
    after = render(LEAST, WITH_ALL_SERVERS, EVERYTHING, changed, chart=newer)
    assert after.of("Deployment")[0].labels["app.kubernetes.io/version"] == "9.9.9"
    assert selectors(after) == selectors(full())


def test_every_object_has_the_recommended_labels() -> None:
    for each in full().objects:
        assert each.labels["app.kubernetes.io/name"] == "taskflux", str(each)
        assert each.labels["app.kubernetes.io/instance"] == "tf", str(each)
        assert each.labels["app.kubernetes.io/managed-by"] == "Helm", str(each)
        assert each.labels["helm.sh/chart"].startswith("taskflux-"), str(each)


def test_a_version_with_a_plus_is_a_label_all_the_same(tmp_path: Path) -> None:
    newer = tmp_path / "taskflux"
    shutil.copytree(CHART, newer)
    described = (newer / "Chart.yaml").read_text()
    (newer / "Chart.yaml").write_text(re.sub(r"(?m)^(version|appVersion):.*$", r"\1: 1.2.3+build.5", described))
    for each in render(LEAST, chart=newer).objects:
        assert all(re.fullmatch(r"[A-Za-z0-9._-]*", value) for value in each.labels.values()), each.labels


def test_no_object_names_a_namespace_other_than_the_release_s() -> None:
    for each in full().objects:
        assert each.metadata.get("namespace", "work") == "work", str(each)
