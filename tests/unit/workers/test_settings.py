"""What of workers is settled before any process runs: settings, the brief, the threads, what a supervisor imports."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from services.runtime.config import THREADS_MAX, Settings
from services.runtime.workers import supervisor
from services.runtime.workers.link import Brief


def settings(**given: Any) -> Settings:
    values: Any = {"store": "redis", **given}
    return Settings(**values)


@pytest.mark.parametrize(("given", "workers"), [("auto", 0), ("0", 0), ("3", 3), (1, 1)])
def test_workers_are_a_number_or_auto(given: Any, workers: int) -> None:
    """As an option or a variable gives it, text or number."""
    assert settings(workers=given).workers == workers


@pytest.mark.parametrize("given", ["-1", "two", "1025", ""])
def test_other_numbers_of_workers_are_refused(given: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValidationError):
        settings(workers=given)


@pytest.mark.parametrize("given", ["auto", 2])
def test_workers_need_a_store_that_they_share(given: Any) -> None:
    """The message names both settings. Also for auto, which may be one worker here and eight elsewhere."""
    with pytest.raises(ValidationError, match=r"workers.*store redis.*store memory"):
        settings(workers=given, store="memory")
    assert settings(workers=1, store="memory").workers == 1


def test_workers_load_models_by_themselves() -> None:
    """A call to load a model would reach one of them, and a client would find it at every other call."""
    with pytest.raises(ValidationError, match=r"workers.*model_control_mode"):
        settings(workers=2, model_control_mode="explicit")
    assert settings(workers=2, model_control_mode="poll").workers == 2
    assert settings(workers=1, model_control_mode="explicit").workers == 1


def test_a_brief_arrives_as_it_was_sent() -> None:
    """In one line."""
    brief = Brief("7", 1, ("a.b", "c"), {"redis_url": "redis://:pass\nword@host", "run_threads": 1}, "/folder")
    assert brief.line().count(b"\n") == 1
    assert Brief.of(brief.line()) == brief


@pytest.mark.parametrize(("cores", "workers", "threads"), [(2, 2, 1), (8, 8, 1), (8, 2, 4), (64, 2, 4), (2, 8, 1)])
def test_workers_share_the_processors(monkeypatch: pytest.MonkeyPatch, cores: int, workers: int, threads: int) -> None:
    """Threads that are left to the machine are a worker's share of it; those that are set stay as they are."""
    monkeypatch.setattr(supervisor, "usable_cores", lambda: cores)
    assert THREADS_MAX == 4
    both = {"run_threads": threads, "lone_run_threads": threads}
    assert supervisor.share_of_threads(settings(), workers) == both
    assert supervisor.share_of_threads(settings(run_threads=3), workers) == {"lone_run_threads": threads}


@pytest.mark.parametrize(
    "module", ["services.runtime.workers.supervisor", "services.runtime.start", "services.cli.serve"]
)
def test_a_supervisor_is_light(module: str) -> None:
    """It imports nothing of what serves: gRPC, numpy, ONNX Runtime, Redis."""
    program = f"import {module}, sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    heavy = {"grpc", "numpy", "onnxruntime", "redis", "uvloop", "statestream", "services.runtime.app"}
    assert not heavy & set(done.stdout.split())
