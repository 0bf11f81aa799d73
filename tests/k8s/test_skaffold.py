"""skaffold.yaml: valid by Skaffold's own schema, in agreement with the chart and the image, in the right order."""

from __future__ import annotations

import copy
import fnmatch
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from tests.chart import crds, tools
from tests.k8s.conftest import Modules
from tests.k8s.files import DEV, NAMESPACE, RELEASE, RELOAD, ROOT, SKAFFOLD, chart, dependencies, releases, skaffold
from tests.k8s.gotools import SKAFFOLD as SKAFFOLD_MODULE

DOCKERFILE = (ROOT / "Dockerfile").read_text()

Module = Mapping[str, Any]
Errors = Callable[[Module], list[str]]


@pytest.fixture(scope="module")
def errors(module: Modules) -> Errors:
    """What Skaffold's own schema for this version has against a document."""
    (version,) = {each["apiVersion"] for each in skaffold().values()}
    folder = module(SKAFFOLD_MODULE) / "docs-v2" / "content" / "en" / "schemas"
    schema = json.loads((folder / f"{version.partition('/')[2]}.json").read_text())
    validator = jsonschema_rs.validator_for(schema)
    return lambda document: [
        f"{list(error.instance_path)}: {error.message}" for error in validator.iter_errors(document)
    ]


@pytest.mark.parametrize("name", ["cluster", "dependencies", "taskflux"])
def test_skaffold_knows_every_field(errors: Errors, name: str) -> None:
    assert errors(skaffold()[name]) == []


@pytest.mark.parametrize("profile", ["dev", "ci"])
def test_skaffold_knows_every_field_of_a_profile_too(errors: Errors, profile: str) -> None:
    assert errors(_with_profile(profile)) == []


def test_a_misspelt_field_is_noticed(errors: Errors) -> None:
    misspelt = copy.deepcopy(dict(skaffold()["taskflux"]))
    misspelt["deploy"]["helm"]["releases"][0]["valueFiles"] = []
    assert errors(misspelt)


def _with_profile(name: str) -> Module:
    """The module `taskflux` with a profile's patches (JSON Patch: add, replace, remove)."""
    patched: dict[str, Any] = copy.deepcopy(dict(skaffold()["taskflux"]))
    (profile,) = (each for each in patched.pop("profiles") if each["name"] == name)
    for patch in profile["patches"]:
        *path, last = patch["path"].strip("/").split("/")
        target: Any = patched
        for part in path:
            target = target[int(part)] if isinstance(target, list) else target[part]
        _apply(patch, target, last)
    return patched


def _apply(patch: Mapping[str, Any], target: Any, last: str) -> None:
    if patch["op"] == "add" and isinstance(target, list):
        assert last == "-"
        target.append(patch["value"])
        return
    assert (last in target) == (patch["op"] != "add"), f"{patch['op']} {patch['path']}"
    if patch["op"] == "remove":
        del target[last]
    else:
        target[last] = patch["value"]


def test_each_module_waits_for_the_one_before_it() -> None:
    needs = {
        name: [c for each in module.get("requires", ()) for c in each["configs"]] for name, module in skaffold().items()
    }
    assert needs == {"cluster": [], "dependencies": ["cluster"], "taskflux": ["dependencies"]}
    assert all(release["wait"] for release in releases() if release["name"] != RELEASE)


def test_every_file_that_is_named_is_there() -> None:
    for release in releases():
        for file in release["valuesFiles"]:
            assert (ROOT / file).is_file(), file
        assert "chartPath" not in release or (ROOT / release["chartPath"] / "Chart.yaml").is_file()
    for path in skaffold()["dependencies"]["manifests"]["kustomize"]["paths"]:
        assert (ROOT / path / "kustomization.yaml").is_file()


def test_others_charts_are_pinned_to_a_version() -> None:
    for release in releases():
        if release["name"] != RELEASE:
            assert re.fullmatch(r"\d+\.\d+\.\d+", release["version"]), release["name"]
            assert release["repo"].startswith("https://")


def test_keda_is_the_version_whose_definitions_the_chart_is_tested_against() -> None:
    (keda,) = (release for release in releases() if release["name"] == "keda")
    assert f"v{keda['version']}" == crds.KEDA.version


