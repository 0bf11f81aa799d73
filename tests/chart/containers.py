"""A rendered container as the kubelet would start it: environment, arguments, mounted files."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.chart.objects import Object, PodTemplate
from tests.chart.rendering import Rendering


class Outside(NamedTuple):
    """Objects of the namespace that the chart does not create and its user has to: name → key → value."""

    secrets: Mapping[str, Mapping[str, str]]
    config_maps: Mapping[str, Mapping[str, str]] = {}


_REFERENCE = re.compile(r"\$(\$|\(([A-Za-z_][A-Za-z0-9_.-]*)\))")


class Unresolved(Exception):
    """The kubelet would not start this container; the text says what is missing."""


@dataclass(frozen=True)
class Container:
    """A container as it would be started. `files` are those of ConfigMaps and Secrets, by their path inside."""

    name: str
    image: str
    command: Sequence[str]
    args: Sequence[str]
    environment: Mapping[str, str]
    files: Mapping[str, str]
    scratch: Mapping[str, int]
    """Where emptyDirs are mounted, and how many bytes each may hold."""
    spec: Mapping[str, Any]
    pod: PodTemplate = field(repr=False)

    def port(self, named: str | int) -> int:
        """A port by name, as a probe or a Service names it.

        Raises:
            Unresolved: the container has none of this name.
        """
        if isinstance(named, int):
            return named
        for each in self.spec.get("ports") or []:
            if each.get("name") == named:
                return int(each["containerPort"])
        raise Unresolved(f"{self.pod}: container {self.name} has no port {named!r}")


def quantity(text: str) -> int:
    """Bytes, from what Kubernetes writes as 64Mi.

    Raises:
        ValueError: it is not a whole number of a unit of bytes.
    """
    if (found := re.fullmatch(r"(\d+)([KMGT]i|)", text)) is None:
        raise ValueError(f"{text!r} is no number of bytes")
    return int(found[1]) << {"": 0, "Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40}[found[2]]


def containers(pod: PodTemplate, rendering: Rendering, outside: Outside) -> Sequence[Container]:
    """The pod's containers, init containers first, in the order in which they start.

    Raises:
        Unresolved: a ConfigMap, a Secret, a key or a volume is named that is not there.
    """
    return [_container(spec, pod, _Cluster(rendering, outside)) for spec in pod.all_containers]


@dataclass(frozen=True)
class _Cluster:
    """The targets of references."""

    rendering: Rendering
    outside: Outside

    def config_map(self, name: str) -> Mapping[str, str] | None:
        rendered = [each for each in self.rendering.of("ConfigMap") if each.name == name]
        return rendered[0].data if rendered else self.outside.config_maps.get(name)

    def secret(self, name: str) -> Mapping[str, str] | None:
        rendered = [each for each in self.rendering.of("Secret") if each.name == name]
        return _secret_data(rendered[0]) if rendered else self.outside.secrets.get(name)


def _secret_data(secret: Object) -> Mapping[str, str]:
    data = {key: base64.b64decode(value).decode() for key, value in secret.data.items()}
    return data | dict(secret.document.get("stringData") or {})


def _container(spec: Mapping[str, Any], pod: PodTemplate, cluster: _Cluster) -> Container:
    where = f"{pod}, container {spec['name']}"
    environment = _environment(spec, pod, cluster, where)
    files, scratch = _files(spec, pod, cluster, where)
    environment = {**_secrets(environment, files), **environment}
    return Container(
        spec["name"],
        spec["image"],
        [_expand(part, environment) for part in spec.get("command") or []],
        [_expand(part, environment) for part in spec.get("args") or []],
        environment,
        files,
        scratch,
        spec,
        pod,
    )


def _environment(spec: Mapping[str, Any], pod: PodTemplate, cluster: _Cluster, where: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for source in spec.get("envFrom") or []:
        found |= _whole(source, cluster, where)
    for variable in spec.get("env") or []:
        value = variable.get("value")
        if (origin := variable.get("valueFrom")) is not None:
            value = _value_from(origin, pod, cluster, f"{where}, {variable['name']}")
        else:
            value = _expand(value or "", found)
        if value is not None:
            found[variable["name"]] = value
    return found


def _secrets(environment: Mapping[str, str], files: Mapping[str, str]) -> Mapping[str, str]:
    """The variables that files set: by the program's rule, those called like one, in its folder of secrets."""
    folder = environment.get("TASKFLUX_SECRETS_DIR")
    paths = [path for path in files if folder and path.startswith(f"{folder}/")]
    return {path.rpartition("/")[2]: files[path] for path in paths if path.rpartition("/")[2].startswith("TASKFLUX_")}


