"""Records for tests: made up, compared bit by bit, generated."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from services.runtime.core.ids import ModelId, SequenceName, new_sequence_id
from services.runtime.state.types import Carry, Durability, Position, Record, StoredReply, Terms

MODEL = ModelId("sentiment", "1.0.0", "5e" * 32)

TERMS = Terms(idle_ms=60_000, lifetime_ms=3_600_000, retention_ms=300_000)

POSITION_MAX = 2**64 - 1


def a_name(sequence_id: str | None = None) -> SequenceName:
    """A sequence that no other test uses."""
    return SequenceName("tests", "sentiment", sequence_id or new_sequence_id())


def a_record(step: int = 1, epoch: int = 1, *, fill: float = 0.0, ended: bool = False, width: int = 4) -> Record:
    """A record at `(epoch, step)`, its state filled with `fill`."""
    tensors = tuple(np.full((2, width), fill + index, np.float32) for index in range(2))
    return Record(
        Position(epoch, step),
        MODEL,
        Durability.STEP,
        None if ended else Carry(tensors, f"task {fill}".encode()),
        tuple(StoredReply(number, bytes([number % 256]) * 16, b"reply") for number in range(max(step - 2, 0), step)),
    )


def is_same(one: Record, other: Record) -> bool:
    """True if they are equal to the last bit, types and shapes of their tensors included."""
    return _comparable(one) == _comparable(other)


def _comparable(record: Record) -> object:
    kept = [_bits(carry) for carry in (record.carry, record.previous)]
    return record.position, record.model, record.durability, kept, record.replies, record.history


def _bits(carry: Carry | None) -> object:
    if carry is None:
        return None
    return [(str(tensor.dtype), tensor.shape, tensor.tobytes()) for tensor in carry.tensors], carry.task


_DTYPES = ["f4", "f8", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?"]
_TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@st.composite
def _tensors(draw: st.DrawFn) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    dtype = np.dtype(draw(st.sampled_from(_DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    count = int(np.prod(shape))
    if dtype.kind == "b":
        raw = bytes(draw(st.lists(st.integers(0, 1), min_size=count, max_size=count)))
    else:  # any bits: NaNs of every kind, infinities, denormal numbers
        raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    return np.frombuffer(raw, dtype, count).reshape(shape) if count else np.zeros(shape, dtype)


@st.composite
def records(draw: st.DrawFn) -> Record:
    """Any record that the format has a place for."""
    numbers = st.integers(0, POSITION_MAX)
    carry = st.builds(Carry, st.lists(_tensors(), max_size=4).map(tuple), st.binary(max_size=50))
    replies = st.builds(StoredReply, numbers, st.binary(max_size=40), st.binary(max_size=60))
    return Record(
        Position(draw(numbers), draw(numbers)),
        ModelId(draw(_TEXTS), draw(_TEXTS), draw(_TEXTS)),
        draw(st.sampled_from(Durability)),
        draw(st.none() | carry),
        tuple(draw(st.lists(replies, max_size=5))),
        draw(st.just(b"") | st.binary(min_size=16, max_size=16)),
        draw(st.none() | carry),
    )


names = st.builds(SequenceName, _TEXTS, _TEXTS, _TEXTS)
"""Any name, also such as no caller could use."""
