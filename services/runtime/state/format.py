"""Record to bytes and back: the form in which sequences are stored, exported and moved.

All numbers are little-endian; `|` marks a multiple of 8 bytes from the start, filled up with zeros.

    magic "STRC", format version u16, flags u8, durability u8, epoch u64, step u64,
    lengths: model u16, shapes u16, count of replies u16, oldest reader u16, task u32, additions u32
    | model: length u16 and UTF-8 of name, version, weights digest
    | shapes: per tensor dtype code u8, rank u8, dims u32 each
    | tensors: the elements of each in C order, each filled up to |
    task carry
    per reply: step u64, length of digest u32, length of reply u32; then digest and reply of each
    additions: kind u16, zero u16, length u32, and so many bytes each
        1: history digest
        2: previous carry: length of shapes u16, zero u16, length of task u32, shapes, tensors, task
    seal, 16 bytes

Version 1 had no additions (both of its fields for them are zero) and no durability 3. A reader takes every version
whose `oldest reader` is not above its own, and leaves out additions of a kind that it does not know: so the next
release can add to a record while this one still runs. `RecordFormat(write=1)` writes what the one before this reads.

The seal is BLAKE2b over the name of the sequence and all bytes before the seal. CRC-32 would let one damaged
record in four thousand million pass and can be made to fit by anybody; 128 bits of BLAKE2b cost about 1 us per KB, no
more than other strong sums, and with a key the same pass is a signature. The name is under the seal but not in
the record: a record copied to another sequence or tenant is refused.
"""

from __future__ import annotations

import hmac
import math
import struct
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from services.runtime.core.errors import StateCorrupt
from services.runtime.core.ids import ModelId
from services.runtime.state.types import Carry, Durability, Position, Record, StoredReply

if TYPE_CHECKING:
    import numpy.typing as npt

    from services.runtime.core.ids import SequenceName

FORMAT_VERSION: Final = 2

_MAGIC: Final = b"STRC"
_HEADER: Final = struct.Struct("<4sHBBQQHHHHII")
_REPLY: Final = struct.Struct("<QII")
_ADDITION: Final = struct.Struct("<HHI")
_PREVIOUS: Final = struct.Struct("<HHI")
_MODEL: Final = struct.Struct("<HHH")
_SEAL_BYTES: Final = 16
_ALIGN: Final = 8
_RANK_MAX: Final = 8

_ENDED: Final = 1
_SIGNED: Final = 2

# Kinds of additions, part of the format: add, never change.
_HISTORY: Final = 1
_PREVIOUS_CARRY: Final = 2

_HISTORY_BYTES: Final = 16

# The codes are part of the format: add, never change.
_DTYPES: Final = {
    code: np.dtype(name)
    for code, name in {
        1: "<f4",
        2: "<f8",
        3: "<f2",
        4: "<i8",
        5: "<i4",
        6: "<i2",
        7: "i1",
        8: "<u8",
        9: "<u4",
        10: "<u2",
        11: "u1",
        12: "?",
    }.items()
}
_CODES: Final = {dtype: code for code, dtype in _DTYPES.items()}
_DURABILITIES: Final = {int(durability): durability for durability in Durability}


class _Layout(NamedTuple):
    """Where one tensor lies, counted from the first one."""

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    offset: int
    end: int


