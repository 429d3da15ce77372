"""The binary record: what is written comes back to the bit, and nothing else ever does."""

from __future__ import annotations

import struct
import tracemalloc
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.runtime.core.errors import StateCorrupt
from services.runtime.core.ids import ModelId, SequenceName
from services.runtime.state.format import FORMAT_VERSION, RecordFormat
from services.runtime.state.types import Carry, Durability, Position, Record, StoredReply
from tests.kit.records import a_record, is_same, names, records

NAME = SequenceName("tenant", "model", "sequence")
PLAIN = RecordFormat()
SIGNED = RecordFormat(b"a key of any length")

# Written by version 1 of the format; later versions must go on reading them.
GOLDEN_RECORD = Record(
    Position(3, 2**53 + 1),
    ModelId("sentiment", "1.0.0", "c0ffee"),
    Durability.STEP,
    Carry((np.array([[1.5, -2.0, 0.25]], np.float32), np.array([True, False]), np.array(-7, np.int64)), b"\xe2\x82"),
    (StoredReply(2**53 - 1, b"digest-1", b"first"), StoredReply(2**53, b"digest-2", b"")),
)
# What version 2 added.
GOLDEN_RECORD_2 = replace(
    GOLDEN_RECORD,
    durability=Durability.CHECKPOINT,
    history=b"history-16-bytes",
    previous=Carry((np.array([[2.5]], np.float32),), b"\x9c"),
)

GOLDEN_LIVE = (
    "535452430100000103000000000000000100000000002000200018000200000002000000000000000900050006007365"
    "6e74696d656e74312e302e30633066666565000000000000010201000000030000000c01020000000400000000000000"
    "0000c03f000000c00000803e000000000100000000000000f9ffffffffffffffe282ffffffffffff1f00080000000500"
    "0000000000000000200008000000000000006469676573742d3166697273746469676573742d3226e9e2c4af961602bc"
    "65891f2f667abe"
)
GOLDEN_SIGNED = (
    "535452430100020103000000000000000100000000002000200018000200000002000000000000000900050006007365"
    "6e74696d656e74312e302e30633066666565000000000000010201000000030000000c01020000000400000000000000"
    "0000c03f000000c00000803e000000000100000000000000f9ffffffffffffffe282ffffffffffff1f00080000000500"
    "0000000000000000200008000000000000006469676573742d3166697273746469676573742d329718f0662e77b7bfb0"
    "16d46660dbfcfd"
)
GOLDEN_ENDED = (
    "535452430100010103000000000000000100000000002000200000000200000000000000000000000900050006007365"
    "6e74696d656e74312e302e30633066666565000000000000ffffffffffff1f0008000000050000000000000000002000"
    "08000000000000006469676573742d3166697273746469676573742d32d1a3439c1cd31292f6bc2b8349ceada5"
)
GOLDEN_2 = (
    "535452430200000303000000000000000100000000002000200018000200020002000000410000000900050006007365"
    "6e74696d656e74312e302e30633066666565000000000000010201000000030000000c01020000000400000000000000"
    "0000c03f000000c00000803e000000000100000000000000f9ffffffffffffffe282ffffffffffff1f00080000000500"
    "0000000000000000200008000000000000006469676573742d3166697273746469676573742d32010000001000000068"
    "6973746f72792d31362d6279746573020000002100000010000000010000000102010000000100000000000000000000"
    "002040000000009cf7a5486942918092a0bd0afbd0f4c513"
)
GOLDEN_2_SIGNED = (
    "535452430200020303000000000000000100000000002000200018000200020002000000410000000900050006007365"
    "6e74696d656e74312e302e30633066666565000000000000010201000000030000000c01020000000400000000000000"
    "0000c03f000000c00000803e000000000100000000000000f9ffffffffffffffe282ffffffffffff1f00080000000500"
    "0000000000000000200008000000000000006469676573742d3166697273746469676573742d32010000001000000068"
    "6973746f72792d31362d6279746573020000002100000010000000010000000102010000000100000000000000000000"
    "002040000000009cea8f03031dce103e5a0b37780ff1f7d2"
)


@given(records(), names, st.sampled_from([PLAIN, SIGNED]))
def test_what_is_written_is_read(record: Record, name: SequenceName, form: RecordFormat) -> None:
    """Any record comes back equal in every bit, type and shape, with tensors that cannot be changed."""
    found = form.decode(name, form.encode(name, record))
    assert is_same(found, record)
    assert found.carry is None or not any(tensor.flags.writeable for tensor in found.carry.tensors)


