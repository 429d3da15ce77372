"""The rules of the house that no tool knows."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

import pytest

from tests.unit.house.tables import collectors, label_names
from tests.unit.house.tree import CODE, ROOT, dotted, files, functions, is_generated, parsed, python_files

if TYPE_CHECKING:
    from pathlib import Path

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 400
ARTEFACT_BYTES_MAX = 25_000_000

WRITTEN = {".py", ".proto", ".yml", ".yaml", ".sh", ".toml", ".lua", ".conf", ".env", ".Dockerfile"}

# Who may read the wall clock, sleep or read the environment, and why. Everybody else is given what it needs.
ROOMS = {
    "wall clock": {
        "services/runtime/core/clock.py": "the clock that all others are handed",
        "models/common/export/write.py": "the date of an export",
        "tests/bench/*": "the date of a measurement",
    },
    "sleep": {
        "services/runtime/core/clock.py": "the clock that all others are handed",
        "tests/chaos/*": "faults on real processes come at times drawn from a seed, and the load keeps its pace",
        "tests/simulation/*": "virtual time",
        "tests/kit/ahead.py": "virtual time",
        "tests/unit/rpc/*": "virtual time",
        "tests/unit/repository/*": "virtual time",
        "tests/unit/sequences/test_heads.py": "virtual time",
        "tests/unit/sequences/test_losses.py": "virtual time",
    },
    "environment": {
        "services/runtime/config.py": "the settings",
        "services/cli/main.py": "quiets the log of gRPC, which reads the environment alone",
        "models/common/data.py": "where data sets lie",
        "tests/*": "what the processes under test inherit",
    },
}
CALLS = {
    "time.time": "wall clock",
    "time.time_ns": "wall clock",
    "datetime.now": "wall clock",
    "datetime.utcnow": "wall clock",
    "datetime.today": "wall clock",
    "datetime.datetime.now": "wall clock",
    "dt.datetime.now": "wall clock",
    "date.today": "wall clock",
    "time.sleep": "sleep",
    "asyncio.sleep": "sleep",
    "os.getenv": "environment",
}
LABELS = {
    "state",
    "method",
    "code",
    "model",
    "phase",
    "reason",
    "hit",
    "version",
    "digest",
    "operation",
    "healed",
    "cause",
}
UNITS = ("_seconds", "_bytes", "_ratio", "_rms", "_info")
COUNTED = ("_size", "_steps", "_length", "_open", "_live", "_wanted", "_threads")


def uses(path: Path) -> list[tuple[str, ast.expr]]:
    """Where a file reads the wall clock, sleeps or reads the environment."""
    found: list[tuple[str, ast.expr]] = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Call) and dotted(node.func) in CALLS:
            found.append((CALLS[dotted(node.func)], node))
        elif isinstance(node, ast.Attribute) and dotted(node) == "os.environ":
            found.append(("environment", node))
    return found


def polls(path: Path) -> set[ast.expr]:
    """The sleeps of a file that wait for something: those of 0, and those in a loop that asks for it."""
    asked: set[ast.expr] = set()
    for loop in ast.walk(parsed(path)):
        if isinstance(loop, ast.While) and not isinstance(loop.test, ast.Constant):
            asked |= {node for node in ast.walk(loop) if isinstance(node, ast.Call)}
        if isinstance(loop, ast.Call) and [getattr(argument, "value", None) for argument in loop.args] == [0]:
            asked.add(loop)
    return asked


def test_functions_fit_a_screen() -> None:
    """No function is longer than a screen."""
    long = [
        f"{path}:{function.lineno} {function.name} has {lines} lines"
        for path in python_files()
        for function in functions(path)
        if (lines := (function.end_lineno or function.lineno) - function.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert not long


def test_files_are_one_room_each() -> None:
    """No written file is longer than can be read in one sitting."""
    long = [
        f"{path} has {lines} lines"
        for path in files()
        if (path.suffix in WRITTEN or path.name == "Makefile") and not is_generated(path)
        if (lines := len((ROOT / path).read_text().splitlines())) > FILE_LINES_MAX
    ]
    assert not long


def test_every_test_says_what_must_hold() -> None:
    """Every test function has a docstring."""
    silent = [
        f"{path}:{function.lineno} {function.name}"
        for path in python_files("tests")
        for function in functions(path)
        if function.name.startswith("test_") and not ast.get_docstring(function)
    ]
    assert not silent


def test_time_and_environment_are_read_in_their_rooms() -> None:
    """Wall clock, sleep and environment are used where ROOMS says; a test sleeps only while it asks for something."""
    strays = [
        f"{path}:{node.lineno} {kind}"
        for path in python_files("services", "models", "tests")
        for kind, node in uses(path)
        if not any(path.match(room) or str(path).startswith(room.rstrip("*")) for room in ROOMS[kind])
        if not (path.parts[0] == "tests" and node in polls(path))
    ]
    assert not strays


def test_a_stray_is_found(tmp_path: Path) -> None:
    """The search for clocks, sleeps and settings finds each of them, and takes no blind sleep for a poll."""
    file = tmp_path / "stray.py"
    file.write_text(
        "import time, os\nstarted = time.time()\ntime.sleep(1)\nwhile True:\n    time.sleep(1)\n"
        "while not ready():\n    time.sleep(0.1)\nhome = os.environ['HOME']\n"
    )
    assert sorted(kind for kind, _ in uses(file)) == ["environment", "sleep", "sleep", "sleep", "wall clock"]
    assert [node.lineno for kind, node in uses(file) if kind == "sleep" and node in polls(file)] == [7]


def test_every_room_is_used() -> None:
    """ROOMS names no file that has gone."""
    assert not [
        room
        for rooms in ROOMS.values()
        for room in rooms
        if not any(True for _ in ROOT.glob(room.removesuffix("*") or room))
    ]


def test_no_queue_is_unbounded() -> None:
    """Every queue is made with a bound."""
    unbounded = [
        f"{path}:{node.lineno}"
        for path in python_files("services")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Call)
        and dotted(node.func).rpartition(".")[2] in {"Queue", "LifoQueue", "PriorityQueue", "SimpleQueue"}
        and not node.args
        and not any(keyword.arg == "maxsize" for keyword in node.keywords)
    ]
    assert not unbounded


@pytest.mark.parametrize("module", ["torch", "onnx", "pickle", "marshal", "shelve"])
def test_what_serves_never_imports(module: str) -> None:
    """Neither torch nor anything that runs code out of data is imported by what serves."""
    importing = [
        str(path)
        for path in python_files("services")
        for node in ast.walk(parsed(path))
        if (isinstance(node, ast.Import) and any(alias.name.split(".")[0] == module for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == module)
    ]
    assert not importing


def test_metrics_have_prefix_and_unit() -> None:
    """Every metric begins with `statestream_`; a measure ends in its base unit, a gauge of things in what it counts."""
    for collector in collectors():
        [metric] = collector.describe()
        assert metric.name.startswith("statestream_"), metric.name
        assert metric.documentation, metric.name
        assert not re.search(r"_(ms|milliseconds|us|minutes|kb|mb|percent)(_|$)", metric.name), metric.name
        if metric.type != "counter":
            assert metric.name.endswith((*UNITS, *COUNTED)), metric.name


def test_no_label_is_unbounded() -> None:
    """Labels take values out of small known sets; none names a sequence, a client or what one sent."""
    for collector in collectors():
        assert set(label_names(collector)) <= LABELS, collector.describe()


def test_no_path_of_a_machine() -> None:
    """No file names a folder that exists on its author's machine alone."""
    pattern = re.compile(rb"(?<![\w.])/(?:home|root|Users|work|mnt)/\w|(?<![\w.])/tmp/[a-z]+/")
    named = [
        f"{path}: {match.group().decode()}"
        for path in files()
        if path.suffix not in {".onnx", ".png"}
        for match in pattern.finditer((ROOT / path).read_bytes())
    ]
    assert not named


def test_artefacts_are_small() -> None:
    """No file is so large that a clone would suffer."""
    large = [f"{path}: {size}" for path in files() if (size := (ROOT / path).stat().st_size) > ARTEFACT_BYTES_MAX]
    assert not large


def test_the_rules_look_at_something() -> None:
    """The tree and the metrics were found."""
    for folder in CODE:
        assert python_files(folder), folder
    assert len(collectors()) > 10