class RecordFormat:
    """Writes and reads records; with a key it signs them and takes only signed ones.

    Records signed with another key are refused, but for `key_before`, the one that this key takes the place of. `write`
    is the version to write; in version 1 a record has neither history nor previous carry, and durability STEP for
    CHECKPOINT.
    """

    def __init__(
        self, key: bytes | None = None, *, key_before: bytes | None = None, write: int = FORMAT_VERSION
    ) -> None:
        if write not in (1, FORMAT_VERSION):
            raise ValueError(f"format version {write} cannot be written")
        self._write = write
        if key is None and key_before is not None:
            raise ValueError("records cannot go back to being unsigned")
        self._flag = 0 if key is None else _SIGNED
        self._seal = _unfed_seal(key)
        self._seal_before = None if key_before is None else _unfed_seal(key_before)

    def encode(self, name: SequenceName, record: Record) -> bytes:
        """The bytes of `record`, sealed for `name`.

        Raises:
            ValueError: it holds what the format has no place for; exporting a model has to prevent that.
        """
        carry = record.carry
        tensors, task = ((), b"") if carry is None else carry
        model = _model_block(record.model)
        shapes, state = _tensors_block(tensors)
        replies = record.replies
        additions = b"" if self._write == 1 else _additions_block(record)
        try:
            header = _HEADER.pack(
                _MAGIC,
                self._write,
                self._flag | (_ENDED if carry is None else 0),
                self._durability(record.durability),
                *record.position,
                len(model),
                len(shapes),
                len(replies),
                0 if self._write == 1 else FORMAT_VERSION,
                len(task),
                len(additions),
            )
            parts = [header, model, shapes, *state, task]
            parts.extend([_REPLY.pack(step, len(digest), len(reply)) for step, digest, reply in replies])
        except struct.error as error:
            raise ValueError(f"a record that cannot be written: {error}") from None
        for _, digest, reply in replies:
            parts.append(digest)
            parts.append(reply)
        parts.append(additions)
        body = b"".join(parts)
        return body + _sealed(self._seal, name, body)

    def _durability(self, durability: Durability) -> int:
        return Durability.STEP if self._write == 1 and durability is Durability.CHECKPOINT else durability

    def decode(self, name: SequenceName, data: bytes) -> Record:
        """The record in `data`, which must have been written for `name`. Its tensors are read-only views of `data`.

        Raises:
            StateCorrupt: damaged, cut, forged, of another sequence, or of a format that is not known here.
        """
        if len(data) < _HEADER.size + _SEAL_BYTES or not data.startswith(_MAGIC):
            raise StateCorrupt("the stored record is not one of ours, or is cut short")
        header: tuple[bytes, int, int, int, int, int, int, int, int, int, int, int] = _HEADER.unpack_from(data)
        version, flags, oldest_reader = header[1], header[2], header[9] or header[1]
        if not 1 <= oldest_reader <= FORMAT_VERSION:
            # Another version may seal in another way, so this stands before the check of the seal.
            raise StateCorrupt(f"the stored record has format version {version}; this server reads {FORMAT_VERSION}")
        if flags & ~_ENDED != self._flag:
            told = "signed, and no key is configured" if flags & _SIGNED else "not signed, and a key is configured"
            raise StateCorrupt(f"the stored record is {told}, or it is damaged")
        body = memoryview(data)[:-_SEAL_BYTES]
        if not self._is_sealed(name, body, data[-_SEAL_BYTES:]):
            raise StateCorrupt(
                "the stored record fails its checksum, or was written with another key or for another name"
            )
        try:
            return _parsed(data, header)
        except (struct.error, ValueError, OverflowError) as error:
            # Sealed and yet wrong: only somebody who makes seals, or a fault of ours, gets here.
            raise StateCorrupt(f"the stored record contradicts itself: {error}") from None

    def _is_sealed(self, name: SequenceName, body: memoryview, seal: bytes) -> bool:
        if hmac.compare_digest(_sealed(self._seal, name, body), seal):
            return True
        before = self._seal_before
        return before is not None and hmac.compare_digest(_sealed(before, name, body), seal)


def _unfed_seal(key: bytes | None) -> blake2b:
    if key is None:
        return blake2b(digest_size=_SEAL_BYTES, person=b"statestream-sum")
    if not key:
        raise ValueError("the key that signs records is empty")
    # A secret of any length becomes one of the 64 bytes that BLAKE2b takes.
    secret = blake2b(key, digest_size=64, person=b"statestream-key").digest()
    return blake2b(digest_size=_SEAL_BYTES, key=secret, person=b"statestream-mac")