@given(records())
def test_equal_records_have_equal_bytes(record: Record) -> None:
    """Writing what was read gives the same bytes: a repeated commit can be told by comparing them."""
    data = PLAIN.encode(NAME, record)
    assert PLAIN.encode(NAME, PLAIN.decode(NAME, data)) == data


@given(records(), st.data())
def test_a_flipped_bit_is_noticed(record: Record, data: st.DataObject) -> None:
    """A record with any one bit changed is refused, whether signed or not."""
    form = data.draw(st.sampled_from([PLAIN, SIGNED]))
    raw = bytearray(form.encode(NAME, record))
    bit = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(StateCorrupt):
        form.decode(NAME, bytes(raw))


def test_every_flipped_bit_of_one_record_is_noticed() -> None:
    """No bit of a record is without guard."""
    raw = PLAIN.encode(NAME, GOLDEN_RECORD)
    for bit in range(len(raw) * 8):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(StateCorrupt):
            PLAIN.decode(NAME, bytes(damaged))


@given(records(), st.data())
def test_a_cut_or_lengthened_record_is_noticed(record: Record, data: st.DataObject) -> None:
    """A record that lost its end or got more bytes is refused."""
    raw = PLAIN.encode(NAME, record)
    cut = data.draw(st.integers(0, len(raw) - 1))
    for damaged in (raw[:cut], raw + data.draw(st.binary(min_size=1, max_size=20))):
        with pytest.raises(StateCorrupt):
            PLAIN.decode(NAME, damaged)


@given(st.binary(max_size=300), st.booleans())
def test_bytes_of_any_origin_are_refused(raw: bytes, with_magic: bool) -> None:  # noqa: FBT001
    """Rubbish raises `StateCorrupt` and nothing else."""
    with pytest.raises(StateCorrupt):
        PLAIN.decode(NAME, (b"STRC" if with_magic else b"") + raw)


def _forged(body: bytes) -> bytes:
    """`body` with the right checksum, which anybody can make who knows the format."""
    seal = blake2b(digest_size=16, person=b"statestream-sum")
    seal.update(b"6,5,8;tenantmodelsequence")
    seal.update(body)
    return body + seal.digest()


def test_the_forger_knows_the_checksum() -> None:
    """The forged records of the tests below get past the seal."""
    raw = PLAIN.encode(NAME, GOLDEN_RECORD)
    assert _forged(raw[:-16]) == raw


@settings(max_examples=500)
@given(records(), st.data())
def test_a_record_that_lies_under_a_right_checksum_is_refused_or_consistent(
    record: Record, data: st.DataObject
) -> None:
    """Lying lengths and codes raise `StateCorrupt` or make a record that is whole; nothing else comes of them."""
    raw = bytearray(PLAIN.encode(NAME, record)[:-16])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    try:
        found = PLAIN.decode(NAME, _forged(bytes(raw)))
    except StateCorrupt:
        return
    PLAIN.encode(NAME, found)


@pytest.mark.parametrize("at", range(24, 40))
def test_lying_lengths_take_no_memory(at: int) -> None:
    """A length of thousands of millions is refused without allocating for it."""
    raw = bytearray(PLAIN.encode(NAME, GOLDEN_RECORD)[:-16])
    raw[at] = 0xFF
    forged = _forged(bytes(raw))
    tracemalloc.start()
    try:
        with pytest.raises(StateCorrupt):
            PLAIN.decode(NAME, forged)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_tensor_of_absurd_size_takes_no_memory() -> None:
    """Dims that ask for more than the record holds are refused, also where their product is zero or overflows."""
    raw = PLAIN.encode(NAME, a_record(width=4))
    shapes = raw.index(struct.pack("<BBII", 1, 2, 2, 4))
    for dims in [(2**32 - 1, 2**32 - 1), (0, 2**32 - 1), (2**31, 2**31)]:
        body = raw[:shapes] + struct.pack("<BBII", 1, 2, *dims) + raw[shapes + 10 : -16]
        with pytest.raises(StateCorrupt):
            PLAIN.decode(NAME, _forged(body))


