"""Export and import: a sequence goes on in another installation as if it had never moved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from services.runtime.core.errors import (
    InvalidInput,
    ModelVersionGone,
    SequenceEnded,
    SequenceExists,
    SnapshotsDisabled,
)
from services.runtime.core.ids import ModelId, SequenceName
from services.runtime.sequences.snapshot import SnapshotFormat
from services.runtime.state.types import Absence, Carry, Durability, Position, Stored
from tests.kit.lifecycle import KEY, TENANT, Bench, name, record, same_state

FORMAT = SnapshotFormat(KEY)


@pytest.fixture
def here() -> Bench:
    """The installation that exports."""
    return Bench()


@pytest.fixture
def there() -> Bench:
    """One with the same key and model, and a store of its own."""
    return Bench()


@pytest.mark.parametrize("durability", list(Durability))
async def test_a_sequence_goes_on_elsewhere(here: Bench, there: Bench, durability: Durability) -> None:
    """State, step, model, durability and history are the same to the bit; the old one stays as it is."""
    moved = record(5, durability=durability)
    assert await here.sequences.replace(name("one"), None, moved, continues=False) is None
    data, told = await here.lifecycle.export(name("one"), None)
    assert told == await here.lifecycle.get(name("one"))
    found = await there.lifecycle.import_snapshot("another tenant", data)
    assert found.name == SequenceName("another tenant", "toy", "one")
    assert same_state(found.stored.record, moved)
    assert found.stored.record.replies == ()
    assert found.stored.record.position.epoch == int(there.clock.wall() * 1e6)
    assert await there.lifecycle.get(found.name) == found.stored
    assert there.counted("sequence_imported") == 1


async def test_an_earlier_point_is_exported(here: Bench, there: Bench) -> None:
    """A checkpoint can be moved as well, and is told of as what it is."""
    await here.put("one", record(2), record(5))
    data, told = await here.lifecycle.export(name("one"), 2)
    assert told.record.position.step == 2
    found = await there.lifecycle.import_snapshot(TENANT, data, "under another name")
    assert found.name == name("under another name")
    assert same_state(found.stored.record, record(2))


async def test_a_snapshot_says_when_it_was_made(here: Bench) -> None:
    """By the clock of the installation that made it; the bytes are those of the format."""
    await here.put("one", record(5))
    data, _ = await here.lifecycle.export(name("one"), None)
    assert data == FORMAT.encode("one", record(5), int(here.clock.wall() * 1e6))


async def test_a_repeated_import_finds_its_work_done(here: Bench, there: Bench) -> None:
    """The same sequence, in the same epoch, counted once; no longer so once a step was taken on it."""
    await here.put("one", record(5))
    data, _ = await here.lifecycle.export(name("one"), None)
    once = await there.lifecycle.import_snapshot(TENANT, data)
    assert await there.lifecycle.import_snapshot(TENANT, data) == once
    assert there.counted("sequence_imported") == 1
    assert (
        await there.sequences.replace(
            name("one"), once.stored.record.position, record(6, epoch=once.stored.record.position.epoch), continues=True
        )
        is None
    )
    with pytest.raises(SequenceExists) as caught:
        await there.lifecycle.import_snapshot(TENANT, data)
    assert caught.value.field == "sequence_id"


async def test_an_import_takes_a_name_that_was_left(here: Bench) -> None:
    """A sequence that was exported and ended comes back where it stood, in a higher epoch."""
    await here.put("one", record(5))
    data, _ = await here.lifecycle.export(name("one"), None)
    ended = await here.lifecycle.end(name("one"))
    with pytest.raises(SequenceEnded):
        await here.lifecycle.export(name("one"), None)
    back = await here.lifecycle.import_snapshot(TENANT, data)
    assert same_state(back.stored.record, record(5))
    assert back.stored.record.position.epoch > ended.record.position.epoch


async def test_without_a_key_nothing_is_moved() -> None:
    """Neither out nor in, and the error says which setting is missing."""
    bench = Bench(key=None)
    await bench.put("one", record(5))
    with pytest.raises(SnapshotsDisabled, match="STATESTREAM_SNAPSHOT_KEY"):
        await bench.lifecycle.export(name("one"), None)
    with pytest.raises(SnapshotsDisabled):
        await bench.lifecycle.import_snapshot(TENANT, FORMAT.encode("one", record(5), 0))


async def test_another_key_is_refused(there: Bench) -> None:
    """What was signed elsewhere is bad input, and nothing is made of it."""
    with pytest.raises(InvalidInput) as caught:
        await there.lifecycle.import_snapshot(TENANT, SnapshotFormat(b"other").encode("one", record(5), 0))
    assert caught.value.field == "snapshot"
    assert there.store.sequences == 0


@pytest.mark.parametrize("gone", [ModelId("toy", "2", "0" * 64), ModelId("toy", "1", "1" * 64), ModelId("x", "1", "")])
async def test_only_exactly_its_model_takes_a_sequence_up(there: Bench, gone: ModelId) -> None:
    """Another version, other weights of the same version, another model: not served here."""
    with pytest.raises(ModelVersionGone):
        await there.lifecycle.import_snapshot(TENANT, FORMAT.encode("one", record(5, model=gone), 0))
    assert there.store.sequences == 0


async def test_a_state_that_does_not_fit_is_refused(there: Bench) -> None:
    """Though signed: tensors that the model has not, or that are not finite, are never fed to it."""
    for tensor in (np.zeros((1, 3), np.float32), np.full((1, 2), np.nan, np.float32)):
        with pytest.raises(InvalidInput) as caught:
            await there.lifecycle.import_snapshot(
                TENANT, FORMAT.encode("one", record(5, carry=Carry((tensor,), b"")), 0)
            )
        assert caught.value.field == "snapshot"
    assert there.store.sequences == 0


@pytest.mark.parametrize(
    ("inside", "asked", "field"),
    [
        ("x" * 129, "", "snapshot"),
        ("", "", "snapshot"),
        ("one", "a\n", "sequence_id"),
        ("one", "a" * 129, "sequence_id"),
    ],
)
async def test_names_have_their_bounds(there: Bench, inside: str, asked: str, field: str) -> None:
    """The name asked for, and the one in the snapshot, are such as any sequence may have."""
    with pytest.raises(InvalidInput) as caught:
        await there.lifecycle.import_snapshot(TENANT, FORMAT.encode(inside, record(5), 0), asked)
    assert caught.value.field == field


async def test_an_import_goes_over_what_ended_in_the_other_store(there: Bench) -> None:
    """A volatile one begins beside the ended one in the shared store, in a higher epoch, and is the one that counts."""
    ahead = int(there.clock.wall() * 1e6) + 10**9
    await there.put("one", record(2, carry=None, position=Position(ahead, 2)))
    data = FORMAT.encode("one", record(5, durability=Durability.NONE), 0)
    found = await there.lifecycle.import_snapshot(TENANT, data)
    assert found.stored.record.position == (ahead + 1, 5)
    local = await there.local.load(name("one"))
    assert isinstance(local, Stored)
    assert same_state(local.record, replace(record(5), durability=Durability.NONE))
    assert await there.local.load(name("two")) is Absence.UNKNOWN