def _sealed(unfed: blake2b, name: SequenceName, body: bytes | memoryview) -> bytes:
    tenant, model, sequence_id = name
    seal = unfed.copy()
    # The lengths keep (a, bc) apart from (ab, c).
    seal.update(f"{len(tenant)},{len(model)},{len(sequence_id)};{tenant}{model}{sequence_id}".encode())
    seal.update(body)
    return seal.digest()


def _parsed(data: bytes, header: tuple[bytes, int, int, int, int, int, int, int, int, int, int, int]) -> Record:
    """The record behind `header`. The lengths must add up to what is there, so no single one can lie."""
    _, version, flags, durability, epoch, step, model_bytes, shapes_bytes, reply_count, reader, task_bytes, added = (
        header
    )
    if durability not in _DURABILITIES or (version == 1 and (reader or added)):
        raise ValueError("impossible header")
    end = len(data) - _SEAL_BYTES - added
    shapes_at = _HEADER.size + model_bytes
    tensors_at = shapes_at + shapes_bytes
    layouts = _layouts(data[shapes_at:tensors_at])
    task_at = tensors_at + (layouts[-1].end if layouts else 0)
    heads_at = task_at + task_bytes
    at = heads_at + reply_count * _REPLY.size
    model = _model(data[_HEADER.size : shapes_at])
    replies: list[StoredReply] = []
    for reply_step, digest_bytes, reply_bytes in _REPLY.iter_unpack(data[heads_at:at]):
        middle = at + digest_bytes
        until = middle + reply_bytes
        replies.append(StoredReply(reply_step, data[at:middle], data[middle:until]))
        at = until
    if at != end:
        raise ValueError("lengths do not add up")
    carry = None
    if not flags & _ENDED:
        tensors = tuple([_tensor(data, tensors_at, layout) for layout in layouts])
        carry = Carry(tensors, data[task_at:heads_at])
    elif task_at != tensors_at or task_bytes:
        raise ValueError("ended, and yet with a carry")
    history, previous = _added(data, end, end + added)
    return Record(Position(epoch, step), model, _DURABILITIES[durability], carry, tuple(replies), history, previous)


def _added(data: bytes, at: int, end: int) -> tuple[bytes, Carry | None]:
    """History and previous carry out of the additions between `at` and `end`; those of another kind are left out."""
    history, previous = b"", None
    while at < end:
        kind, _, length = _ADDITION.unpack_from(data, at)
        at += _ADDITION.size
        if at + length > end:
            raise ValueError("an addition is longer than the record")
        if kind == _HISTORY and length == _HISTORY_BYTES:
            history = data[at : at + length]
        elif kind == _PREVIOUS_CARRY:
            previous = _previous(data, at, at + length)
        elif kind == _HISTORY:
            raise ValueError("a history digest of another length")
        at += length
    return history, previous


def _previous(data: bytes, at: int, end: int) -> Carry:
    shapes_bytes, _, task_bytes = _PREVIOUS.unpack_from(data, at)
    shapes_at = at + _PREVIOUS.size
    tensors_at = shapes_at + shapes_bytes
    layouts = _layouts(data[shapes_at:tensors_at])
    task_at = tensors_at + (layouts[-1].end if layouts else 0)
    if task_at + task_bytes != end:
        raise ValueError("the lengths of the previous carry do not add up")
    return Carry(tuple([_tensor(data, tensors_at, layout) for layout in layouts]), data[task_at:end])


def _additions_block(record: Record) -> bytes:
    block = b""
    if record.history:
        if len(record.history) != _HISTORY_BYTES:
            raise ValueError(f"a history digest has {_HISTORY_BYTES} bytes, not {len(record.history)}")
        block = _ADDITION.pack(_HISTORY, 0, _HISTORY_BYTES) + record.history
    if record.previous is not None:
        tensors, task = record.previous
        shapes, state = _tensors_block(tensors)
        carry = b"".join([_PREVIOUS.pack(len(shapes), 0, len(task)), shapes, *state, task])
        block += _ADDITION.pack(_PREVIOUS_CARRY, 0, len(carry)) + carry
    return block


