"""The command `statestream`, as a process, against real servers."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from statestream import Client

from services.cli.models.folder import DEFAULT as ARTEFACTS
from tests.kit.background import background_server, statestream

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

NOBODY = "127.0.0.1:1"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A real server with its state in memory."""
    with background_server() as found:
        yield found


@contextmanager
def serving(*arguments: str) -> Generator[tuple[subprocess.Popen[str], IO[str]]]:
    """`statestream serve` and its log; killed on leaving if it still runs."""
    command = [sys.executable, "-m", "services.cli", "serve", "--metrics-listen", "", *arguments]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STATESTREAM_")}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=clean) as child:
        assert child.stderr is not None
        try:
            yield child, child.stderr
        finally:
            child.kill()


def test_a_server_tells_its_port_serves_and_drains() -> None:
    """Port 0 takes a free one, which the log tells; SIGTERM ends the process with status 0."""
    with serving("--listen", "127.0.0.1:0", "--task", "sentiment", "--store", "memory") as (child, log):
        told = next(line for line in map(json.loads, log) if line["event"] == "serving")
        with Client(f"127.0.0.1:{told['port']}") as client:
            client.wait_ready()
            assert len(client.sentiment.classify(["fine"])) == 1
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0


def test_a_server_keeps_its_sequences_in_redis(redis_url: str) -> None:
    """With `--store redis` the next server goes on where the one before was killed."""
    for step in range(2):
        with serving("--listen", "127.0.0.1:0", "--store", "redis", "--redis-url", redis_url) as (_, log):
            port = next(line for line in map(json.loads, log) if line["event"] == "serving")["port"]
            with Client(f"127.0.0.1:{port}") as client:
                client.wait_ready()
                with client.sentiment.stream("cli-redis", resume=step > 0) as stream:
                    assert stream.send("fine ").header.step == step


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    """A setting that cannot be used, or a folder without models, ends with status 1 and the reason."""
    done = statestream("serve", "--listen", "nowhere", expect=1)
    assert "must be host:port" in done.stderr
    done = statestream(
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--metrics-listen",
        "",
        expect=1,
        env={"STATESTREAM_ARTEFACTS": str(tmp_path)},
    )
    assert "holds no exported model" in done.stderr


def test_whole_texts_are_called(address: str) -> None:
    """Each text has its line, in order; with --json an object."""
    texts = ("--text", "A wonderful, beautiful film.", "--text", "An awful, boring waste of time.")
    done = statestream("call", "sentiment", *texts, "--address", address)
    assert [label for line in done.stdout.splitlines() for label in re.findall("positive|negative", line)] == [
        "positive",
        "negative",
    ]
    done = statestream("call", "sentiment", *texts, "--json", env={"STATESTREAM_ADDRESS": address})
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["label"], second["label"]) == ("positive", "negative")
    assert 0.5 < first["positive_probability"] <= 1
    assert first["word_count"] == 6


def test_standard_input_is_streamed_as_it_comes(address: str) -> None:
    """The result of a line is there while the input is still open; the final one when it is closed."""
    command = [sys.executable, "-m", "services.cli", "call", "sentiment", "--stream", "-", "--by", "line", "--json"]
    with subprocess.Popen(
        [*command, "--address", address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for step, line in enumerate(("A wonderful film,\n", "and a beautiful one.\n")):
            child.stdin.write(line)
            reply = json.loads(child.stdout.readline())
            assert (reply["step"], reply["final"]) == (step, False)
        child.stdin.close()
        last = json.loads(child.stdout.readline())
        assert (last["step"], last["final"], last["label"]) == (2, True, "positive")
        assert child.wait(30) == 0


def test_a_named_text_is_left_open_and_gone_on_with(address: str) -> None:
    """The first call tells how to go on; the second does, and ends the text."""
    stream = ("call", "sentiment", "--stream", "-", "--address", address, "--sequence-id", "cli")
    done = statestream(*stream, stdin=b"A wonderful ")
    assert "--sequence-id cli --resume" in done.stdout
    done = statestream(*stream, "--resume", "--end", "--json", stdin=b"film.")
    assert [json.loads(line)["step"] for line in done.stdout.splitlines()] == [2, 3]
    done = statestream(*stream, "--resume", stdin=b"x", expect=1)
    assert "SEQUENCE_ENDED" in done.stderr


def test_a_refused_call_says_why(address: str) -> None:
    """The reason is told without a traceback; where nobody serves, also how to start a server."""
    done = statestream("call", "sentiment", "--text", "", "--address", address, expect=1)
    assert "INVALID_INPUT: texts[0]" in done.stderr
    assert "Traceback" not in done.stderr
    done = statestream("call", "sentiment", "--text", "fine", "--timeout", "1", "--address", NOBODY, expect=1)
    assert "statestream serve" in done.stderr


def test_health_is_an_exit_status(address: str) -> None:
    """0 if it serves, 1 if it does not, does not know the service, or is not there; one word says which."""
    assert statestream("health", "--address", address).stdout == "SERVING\n"
    assert statestream("health", "--address", address, "--service", "nonsense", expect=1).stdout == "NOT_FOUND\n"
    assert statestream("health", "--address", NOBODY, expect=1).stdout == "UNAVAILABLE\n"


def test_models_are_listed_and_shown() -> None:
    """The models that came with the program are there, and say what they are."""
    assert "sentiment" in statestream("models", "list").stdout
    shown = statestream("models", "show", "sentiment").stdout
    assert "trained" in shown
    manifest = json.loads(statestream("models", "show", "sentiment", "1", "--json").stdout)
    assert manifest["weights_digest"] in shown
    assert "there are: 1" in statestream("models", "show", "sentiment", "99", expect=1).stderr


def copy_of_models(folder: Path) -> Path:
    """Exported models that a test may damage."""
    shutil.copytree(ARTEFACTS, folder / "artefacts")
    return folder / "artefacts"


def test_undamaged_models_are_verified() -> None:
    """What the repository ships is whole and runs."""
    assert "sentiment/1: good" in statestream("models", "verify").stdout


def one_bit(path: Path) -> None:
    """Changes a file by one bit."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def second_half(path: Path) -> None:
    """Loses the second half of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("vocabulary.json", one_bit),
        ("model.onnx", one_bit),
        ("model.onnx", second_half),
        ("model.onnx", Path.unlink),
        ("manifest.json", second_half),
    ],
)
def test_damage_is_found_and_the_file_named(tmp_path: Path, file: str, damage: Callable[[Path], None]) -> None:
    """One bit changed, the end of a file gone, or all of it: status 1, and the file is named."""
    path = copy_of_models(tmp_path) / "sentiment" / "1" / file
    damage(path)
    done = statestream("models", "verify", "--artefacts", str(tmp_path / "artefacts"), expect=1)
    assert str(path) in done.stdout


