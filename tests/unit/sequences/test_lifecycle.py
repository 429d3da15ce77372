"""Rewinds, looks and lists of whole sequences: repeatable, and never over what has gone on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import structlog

from services.runtime.core.errors import (
    CheckpointNotFound,
    InvalidInput,
    ModelVersionGone,
    SequenceEnded,
    SequenceEvicted,
    SequenceExpired,
    SequenceNotFound,
    StateCorrupt,
    StepConflict,
    StoreUnavailable,
    UnknownModel,
)
from services.runtime.core.ids import ModelId, SequenceName
from services.runtime.state.memory import MemoryStore
from services.runtime.state.store import Page
from services.runtime.state.types import Absence, Durability, Position, Stored
from tests.kit.lifecycle import TENANT, TERMS, Bench, name, record, same_state

if TYPE_CHECKING:
    from services.runtime.state.types import Record


@pytest.fixture
def bench() -> Bench:
    """A replica with an empty store."""
    return Bench()


def ended(step: int) -> Record:
    """A sequence after its last step."""
    return record(step, carry=None)


async def test_a_rewound_sequence_stands_where_it_stood(bench: Bench) -> None:
    """State and replies are those of the checkpoint; later checkpoints are gone, epoch and history are new."""
    await bench.put("one", record(2), record(5), record(7), record(9))
    told = await bench.lifecycle.rewind(name("one"), 5)
    assert told == await bench.stored("one")
    assert same_state(replace(told.record, history=record(5).history), record(5))
    assert told.record.replies == record(5).replies
    assert told.record.history not in (record(5).history, b"")
    assert told.record.position.epoch > 1
    assert told.checkpoints == (2,)
    assert bench.counted("sequence_rewound") == 1


async def test_a_repeated_rewind_changes_nothing(bench: Bench) -> None:
    """It stands there already: the same answer, in the same epoch."""
    await bench.put("one", record(2), record(5))
    once = await bench.lifecycle.rewind(name("one"), 2)
    assert await bench.lifecycle.rewind(name("one"), 2) == once
    assert bench.counted("sequence_rewound") == 1


async def test_rewinding_to_the_committed_step_shuts_out_what_another_replica_holds(bench: Bench) -> None:
    """With durability CHECKPOINT later steps may wait elsewhere for their commit; the new epoch keeps them out."""
    await bench.put("one", record(5, durability=Durability.CHECKPOINT))
    told = await bench.lifecycle.rewind(name("one"), 5)
    assert told.record.history != record(5).history
    later = record(6, durability=Durability.CHECKPOINT)
    assert await bench.store.commit(name("one"), Position(1, 5), later, TERMS) is not None


async def test_a_rewind_is_newer_than_what_it_replaces(bench: Bench) -> None:
    """Also where the sequence began by a clock that is ahead of this one."""
    ahead = int(bench.clock.wall() * 1e6) + 10**9
    await bench.put("one", record(2, epoch=ahead), record(5, epoch=ahead))
    assert (await bench.lifecycle.rewind(name("one"), 2)).record.position == (ahead + 1, 2)


async def test_only_kept_points_of_live_sequences_are_rewound_to(bench: Bench) -> None:
    """Unknown, ended, expired; later, never kept and kept no longer: each has its error, and nothing changes."""
    await bench.put("one", record(2), record(5))
    await bench.put("over", record(2), ended(5))
    for step in (1, 4, 6):
        with pytest.raises(CheckpointNotFound) as caught:
            await bench.lifecycle.rewind(name("one"), step)
        assert caught.value.metadata == {"checkpoint_steps": "2"}
    with pytest.raises(SequenceEnded):
        await bench.lifecycle.rewind(name("over"), 2)
    with pytest.raises(SequenceNotFound):
        await bench.lifecycle.rewind(name("nobody"), 2)
    bench.clock.advance(61)
    with pytest.raises(SequenceExpired):
        await bench.lifecycle.rewind(name("one"), 2)


@pytest.mark.parametrize(("moves", "rewound"), [(1, True), (3, True), (4, False)])
async def test_a_rewind_goes_over_a_step_that_comes_between(bench: Bench, moves: int, rewound: bool) -> None:  # noqa: FBT001
    """Whoever moved the sequence meanwhile has lost; only who moves it every time keeps the rewind out."""
    await bench.put("one", record(2), record(5))
    steps = iter(range(6, 6 + moves))

    async def move(_: SequenceName) -> None:
        step = next(steps, None)
        if step is not None:
            # Past the hook, which is this function.
            found = await MemoryStore.commit(bench.store, name("one"), Position(1, step - 1), record(step), TERMS)
            assert found is None

    bench.store.before_commit = move
    if rewound:
        assert (await bench.lifecycle.rewind(name("one"), 2)).record.position.step == 2
    else:
        with pytest.raises(StepConflict):
            await bench.lifecycle.rewind(name("one"), 2)
        assert (await bench.stored("one")).record.position == (1, 5 + moves)


async def test_what_this_replica_holds_uncommitted_is_committed_first(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look, a fork, a rewind and an export see it; a sequence that went on elsewhere is read from the store."""
    await bench.put("one", record(3))
    held = iter(range(4, 100))

    async def settle(settled: SequenceName) -> None:
        before = (await bench.stored("one")).record
        after = record(next(held), epoch=before.position.epoch)
        await bench.store.commit(settled, before.position, after, TERMS, keep=8)

    monkeypatch.setattr(bench.sequences, "settle", settle)
    assert (await bench.lifecycle.get(name("one"))).record.position.step == 4
    assert (await bench.lifecycle.fork(name("one"), None, ["a"]))[0].record.position.step == 5
    assert (await bench.lifecycle.export(name("one"), None))[1].record.position.step == 6
    assert (await bench.lifecycle.rewind(name("one"), 6)).record.position.step == 6

    async def gone_on(_: SequenceName) -> None:
        raise StepConflict("went on elsewhere")

    monkeypatch.setattr(bench.sequences, "settle", gone_on)
    assert (await bench.lifecycle.get(name("one"))).record.position.step == 6


