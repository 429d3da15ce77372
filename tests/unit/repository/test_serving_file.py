"""What an operator sets for one model, read while the server runs."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.kit.executors import HeldExecutor
from tests.kit.folders import Folders, play

if TYPE_CHECKING:
    from pathlib import Path

    from tests.kit.folders import Make

TOY = ("toy",)
POLLED: Any = {"model_control_mode": "poll", "repository_poll_s": 5}
ALL = {
    "batch_size_max": 3,
    "batch_cells_max": 30,
    "batch_delay_ms_max": 1.5,
    "queue_max": 7,
    "run_threads": 2,
    "sequences_max": 9,
    "state_bytes_max": 1000,
    "durability": "step",
    "idle_timeout_s": 30,
    "lifetime_s": 900,
}


def test_every_field_takes_the_place_of_its_setting(tmp_path: Path) -> None:
    """What is not given is as the settings and the manifest have it."""
    folders = Folders(tmp_path)
    folders.add("1")
    folders.add("1", name="other")
    folders.limit(json.dumps(ALL))

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, queue_max=11, batch_size_max=5, run_threads=3)
        await bench.repository.start(TOY)
        model, other = bench.catalogue.find("toy"), bench.catalogue.find("other")
        batch = model.limits.batch
        assert (batch.batch_size_max, batch.cells_max, batch.queue_max, batch.delay_s_max) == (3, 30, 7, 0.0015)
        assert (model.limits.run_threads, model.limits.sequences_max, model.limits.state_bytes_max) == (2, 9, 1000)
        sequence = model.sequence
        assert (sequence.durability, sequence.idle_timeout_s, sequence.lifetime_s) == ("step", 30, 900)
        assert (other.limits.batch.queue_max, other.limits.batch.batch_size_max, other.limits.run_threads) == (11, 5, 3)
        assert (other.limits.sequences_max, other.limits.state_bytes_max) == (None, None)
        assert other.sequence == other.manifest.sequence

    play(scenario)


def test_a_change_holds_from_the_next_look(tmp_path: Path) -> None:
    """Nothing is opened for it, and taking the file away puts everything back."""
    folders = Folders(tmp_path)
    one = folders.add("1")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **POLLED)
        await bench.repository.start(TOY)
        folders.limit('{"queue_max": 7}')
        await asyncio.sleep(6)
        assert bench.catalogue.pinned(one).limits.batch.queue_max == 7
        limited = bench.catalogue.pinned(one)
        assert bench.catalogue.find("toy") is limited
        folders.limit('{"queue_max":   7}')
        await asyncio.sleep(6)
        assert bench.catalogue.pinned(one) is limited
        (tmp_path / "toy" / "serving.json").unlink()
        await asyncio.sleep(6)
        assert bench.catalogue.pinned(one).limits.batch.queue_max == 1024
        assert bench.opened == ["1"]

    play(scenario)


def test_a_wrong_file_changes_nothing(tmp_path: Path) -> None:
    """The last good one holds, and the index names file and field. From the start it keeps no model from loading."""
    folders = Folders(tmp_path)
    folders.add("1")
    folders.limit('{"queue_max": 7, "queue_min": 1}')

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **POLLED)
        await bench.repository.start(TOY)
        assert bench.states() == {"1": "READY"}
        assert bench.reason("1").startswith("serving.json: queue_min: ")
        folders.limit('{"queue_max": 9}')
        await asyncio.sleep(6)
        assert bench.reason("1") == ""
        for text, field in (('{"queue_max": "many"}', "serving.json: queue_max: "), ("{", "serving.json: ")):
            folders.limit(text)
            await asyncio.sleep(6)
            assert bench.reason("1").startswith(field)
            assert bench.catalogue.find("toy").limits.batch.queue_max == 9
        assert str(tmp_path) not in str(bench.repository.index())

    play(scenario)


def test_steps_in_flight_are_finished_within_the_limits_before(tmp_path: Path) -> None:
    """The batcher before closes when it is idle, and not earlier."""
    folders = Folders(tmp_path)
    folders.add("1")
    executor = HeldExecutor()

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, executor=executor, **POLLED)
        await bench.repository.start(TOY)
        before = bench.catalogue.find("toy")
        stepping = asyncio.create_task(before.batcher.step((np.ones(1, dtype=np.float32),), before.initial_state))
        await asyncio.sleep(0.1)
        folders.limit('{"queue_max": 7}')
        await asyncio.sleep(60)
        assert bench.catalogue.find("toy") is not before
        assert not before.batcher._closed
        executor.release()
        assert float((await stepping).outputs[1][0]) == 1
        await asyncio.sleep(5)
        assert before.batcher._closed

    play(scenario)


def test_a_retired_version_keeps_the_time_it_has(tmp_path: Path) -> None:
    """New limits hold for it, and do not let it begin anew."""
    folders = Folders(tmp_path)
    one = folders.add("1")
    folders.add("2")

    async def scenario(make: Make) -> None:
        bench = make(tmp_path, **POLLED)
        await bench.repository.start(TOY)
        folders.remove("1")
        await asyncio.sleep(40)
        model = bench.catalogue.pinned(one)
        await model.batcher.step((np.ones(1, dtype=np.float32),), model.initial_state)
        await asyncio.sleep(10)
        folders.limit('{"idle_timeout_s": 100}')
        await asyncio.sleep(80)
        assert bench.states()["1"] == "UNLOADING"
        await asyncio.sleep(20)
        assert "1" not in bench.states()

    play(scenario)
