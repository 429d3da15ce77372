"""`statestream sequences` against real servers."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from statestream import Client, Durability

from services.cli.main import command as main
from tests.kit.background import background_server, statestream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KEY = "that of all installations"
NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server that may export, with one sequence `one` that has taken three steps, each with its checkpoint."""
    with background_server(snapshot_key=KEY, checkpoint_steps=1) as found:
        with Client(found) as client, client.sentiment.stream("one", durability=Durability.STEP) as stream:
            for text in ("It was ", "not ", "bad "):
                stream.send(text)
        yield found


def sequences(address: str, *arguments: str, expect: int = 0, stdin: bytes | None = None) -> str:
    """What a command says, errors included."""
    result = CliRunner().invoke(main, ["sequences", *arguments, "--address", address], input=stdin)
    assert result.exit_code == expect, result.output
    return result.output


def facts(address: str, *arguments: str, stdin: bytes | None = None) -> list[dict[str, Any]]:
    """What a command says with `--json`."""
    return [json.loads(line) for line in sequences(address, *arguments, "--json", stdin=stdin).splitlines()]


def test_a_sequence_is_shown(address: str) -> None:
    """As a table for a person, and as JSON with everything that the server tells."""
    head, line = sequences(address, "get", "sentiment", "one").splitlines()
    assert head.split()[:2] == ["sequence", "status"]
    assert line.split()[:5] == ["one", "live", "3", "step", "1"]
    [one] = facts(address, "get", "sentiment", "one")
    assert (one["sequence_id"], one["next_step"], one["checkpoint_steps"]) == ("one", 3, [1, 2])
    assert (one["model"], len(one["history_digest"])) == ("sentiment", 32)


def test_sequences_are_forked_rewound_listed_and_ended(address: str) -> None:
    """Each command shows what it left; the list has what is there, live ones alone on demand."""
    made = facts(address, "fork", "sentiment", "one", "two", "three", "--next-step", "2")
    assert [(one["sequence_id"], one["next_step"]) for one in made] == [("two", 2), ("three", 2)]
    facts(address, "fork", "sentiment", "one", "four")
    with Client(address) as client, client.sentiment.stream("four", resume=True) as stream:
        stream.send("at all")
    [rewound] = facts(address, "rewind", "sentiment", "four", "3")
    assert rewound["next_step"] == 3
    [ended] = facts(address, "end", "sentiment", "three")
    assert ended["status"] == "ended"
    assert {one["sequence_id"] for one in facts(address, "list", "sentiment")} >= {"one", "two", "three", "four"}
    live = {one["sequence_id"] for one in facts(address, "list", "sentiment", "--live")}
    assert {"one", "two", "four"} <= live
    assert "three" not in live
    assert len(sequences(address, "list", "no such model").splitlines()) == 1


def test_a_sequence_is_moved_by_file_and_by_pipe(address: str, tmp_path: Path) -> None:
    """Out of one server and into another, under its own name or a new one."""
    file = tmp_path / "one.snapshot"
    assert "bytes written" in sequences(address, "export", "sentiment", "one", str(file))
    with background_server(snapshot_key=KEY) as abroad:
        [moved] = facts(abroad, "import", str(file))
        assert (moved["sequence_id"], moved["next_step"]) == ("one", 3)
        piped = CliRunner().invoke(
            main, ["sequences", "export", "sentiment", "one", "-", "--next-step", "1", "--address", address]
        )
        [moved] = facts(abroad, "import", "-", "--sequence-id", "early", stdin=piped.stdout_bytes)
        assert (moved["sequence_id"], moved["next_step"]) == ("early", 1)


def test_a_snapshot_is_not_for_a_terminal() -> None:
    """Standard output that somebody reads gets no binary, and nothing is asked of a server."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "services.cli", "sequences", "export", "sentiment", "one", "-"]
    done = subprocess.run(
        [*command, "--address", NOBODY], stdout=theirs, stderr=subprocess.PIPE, timeout=50, check=False
    )
    os.close(theirs)
    os.close(ours)
    assert (done.returncode, b"not for a terminal" in done.stderr) == (2, True)


def test_what_goes_wrong_is_said_in_a_line(address: str, tmp_path: Path) -> None:
    """Reasons without a traceback, status 1; a file that was there is not touched by a failed export."""
    assert "SEQUENCE_NOT_FOUND" in sequences(address, "get", "sentiment", "nobody", expect=1)
    assert "CHECKPOINT_NOT_FOUND" in sequences(address, "rewind", "sentiment", "one", "9", expect=1)
    assert "SEQUENCE_EXISTS" in sequences(address, "import", "-", expect=1, stdin=changed(address))
    kept = tmp_path / "kept"
    kept.write_text("before")
    assert "SEQUENCE_NOT_FOUND" in sequences(address, "export", "sentiment", "nobody", str(kept), expect=1)
    assert kept.read_text() == "before"
    sequences(address, "export", "sentiment", "one", str(tmp_path / "no" / "folder"), expect=1)
    assert "snapshot: " in sequences(address, "import", str(kept), expect=1)
    with background_server() as keyless:
        assert "STATESTREAM_SNAPSHOT_KEY" in sequences(keyless, "import", str(kept), expect=1)
    done = statestream("sequences", "get", "sentiment", "one", "--address", NOBODY, "--timeout", "1", expect=1)
    assert "statestream serve" in done.stderr
    assert "Traceback" not in done.stderr


def changed(address: str) -> bytes:
    """A snapshot of a sequence that has gone on since."""
    facts(address, "fork", "sentiment", "one", "moving")
    data = (
        CliRunner().invoke(main, ["sequences", "export", "sentiment", "moving", "-", "--address", address]).stdout_bytes
    )
    with Client(address) as client, client.sentiment.stream("moving", resume=True) as stream:
        stream.send("on")
    return data