async def test_without_its_model_a_sequence_can_be_looked_at_moved_and_ended(bench: Bench) -> None:
    """Where its version, or all of its model, is gone it is neither forked nor rewound."""
    await bench.put("one", record(2), record(5))
    toy = bench.catalogue.find("toy")
    gone = ModelId("toy", "0", "f" * 64)
    await bench.put("old", record(2, model=gone), record(5, model=gone))
    for call in (bench.lifecycle.fork(name("old"), None, ["a"]), bench.lifecycle.rewind(name("old"), 2)):
        with pytest.raises(ModelVersionGone):
            await call
    assert (await bench.lifecycle.export(name("old"), 2))[1].record.model == gone
    assert (await bench.lifecycle.end(name("old"))).record.ended
    assert (await bench.lifecycle.get(name("old"))).record.model == gone
    bench.catalogue.remove(toy.model_id)
    for call in (bench.lifecycle.fork(name("one"), None, ["a"]), bench.lifecycle.rewind(name("one"), 2)):
        with pytest.raises(UnknownModel):
            await call
    assert (await bench.lifecycle.end(name("one"))).record.ended
    assert toy.model_id == record(1).model


async def test_a_look_tells_what_is_there(bench: Bench) -> None:
    """Live and ended with their checkpoints; unknown, expired and evicted each have their error."""
    await bench.put("one", record(2), record(5))
    await bench.put("over", ended(2))
    assert (await bench.lifecycle.get(name("one"))).checkpoints == (2,)
    assert (await bench.lifecycle.get(name("over"))).record.ended
    assert (await bench.lifecycle.end(name("over"))).record.ended
    with pytest.raises(SequenceNotFound):
        await bench.lifecycle.get(name("nobody"))
    bench.clock.advance(61)
    for call in (bench.lifecycle.get(name("one")), bench.lifecycle.end(name("one"))):
        with pytest.raises(SequenceExpired):
            await call
    bench.store._evicted[name("pushed-out")] = None
    with pytest.raises(SequenceEvicted):
        await bench.lifecycle.get(name("pushed-out"))


