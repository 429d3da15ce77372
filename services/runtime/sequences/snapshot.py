"""Snapshots: a sequence in signed bytes that another installation with the same key and model can take up.

All numbers are little-endian.

    magic "STSN", format version u16, zero u16, exported at: microseconds since 1970 u64,
    lengths: sequence id u32, record u32
    sequence id, UTF-8
    record, in the form of `state/format.py`, unsigned and under no name
    seal, 32 bytes

The seal is BLAKE2b over all bytes before it, with a key of this purpose alone: a signed record is no snapshot, nor the
other way round. What is not signed is looked into no further than its version. The tenant is left out: the sequence
becomes that of whoever imports it. So are replies, which name the sequence that they were given to, and the epoch.
"""

from __future__ import annotations

import hmac
import struct
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from services.runtime.core.errors import InvalidInput, StateCorrupt
from services.runtime.core.ids import SequenceName
from services.runtime.state.format import RecordFormat
from services.runtime.state.types import Position

if TYPE_CHECKING:
    from services.runtime.engine.served import ServedModel
    from services.runtime.state.types import Record

FORMAT_VERSION: Final = 1

FIELD: Final = "snapshot"
"""Where a snapshot stands in a request."""

_MAGIC: Final = b"STSN"
_HEADER: Final = struct.Struct("<4sHHQII")
_SEAL_BYTES: Final = 32
_NAMELESS: Final = SequenceName("", "", "")


class Snapshot(NamedTuple):
    """What was exported: `record` without replies, in epoch 0; `exported_us` are microseconds since 1970."""

    sequence_id: str
    record: Record
    exported_us: int


class SnapshotFormat:
    """Writes snapshots signed with `key`, and takes only those."""

    def __init__(self, key: bytes) -> None:
        if not key:
            raise ValueError("the key that signs snapshots is empty")
        # A secret of any length becomes one of the 64 bytes that BLAKE2b takes.
        secret = blake2b(key, digest_size=64, person=b"statestream-key").digest()
        self._seal = blake2b(digest_size=_SEAL_BYTES, key=secret, person=b"statestream-snap")
        self._records = RecordFormat()

    def encode(self, sequence_id: str, record: Record, exported_us: int) -> bytes:
        """The bytes of a snapshot of `record`, which must be live."""
        bare = replace(record, position=Position(0, record.position.step), replies=(), previous=None)
        name, kept = sequence_id.encode(), self._records.encode(_NAMELESS, bare)
        body = _HEADER.pack(_MAGIC, FORMAT_VERSION, 0, exported_us, len(name), len(kept)) + name + kept
        return body + self._sealed(body)

    def decode(self, data: bytes) -> Snapshot:
        """What `data` is a snapshot of. Its tensors are read-only views.

        Raises:
            InvalidInput: not signed with this key, damaged, or of a format that is not known here.
        """
        if len(data) < _HEADER.size + _SEAL_BYTES or not data.startswith(_MAGIC):
            raise InvalidInput(FIELD, "is not a snapshot, or is cut short")
        _, version, zero, exported_us, name_bytes, record_bytes = _HEADER.unpack_from(data)
        if version != FORMAT_VERSION:
            # Another version may seal in another way, so this stands before the check of the seal.
            raise InvalidInput(FIELD, f"is of a format that this server does not read; it reads {FORMAT_VERSION}")
        body = memoryview(data)[:-_SEAL_BYTES]
        if not hmac.compare_digest(self._sealed(body), data[-_SEAL_BYTES:]):
            raise InvalidInput(FIELD, "is not signed with the snapshot key of this server, or is damaged")
        record_at = _HEADER.size + name_bytes
        if zero or record_at + record_bytes != len(body):
            raise InvalidInput(FIELD, "contradicts itself")
        try:
            name = data[_HEADER.size : record_at].decode()
            record = self._records.decode(_NAMELESS, data[record_at : len(body)])
        except (UnicodeDecodeError, StateCorrupt) as error:
            # Signed and yet unreadable: mostly the record of a later release in the envelope of this one.
            raise InvalidInput(FIELD, "holds a record that this server does not read") from error
        if record.ended:
            raise InvalidInput(FIELD, "is of a sequence that has ended")
        bare = replace(record, position=Position(0, record.position.step), replies=(), previous=None)
        return Snapshot(name, bare, exported_us)

    def _sealed(self, body: bytes | memoryview) -> bytes:
        seal = self._seal.copy()
        seal.update(body)
        return seal.digest()


def refuse_unfit(record: Record, model: ServedModel) -> None:
    """Checks that the model can go on from the state of `record`.

    Raises:
        InvalidInput: names the tensor that is not of the model's type and shape, or not finite.
    """
    carry, states = record.carry, model.manifest.states
    tensors = () if carry is None else carry.tensors
    if len(tensors) != len(states):
        raise InvalidInput(FIELD, f"must hold {len(states)} state tensors, holds {len(tensors)}")
    for tensor, state in zip(tensors, states, strict=True):
        if tensor.dtype != np.dtype(state.dtype) or tensor.shape != state.shape():
            raise InvalidInput(FIELD, f"state {state.name} must be {state.dtype} of shape {state.shape()}")
        if tensor.dtype.kind == "f" and not np.isfinite(tensor).all():
            raise InvalidInput(FIELD, f"state {state.name} must be finite")
