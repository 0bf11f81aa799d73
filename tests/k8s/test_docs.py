"""docs/kubernetes.md says what the files say."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.chart import strict
from tests.chart.rendering import render
from tests.k8s.files import DEV, NAMESPACE, ROOT, chart, compose_services, dependencies, releases, skaffold

PAGE = ROOT / "docs" / "kubernetes.md"
TEXT = PAGE.read_text()
COMMANDS = "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL))
JOINED = COMMANDS.replace("\\\n", " ")


def _lines(beginning: str) -> Iterator[str]:
    return (line.strip() for line in JOINED.splitlines() if line.strip().startswith(beginning))


@pytest.mark.parametrize("name", ["traefik", "metrics-server", "keda"])
def test_others_charts_are_installed_by_hand_as_skaffold_installs_them(name: str) -> None:
    (release,) = (each for each in releases() if each["name"] == name)
    (line,) = _lines(f"helm upgrade --install {name} ")
    said = dict(re.findall(r"--(repo|version|namespace|values) (\S+)", line))
    assert said == {
        "repo": release["repo"],
        "version": release["version"],
        "namespace": release["namespace"],
        "values": release["valuesFiles"][0],
    }
    assert ("--create-namespace" in line) == bool(release.get("createNamespace"))
    assert "--wait" in line


def test_every_file_and_folder_that_it_names_is_there() -> None:
    named = set(re.findall(r"(?:k8s|charts|compose|docs|tests|skaffold\.yaml|docker-compose\.yaml)[\w./-]*", COMMANDS))
    named |= set(re.findall(r"`((?:k8s|compose|tests)/[\w./-]+)`", TEXT))
    assert named >= {"k8s/kind.yaml", "k8s/dependencies", "k8s/values-dev.yaml", "charts/taskflux"}
    assert [path for path in named if not (ROOT / path).exists() and "/charts/" not in f"/{path}"] == []


def test_every_page_that_it_links_is_there() -> None:
    for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", TEXT):
        assert (PAGE.parent / link).resolve().exists(), link


def test_every_section_that_it_links_is_there() -> None:
    headings = {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", TEXT, re.MULTILINE)
    }
    linked = set(re.findall(r"\]\(#([\w-]+)\)", TEXT))
    assert linked
    assert linked <= headings


def test_every_make_target_is_one() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = set(re.findall(r"(?:^|[ `])make ([a-z0-9-]+)", TEXT, re.MULTILINE))
    assert called >= {"image", "e2e", "test-k8s", "run"}
    assert called <= targets


def test_every_object_that_a_command_asks_for_is_there() -> None:
    there = {f"{kind.lower()}/{name}" for kind, name in chart(DEV).names() | dependencies().names()}
    there |= {name.replace("deployment/", "deploy/") for name in there}
    in_taskflux = [line for line in TEXT.splitlines() if f"-n {NAMESPACE} " in line]
    asked = {
        name
        for line in in_taskflux
        for name in re.findall(r"\b((?:statefulset|service|deploy|job|networkpolicy)/[\w-]+)", line.split("-n keda")[0])
    }
    assert asked
    assert asked <= there
    (scaled,) = set(re.findall(r"scaledobject (taskflux-[\w-]+)", TEXT))
    assert f"scaledobject/{scaled}" in there


def test_the_ports_are_those_of_the_files() -> None:
    forwarded = {str(each["localPort"]) for each in skaffold()["taskflux"]["portForward"]}
    editing = TEXT.partition("## Editing")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| (\d+) \|", editing, re.MULTILINE)) == forwarded
    published = {port.split(":")[1] for each in compose_services().values() for port in each.get("ports", ())}
    compose = TEXT.partition("## Without a cluster")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| <http://localhost:(\d+)", compose, re.MULTILINE)) == published
    (node,) = yaml.safe_load((ROOT / "k8s" / "kind.yaml").read_text())["nodes"]
    (http,) = (each["hostPort"] for each in node["extraPortMappings"] if each["containerPort"] == 80)
    (host,) = (rule["host"] for rule in chart(DEV).one("Ingress", "taskflux").spec["rules"])
    asked = set(re.findall(r"http://([\w.]*taskflux\.localhost:\d+)", TEXT))
    assert asked == {f"{host}:{http}"}


def _production() -> dict[str, Any]:
    (block,) = (block for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL) if "# values.yaml" in block)
    values: dict[str, Any] = yaml.safe_load(block)
    return values


@pytest.mark.usefixtures("definitions")
def test_the_values_for_production_are_valid_and_their_secrets_are_made_on_the_page(tmp_path: Path) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(_production()))
    rendering = render(file, release="taskflux", namespace="tasks")
    assert [fault for each in rendering.objects for fault in strict.faults(each, rendering)] == []
    made = {
        (line.split()[6], key)
        for line in _lines("kubectl -n tasks create secret generic")
        for key in re.findall(r"--from-literal=([\w-]+)=", line)
    }
    read = set(_secret_keys([each.document for each in rendering.objects]))
    assert read
    assert read <= made


def _secret_keys(value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        if isinstance(value.get("secretKeyRef"), dict):
            yield value["secretKeyRef"]["name"], value["secretKeyRef"]["key"]
        if isinstance(mounted := value.get("secret"), dict):
            for item in mounted.get("items") or ():
                yield mounted.get("secretName") or mounted["name"], item["key"]
        for each in value.get("secretTargetRef") or ():
            yield each["name"], each["key"]
        for below in value.values():
            yield from _secret_keys(below)
    elif isinstance(value, list):
        for below in value:
            yield from _secret_keys(below)


def test_the_release_that_it_installs_is_this_one() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    (line,) = _lines("helm upgrade --install taskflux oci://")
    assert f"--version {version} " in line
    assert f"taskflux/taskflux:{version}" in TEXT


def test_the_readme_leads_here() -> None:
    assert "(docs/kubernetes.md)" in (ROOT / "README.md").read_text()
