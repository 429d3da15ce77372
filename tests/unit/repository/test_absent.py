"""Sequences whose version is not loaded: not kept, not here yet, or gone."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from services.runtime.core.errors import ModelVersionGone, NotReady, UnknownModel
from tests.kit.folders import BROKEN, SEQUENCE, Folders, play

if TYPE_CHECKING:
    from pathlib import Path

    from services.runtime.core.ids import ModelId
    from tests.kit.folders import Bench, Make

TOY = ("toy",)
POLL_S = 5.0
POLLED: Any = {"model_control_mode": "poll", "repository_poll_s": POLL_S}
IDLE_S = SEQUENCE.idle_timeout_s


async def polled() -> None:
    """Lets the next look happen."""
    await asyncio.sleep(POLL_S + 0.1)


async def step(bench: Bench, model_id: ModelId) -> float:
    """A step of a sequence that began on that model, from its initial state: each version weighs its input."""
    model = bench.catalogue.pinned(model_id)
    result = await model.batcher.step((np.ones(1, dtype=np.float32),), model.initial_state)
    return float(result.outputs[1][0])


def test_a_version_that_was_here_is_not_waited_for(tmp_path: Path) -> None:
    """After a rollback the newer version is gone, though it is newer than all that are here."""
    folders = Folders(tmp_path)
    folders.add("1")
    two = folders.add("2")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **POLLED)
        await bench.repository.start(TOY)
        batcher = bench.catalogue.pinned(two).batcher
        folders.remove("2")
        await polled()
        assert bench.newest() == "1"
        await asyncio.sleep(IDLE_S + 10)
        with pytest.raises(ModelVersionGone):
            bench.catalogue.pinned(two)
        assert batcher._closed

    play(scenario)


def test_other_weights_of_a_version_are_not_loaded_for_a_sequence(tmp_path: Path) -> None:
    """The manifest is read, and tells that what the sequence began on is gone."""
    folders = Folders(tmp_path)
    one = folders.add("1")
    folders.add("2")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, versions_kept=1, **POLLED)
        await bench.repository.start(TOY)
        other = one._replace(weights_digest="f" * 64)
        with pytest.raises(NotReady):
            bench.catalogue.pinned(other)
        await asyncio.sleep(2)
        with pytest.raises(ModelVersionGone):
            bench.catalogue.pinned(other)
        assert bench.opened == ["2"]

    play(scenario)


def test_only_the_newest_versions_are_kept(tmp_path: Path) -> None:
    """An older one goes when its sequences have, and is loaded again for one that comes after that; for no start."""
    folders = Folders(tmp_path)
    one = folders.add("1")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, versions_kept=1, **POLLED)
        await bench.repository.start(TOY)
        folders.add("2")
        await polled()
        assert bench.states() == {"1": "UNLOADING", "2": "READY"}
        assert await step(bench, one) == 1
        await asyncio.sleep(IDLE_S + 10)
        assert bench.states() == {"1": "UNAVAILABLE", "2": "READY"}
        with pytest.raises(NotReady):
            bench.catalogue.pinned(one)
        await asyncio.sleep(2)
        assert await step(bench, one) == 1
        assert bench.states() == {"1": "UNLOADING", "2": "READY"}
        with pytest.raises(UnknownModel):
            bench.catalogue.find("toy", "1")
        assert bench.catalogue.find("toy", "1", start=False).model_id == one

    play(scenario)


def test_a_broken_version_does_not_count_as_kept(tmp_path: Path) -> None:
    """Of two that are to be kept the older ones stay as long as the newest is broken."""
    folders = Folders(tmp_path)
    for version, content in (("1", b"a"), ("2", b"b"), ("3", BROKEN)):
        folders.add(version, content)

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, versions_kept=2, **POLLED)
        await bench.repository.start(TOY)
        assert bench.states() == {"1": "READY", "2": "READY", "3": "UNAVAILABLE"}

    play(scenario)


def test_a_sequence_may_come_before_its_version(tmp_path: Path) -> None:
    """Another replica has polled earlier: what is in the folders is loaded now, not at the next look."""
    folders = Folders(tmp_path)
    folders.add("1")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, model_control_mode="poll", repository_poll_s=1000)
        await bench.repository.start(TOY)
        two = folders.add("2")
        await asyncio.sleep(10)
        with pytest.raises(NotReady):
            bench.catalogue.pinned(two)
        await asyncio.sleep(1)
        assert await step(bench, two) == 2
        assert bench.newest() == "2"

    play(scenario)


@pytest.mark.parametrize("mode", ["none", "poll", "explicit"])
def test_a_version_that_never_comes_is_gone_after_a_while(tmp_path: Path, mode: str) -> None:
    """One that is newer than all here may be on its way for `rollout_s`; an older one, or other weights, never are."""
    folders = Folders(tmp_path)
    two = folders.add("2")

    async def scenario(make: Make) -> None:
        listed = "toy" if mode == "explicit" else ""
        bench = make(tmp_path, model_control_mode=mode, load_models=listed, rollout_s=100)
        await bench.repository.start(TOY)
        for gone in (two._replace(version="1"), two._replace(weights_digest="f" * 64)):
            with pytest.raises(ModelVersionGone):
                bench.catalogue.pinned(gone)
        for _ in range(9):
            with pytest.raises(NotReady):
                bench.catalogue.pinned(two._replace(version="3"))
            await asyncio.sleep(10)
        await asyncio.sleep(20)
        with pytest.raises(ModelVersionGone):
            bench.catalogue.pinned(two._replace(version="3"))

    play(scenario)
