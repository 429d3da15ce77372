"""The pool that the messages of the Open Inference Protocol live in.

Triton's client puts messages of the same names into protobuf's default pool, and a pool takes a name once: a process
that has both the client and a server could not start. So these are built from a descriptor set, which `make gen`
writes, in a pool that nobody else has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.internal import enum_type_wrapper


def _filled() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    data = (Path(__file__).parent / "inference.binpb").read_bytes()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


POOL = _filled()


def publish(proto: str, module: dict[str, Any]) -> None:
    """Puts the messages and enumerations of a proto into a module, whose types its stub tells."""
    file = POOL.FindFileByName(proto)
    for name, message in file.message_types_by_name.items():
        module[name] = message_factory.GetMessageClass(message)
    for name, enum in file.enum_types_by_name.items():
        module[name] = enum_type_wrapper.EnumTypeWrapper(enum)
        module.update((value.name, value.number) for value in enum.values)