def test_the_chart_is_installed_where_its_dependencies_are_with_the_image_that_was_built() -> None:
    (release,) = skaffold()["taskflux"]["deploy"]["helm"]["releases"]
    assert (release["name"], release["namespace"]) == (RELEASE, NAMESPACE)
    assert release["valuesFiles"] == [str(DEV.relative_to(ROOT))]
    (artifact,) = skaffold()["taskflux"]["build"]["artifacts"]
    rendered = chart(DEV)
    images = {container["image"] for each in rendered.objects if each.pod for container in each.pod.containers}
    assert images == {f"{artifact['image']}:dev"}
    set_by_skaffold = release["setValueTemplates"]
    assert set_by_skaffold.keys() == {"image.repository", "image.tag"}
    assert all(f"_{artifact['image']}}}}}" in template for template in set_by_skaffold.values())
    (stand_in,) = (each for each in dependencies().of("Deployment") if each.name == "msg91")
    assert stand_in.pod is not None
    assert stand_in.pod.containers[0]["image"].partition(":")[0] == artifact["image"]


@pytest.mark.parametrize("profile", ["dev", "ci"])
def test_the_image_is_built_from_a_stage_that_there_is(profile: str) -> None:
    stages = set(re.findall(r"^FROM .* AS (\S+)$", DOCKERFILE, re.MULTILINE))
    docker = _with_profile(profile)["build"]["artifacts"][0]["docker"]
    assert docker["target"] in stages
    assert docker["target"] == ("dev" if profile == "dev" else "production")


def test_skaffold_dev_copies_sources_to_where_the_image_has_them() -> None:
    patched = _with_profile("dev")
    (artifact,) = patched["build"]["artifacts"]
    copied = dict(re.findall(r"^COPY --chown=65532:65532 (\S+) (\S+)$", DOCKERFILE, re.MULTILINE))
    assert copied == {"taskflux": "/app/taskflux", "handlers": "/app/taskflux/handlers"}
    rules = artifact["sync"]["manual"]
    for source, target in copied.items():
        own = [rule for rule in rules if rule["src"].partition("/")[0] == source]
        assert {f"{rule['dest']}/{source}" for rule in own} == {target}
        files = [file.relative_to(ROOT) for file in (ROOT / source).rglob("*") if file.is_file() and _is_source(file)]
        assert files
        synchronised = {file for file in files for rule in own if _matches(rule["src"], file)}
        assert set(files) - synchronised <= {Path("taskflux/py.typed")}


def _is_source(file: Path) -> bool:
    return "__pycache__" not in file.parts


def _matches(pattern: str, file: Path) -> bool:
    """As Skaffold matches: `**` is any number of folders, none among them."""
    return fnmatch.fnmatch(str(file), pattern.replace("**/", "*"))


def test_skaffold_dev_is_the_profile_that_reloads_and_no_other() -> None:
    (profile,) = (each for each in skaffold()["taskflux"]["profiles"] if each["name"] == "dev")
    assert profile["activation"] == [{"command": "dev"}]
    reload = str(RELOAD.relative_to(ROOT))
    for name, expected in (("dev", True), ("ci", False)):
        (release,) = _with_profile(name)["deploy"]["helm"]["releases"]
        assert (reload in release["valuesFiles"]) is expected
    assert "portForward" not in _with_profile("ci")


def test_ports_are_forwarded_to_services_that_there_are() -> None:
    services = {each.name: each for each in [*chart(DEV).of("Service"), *dependencies().of("Service")]}
    local = [each["localPort"] for each in skaffold()["taskflux"]["portForward"]]
    assert len(set(local)) == len(local)
    for each in skaffold()["taskflux"]["portForward"]:
        assert each["namespace"] == NAMESPACE
        ports = {port["port"] for port in services[each["resourceName"]].spec["ports"]}
        assert each["port"] in ports


@pytest.mark.parametrize("profile", ["", "dev", "ci"])
def test_skaffold_itself_reads_it(profile: str, tmp_path: Path) -> None:
    program = shutil.which("skaffold")
    if program is None:
        pytest.skip("there is no skaffold on the PATH; the schema was checked")
    done = subprocess.run(
        [program, "diagnose", "--yaml-only", "--interactive=false", f"--filename={SKAFFOLD}", *_selected(profile)],
        cwd=ROOT,
        env={
            "PATH": f"{tools.helm().parent}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "SKAFFOLD_UPDATE_CHECK": "false",
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    read = {module["metadata"]["name"]: module for module in yaml.safe_load_all(done.stdout)}
    expected = _with_profile(profile) if profile else skaffold()["taskflux"]
    (artifact,) = read["taskflux"]["build"]["artifacts"]
    assert artifact.get("sync") == expected["build"]["artifacts"][0].get("sync")
    (release,) = read["taskflux"]["deploy"]["helm"]["releases"]
    wanted = [str(ROOT / file) for file in expected["deploy"]["helm"]["releases"][0]["valuesFiles"]]
    assert release["valuesFiles"] == wanted


def _selected(profile: str) -> list[str]:
    return [f"--profile={profile}"] if profile else []
