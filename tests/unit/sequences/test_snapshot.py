"""Snapshots: only what this key has signed is taken, and what was exported once can be imported for good."""

from __future__ import annotations

import struct
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.core.errors import InvalidInput
from services.runtime.core.ids import ModelId, SequenceName
from services.runtime.sequences.snapshot import SnapshotFormat, refuse_unfit
from services.runtime.state.format import RecordFormat
from services.runtime.state.types import Carry, Durability, Position, Record, StoredReply
from tests.kit.clock import ManualClock
from tests.kit.records import is_same, records
from tests.kit.toy import TOY_ID, toy_served

KEY = b"a key of any length"
FORMAT = SnapshotFormat(KEY)
EXPORTED_US = 1_700_000_000_123_456

RECORD = Record(
    Position(3, 2**53 + 1),
    ModelId("sentiment", "1.0.0", "c0ffee"),
    Durability.CHECKPOINT,
    Carry((np.array([[1.5, -2.0, 0.25]], np.float32), np.array([True, False]), np.array(-7, np.int64)), b"\xe2\x82"),
    (StoredReply(2**53, b"digest-2", b"reply"),),
    bytes(range(16)),
)
EXPORTED = replace(RECORD, position=Position(0, 2**53 + 1), replies=())

# Written by version 1 of the envelope around version 2 of the record; later versions must go on reading it.
GOLDEN = (
    "5354534e0100000040222018240a060009000000aa00000064c3a96ac3a0207675535452430200000300000000000000"
    "0001000000000020002000180000000200020000001800000009000500060073656e74696d656e74312e302e30633066"
    "666565000000000000010201000000030000000c010200000004000000000000000000c03f000000c00000803e000000"
    "000100000000000000f9ffffffffffffffe2820100000010000000000102030405060708090a0b0c0d0e0f9977449e66"
    "56f8627d6e029cec87f6c44741e64d1392f684a77afb51273bfa78bf7fc6ebb82457cd95240e45d1f7e1d6"
)


def sealed(body: bytes) -> bytes:
    """`body` with the right seal, which only who has the key can make."""
    secret = blake2b(KEY, digest_size=64, person=b"statestream-key").digest()
    return body + blake2b(body, digest_size=32, key=secret, person=b"statestream-snap").digest()


def refused(data: bytes, form: SnapshotFormat = FORMAT) -> str:
    """Why `data` is not taken."""
    with pytest.raises(InvalidInput) as caught:
        form.decode(data)
    assert caught.value.field == "snapshot"
    return caught.value.message


def test_snapshots_of_this_release_are_read_and_written_for_good() -> None:
    """The bytes of version 1, kept here, are read; the same sequence gives the same bytes."""
    found = FORMAT.decode(bytes.fromhex(GOLDEN))
    assert (found.sequence_id, found.exported_us) == ("déjà vu", EXPORTED_US)
    assert is_same(found.record, EXPORTED)
    assert found.record.history == EXPORTED.history
    assert FORMAT.encode("déjà vu", RECORD, EXPORTED_US).hex() == GOLDEN


@given(records(), st.text(st.characters(exclude_categories=("Cs",)), max_size=20), st.integers(0, 2**64 - 1))
def test_what_is_exported_is_imported(record: Record, sequence_id: str, exported_us: int) -> None:
    """State, step, model and history come back to the bit, replies and epoch stay behind; an ended one is refused."""
    data = FORMAT.encode(sequence_id, record, exported_us)
    if record.ended:
        assert "has ended" in refused(data)
        return
    found = FORMAT.decode(data)
    bare = replace(record, position=Position(0, record.position.step), replies=(), previous=None)
    assert (found.sequence_id, found.exported_us) == (sequence_id, exported_us)
    assert is_same(found.record, bare)
    assert (found.record.history, found.record.previous) == (record.history, None)


def test_every_flipped_bit_is_noticed() -> None:
    """No bit of a snapshot is without guard."""
    data = FORMAT.encode("one", RECORD, EXPORTED_US)
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        refused(bytes(damaged))


@given(st.data())
def test_a_cut_or_lengthened_snapshot_is_noticed(data: st.DataObject) -> None:
    """One that lost its end or got more bytes is refused."""
    whole = FORMAT.encode("one", RECORD, EXPORTED_US)
    refused(whole[: data.draw(st.integers(0, len(whole) - 1))])
    refused(whole + data.draw(st.binary(min_size=1, max_size=20)))


@given(st.binary(max_size=300), st.booleans())
def test_bytes_of_any_origin_are_refused(raw: bytes, with_magic: bool) -> None:  # noqa: FBT001
    """Rubbish is bad input and nothing else, with the right beginning and the right seal too."""
    body = (b"STSN\x01\x00" if with_magic else b"") + raw
    refused(body)
    refused(sealed(body))


def test_another_key_is_refused() -> None:
    """What another installation signed is not taken, nor a record that this key signed."""
    data = SnapshotFormat(b"another").encode("one", RECORD, EXPORTED_US)
    assert "not signed with the snapshot key" in refused(data)
    record = RecordFormat(KEY).encode(SequenceName("", "", ""), EXPORTED)
    assert "is not a snapshot" in refused(record)
    head = struct.pack("<4sHHQII", b"STSN", 1, 0, EXPORTED_US, 3, len(record) - 16)
    assert "not signed with the snapshot key" in refused(head + b"one" + record + bytes(16))


def test_an_empty_key_signs_nothing() -> None:
    """A key that anybody can guess is a fault of configuration."""
    with pytest.raises(ValueError, match="empty"):
        SnapshotFormat(b"")


def test_a_snapshot_of_a_later_release_is_told_apart_from_a_damaged_one() -> None:
    """Envelope or record of a version that is not known here: the message says so, and quotes nothing."""
    data = bytearray(FORMAT.encode("one", RECORD, EXPORTED_US))
    data[4] = 9
    assert "a format that this server does not read" in refused(bytes(data))
    kept = bytearray(RecordFormat().encode(SequenceName("", "", ""), EXPORTED))
    kept[4] = kept[30] = 9  # the record's version and its oldest reader
    body = struct.pack("<4sHHQII", b"STSN", 1, 0, EXPORTED_US, 3, len(kept)) + b"one" + kept
    assert "a record that this server does not read" in refused(sealed(body))


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ((), "1 state tensors, holds 0"),
        ((np.zeros((1, 2), np.float32),) * 2, "1 state tensors, holds 2"),
        ((np.zeros((1, 2), np.float64),), "must be float32 of shape"),
        ((np.zeros((2, 1), np.float32),), "must be float32 of shape (1, 2)"),
        ((np.array([[1.0, np.nan]], np.float32),), "must be finite"),
        ((np.array([[1.0, np.inf]], np.float32),), "must be finite"),
    ],
)
def test_a_state_that_the_model_cannot_go_on_from_is_refused(
    tensors: tuple[np.ndarray[tuple[int, ...], np.dtype[np.generic]], ...], why: str
) -> None:
    """Number, type and shape of the tensors are those of the manifest, and no element is NaN or infinite."""
    model = toy_served(ManualClock())
    record = Record(Position(0, 1), TOY_ID, Durability.STEP, Carry(tensors, b""), ())
    with pytest.raises(InvalidInput) as caught:
        refuse_unfit(record, model)
    assert why in caught.value.message
    assert caught.value.field == "snapshot"
    refuse_unfit(replace(record, carry=Carry(model.initial_state, b"")), model)
