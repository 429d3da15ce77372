"""Requests of the Open Inference Protocol as what they ask for, and what is added to a reply for its request (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from services.inference import encode
from services.inference.datatypes import known, raw_bytes
from services.inference.limits import LAYOUTS_MAX
from services.inference.parameters import parse_parameters
from services.inference.tensors import RANK_MAX, head_of
from services.inference.wire.infer_pb2 import ModelInferRequest
from services.runtime.core.errors import InvalidInput
from services.runtime.sequences.decide import tensor_digest, tensor_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from services.inference.parameters import Parameters
    from services.inference.tensors import Head, TensorHead

CARRY_TAG = b"raw"
"""Task part of the carry of every sequence of raw tensors: the state is all there is."""

_REMEMBERED_BYTES_MAX = 2048
"""A request with more than this before its elements is parsed each time."""

_BEFORE_ID = (b"\x0a", b"\x12")
"""Tags of model_name and model_version."""

RAW_FIELD, _TYPED_FIELD = "raw_input_contents[{}]", "inputs[{}].contents"
"""Where the elements of a tensor stand in a request, for errors."""


def owns(task: bytes) -> bool:
    """True for the task part of a sequence that was begun with raw tensors."""
    return task == CARRY_TAG


class Ask:
    """A request, read: what it wants, whose tensors mean what they say to any model.

    Attributes:
        model_name, model_version: as sent.
        id: of the request, as bytes.
        parameters: see there.
        head: names, types and shapes of the tensors.
        blobs: the elements of each input, as raw bytes.
        field: what held them, with braces for the index.
        echo: what a reply repeats of its request: fields to be joined to it.
    """

    __slots__ = ("_tail", "blobs", "echo", "field", "head", "id", "model_name", "model_version", "parameters")

    def __init__(
        self,
        model_name: str,
        model_version: str,
        request_id: bytes,
        parameters: Parameters,
        head: Head,
        blobs: Sequence[bytes],
        tail: bytes,
        field: str = RAW_FIELD,
    ) -> None:
        self.model_name = model_name
        self.model_version = model_version
        self.id = request_id
        self.parameters = parameters
        self.head = head
        self.blobs = blobs
        self.field = field
        self._tail = tail
        self.echo = tail + encode.delimited(encode.ID, request_id) if request_id else tail

    def again(self, request_id: bytes, blobs: Sequence[bytes]) -> Ask:
        """The same request with another id and other elements."""
        return Ask(self.model_name, self.model_version, request_id, self.parameters, self.head, blobs, self._tail)

    def digest(self) -> bytes:
        """What makes two requests for a step the same; the `id` counts where the step has no number."""
        parameters = self.parameters
        key = self.id if parameters.step is None else b""
        if not key and not (parameters.start and parameters.start_key):
            return tensor_digest(self.head.hashes[parameters.end], self.blobs)
        begun = tensor_hash(
            self.head.digest,
            start=parameters.start,
            end=parameters.end,
            start_key=parameters.start_key if parameters.start else "",
            key=key,
        )
        return tensor_digest(begun, self.blobs)


class Reader:
    """Reads the requests of a stream. One that differs from an earlier one in its id and elements only is not parsed.

    Most clients send such requests: what comes before the elements, which stand at the end, is the same bytes.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, Ask] = {}  # bounded by LAYOUTS_MAX
        self._size_bytes = 0

    def read(self, data: bytes) -> Ask:
        """What a `ModelInferRequest` asks for.

        Raises:
            InvalidInput: naming the field.
        """
        size_bytes = self._size_bytes
        if not size_bytes:
            return self._parse(data)
        ask = self._known.get(data[:-size_bytes])  # which holds an id only where `data` is of none that is known
        if ask is not None:
            return ask.again(b"", (data[-size_bytes:],))
        before, request_id, after = _split(data)
        ask = self._known.get(before + after[:-size_bytes]) if request_id else None
        return self._parse(data) if ask is None else ask.again(request_id, (after[-size_bytes:],))

    def _parse(self, data: bytes) -> Ask:
        try:
            request = ModelInferRequest.FromString(data)
        except DecodeError:
            raise InvalidInput("request", "is not a ModelInferRequest, or holds text that is not UTF-8") from None
        ask = parse_request(request)
        if len(request.raw_input_contents) == 1 and request.raw_input_contents[0]:
            self._remember(data, ask)
        return ask

    def _remember(self, data: bytes, ask: Ask) -> None:
        blob = ask.blobs[0]
        before, request_id, after = _split(data)
        if request_id != ask.id or not after.endswith(encode.delimited_head(7, len(blob)) + blob):
            return  # written in another order; it is parsed each time
        rest = before + after[: -len(blob)]
        if len(rest) > _REMEMBERED_BYTES_MAX or ModelInferRequest.FromString(before + after).id:
            return
        if len(self._known) >= LAYOUTS_MAX or len(blob) != self._size_bytes:
            self._known.clear()
        self._size_bytes = len(blob)
        self._known[rest] = ask


