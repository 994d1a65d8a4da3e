"""grpc.health.v1 and server reflection: grpclib's services, whose messages are google's."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from grpclib.health.check import ServiceStatus
from grpclib.health.service import Health
from grpclib.health.v1 import health_pb2
from grpclib.reflection.service import ServerReflection

from proglog import wire
from proglog.rpc.calls import Service

_DESCRIPTORS = FileDescriptorSet.FromString(
    importlib.resources.files("proglog._generated").joinpath("log_v1.fds").read_bytes()
)


class ServerCodec(wire.Codec):
    """Our messages, and google's."""

    def parts(self, message: Any, message_type: Any) -> wire.Parts:
        if isinstance(message, Message):
            return (message.SerializeToString(),)
        return super().parts(message, message_type)

    def decode(self, data: Any, message_type: Any) -> Any:
        if not issubclass(message_type, Message):
            return super().decode(data, message_type)
        try:
            return message_type.FromString(bytes(data))
        except DecodeError as error:
            raise wire.BadMessage(str(error)) from None


def with_health_and_reflection(
    services: Sequence[Service], status: ServiceStatus
) -> Sequence[Service]:
    """The services, the health of the first by its name and by "", and reflection of them all."""
    served: list[Any] = [*services, Health({services[0]: [status]})]
    pool = DescriptorPool()
    for file in _DESCRIPTORS.file:
        pool.Add(file)
    pool.Add(FileDescriptorProto.FromString(health_pb2.DESCRIPTOR.serialized_pb))
    return ServerReflection.extend(served, pool=pool)