def _whole(source: Mapping[str, Any], cluster: _Cluster, where: str) -> Mapping[str, str]:
    for key, look in (("configMapRef", cluster.config_map), ("secretRef", cluster.secret)):
        if (reference := source.get(key)) is None:
            continue
        data = look(reference["name"])
        if data is None and not reference.get("optional"):
            raise Unresolved(f"{where}: there is no {key.removesuffix('Ref')} {reference['name']!r}")
        return {source.get("prefix", "") + name: value for name, value in (data or {}).items()}
    raise Unresolved(f"{where}: envFrom of {sorted(source)}")


def _value_from(origin: Mapping[str, Any], pod: PodTemplate, cluster: _Cluster, where: str) -> str | None:
    for key, look in (("configMapKeyRef", cluster.config_map), ("secretKeyRef", cluster.secret)):
        if (reference := origin.get(key)) is None:
            continue
        data = look(reference["name"]) or {}
        if reference["key"] not in data and not reference.get("optional"):
            raise Unresolved(f"{where}: {reference['name']!r} has no {reference['key']!r}")
        return data.get(reference["key"])
    if (reference := origin.get("fieldRef")) is not None:
        return _field(reference["fieldPath"], pod, where)
    raise Unresolved(f"{where}: a value from {sorted(origin)}")


def _field(path: str, pod: PodTemplate, where: str) -> str:
    known = {"metadata.name": f"{pod.owner.name}-0", "metadata.namespace": "work", "status.podIP": "127.0.0.1"}
    known |= {"spec.nodeName": "node", "status.hostIP": "127.0.0.1", "metadata.uid": "0"}
    if path not in known:
        raise Unresolved(f"{where}: a value from the field {path!r}")
    return known[path]


def _expand(text: str, environment: Mapping[str, str]) -> str:
    """`$(NAME)` as Kubernetes expands it: an unknown name stays as it stands, `$$` is one dollar."""

    def replace(match: re.Match[str]) -> str:
        return "$" if match[1] == "$" else environment.get(match[2], match[0])

    return _REFERENCE.sub(replace, text)


def _files(
    spec: Mapping[str, Any], pod: PodTemplate, cluster: _Cluster, where: str
) -> tuple[Mapping[str, str], Mapping[str, int]]:
    volumes = {volume["name"]: volume for volume in pod.spec.get("volumes") or []}
    files: dict[str, str] = {}
    scratch: dict[str, int] = {}
    for mount in spec.get("volumeMounts") or []:
        volume = volumes.get(mount["name"])
        if volume is None:
            raise Unresolved(f"{where}: there is no volume {mount['name']!r}")
        if "emptyDir" in volume:
            scratch[mount["mountPath"]] = quantity(volume["emptyDir"]["sizeLimit"])
            continue
        for path, content in _contents(volume, cluster, where):
            if mount.get("subPath") in (None, path):
                target = mount["mountPath"] if mount.get("subPath") else f"{mount['mountPath']}/{path}"
                files[target] = content
    return files, scratch


def _contents(volume: Mapping[str, Any], cluster: _Cluster, where: str) -> Iterator[tuple[str, str]]:
    sources = volume["projected"]["sources"] if "projected" in volume else [volume]
    for source in sources:
        if (secret := source.get("secret")) is not None:
            name = secret.get("secretName") or secret["name"]
            data, wanted = cluster.secret(name), secret
        elif (config := source.get("configMap")) is not None:
            name = config["name"]
            data, wanted = cluster.config_map(name), config
        else:
            raise Unresolved(f"{where}: a volume of {sorted(source)}")
        if data is None and not wanted.get("optional"):
            raise Unresolved(f"{where}: the volume's {name!r} is not there")
        yield from _items(data or {}, wanted, f"{where}: {name!r}")


def _items(data: Mapping[str, str], wanted: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    items = wanted.get("items") or [{"key": key, "path": key} for key in data]
    for item in items:
        if item["key"] in data:
            yield item["path"], data[item["key"]]
        elif not wanted.get("optional"):
            raise Unresolved(f"{where} has no {item['key']!r}")
