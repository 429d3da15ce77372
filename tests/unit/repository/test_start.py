"""What a server has loaded when it starts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from models.common.manifest import ArtefactError
from services.runtime.core.errors import ModelControlDisabled, NotReady, UnknownModel
from tests.kit.folders import BROKEN, Folders, play

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kit.folders import Make

TOY = ("toy",)


def test_all_versions_are_served_and_the_newest_is_the_default(tmp_path: Path) -> None:
    """Versions count as people count: 10 comes after 9; an older one can be asked for."""
    folders = Folders(tmp_path)
    for version in ("9", "10", "2"):
        folders.add(version)

    async def scenario(make: Make) -> None:
        bench = make(tmp_path)
        await bench.repository.start(TOY)
        assert [(entry.version, entry.state, entry.reason) for entry in bench.repository.index()] == [
            (version, "READY", "") for version in ("2", "9", "10")
        ]
        assert bench.newest() == "10"
        assert bench.catalogue.find("toy", "2").model_id.version == "2"
        assert bench.repository.ready
        assert bench.events.seen.count("model_served") == 3

    play(scenario)


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_a_broken_version_takes_no_good_one_down(tmp_path: Path, mode: str) -> None:
    """The good one is served; the index says what is wrong with the other, and nothing of the machine."""
    folders = Folders(tmp_path)
    folders.add("1")
    folders.add("2", BROKEN)
    folders.add("3")
    (tmp_path / "toy" / "3" / "model.onnx").write_bytes(b"other")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, model_control_mode=mode)
        await bench.repository.start(TOY)
        assert bench.states() == {"1": "READY", "2": "UNAVAILABLE", "3": "UNAVAILABLE"}
        assert bench.newest() == "1"
        assert bench.reason("2") == f"RuntimeError: Load model from model.onnx failed: {BROKEN.decode()}"
        assert "model.onnx: sha256 is" in bench.reason("3")
        assert str(tmp_path) not in str(bench.repository.index())
        assert bench.repository.ready
        assert bench.events.seen.count("model_refused") == 2

    play(scenario)


def test_a_task_without_a_good_version_does_not_start(tmp_path: Path) -> None:
    """The error names the file that is wrong, or the folder where nothing is."""
    folders = Folders(tmp_path)
    folders.add("1")
    (tmp_path / "toy" / "1" / "model.onnx").write_bytes(b"other")

    async def scenario(make: Make) -> None:
        with pytest.raises(ArtefactError, match=r"toy/1/model\.onnx: sha256"):
            await make(tmp_path).repository.start(TOY)
        with pytest.raises(ArtefactError, match=r"other: holds no exported model"):
            await make(tmp_path).repository.start(["other"])

    play(scenario)


def test_polling_starts_without_a_model(tmp_path: Path) -> None:
    """It is not ready, and is once the model comes."""
    folders = Folders(tmp_path)

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, model_control_mode="poll", repository_poll_s=5)
        await bench.repository.start(TOY)
        assert not bench.repository.ready
        with pytest.raises(UnknownModel):
            bench.newest()
        folders.add("1")
        await asyncio.sleep(5.1)
        assert bench.repository.ready
        assert bench.newest() == "1"

    play(scenario)


def test_explicit_loads_what_is_listed(tmp_path: Path) -> None:
    """Of all models in the folders, those of `load_models`; * is all of them. The others are named and not loaded."""
    folders = Folders(tmp_path)
    folders.add("1")
    folders.add("1", name="other")

    async def scenario(make: Make) -> None:
        values: Any = {"model_control_mode": "explicit"}
        for listed, loaded in (
            ("", []),
            ("other", ["other"]),
            ("*", ["other", "toy"]),
            ("toy, other", ["other", "toy"]),
        ):
            bench = make(tmp_path, load_models=listed, **values)
            await bench.repository.start(TOY)
            assert [entry.name for entry in bench.repository.index() if entry.state == "READY"] == loaded
            assert [entry.name for entry in bench.repository.index()] == ["other", "toy"]
            assert bench.repository.ready
        bench = make(tmp_path, load_models="absent", **values)
        await bench.repository.start(TOY)
        assert not bench.repository.ready

    play(scenario)


@pytest.mark.parametrize("mode", ["none", "poll"])
def test_calls_do_not_load_where_the_mode_does(tmp_path: Path, mode: str) -> None:
    """Load and unload are refused, and nothing has changed."""
    Folders(tmp_path).add("1")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, model_control_mode=mode)
        await bench.repository.start(TOY)
        for call in (bench.repository.load, bench.repository.unload):
            with pytest.raises(ModelControlDisabled, match=mode):
                await call("toy")
        assert bench.states() == {"1": "READY"}

    play(scenario)


def test_of_several_folders_the_first_counts(tmp_path: Path) -> None:
    """Versions of one model may lie in several; where two have the same version that of the first is served."""
    one, two = Folders(tmp_path / "one"), Folders(tmp_path / "two")
    first = one.add("1", b"first")
    two.add("1", b"second")
    two.add("2")

    async def scenario(make: Make) -> None:
        bench = make(one.root, two.root)
        await bench.repository.start(TOY)
        assert bench.states() == {"1": "READY", "2": "READY"}
        assert bench.catalogue.get(first) is not None

    play(scenario)


def test_only_models_that_are_served_are_looked_at(tmp_path: Path) -> None:
    """A server of some tasks leaves the other models in the folder alone."""
    folders = Folders(tmp_path)
    folders.add("1")
    folders.add("1", BROKEN, name="other")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, names=frozenset(TOY))
        await bench.repository.start(TOY)
        assert [entry.name for entry in bench.repository.index()] == ["toy"]

    play(scenario)


def test_who_asks_while_a_model_is_loaded_is_told_to_come_again(tmp_path: Path) -> None:
    """The index says LOADING, and a start is answered NOT_READY rather than MODEL_NOT_FOUND."""
    Folders(tmp_path).add("1")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path)
        bench.offload.left = 1  # lists the folders, and does not open the model yet
        starting = asyncio.create_task(bench.repository.start(TOY))
        await asyncio.sleep(1)
        assert bench.states() == {"1": "LOADING"}
        with pytest.raises(NotReady):
            bench.newest()
        bench.offload.go_on.set()
        await starting
        assert bench.newest() == "1"

    play(scenario)
