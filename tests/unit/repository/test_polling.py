"""Versions that come, change and go in the folders while a server polls them."""

from __future__ import annotations

import asyncio
import gc
import shutil
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import structlog

from services.runtime.core.errors import ModelVersionGone, UnknownModel
from tests.kit.executors import HeldExecutor
from tests.kit.folders import BROKEN, SEQUENCE, Folders, play

if TYPE_CHECKING:
    from pathlib import Path

    from services.runtime.core.ids import ModelId
    from tests.kit.folders import Bench, Make

TOY = ("toy",)
POLL_S = 5.0
POLLED: Any = {"model_control_mode": "poll", "repository_poll_s": POLL_S}
IDLE_S, LIFETIME_S = SEQUENCE.idle_timeout_s, SEQUENCE.lifetime_s


async def polled() -> None:
    """Lets the next look happen."""
    await asyncio.sleep(POLL_S + 0.1)


async def step(bench: Bench, model_id: ModelId) -> float:
    """A step of a sequence that began on that model, from its initial state: each version weighs its input."""
    model = bench.catalogue.pinned(model_id)
    result = await model.batcher.step((np.ones(1, dtype=np.float32),), model.initial_state)
    return float(result.outputs[1][0])


def test_a_new_version_takes_the_starts(tmp_path: Path) -> None:
    """Sequences of the version before go on with it, and it can still be asked for."""
    folders = Folders(tmp_path)
    one = folders.add("1")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **POLLED)
        await bench.repository.start(TOY)
        two = folders.add("2")
        assert bench.newest() == "1"
        await polled()
        assert bench.newest() == "2"
        assert bench.states() == {"1": "READY", "2": "READY"}
        assert bench.catalogue.find("toy", "1").model_id == one
        assert (await step(bench, one), await step(bench, two)) == (1, 2)

    play(scenario)


def test_a_version_that_is_being_copied_is_not_there_yet(tmp_path: Path) -> None:
    """Without its manifest nothing is tried and nothing is wrong; with it the version is loaded."""
    folders = Folders(tmp_path)
    folders.add("1")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **POLLED)
        await bench.repository.start(TOY)
        folders.add("2", manifest=False)
        await polled()
        assert bench.states() == {"1": "READY", "2": "UNAVAILABLE"}
        assert "manifest.json" in bench.reason("2")
        assert bench.opened == ["1"]
        assert "model_refused" not in bench.events.seen
        folders.add("2")
        await polled()
        assert bench.newest() == "2"

    play(scenario)


def test_a_broken_new_version_is_tried_again_when_its_files_change(tmp_path: Path) -> None:
    """Until then the good one is served, and the bad one is opened once."""
    folders = Folders(tmp_path)
    folders.add("1")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **POLLED)
        await bench.repository.start(TOY)
        folders.add("2", BROKEN)
        for _ in range(3):
            await polled()
        assert bench.opened == ["1", "2"]
        assert bench.newest() == "1"
        assert bench.states() == {"1": "READY", "2": "UNAVAILABLE"}
        folders.add("2", BROKEN + b" either")
        await polled()
        assert bench.opened == ["1", "2", "2"]
        folders.add("2", b"good")
        await polled()
        assert bench.newest() == "2"
        assert bench.reason("2") == ""

    play(scenario)


def test_a_version_that_changes_is_refused(tmp_path: Path) -> None:
    """The one that is loaded is served on; the index says what is wrong, until the files are back."""
    folders = Folders(tmp_path)
    one = folders.add("1", b"first")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **POLLED)
        await bench.repository.start(TOY)
        other = folders.add("1", b"second")
        for _ in range(2):
            await polled()
        assert bench.states() == {"1": "READY"}
        assert "does not change" in bench.reason("1")
        assert bench.events.seen.count("model_refused") == 1
        assert await step(bench, one) == 1
        with pytest.raises(ModelVersionGone):
            bench.catalogue.pinned(other)
        folders.add("1", b"first")
        await polled()
        assert bench.reason("1") == ""
        assert bench.opened == ["1"]

    play(scenario)


def test_a_version_that_vanishes_goes_on_with_its_sequences(tmp_path: Path) -> None:
    """It takes no start, serves steps as long as they come, and is unloaded when none has come for the idle time."""
    folders = Folders(tmp_path)
    one = folders.add("1")
    folders.add("2")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **POLLED)
        await bench.repository.start(TOY)
        model = weakref.ref(bench.catalogue.pinned(one))
        folders.remove("1")
        await polled()
        assert bench.states() == {"1": "UNLOADING", "2": "READY"}
        with pytest.raises(UnknownModel):
            bench.catalogue.find("toy", "1")
        for _ in range(3):
            await asyncio.sleep(IDLE_S - 10)
            assert await step(bench, one) == 1
        await asyncio.sleep(IDLE_S - 10)
        assert bench.states()["1"] == "UNLOADING"
        await asyncio.sleep(20)
        assert bench.states() == {"2": "READY"}
        with pytest.raises(ModelVersionGone):
            bench.catalogue.pinned(one)
        gc.collect()
        assert model() is None, "its memory is not freed"
        assert bench.events.seen.count("model_unloaded") == 1

    play(scenario)