async def listed(bench: Bench, *, page_size: int = 0, live_only: bool = False) -> list[list[str]]:
    """The ids on all pages."""
    pages: list[list[str]] = []
    token = ""
    while True:
        page = await bench.lifecycle.page(TENANT, "toy", page_size=page_size, page_token=token, live_only=live_only)
        pages.append(sorted(found.name.sequence_id for found in page.sequences))
        token = page.next_page_token
        if not token:
            return pages


async def test_a_list_has_every_sequence_of_the_caller_and_the_model(bench: Bench) -> None:
    """Page by page, each once; of another tenant, of another model and in one replica's memory alone: none."""
    for number in range(7):
        await bench.put(f"s{number}", record(1))
    for stranger in (SequenceName("other", "toy", "theirs"), SequenceName(TENANT, "toys", "another")):
        await bench.store.commit(stranger, None, record(1), TERMS)
    await bench.put("volatile", record(1, durability=Durability.NONE))
    pages = await listed(bench, page_size=3)
    assert sorted(one for page in pages for one in page) == [f"s{number}" for number in range(7)]
    assert len(pages) > 2
    assert await listed(bench) == [[f"s{number}" for number in range(7)]]


async def test_a_list_leaves_out_what_has_expired_and_on_demand_what_has_ended(bench: Bench) -> None:
    """What expired is gone for its client; ended ones still answer retries."""
    await bench.put("idle", record(1))
    bench.clock.advance(59)
    await bench.put("live", record(1))
    await bench.put("over", ended(1))
    assert await listed(bench) == [["idle", "live", "over"]]
    bench.clock.advance(2)
    assert await listed(bench) == [["live", "over"]]
    assert await listed(bench, live_only=True) == [["live"]]


async def test_a_damaged_record_does_not_spoil_the_list(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is left out and counted in the log, without its name; a store that fails fails the list."""
    for sequence_id in ("good", "damaged", "fine"):
        await bench.put(sequence_id, record(1))
    load = bench.store.load

    async def damaged(asked: SequenceName) -> Stored | Absence:
        if asked == name("damaged"):
            raise StateCorrupt("checksum")
        return await load(asked)

    monkeypatch.setattr(bench.store, "load", damaged)
    with structlog.testing.capture_logs() as logs:
        assert await listed(bench) == [["fine", "good"]]
    assert [(line["log_level"], line["count"]) for line in logs] == [("warning", 1)]

    async def unavailable(_: SequenceName) -> Stored | Absence:
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(bench.store, "load", unavailable)
    with pytest.raises(StoreUnavailable):
        await listed(bench)


async def test_a_page_has_each_sequence_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store may give a name twice."""
    await bench.put("one", record(1))

    async def names(*_: object, **__: object) -> Page:
        return Page((name("one"), name("gone"), name("one")), None)

    monkeypatch.setattr(bench.store, "names", names)
    assert await listed(bench) == [["one"]]


async def test_pages_have_their_bounds(bench: Bench) -> None:
    """A page over the bound, and a token of no page before, are bad input."""
    with pytest.raises(InvalidInput) as caught:
        await bench.lifecycle.page(TENANT, "toy", page_size=1001)
    assert caught.value.field == "page_size"
    assert await listed(bench, page_size=1000) == [[]]
    with pytest.raises(InvalidInput) as caught:
        await bench.lifecycle.page(TENANT, "toy", page_token="made up")  # noqa: S106
    assert caught.value.field == "page_token"
