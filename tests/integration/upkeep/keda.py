"""KEDA's side of externalscaler.proto, by gRPC's own library: another implementation than the relay's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_STRING, _BOOL, _DOUBLE, _INT64, _MESSAGE = 9, 8, 1, 3, 11
_MESSAGES = {
    "ScaledObjectRef": (("name", 1, _STRING), ("namespace", 2, _STRING), ("scalerMetadata", 3, "Entry")),
    "IsActiveResponse": (("result", 1, _BOOL),),
    "GetMetricSpecResponse": (("metricSpecs", 1, "MetricSpec"),),
    "MetricSpec": (("metricName", 1, _STRING), ("targetSize", 2, _INT64), ("targetSizeFloat", 3, _DOUBLE)),
    "GetMetricsRequest": (("scaledObjectRef", 1, "ScaledObjectRef"), ("metricName", 2, _STRING)),
    "GetMetricsResponse": (("metricValues", 1, "MetricValue"),),
    "MetricValue": (("metricName", 1, _STRING), ("metricValue", 2, _INT64), ("metricValueFloat", 3, _DOUBLE)),
    "Entry": (("key", 1, _STRING), ("value", 2, _STRING)),  # as a map is encoded
}
_REPEATED = {"scalerMetadata", "metricSpecs", "metricValues"}


def _messages() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="keda.proto", package="keda", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind in fields:
            added = message.field.add(name=field, number=number, label=3 if field in _REPEATED else 1)
            added.type = kind if isinstance(kind, int) else _MESSAGE
            if isinstance(kind, str):
                added.type_name = f".keda.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"keda.{name}")) for name in _MESSAGES}


OF = _messages()


class Keda:
    """What KEDA asks for one trigger."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Mapping[str, object]) -> None:
        entries = [OF["Entry"](key=key, value=str(value)) for key, value in metadata.items()]
        self._ref = OF["ScaledObjectRef"](name="process-email", namespace="taskflux", scalerMetadata=entries)
        self._channel = channel

    async def is_active(self) -> bool:
        return bool((await self._call("IsActive", self._ref, "IsActiveResponse")).result)

    async def metric_spec(self) -> list[tuple[str, float]]:
        answer = await self._call("GetMetricSpec", self._ref, "GetMetricSpecResponse")
        return [(each.metricName, each.targetSizeFloat) for each in answer.metricSpecs]

    async def pods(self) -> float:
        request = OF["GetMetricsRequest"](scaledObjectRef=self._ref, metricName="replicas")
        (value,) = (await self._call("GetMetrics", request, "GetMetricsResponse")).metricValues
        assert value.metricName == "replicas"
        return float(value.metricValueFloat)

    def stream(self) -> Stream:
        """Open StreamIsActive."""
        call = self._channel.unary_stream(
            "/externalscaler.ExternalScaler/StreamIsActive",
            request_serializer=OF["ScaledObjectRef"].SerializeToString,
            response_deserializer=OF["IsActiveResponse"].FromString,
        )
        return Stream(call(self._ref))

    async def _call(self, name: str, request: Any, answer: str) -> Any:
        call = self._channel.unary_unary(
            f"/externalscaler.ExternalScaler/{name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=OF[answer].FromString,
        )
        return await call(request, timeout=20)


class Stream:
    """What StreamIsActive says: each answer with its time."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.said: list[tuple[float, bool]] = []
        self._woken = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for answer in self._call:
            self.said.append((asyncio.get_running_loop().time(), bool(answer.result)))
            if answer.result:
                self._woken.set()

    async def woken(self, within: float) -> float:
        """When `true` came, at most `within` seconds from now."""
        async with asyncio.timeout(within):
            await self._woken.wait()
        return next(at for at, active in self.said if active)

    async def ended(self, within: float) -> grpc.StatusCode:
        """The status with which the server has ended it."""
        async with asyncio.timeout(within):
            with suppress(grpc.aio.AioRpcError):
                await self._reading
            code: grpc.StatusCode = await self._call.code()
            return code

    async def close(self) -> None:
        self._call.cancel()
        await asyncio.wait([self._reading])
        with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            self._reading.result()


@asynccontextmanager
async def channel(port: int, credentials: grpc.ChannelCredentials | None = None) -> AsyncIterator[grpc.aio.Channel]:
    address = f"localhost:{port}"
    made = grpc.aio.secure_channel(address, credentials) if credentials else grpc.aio.insecure_channel(address)
    try:
        yield made
    finally:
        await made.close()
