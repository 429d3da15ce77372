"""A load generator for `ModelStreamInfer` that costs little: many streams, one message at a time on each.

It speaks HTTP/2 by itself, with messages that were encoded beforehand: a client library takes more of the processors
than the server that it is to measure. Run in a process of its own; tells what it saw as JSON on standard output.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import struct
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from services.inference.wire import infer_pb2 as pb
from services.runtime.rpc import frames, headers

if TYPE_CHECKING:
    from collections.abc import Sequence

PATH = "/inference.GRPCInferenceService/ModelStreamInfer"
MESSAGES = 16
"""Different messages of a sequence, sent in turn."""
FEATURES = 80
WINDOW = 2**30
RENEW_BYTES = 2**28
READ_BYTES = 2**20
INFER_RESPONSE = 0x12
"""First byte of a reply that is no error: the tag of `infer_response`."""


def inputs(number: int, timesteps: int) -> np.ndarray:
    """What sequence `number` sends: (MESSAGES, T, FEATURES) of float32."""
    return np.random.default_rng(number).standard_normal((MESSAGES, timesteps, FEATURES), dtype=np.float32)


def requests(model: str, number: int, timesteps: int, run: int, durability: str) -> tuple[bytes, list[bytes]]:
    """The serialised message that starts sequence `number`, and those that follow in turn (the first among them)."""

    def one(array: np.ndarray, *, start: bool) -> bytes:
        message = pb.ModelInferRequest(model_name=model)
        message.parameters["sequence_id"].int64_param = run << 16 | number + 1
        if start:
            message.parameters["sequence_start"].bool_param = True
            if durability:
                message.parameters["durability"].string_param = durability
        message.inputs.add(name="x", datatype="FP32", shape=[timesteps, FEATURES])
        message.raw_input_contents.append(array.tobytes())
        return message.SerializeToString()

    arrays = inputs(number, timesteps)
    return one(arrays[0], start=True), [one(array, start=False) for array in arrays]


@dataclass(slots=True)
class Stream:
    """One call with one sequence on it: `first` and then `following` in turn, framed."""

    first: bytes
    following: list[bytes]
    sent: int = 0
    sent_at: float = 0.0
    missing: int = 0
    """Bytes of the reply that have not come yet."""
    replies: list[bytes] | None = None
    """Kept replies, of one stream only: they are compared with what the network gives alone."""

    def next(self, now: float) -> bytes:
        """The next message, as it goes out."""
        self.sent_at = now
        framed = self.following[self.sent % MESSAGES] if self.sent else self.first
        self.sent += 1
        return framed


@dataclass(slots=True)
class Load:
    """What is measured, from `began` to `until`."""

    began: float
    until: float
    latencies: list[float] = field(default_factory=list)
    taken: int = 0


class Connection:
    """One socket with some of the streams."""

    def __init__(self, port: int, load: Load) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.streams: dict[int, Stream] = {}
        self._load = load
        self._rest = b""
        self._received = 0
        opening: dict[int, int] = {frames.Setting.INITIAL_WINDOW_SIZE: WINDOW, frames.Setting.MAX_FRAME_SIZE: 2**20}
        self._out = [frames.PREFACE, frames.settings(opening), frames.window_update(0, WINDOW)]

    def open(self, first: bytes, following: Sequence[bytes]) -> Stream:
        """Begins a call; its first message goes out with the next `flush`."""
        stream_id = 2 * len(self.streams) + 1
        stream = Stream(frames.message(stream_id, first), [frames.message(stream_id, each) for each in following])
        self.streams[stream_id] = stream
        self._out.append(frames.headers(stream_id, headers.request(PATH, "bench"), end_stream=False))
        self._out.append(stream.next(time.perf_counter()))
        return stream

    def flush(self) -> None:
        """Sends what is due, in one piece."""
        if self._out:
            self.socket.sendall(b"".join(self._out))
            self._out.clear()

    def read(self) -> None:
        """Takes what has come; each reply is followed by the next message of its stream."""
        data = self.socket.recv(READ_BYTES)
        if not data:
            raise ConnectionError("the server has gone")
        found, self._rest = frames.split(self._rest + data)
        now = time.perf_counter()
        for kind, flags, stream_id, payload in found:
            if not kind:
                self._data(stream_id, payload, now)
            elif kind == frames.Kind.HEADERS and flags & frames.END_STREAM:
                raise ConnectionError(f"a call has ended: {payload!r}")
            elif kind == frames.Kind.SETTINGS and not flags & frames.ACK:
                self._out.append(frames.SETTINGS_ACK)
            elif kind == frames.Kind.PING and not flags & frames.ACK:
                self._out.append(frames.ping(payload, ack=True))
            elif kind == frames.Kind.GOAWAY:
                raise ConnectionError(f"the server goes: {payload!r}")
        if self._received > RENEW_BYTES:
            self._out.append(frames.window_update(0, self._received))
            self._received = 0

    def _data(self, stream_id: int, payload: bytes, now: float) -> None:
        stream, load = self.streams[stream_id], self._load
        self._received += len(payload)
        if not stream.missing:
            (stream.missing,) = struct.unpack_from(">L", payload, 1)
            stream.missing += frames.PREFIX_BYTES
            if payload[frames.PREFIX_BYTES] != INFER_RESPONSE:
                raise ConnectionError(f"an error: {payload!r}")
        stream.missing -= len(payload)
        if stream.replies is not None and len(stream.replies) < MESSAGES:
            stream.replies.append(payload)
        if stream.missing:
            return
        if stream.sent_at >= load.began:
            load.latencies.append(now - stream.sent_at)
        load.taken += 1
        if now < load.until:
            self._out.append(stream.next(now))


def drive(arguments: argparse.Namespace) -> dict[str, float | str]:
    """Drives the server and tells what came of it."""
    cpu, began_at = time.process_time(), time.perf_counter()
    began = began_at + arguments.warm
    load = Load(began, began + arguments.seconds)
    connections = [Connection(arguments.port, load) for _ in range(min(arguments.connections, arguments.sequences))]
    run = time.time_ns() // 1_000_000
    streams: list[Stream] = []
    for number in range(arguments.sequences):
        first, following = requests(arguments.model, number, arguments.timesteps, run, arguments.durability)
        streams.append(connections[number % len(connections)].open(first, following))
    streams[0].replies = []
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            connection.flush()
        while load.taken < sum(stream.sent for stream in streams):
            for key, _ in selector.select():
                key.data.read()
                key.data.flush()
    latencies = sorted(load.latencies)
    return {
        "taken": load.taken,
        "per_s": len(latencies) / arguments.seconds,
        "p50_ms": latencies[len(latencies) // 2] * 1e3,
        "p99_ms": latencies[int(len(latencies) * 0.99)] * 1e3,
        "driven_s": time.perf_counter() - began_at,
        "cpu_s": time.process_time() - cpu,
        "replies": b"".join(streams[0].replies).hex(),
    }


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("sequences", type=int)
    parser.add_argument("timesteps", type=int)
    parser.add_argument("--model", default="lstm")
    parser.add_argument("--durability", default="")
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--warm", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=2.0)
    print(json.dumps(drive(parser.parse_args())))


if __name__ == "__main__":
    main()