def _split(data: bytes) -> tuple[bytes, bytes, bytes]:
    """What comes before the id of a request, the id and what comes after, where it stands as most clients write it."""
    at = 0
    for tag in _BEFORE_ID:
        if data.startswith(tag, at):
            length = data[at + 1 : at + 2]
            if not length.isascii():  # of two bytes or more
                return b"", b"", data
            at += 2 + sum(length)
    length = data[at + 1 : at + 2]
    if not data.startswith(b"\x1a", at) or not length.isascii():
        return data[:at], b"", data[at:]
    end = at + 2 + sum(length)
    request_id = data[at + 2 : end]
    return (data[:at], request_id, data[end:]) if request_id.isascii() else (b"", b"", data)


def parse_request(request: ModelInferRequest) -> Ask:
    """Reads a request, without asking what its model takes.

    Raises:
        InvalidInput: naming the field.
    """
    name = request.model_name
    if not name:
        raise InvalidInput("model_name", "is empty")
    inputs: tuple[TensorHead, ...] = tuple(
        (tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in request.inputs
    )
    raw = request.raw_input_contents
    blobs, field = (list(raw), RAW_FIELD) if len(raw) == len(inputs) else (_typed(request), _TYPED_FIELD)
    for i, (_, _, shape) in enumerate(inputs):
        if len(shape) > RANK_MAX:
            raise InvalidInput(f"inputs[{i}].shape", f"has more than {RANK_MAX} dimensions")
    outputs = _outputs(request) if len(request.outputs) else ()
    parameters, head = parse_parameters(request.parameters), head_of(inputs, outputs)
    return Ask(name, request.model_version, request.id.encode(), parameters, head, blobs, _echo(parameters), field)


def _echo(parameters: Parameters) -> bytes:
    echo = parameters.sequence_echo
    if parameters.start:
        echo += encode.START
    if parameters.end:
        echo += encode.END
    if parameters.ignored:
        echo += encode.string_parameter("ignored_parameters", ",".join(parameters.ignored))
    return echo


def _typed(request: ModelInferRequest) -> list[bytes]:
    """The elements of inputs that have typed contents."""
    for i, tensor in enumerate(request.inputs):
        if "shared_memory_region" in tensor.parameters:
            raise InvalidInput(f"inputs[{i}].parameters[shared_memory_region]", "shared memory is not supported")
    if len(request.raw_input_contents):
        counts = f"{len(request.raw_input_contents)} entries for {len(request.inputs)} inputs"
        raise InvalidInput("raw_input_contents", f"has {counts}: it has all of them or none")
    return [
        raw_bytes(known(tensor.datatype, f"inputs[{i}].datatype"), tensor.contents, f"inputs[{i}].contents")
        for i, tensor in enumerate(request.inputs)
    ]


def _outputs(request: ModelInferRequest) -> tuple[str, ...]:
    names: list[str] = []
    for i, tensor in enumerate(request.outputs):
        for parameter in tensor.parameters:
            if parameter.startswith("shared_memory") or parameter == "classification":
                raise InvalidInput(f"outputs[{i}].parameters[{parameter}]", "is not supported; outputs come as tensors")
        names.append(tensor.name)
    return tuple(names)