def _tensors_block(tensors: tuple[npt.NDArray[np.generic], ...]) -> tuple[bytes, list[bytes]]:
    """Bytes of the shapes, and of the elements."""
    shapes, pads = _shapes_block(tuple([(tensor.dtype, tensor.shape) for tensor in tensors]))
    state: list[bytes] = []
    for tensor, pad in zip(tensors, pads, strict=True):
        state.append(_little_endian(tensor).tobytes())
        state.append(pad)
    return shapes, state


def _tensor(data: bytes, base: int, layout: _Layout) -> npt.NDArray[np.generic]:
    """A read-only view of `data`, which `_parsed` has found to be long enough."""
    dtype, shape, offset, _ = layout
    found: npt.NDArray[np.generic] = np.ndarray(shape, dtype, data, base + offset)
    if dtype.kind == "b" and found.view(np.uint8).max(initial=0) > 1:
        raise ValueError("a truth value that is neither 0 nor 1")
    return found


def _little_endian(tensor: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    return tensor if tensor.dtype in _CODES else tensor.astype(tensor.dtype.newbyteorder("<"))


# Models and shapes are the same from record to record: a few entries spare most of the work.


@lru_cache(256)
def _model_block(model: ModelId) -> bytes:
    texts = [text.encode() for text in model]
    if max(map(len, texts)) > np.iinfo(np.uint16).max // 4:
        raise ValueError("the name of a model is too long for a record")
    return _filled(_MODEL.pack(*map(len, texts)) + b"".join(texts))


@lru_cache(256)
def _model(block: bytes) -> ModelId:
    lengths: tuple[int, int, int] = _MODEL.unpack_from(block)
    name_until, version_until, until = (_MODEL.size + sum(lengths[: index + 1]) for index in range(3))
    if len(_filled(block[:until])) != len(block) or any(block[until:]):
        raise ValueError("impossible model")
    texts = block[_MODEL.size : name_until], block[name_until:version_until], block[version_until:until]
    return ModelId(*[text.decode() for text in texts])


@lru_cache(256)
def _shapes_block(
    tensors: tuple[tuple[np.dtype[np.generic], tuple[int, ...]], ...],
) -> tuple[bytes, tuple[bytes, ...]]:
    """Bytes of the shapes, and what fills up each tensor."""
    block, pads = b"", list[bytes]()
    for dtype, shape in tensors:
        code = _CODES.get(dtype.newbyteorder("<"))
        if code is None or len(shape) > _RANK_MAX or max(shape, default=0) > np.iinfo(np.uint32).max:
            raise ValueError(f"a record has no place for a tensor of {dtype} with shape {shape}")
        block += struct.pack(f"<BB{len(shape)}I", code, len(shape), *shape)
        pads.append(bytes(-(math.prod(shape) * dtype.itemsize) % _ALIGN))
    if len(block) > np.iinfo(np.uint16).max - _ALIGN:
        raise ValueError(f"a record has no place for {len(tensors)} tensors")
    return _filled(block), tuple(pads)


@lru_cache(256)
def _layouts(block: bytes) -> tuple[_Layout, ...]:
    layouts: list[_Layout] = []
    at, offset = 0, 0
    # No tensor has code 0, so a zero is where the filling begins.
    while at < len(block) and block[at]:
        rank = block[at + 1] if at + 1 < len(block) else _RANK_MAX + 1
        if block[at] not in _DTYPES or rank > _RANK_MAX:
            raise ValueError("impossible tensor")
        shape: tuple[int, ...] = struct.unpack_from(f"<{rank}I", block, at + 2)
        dtype = _DTYPES[block[at]]
        end = offset + math.prod(shape) * dtype.itemsize
        end += -end % _ALIGN
        layouts.append(_Layout(dtype, shape, offset, end))
        at, offset = at + 2 + 4 * rank, end
    if len(block) % _ALIGN or len(block) - at >= _ALIGN or any(block[at:]):
        raise ValueError("impossible shapes")
    return tuple(layouts)


def _filled(block: bytes) -> bytes:
    return block + bytes(-len(block) % _ALIGN)
