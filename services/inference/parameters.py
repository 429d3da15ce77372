"""The parameters of a request: Triton's, and ours (pure)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from services.inference import encode
from services.runtime.core.errors import InvalidInput
from services.runtime.core.ids import NAME_CHARS_MAX, checked_name
from services.runtime.state.types import Durability

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from services.inference.wire.infer_pb2 import InferParameter

_UINT64_MAX: Final = 2**64 - 1
_INT64_MAX: Final = 2**63 - 1
_IGNORED_MAX: Final = 8


class Parameters:
    """What the parameters of a request ask for; the attributes of the class are what holds where they say nothing.

    Attributes:
        sequence_id: the name of the sequence; empty: none, the inputs are whole.
        sequence_echo: the parameter as it is sent back.
        start, end: the first, or last, step of the sequence.
        step: its number; None: the next one.
        resume: asks where the sequence stands, and keeps others from going on with it.
        durability: None: the default of the call.
        start_key: tells a repeated start from a new one.
        timeout_us: microseconds until the request is not worth running; 0: for ever.
        committed_step, epoch: what the client was told last, for `resume`.
        ignored: names of parameters that mean nothing here.
    """

    sequence_id: str = ""
    sequence_echo: bytes = b""
    start: bool = False
    end: bool = False
    step: int | None = None
    resume: bool = False
    durability: Durability | None = None
    start_key: str = ""
    timeout_us: int = 0
    committed_step: int | None = None
    epoch: int = 0
    ignored: tuple[str, ...] = ()


def parse_parameters(parameters: Mapping[str, InferParameter]) -> Parameters:
    """Reads the parameters of a request.

    Raises:
        InvalidInput: one has a value of another type or out of its range, or they contradict each other.
    """
    asked = Parameters()
    for name, value in parameters.items():
        read = _READERS.get(name)
        if read is not None:
            read(asked, value)
        elif not name.startswith("triton_") and len(asked.ignored) < _IGNORED_MAX:
            asked.ignored = (*asked.ignored, name[:NAME_CHARS_MAX])
    if not asked.sequence_id:
        _refuse_without_sequence(asked)
    elif asked.resume and (asked.start or asked.end or asked.step is not None):
        raise InvalidInput(_field("resume"), "cannot be with sequence_start, sequence_end or step")
    elif asked.start and asked.step:
        raise InvalidInput(_field("step"), f"the first step of a sequence is 0, not {asked.step}")
    return asked


def _refuse_without_sequence(asked: Parameters) -> None:
    if asked.start or asked.end or asked.resume or asked.step is not None:
        raise InvalidInput(_field("sequence_id"), "is missing, and other parameters speak of a sequence")


def _field(name: str) -> str:
    return f"parameters[{name}]"


def _wrong(name: str, wanted: str) -> InvalidInput:
    return InvalidInput(_field(name), f"must be {wanted}")


def _sequence_id(asked: Parameters, value: InferParameter) -> None:
    kind = value.WhichOneof("parameter_choice")
    if kind == "string_param":
        if value.string_param:
            asked.sequence_id = checked_name(value.string_param, _field("sequence_id"))
            asked.sequence_echo = encode.string_parameter("sequence_id", asked.sequence_id)
        return
    if kind not in ("int64_param", "uint64_param"):
        raise _wrong("sequence_id", "a string or a number that is not negative")
    number = value.int64_param if kind == "int64_param" else value.uint64_param
    if number < 0:
        raise _wrong("sequence_id", "a string or a number that is not negative")
    if number:  # as with Triton 0 is no sequence
        asked.sequence_id = str(number)
        make = encode.int_parameter if kind == "int64_param" else encode.uint_parameter
        asked.sequence_echo = make("sequence_id", number)


def _truth(name: str, value: InferParameter) -> bool:
    truth = value.bool_param
    if not truth and not value.HasField("bool_param"):
        raise _wrong(name, "a bool_param")
    return truth


def _number(name: str, value: InferParameter, largest: int = _INT64_MAX) -> int:
    number = value.uint64_param if value.HasField("uint64_param") else value.int64_param
    if not number and not (value.HasField("int64_param") or value.HasField("uint64_param")):
        raise _wrong(name, "an int64_param")
    if not 0 <= number <= largest:
        raise _wrong(name, f"in 0 to {largest}")
    return number


def _text(name: str, value: InferParameter) -> str:
    if not value.HasField("string_param"):
        raise _wrong(name, "a string_param")
    return value.string_param


def _start(asked: Parameters, value: InferParameter) -> None:
    asked.start = _truth("sequence_start", value)


def _end(asked: Parameters, value: InferParameter) -> None:
    asked.end = _truth("sequence_end", value)


def _step(asked: Parameters, value: InferParameter) -> None:
    asked.step = _number("step", value)


def _resume(asked: Parameters, value: InferParameter) -> None:
    asked.resume = _truth("resume", value)


def _durability(asked: Parameters, value: InferParameter) -> None:
    name = _text("durability", value)
    if name not in Durability.__members__:
        raise _wrong("durability", f"one of {', '.join(Durability.__members__)}")
    asked.durability = Durability[name]


def _start_key(asked: Parameters, value: InferParameter) -> None:
    key = _text("start_key", value)
    asked.start_key = checked_name(key, _field("start_key")) if key else ""


def _timeout(asked: Parameters, value: InferParameter) -> None:
    asked.timeout_us = _number("timeout", value)


def _priority(_: Parameters, value: InferParameter) -> None:
    # Models here have no levels of priority, as most of Triton's: who is due first runs first.
    _number("priority", value, _UINT64_MAX)


def _committed_step(asked: Parameters, value: InferParameter) -> None:
    asked.committed_step = _number("committed_step", value)


def _epoch(asked: Parameters, value: InferParameter) -> None:
    asked.epoch = _number("epoch", value)


_READERS: dict[str, Callable[[Parameters, InferParameter], None]] = {
    "sequence_id": _sequence_id,
    "sequence_start": _start,
    "sequence_end": _end,
    "priority": _priority,
    "timeout": _timeout,
    "step": _step,
    "resume": _resume,
    "durability": _durability,
    "start_key": _start_key,
    "committed_step": _committed_step,
    "epoch": _epoch,
}