def test_models_lie_in_several_folders(tmp_path: Path) -> None:
    """The variable names them like those of PATH; versions are listed together, and of two alike the first counts."""
    one, two = copy_of_models(tmp_path / "one"), copy_of_models(tmp_path / "two")
    (two / "sentiment" / "1").rename(two / "sentiment" / "2")
    manifest = two / "sentiment" / "2" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": "1"', '"version": "2"', 1))
    shutil.copytree(two / "sentiment" / "2", one / "sentiment" / "2")
    one_bit(two / "sentiment" / "2" / "model.onnx")
    both = {"STATESTREAM_ARTEFACTS": f"{one}{os.pathsep}{two}"}
    listed = statestream("models", "list", env=both).stdout.splitlines()
    assert [line.split()[:2] for line in listed[1:]] == [["sentiment", "1"], ["sentiment", "2"]]
    assert statestream("models", "verify", env=both).stdout.splitlines() == ["sentiment/1: good", "sentiment/2: good"]
    shown = statestream("models", "show", "sentiment", "2", "--artefacts", str(two), "--artefacts", str(one)).stdout
    assert shown.startswith("sentiment 2")


def free_addresses() -> dict[str, str]:
    """Two addresses that are free now."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        listen, metrics = (f"127.0.0.1:{probe.getsockname()[1]}" for probe in (one, two))
        return {"STATESTREAM_LISTEN": listen, "STATESTREAM_METRICS_LISTEN": metrics}


def test_the_doctor_finds_nothing_here(redis_url: str) -> None:
    """With all that is needed the doctor ends with status 0, and has looked at everything."""
    done = statestream(
        "doctor", env=free_addresses() | {"STATESTREAM_STORE": "redis", "STATESTREAM_REDIS_URL": redis_url}
    )
    for part in ("Python", "packages", "settings are valid", "model sentiment", "Redis", "is free", "All is well"):
        assert part in done.stdout
    assert "BAD" not in done.stdout


def test_the_doctor_names_what_is_wrong_and_how_to_mend_it(tmp_path: Path) -> None:
    """Each trouble is one finding with a remedy, and the status is 1."""
    free = free_addresses()
    cases = {
        "STATESTREAM_STORE: ": {"STATESTREAM_STORE": "floppy"},
        "holds no exported model": {"STATESTREAM_ARTEFACTS": str(tmp_path)},
        "check STATESTREAM_REDIS_URL": {
            "STATESTREAM_STORE": "redis",
            "STATESTREAM_REDIS_URL": "redis://:s3cret@127.0.0.1:1",
        },
    }
    for expected, environment in cases.items():
        done = statestream("doctor", expect=1, env=free | environment)
        assert expected in done.stdout
        assert "mend it: " in done.stdout
        assert "s3cret" not in done.stdout + done.stderr


def test_the_doctor_knows_a_server_from_a_stranger(address: str) -> None:
    """A port taken by a server of ours is good, one taken by something else is not."""
    free = free_addresses()
    metrics = free["STATESTREAM_METRICS_LISTEN"]
    with background_server(metrics_listen=metrics):
        done = statestream("doctor", env={"STATESTREAM_LISTEN": address, "STATESTREAM_METRICS_LISTEN": metrics})
    assert f"a server answers on {address}: SERVING" in done.stdout
    assert f"a server tells its metrics on {metrics}" in done.stdout
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = f"127.0.0.1:{stranger.getsockname()[1]}"
        done = statestream("doctor", expect=1, env=free | {"STATESTREAM_METRICS_LISTEN": taken})
        assert "set STATESTREAM_METRICS_LISTEN to another host:port" in done.stdout


def test_the_demo_shows_the_main_job_and_stops_its_server() -> None:
    """The server starts, the sentiment is shown word by word and for whole texts, the commands to go on are told."""
    done = statestream("demo")
    found = re.search(r"It serves on (\S+)\.", done.stdout)
    assert found
    running = re.findall(r"\[[-=|+]{21}\] +(\d+)%", done.stdout)
    assert len(running) > 60
    assert len(set(running)) > 10
    assert "The whole review" in done.stdout
    assert "statestream serve" in done.stdout
    assert done.stderr == ""
    with grpc.insecure_channel(found.group(1)) as channel, pytest.raises(grpc.RpcError):
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)


def test_a_demo_that_cannot_start_shows_the_log(tmp_path: Path) -> None:
    """Where the server does not come up the end of its log is shown, and the doctor recommended."""
    done = statestream("demo", expect=1, env={"STATESTREAM_ARTEFACTS": str(tmp_path)})
    assert "holds no exported model" in done.stderr
    assert "doctor" in done.stderr
