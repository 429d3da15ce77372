from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from services.cli import call, models, sequences
from services.cli.lazy import Entry, LazyGroup
from services.cli.main import command as main
from services.cli.settings import read_settings
from services.cli.tasks import discover, task_names
from services.runtime.config import unknown_variables

if TYPE_CHECKING:
    from pathlib import Path

GROUPS = {"": main, "call": call.command, "models": models.command, "sequences": sequences.command}
ENTRIES = [(group, name, entry) for group, found in GROUPS.items() for name, entry in found.entries.items()]


@pytest.mark.parametrize(("group", "name", "entry"), ENTRIES)
def test_the_table_says_what_the_command_says(group: str, name: str, entry: Entry) -> None:
    """Each entry leads to a command of its name, and its help is the command's own."""
    command: click.Command = import_module(entry.module).command
    assert command.name == name
    assert command.get_short_help_str(limit=200) == entry.help or isinstance(command, LazyGroup)
    if isinstance(command, LazyGroup):
        assert command.help == entry.help


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["call", "--help"], ["models", "-h"], ["sequences", "--help"], ["serve", "--help"]]
)
def test_help_is_given(arguments: list[str]) -> None:
    """Every level has its help."""
    assert "Usage: statestream" in CliRunner().invoke(main, arguments, prog_name="statestream").output


def test_an_unknown_command_is_refused() -> None:
    """A misspelt command ends with the status of a usage error."""
    assert CliRunner().invoke(main, ["sevre"]).exit_code == 2


def test_every_task_can_be_called() -> None:
    """`statestream call` knows each task that is served."""
    assert set(call.command.entries) == set(task_names())


def imported_by(code: str) -> set[str]:
    """Roots and our own modules that some code imports."""
    program = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_help_imports_nothing_heavy() -> None:
    """`statestream --help` answers at once: it imports click alone."""
    code = "from services.cli.main import command\ntry: command(['--help'])\nexcept SystemExit: pass"
    assert not imported_by(code) & {"grpc", "numpy", "onnxruntime", "pydantic", "redis", "services.runtime"}


def test_a_probe_imports_little() -> None:
    """`statestream health` runs every few seconds in every container: gRPC and click, not the server."""
    assert not imported_by("import services.cli.health") & {"numpy", "onnxruntime", "pydantic", "redis", "statestream"}


def test_the_doctor_needs_no_server_packages() -> None:
    """What tells that packages are missing must do without them."""
    assert not imported_by("import services.cli.doctor") & {"numpy", "onnxruntime", "pydantic", "redis"}


def test_a_missing_package_is_said_with_its_remedy() -> None:
    """A command whose packages are not installed says how to get them, and shows no traceback."""
    group = LazyGroup(name="x", doc="x", entries={"broken": Entry("tests.kit.needs_absent", "x")})
    result = CliRunner().invoke(group, ["broken"])
    assert result.exit_code == 1
    assert "needs absent_package_of_a_test" in result.output
    assert "pip install '.[serve]'" in result.output


def test_tasks_are_the_folders_with_a_servicer() -> None:
    """A task is found because its folder is there; each is named like its folder."""
    assert "sentiment" in task_names()
    assert "runtime" not in task_names()
    assert tuple(task.name for task in discover()) == task_names()
    assert discover(["sentiment"])[0].name == "sentiment"
    assert discover([]) == ()


def test_names_are_listed_without_importing() -> None:
    """Listing tasks loads none of them; discovering one loads that one."""
    found = imported_by("from services.cli.tasks import task_names; task_names()")
    assert not found & {"services.sentiment", "grpc", "numpy"}


def test_an_unknown_task_is_refused_with_those_that_are() -> None:
    """A misspelt task is named, beside the right ones."""
    with pytest.raises(ValueError, match=r"no such task: sentimnet; there are: .*sentiment"):
        discover(["sentimnet"])
    result = CliRunner().invoke(main, ["serve", "--task", "sentimnet"])
    assert (result.exit_code, "no such task" in result.output) == (2, True)


def test_folders_of_models_are_given_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve --artefacts` may be repeated, goes before the variable, and reaches workers, who are told in JSON."""
    folders = [tmp_path / "one:more", tmp_path / "two"]  # a colon separates folders in the variable alone
    for folder in folders:
        folder.mkdir()
    given: dict[str, object] = {}

    def start(_: object, settings: dict[str, object]) -> int:
        given.update(json.loads(json.dumps(settings)))
        return 0

    monkeypatch.setattr("services.cli.serve.start", start)
    monkeypatch.setenv("STATESTREAM_ARTEFACTS", "elsewhere")
    options = [part for folder in folders for part in ("--artefacts", str(folder))]
    result = CliRunner().invoke(main, ["serve", "--task", "inference", *options])
    assert result.exit_code == 0
    assert read_settings(given).artefacts == tuple(folders)
    assert CliRunner().invoke(main, ["serve", "--artefacts", str(tmp_path / "nothing")]).exit_code == 2


def test_only_what_nobody_reads_is_called_no_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server complains of a variable that is misspelt, not of one that the other commands read."""
    commands: list[click.Command] = [import_module(entry.module).command for _, _, entry in ENTRIES]
    read = {str(param.envvar) for command in commands for param in command.params if param.envvar}
    assert "STATESTREAM_ADDRESS" in read
    for name in (*read, "STATESTREAM_LISTN"):
        monkeypatch.setenv(name, "x")
    assert unknown_variables() == ["STATESTREAM_LISTN"]


def test_a_wrong_setting_is_named_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting that cannot be used is told by its variable; a value may be a secret and is not shown."""
    monkeypatch.setenv("STATESTREAM_REDIS_TIMEOUT_S", "hunter2")
    monkeypatch.setenv("STATESTREAM_STORE", "floppy")
    with pytest.raises(click.ClickException) as caught:
        read_settings({})
    text = caught.value.message
    assert "STATESTREAM_REDIS_TIMEOUT_S: " in text
    assert "STATESTREAM_STORE: " in text
    assert "hunter2" not in text
    assert "floppy" not in text


def test_options_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is given on the command line wins."""
    monkeypatch.setenv("STATESTREAM_LISTEN", "127.0.0.1:1")
    assert read_settings({"listen": "127.0.0.1:2"}).listen == "127.0.0.1:2"
    assert read_settings({}).listen == "127.0.0.1:1"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--text", "a", "--stream", "-"],
        ["--text", "a", "--resume"],
        ["--stream", "-", "--end"],
    ],
)
def test_senseless_calls_are_usage_errors(arguments: list[str]) -> None:
    """Options that do not go together are refused before anything is sent."""
    assert CliRunner().invoke(main, ["call", "sentiment", *arguments]).exit_code == 2


def test_a_folder_without_models_is_told(tmp_path: Path) -> None:
    """An empty folder is not taken for one in which all is well."""
    for verb in ("list", "verify"):
        result = CliRunner().invoke(main, ["models", verb, "--artefacts", str(tmp_path)])
        assert (result.exit_code, "holds no exported model" in result.output) == (1, True)
