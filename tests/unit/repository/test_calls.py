"""Models that are loaded and unloaded by calls."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from services.runtime.core.errors import ModelNotLoaded, NotReady, UnknownModel
from tests.kit.folders import BROKEN, SEQUENCE, Folders, play

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kit.folders import Make

TOY = ("toy",)
CALLED: Any = {"model_control_mode": "explicit", "repository_poll_s": 5}
LOADED: Any = {**CALLED, "load_models": "toy"}
IDLE_S = SEQUENCE.idle_timeout_s


def test_a_call_loads_what_is_there(tmp_path: Path) -> None:
    """Until then nothing is served; a new version in the folder is listed, and served after the next call."""
    folders = Folders(tmp_path)
    folders.add("1")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **CALLED)
        await bench.repository.start(TOY)
        assert bench.states() == {"1": "UNAVAILABLE"}
        with pytest.raises(UnknownModel):
            bench.newest()
        await bench.repository.load("toy")
        assert bench.newest() == "1"
        folders.add("2")
        await asyncio.sleep(6)
        assert bench.states() == {"1": "READY", "2": "UNAVAILABLE"}
        assert bench.newest() == "1"
        await bench.repository.load("toy")
        assert bench.newest() == "2"
        assert bench.repository.ready

    play(scenario)


def test_a_call_for_what_is_not_there_is_refused(tmp_path: Path) -> None:
    """Nothing of that name to load, or nothing to unload."""
    folders = Folders(tmp_path)
    folders.add("1")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **CALLED)
        await bench.repository.start(TOY)
        with pytest.raises(UnknownModel):
            await bench.repository.load("absent")
        for name in ("absent", "toy"):
            with pytest.raises(UnknownModel):
                await bench.repository.unload(name)

    play(scenario)


def test_a_call_says_why_the_newest_version_is_not_served(tmp_path: Path) -> None:
    """What was served before goes on. Each call tries again; the reason has no path of the machine."""
    folders = Folders(tmp_path)
    folders.add("1")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **LOADED)
        await bench.repository.start(TOY)
        folders.add("2", BROKEN)
        for _ in range(2):
            with pytest.raises(ModelNotLoaded, match=r"version 2: RuntimeError: Load model from model\.onnx") as caught:
                await bench.repository.load("toy")
            assert str(tmp_path) not in caught.value.message
        assert bench.opened == ["1", "2", "2"]
        assert bench.newest() == "1"
        folders.add("3", manifest=False)
        folders.remove("2")
        await bench.repository.load("toy")
        assert bench.states() == {"1": "READY", "3": "UNAVAILABLE"}

    play(scenario)


def test_an_unloaded_model_goes_on_with_its_sequences(tmp_path: Path) -> None:
    """No start is taken, and UNLOADING told, until its sequences are over; then it is not loaded, and can be again."""
    folders = Folders(tmp_path)
    one, two = folders.add("1"), folders.add("2")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **LOADED)
        await bench.repository.start(TOY)
        await bench.repository.unload("toy")
        await bench.repository.unload("toy")
        assert bench.states() == {"1": "UNLOADING", "2": "UNLOADING"}
        with pytest.raises(UnknownModel):
            bench.newest()
        assert bench.catalogue.find("toy", start=False).model_id in {one, two}
        assert bench.catalogue.pinned(one).model_id == one
        assert bench.repository.ready
        await asyncio.sleep(IDLE_S + 10)
        assert bench.states() == {"1": "UNAVAILABLE", "2": "UNAVAILABLE"}
        assert bench.reason("1") == "unloaded"
        await bench.repository.load("toy")
        assert bench.newest() == "2"

    play(scenario)


def test_a_model_that_is_loaded_again_while_it_is_unloaded_is_ready(tmp_path: Path) -> None:
    """Nothing has to be opened for that."""
    folders = Folders(tmp_path)
    folders.add("1")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **LOADED)
        await bench.repository.start(TOY)
        await bench.repository.unload("toy")
        await bench.repository.load("toy")
        assert bench.states() == {"1": "READY"}
        assert bench.opened == ["1"]
        await asyncio.sleep(2 * IDLE_S)
        assert bench.states() == {"1": "READY"}

    play(scenario)


def test_a_version_that_was_taken_away_is_retired_by_the_next_call(tmp_path: Path) -> None:
    """Without a call nothing changes."""
    folders = Folders(tmp_path)
    folders.add("1")
    folders.add("2")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **LOADED)
        await bench.repository.start(TOY)
        folders.remove("1")
        await asyncio.sleep(6)
        assert bench.states() == {"1": "READY", "2": "READY"}
        await bench.repository.load("toy")
        assert bench.states() == {"1": "UNLOADING", "2": "READY"}

    play(scenario)


def test_nobody_has_a_model_loaded_by_naming_it(tmp_path: Path) -> None:
    """Who starts a sequence is told that there is none; who goes on with one is told to try again, or elsewhere."""
    folders = Folders(tmp_path)
    folders.add("1")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **CALLED)
        await bench.repository.start(TOY)
        for _ in range(3):
            with pytest.raises(UnknownModel):
                bench.newest()
            with pytest.raises(NotReady):
                bench.catalogue.find("toy", start=False)
            await asyncio.sleep(6)
        with pytest.raises(UnknownModel):
            bench.catalogue.find("absent", start=False)
        assert bench.opened == []

    play(scenario)


def test_a_sequence_has_its_version_loaded(tmp_path: Path) -> None:
    """One that another replica began, on a version that is not kept here; no start is taken on it."""
    folders = Folders(tmp_path)
    one = folders.add("1")
    folders.add("2")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, versions_kept=1, **LOADED)
        await bench.repository.start(TOY)
        assert bench.states() == {"1": "UNAVAILABLE", "2": "READY"}
        with pytest.raises(NotReady):
            bench.catalogue.pinned(one)
        await asyncio.sleep(2)
        assert bench.catalogue.pinned(one).model_id == one
        assert bench.states() == {"1": "UNLOADING", "2": "READY"}
        with pytest.raises(UnknownModel):
            bench.catalogue.find("toy", "1")

    play(scenario)


def test_a_broken_version_is_not_loaded_for_a_sequence(tmp_path: Path) -> None:
    """It is opened once, and the sequence is told to try again, elsewhere, for a while."""
    folders = Folders(tmp_path)
    broken = folders.add("1", BROKEN)

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **CALLED)
        await bench.repository.start(TOY)
        for _ in range(3):
            with pytest.raises(NotReady):
                bench.catalogue.pinned(broken)
            await asyncio.sleep(2)
        assert bench.opened == ["1"]
        assert bench.states() == {"1": "UNAVAILABLE"}

    play(scenario)