def test_no_sequence_outlives_its_lifetime(tmp_path: Path) -> None:
    """However often its sequences step, a retired version goes when all that began on it are too old."""
    folders = Folders(tmp_path)
    one = folders.add("1")
    folders.add("2")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **POLLED)
        await bench.repository.start(TOY)
        folders.remove("1")
        await polled()
        for _ in range(int(LIFETIME_S // 50) - 1):
            await asyncio.sleep(50)
            await step(bench, one)
        assert bench.states()["1"] == "UNLOADING"
        await asyncio.sleep(50)
        assert "1" not in bench.states()

    play(scenario)


def test_a_version_without_sequences_goes_at_once(tmp_path: Path) -> None:
    """Where all sequences are known here and none is live, only what may be on its way is waited for."""
    folders = Folders(tmp_path)
    one = folders.add("1")
    folders.add("2")
    live = {one: 1}

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, live=live.__getitem__, **POLLED)
        await bench.repository.start(TOY)
        folders.remove("1")
        await polled()
        await asyncio.sleep(IDLE_S - 10)
        assert bench.states()["1"] == "UNLOADING"
        live[one] = 0
        await step(bench, one)
        await bench.repository.sweep()
        await bench.repository.sweep()
        assert bench.states()["1"] == "UNLOADING", "a start may be on its way"
        await asyncio.sleep(5)
        assert "1" not in bench.states()

    play(scenario)


def test_files_that_change_while_they_are_read_are_read_again(tmp_path: Path) -> None:
    """What was opened of them is not served."""
    folders = Folders(tmp_path)
    folders.add("1")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **POLLED)
        await bench.repository.start(TOY)
        bench.on_open = lambda: folders.add("2", b"later")
        folders.add("2", b"sooner")
        await polled()
        assert bench.newest() == "1"
        assert "changed while" in bench.reason("2")
        bench.on_open = None
        await polled()
        assert bench.newest() == "2"

    play(scenario)


def test_a_run_in_flight_is_finished(tmp_path: Path) -> None:
    """A version whose time is up is not taken from under a step."""
    folders = Folders(tmp_path)
    one = folders.add("1")
    folders.add("2")
    executor = HeldExecutor()

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, executor=executor, live=lambda _: 0, **POLLED)
        await bench.repository.start(TOY)
        stepping = asyncio.create_task(step(bench, one))
        await asyncio.sleep(0.1)
        folders.remove("1")
        await asyncio.sleep(LIFETIME_S + POLL_S)
        assert bench.states()["1"] == "UNLOADING"
        executor.release()
        assert await stepping == 1
        await asyncio.sleep(5)
        assert "1" not in bench.states()

    play(scenario)


def test_a_version_that_comes_back_takes_starts_again(tmp_path: Path) -> None:
    """Nothing is loaded for it; where other files have come, they are refused while the ones before are needed."""
    folders = Folders(tmp_path)
    folders.add("1", b"first")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **POLLED)
        await bench.repository.start(TOY)
        folders.remove("1")
        await polled()
        with pytest.raises(UnknownModel):
            bench.newest()
        folders.add("1", b"first")
        await polled()
        assert bench.newest() == "1"
        assert bench.opened == ["1"]
        folders.remove("1")
        await polled()
        folders.add("1", b"second")
        await polled()
        assert bench.states() == {"1": "UNLOADING"}
        await asyncio.sleep(IDLE_S + 10)
        assert bench.newest() == "1"
        assert bench.opened == ["1", "1"]

    play(scenario)


def test_a_folder_that_cannot_be_read_takes_nothing_away(tmp_path: Path) -> None:
    """A volume that is not mounted for a while is no removal of its models."""
    folders = Folders(tmp_path / "models")
    folders.add("1")

    async def scenario(make: Make) -> None:
        bench = make(folders.root, **POLLED)
        await bench.repository.start(TOY)
        shutil.move(folders.root, tmp_path / "away")
        await polled()
        assert bench.states() == {"1": "READY"}
        assert bench.newest() == "1"
        shutil.move(tmp_path / "away", folders.root)
        folders.add("2")
        await polled()
        assert bench.newest() == "2"

    play(scenario)


def test_a_folder_that_cannot_be_read_is_told_once(tmp_path: Path) -> None:
    """However often it is looked at; and again when it could be read in between."""
    folders = Folders(tmp_path / "models")
    folders.add("1")

    async def scenario(make: Make) -> None:
        bench = make(folders.root, **POLLED)
        await bench.repository.start(TOY)
        for times in (1, 2):
            shutil.move(folders.root, tmp_path / "away")
            for _ in range(3):
                await polled()
            shutil.move(tmp_path / "away", folders.root)
            await polled()
            assert [log["log_level"] for log in logs if "folder" in log] == ["warning"] * times

    with structlog.testing.capture_logs() as logs:
        play(scenario)


def test_a_model_that_is_taken_away_makes_nobody_unready(tmp_path: Path) -> None:
    """It was taken away on purpose; the server serves what is left."""
    folders = Folders(tmp_path)
    folders.add("1")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **POLLED)
        await bench.repository.start(TOY)
        shutil.rmtree(tmp_path / "toy")
        await polled()
        assert bench.states() == {"1": "UNLOADING"}
        assert bench.repository.ready

    play(scenario)
