"""What a strict API server, and KEDA, would refuse in rendered objects: every fault, each with its path.

`helm lint`, `helm template` and lenient clients let a misspelt field pass; the API server then drops it.
"""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, Final

import jsonschema_rs

from tests.chart import crds
from tests.chart.objects import Object
from tests.chart.rendering import Rendering

KUBERNETES: Final = "1.34.0"

_DNS_LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
_QUALIFIED: Final = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_LONGEST: Final = 63


def faults(each: Object, rendering: Rendering | None = None) -> list[str]:
    """Everything that is wrong with one object; triggers are held against the authentications in `rendering`."""
    found = [f"{each}{path}: {message}" for path, message in _schema_faults(each)]
    found += [f"{each}{path}: it is null" for path in _nulls(each.document)]
    found += _name_faults(each)
    if each.kind in ("ScaledObject", "ScaledJob"):
        found += list(_trigger_faults(each, rendering or Rendering([])))
    return found


def _schema_faults(each: Object) -> Iterator[tuple[str, str]]:
    schema = crds.schemas().get((each.api_version, each.kind))
    validator = _of_kubernetes(each.api_version, each.kind) if schema is None else _of_crd(each.api_version, each.kind)
    for error in validator.iter_errors(each.document):
        yield "".join(f"/{part}" for part in error.instance_path), error.message


@cache
def _of_kubernetes(api_version: str, kind: str) -> jsonschema_rs.Draft202012Validator:
    group, _, version = api_version.rpartition("/")
    file = "-".join(part for part in (kind.lower(), group.split(".")[0], version) if part) + ".json"
    path = _kubernetes_schemas() / file
    if not path.is_file():
        raise LookupError(f"neither Kubernetes {KUBERNETES} nor a definition that we know has {api_version} {kind}")
    return jsonschema_rs.Draft202012Validator(json.loads(path.read_bytes()), registry=_registry())


@cache
def _of_crd(api_version: str, kind: str) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator(crds.schemas()[api_version, kind])


@cache
def _registry() -> jsonschema_rs.Registry:
    definitions = json.loads((_kubernetes_schemas() / "_definitions.json").read_bytes())
    return jsonschema_rs.Registry([(definitions["$id"], definitions)])


def _kubernetes_schemas() -> Any:
    folder = importlib.resources.files("kubernetes_validate") / "kubernetes-json-schema"
    return folder / f"v{KUBERNETES}-local-strict"


def _nulls(value: Any, path: str = "") -> Iterator[str]:
    """The schemas accept null anywhere; in a rendered object it is a value that a template did not find."""
    if value is None:
        yield path
    elif isinstance(value, Mapping):
        for key, below in value.items():
            yield from _nulls(below, f"{path}/{key}")
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from _nulls(below, f"{path}/{number}")


def _name_faults(each: Object) -> Iterator[str]:
    """Names and labels as the API server takes them: the schemas say only that they are texts."""
    # A KafkaTopic is named as its topic, and only has to be a subdomain: labels with dots between.
    labels_of_name = each.name.split(".") if each.kind == "KafkaTopic" else [each.name]
    if not all(map(_DNS_LABEL.fullmatch, labels_of_name)) or len(each.name) > _longest_name(each.kind):
        yield f"{each}: its name is too long ({len(each.name)}), or has other than a-z, 0-9 and -"
    places = [("labels", each.labels), *((f"{pod} labels", pod.labels) for pod in [each.pod] if pod is not None)]
    for where, labels in places:
        for key, value in labels.items():
            if not _QUALIFIED.fullmatch(key) or not _LABEL_VALUE.fullmatch(value) or len(value) > _LONGEST:
                yield f"{each}: {where}: {key}={value!r} is no label"


def _longest_name(kind: str) -> int:
    """A Job's name is a label of its pods; a CronJob's has a time appended for its Jobs."""
    return {"CronJob": 52, "KafkaTopic": 253}.get(kind, _LONGEST)


def _trigger_faults(each: Object, rendering: Rendering) -> Iterator[str]:
    for number, trigger in enumerate(each.spec["triggers"]):
        path = f"{each}/spec/triggers/{number}"
        known = _scalers().get(trigger["type"])
        if known is None:
            yield f"{path}: KEDA has no scaler {trigger['type']!r}"
            continue
        metadata = trigger.get("metadata") or {}
        by_authentication = set(_authenticated(trigger, rendering))
        # What KEDA does not read of an external scaler's metadata, it passes on.
        passed_on = set(metadata) - set(known) if trigger["type"].startswith("external") else set()
        for key, value in metadata.items():
            if key in passed_on:
                continue
            yield from (f"{path}/metadata/{key}: {fault}" for fault in _parameter_faults(key, value, known))
        for name, parameter in known.items():
            has_default = parameter.get("optional") or "default" in parameter
            if not has_default and name not in metadata and name not in by_authentication:
                yield f"{path}/metadata: {name} is missing"
        for key in by_authentication - {n for n, p in known.items() if p.get("triggerAuthenticationVariableReadable")}:
            yield f"{path}: the scaler takes no {key!r} from a TriggerAuthentication"


def _parameter_faults(key: str, value: Any, known: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    name = key.removesuffix("FromEnv")
    parameter = known.get(key) or known.get(name)
    if parameter is None:
        yield "the scaler has no such key"
    elif key != name and key not in known:
        if not parameter.get("envVariableReadable"):
            yield "the scaler does not read it from the environment"
    elif not parameter.get("metadataVariableReadable"):
        yield "the scaler does not read it from its metadata"
    elif "allowedValue" in parameter and value not in parameter["allowedValue"]:
        yield f"{value!r} is none of {parameter['allowedValue']}"


def _authenticated(trigger: Mapping[str, Any], rendering: Rendering) -> Iterator[str]:
    """The parameters that come from the trigger's TriggerAuthentication."""
    if (reference := trigger.get("authenticationRef")) is not None:
        authentication = rendering.one(reference.get("kind", "TriggerAuthentication"), reference["name"])
        for source in ("secretTargetRef", "configMapTargetRef"):
            for each in authentication.spec.get(source) or []:
                yield each["parameter"]


@cache
def _scalers() -> Mapping[str, Mapping[str, Mapping[str, Any]]]:
    """Scaler → parameter → what KEDA says of it."""
    return {
        scaler["type"]: {parameter["name"]: parameter for parameter in scaler["parameters"]}
        for scaler in crds.scalers()["scalers"]
    }
