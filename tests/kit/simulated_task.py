"""The toy as a task of its own: its messages, its step on the server, its wire in the client, and what it must answer.

A reply holds the running sum, which the toy network computes, and a chain: a digest of all that the sequence was fed,
which the task's own carry holds. Two replies are of the same history exactly if their chains are equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from statestream._status import to_error
from statestream._types import ReplyHeader, reply_header
from statestream.common.v1 import sequence_pb2

from services.runtime.core.errors import InvalidInput
from services.runtime.state.types import Carry
from services.runtime.transport import header as server_header
from services.runtime.transport.stream import SequenceTask
from tests.kit.simulated_status import rpc_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from statestream.errors import StatestreamError

    from tests.kit.simulated_calls import Channel

MODEL = "toy"
METHOD = "/tests.toy.ToyService/Stream"
PADDING_BYTES = 400
"""How much longer a long reply is."""


def _messages() -> dict[str, Any]:
    """Request and reply, laid out as those of a task are: configuration and piece, header and result."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="tests/toy.proto",
        package="tests.toy",
        syntax="proto3",
        dependency=[sequence_pb2.DESCRIPTOR.name],  # pyright: ignore[reportAttributeAccessIssue]
    )
    common = ".statestream.common.v1."
    layout: dict[str, list[tuple[str, int, str | None]]] = {
        "Piece": [("control", field.TYPE_MESSAGE, common + "StepControl"), ("values", field.TYPE_BYTES, None)],
        "Request": [
            ("config", field.TYPE_MESSAGE, common + "SequenceConfig"),
            ("piece", field.TYPE_MESSAGE, ".tests.toy.Piece"),
        ],
        "Reply": [
            ("header", field.TYPE_MESSAGE, common + "ReplyHeader"),
            ("sum", field.TYPE_FLOAT, None),
            ("chain", field.TYPE_BYTES, None),
            ("padding", field.TYPE_BYTES, None),
        ],
    }
    for name, fields in layout.items():
        message = file.message_type.add(name=name)
        for number, (label, kind, type_name) in enumerate(fields, 1):
            message.field.add(name=label, number=number, type=kind, type_name=type_name, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.Default()
    described = pool.AddSerializedFile(file.SerializeToString())
    found: Any = described or pool.FindFileByName(file.name)
    return {name: message_factory.GetMessageClass(found.message_types_by_name[name]) for name in layout}


_CLASSES = _messages()
Request, Reply = _CLASSES["Request"], _CLASSES["Reply"]


class Piece(NamedTuple):
    """What one step reads: some float32 numbers; none only where the step ends the sequence."""

    values: bytes
    end: bool


class Link(NamedTuple):
    """One applied step: the chain before it (empty at the start), and what made it."""

    before: bytes
    sequence_id: str
    step: int
    version: str
    piece: Piece

    def chain(self) -> bytes:
        """The chain after the step."""
        digest = blake2b(self.before, digest_size=8)
        digest.update(f"{self.sequence_id}|{self.step}|{self.version}|{self.piece.end}|".encode())
        digest.update(self.piece.values)
        return digest.digest()


def is_long(piece: Piece) -> bool:
    """True where the reply to the piece is a long one."""
    return len(piece.values) == 4 * 5


def toy_task(derived: Callable[[Link], None], version_of: Callable[[Any], str]) -> SequenceTask[Any, Piece]:
    """The task; `derived` hears of every step that is computed, `version_of` tells a served model's version."""

    def fold(piece: Piece, deadline: float | None) -> Any:
        async def step(context: Any, carry: Carry) -> tuple[bytes, Carry]:
            state, total = carry.tensors, float(carry.tensors[0][0, 0])
            if piece.values:
                values = np.frombuffer(piece.values, np.float32)
                result = await context.model.batcher.step((values,), state, deadline=deadline)
                state, total = result.state, float(result.outputs[1][0])
            link = Link(carry.task, context.sequence_id, context.position.step, version_of(context.model), piece)
            derived(link)
            chain = link.chain()
            padding = b"p" * PADDING_BYTES if is_long(piece) else b""
            reply = Reply(header=server_header.reply_header(context), sum=total, chain=chain, padding=padding)
            return reply.SerializeToString(), Carry(state, chain)

        return step

    def parse(request: Any) -> tuple[Piece, bytes]:
        piece = Piece(request.piece.values, request.piece.control.end)
        if not piece.values and not piece.end:
            raise InvalidInput("piece.values", "is empty")
        return piece, piece.values

    return SequenceTask(
        model=MODEL,
        config_of=lambda request: request.config if request.HasField("config") else None,
        control_of=lambda request: request.piece.control if request.HasField("piece") else None,
        parse=parse,
        closing=(Piece(b"", end=True), b""),
        opening=lambda header: Reply(header=header).SerializeToString(),
        fold=fold,
    )


@dataclass(frozen=True, slots=True)
class ToyUpdate:
    """A reply as a client sees it."""

    header: ReplyHeader
    total: float
    chain: bytes
    padding: int


class ToyWire:
    """The messages of the toy, for the client's stream.

    `hears` is told of each response with its stream's configuration, `ends` of the status of each call.
    """

    def __init__(
        self, channel: Channel, hears: Callable[[Any, Any], None], ends: Callable[[StatestreamError], None]
    ) -> None:
        self._call = channel.stream_stream(METHOD, Request.SerializeToString, self._parse)
        self._hears = hears
        self._ends = ends
        self._config: Any = None

    def open(self) -> Any:
        call = self._call()
        call.add_done_callback(self._over)
        return call

    def config(self, config: sequence_pb2.SequenceConfig) -> Any:
        self._config = config
        return Request(config=config)

    def piece(self, piece: bytes | None, control: sequence_pb2.StepControl) -> Any:
        return Request(piece={"control": control, "values": piece or b""})

    def header(self, response: Any) -> sequence_pb2.ReplyHeader:
        return response.header

    def update(self, response: Any) -> ToyUpdate:
        return ToyUpdate(reply_header(response.header), response.sum, response.chain, len(response.padding))

    def _over(self, call: Any) -> None:
        if not call.good:
            self._ends(to_error(rpc_error(call.status)))

    def _parse(self, data: bytes) -> Any:
        response = Reply.FromString(data)
        self._hears(self._config, response)
        return response