def test_a_truth_value_other_than_zero_and_one_is_refused() -> None:
    """A bool tensor never holds a byte that numpy does not expect there."""
    record = Record(Position(0, 0), GOLDEN_RECORD.model, Durability.STEP, Carry((np.array([True] * 8),), b""), ())
    body = PLAIN.encode(NAME, record)[:-16]
    assert body.endswith(b"\1" * 8)
    with pytest.raises(StateCorrupt, match="truth value"):
        PLAIN.decode(NAME, _forged(body[:-1] + b"\2"))


@given(names, names, records())
def test_a_record_belongs_to_one_sequence(one: SequenceName, other: SequenceName, record: Record) -> None:
    """Copied under another name it is refused, even if the parts of the names join to the same text."""
    raw = SIGNED.encode(one, record)
    moved = SequenceName(one.tenant + one.model, "", one.sequence_id)
    for name in {other, moved} - {one}:
        with pytest.raises(StateCorrupt):
            SIGNED.decode(name, raw)


@pytest.mark.parametrize(
    ("writer", "reader", "said"),
    [
        (PLAIN, SIGNED, "not signed, and a key is configured"),
        (SIGNED, PLAIN, "signed, and no key is configured"),
        (RecordFormat(b"another"), SIGNED, "with another key"),
    ],
)
def test_only_the_right_key_will_do(writer: RecordFormat, reader: RecordFormat, said: str) -> None:
    """Unsigned where a key is configured, signed where none is, signed with another key: refused, and said why."""
    with pytest.raises(StateCorrupt, match=said):
        reader.decode(NAME, writer.encode(NAME, GOLDEN_RECORD))


def test_a_key_can_be_changed() -> None:
    """What was signed with the key before is read, what is written is signed with the new one alone."""
    both = RecordFormat(b"new", key_before=b"a key of any length")
    assert is_same(both.decode(NAME, SIGNED.encode(NAME, GOLDEN_RECORD)), GOLDEN_RECORD)
    raw = both.encode(NAME, GOLDEN_RECORD)
    assert is_same(RecordFormat(b"new").decode(NAME, raw), GOLDEN_RECORD)
    with pytest.raises(StateCorrupt):
        SIGNED.decode(NAME, raw)
    with pytest.raises(ValueError, match="unsigned"):
        RecordFormat(key_before=b"a key of any length")


def test_the_key_is_all_that_counts() -> None:
    """A replica with the same key reads what another one signed."""
    raw = SIGNED.encode(NAME, GOLDEN_RECORD)
    assert is_same(RecordFormat(b"a key of any length").decode(NAME, raw), GOLDEN_RECORD)


@pytest.mark.parametrize(("at", "value"), [(6, 1), (6, 4), (7, 0), (7, 200), (30, 3), (36, 1)])
def test_an_impossible_header_is_refused(at: int, value: int) -> None:
    """Ended with a carry, unknown flags, unknown durability, something where nothing is: no record of ours."""
    body = bytearray(PLAIN.encode(NAME, GOLDEN_RECORD)[:-16])
    body[at] = value
    with pytest.raises(StateCorrupt):
        PLAIN.decode(NAME, _forged(bytes(body)))


def test_a_signature_cannot_be_made_without_the_key() -> None:
    """Setting the mark of a signed record and a right checksum does not make it a signed one."""
    raw = bytearray(PLAIN.encode(NAME, GOLDEN_RECORD)[:-16])
    raw[6] |= 2
    with pytest.raises(StateCorrupt):
        SIGNED.decode(NAME, _forged(bytes(raw)))


def test_an_empty_key_is_no_key() -> None:
    """A key of no bytes is a mistake in the configuration, not a signature."""
    with pytest.raises(ValueError, match="empty"):
        RecordFormat(b"")


def test_a_newer_version_is_named() -> None:
    """A record of a later version says so, whatever else it holds."""
    raw = bytearray(PLAIN.encode(NAME, GOLDEN_RECORD))
    raw[4:6] = struct.pack("<H", FORMAT_VERSION + 1)
    raw[30:32] = struct.pack("<H", FORMAT_VERSION + 1)
    with pytest.raises(StateCorrupt, match=f"format version {FORMAT_VERSION + 1}"):
        PLAIN.decode(NAME, bytes(raw))


def test_what_the_next_release_adds_is_left_out() -> None:
    """A later version that says this one can read it is read, without the additions that are not known here."""
    body = bytearray(PLAIN.encode(NAME, replace(GOLDEN_RECORD, history=b"history-16-bytes"))[:-16])
    addition = struct.pack("<HHI", 999, 0, 5) + b"later"
    body[4:6] = struct.pack("<H", FORMAT_VERSION + 1)
    body[36:40] = struct.pack("<I", struct.unpack_from("<I", body, 36)[0] + len(addition))
    found = PLAIN.decode(NAME, _forged(bytes(body) + addition))
    assert is_same(found, replace(GOLDEN_RECORD, history=b"history-16-bytes"))


@given(records(), names)
def test_the_release_before_is_written_for(record: Record, name: SequenceName) -> None:
    """Written for version 1 a record has all that version 1 knew, and nothing else."""
    raw = RecordFormat(write=1).encode(name, record)
    assert raw[4:6] == b"\1\0"
    assert raw[30:32] + raw[36:40] == bytes(6)
    durability = Durability.STEP if record.durability is Durability.CHECKPOINT else record.durability
    assert is_same(PLAIN.decode(name, raw), replace(record, durability=durability, history=b"", previous=None))


@pytest.mark.parametrize(
    ("form", "raw", "ended"),
    [(PLAIN, GOLDEN_LIVE, False), (SIGNED, GOLDEN_SIGNED, False), (PLAIN, GOLDEN_ENDED, True)],
)
def test_records_of_version_1_are_read_for_ever(form: RecordFormat, raw: str, ended: bool) -> None:  # noqa: FBT001
    """Bytes kept from the first release mean what they meant then, and can still be written the same."""
    golden = replace(GOLDEN_RECORD, carry=None) if ended else GOLDEN_RECORD
    assert is_same(form.decode(NAME, bytes.fromhex(raw)), golden)
    key = b"a key of any length" if form is SIGNED else None
    assert RecordFormat(key, write=1).encode(NAME, golden).hex() == raw


@pytest.mark.parametrize(("form", "raw"), [(PLAIN, GOLDEN_2), (SIGNED, GOLDEN_2_SIGNED)])
def test_records_of_version_2_are_read_for_ever(form: RecordFormat, raw: str) -> None:
    """As those of version 1; this is what is written now."""
    assert is_same(form.decode(NAME, bytes.fromhex(raw)), GOLDEN_RECORD_2)
    assert form.encode(NAME, GOLDEN_RECORD_2).hex() == raw


@pytest.mark.parametrize(
    "tensor",
    [
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.arange(12, dtype=np.float32).reshape(2, 6)[:, ::2],
    ],
)
def test_the_layout_in_memory_does_not_matter(tensor: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> None:
    """Big-endian, column-major and strided tensors come back with the same numbers, little-endian and in C order."""
    record = Record(Position(0, 1), GOLDEN_RECORD.model, Durability.NONE, Carry((tensor,), b""), ())
    found = PLAIN.decode(NAME, PLAIN.encode(NAME, record)).carry
    assert found is not None
    assert found.tensors[0].dtype == np.dtype("<f4")
    assert found.tensors[0].flags.c_contiguous
    np.testing.assert_array_equal(found.tensors[0], tensor)


@pytest.mark.parametrize(
    "record",
    [
        Record(Position(0, 0), GOLDEN_RECORD.model, Durability.STEP, Carry((np.zeros(2, np.complex64),), b""), ()),
        Record(Position(0, 0), GOLDEN_RECORD.model, Durability.STEP, Carry((np.zeros((1,) * 9),), b""), ()),
        Record(Position(2**64, 0), GOLDEN_RECORD.model, Durability.STEP, None, ()),
        Record(Position(0, -1), GOLDEN_RECORD.model, Durability.STEP, None, ()),
        Record(Position(0, 0), ModelId("m" * 70_000, "", ""), Durability.STEP, None, ()),
    ],
)
def test_what_has_no_place_is_not_written(record: Record) -> None:
    """What could not be read back is refused when it is written."""
    with pytest.raises(ValueError, match="record"):
        PLAIN.encode(NAME, record)


def test_tensors_start_where_a_processor_likes_them() -> None:
    """Tensors read from a record are aligned, so that stacking them is a plain copy."""
    tensors = (np.zeros(3, np.int8), np.zeros(3, np.float64), np.zeros(1, np.float16), np.zeros(2, np.float32))
    record = Record(Position(0, 0), ModelId("abc", "1", ""), Durability.STEP, Carry(tensors, b"x"), ())
    found = PLAIN.decode(NAME, PLAIN.encode(NAME, record)).carry
    assert found is not None
    assert all(tensor.flags.aligned for tensor in found.tensors)
