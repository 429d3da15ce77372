"""`statestream serve --workers`: real processes, a real Redis, one address."""

from __future__ import annotations

import os
import signal
import socket
import stat
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from statestream import Client

from tests.kit.background import statestream
from tests.kit.workers import gone, has_ended, workers

if TYPE_CHECKING:
    from tests.kit.workers import Workers

STEPS = "statestream_stream_messages_total"
RESTARTS = "statestream_worker_restarts_total"
TWO = ("--workers", "2", "--store", "redis", "--redis-url")


def connections(group: Workers, stack: ExitStack, count: int = 32) -> list[socket.socket]:
    """So many connections; that all went to one of two workers has a chance of 1 in 2 to the power of `count` - 1."""
    return [stack.enter_context(socket.create_connection(("127.0.0.1", group.port))) for _ in range(count)]


def copied(group: Workers, name: str, least: float) -> float:
    """The value of a metric once it is that high: a worker copies what it counts a little later."""
    until = time.monotonic() + 30
    while (value := group.metric(name)) < least and time.monotonic() < until:
        time.sleep(0.05)
    return value


def test_a_sequence_goes_on_whichever_worker_is_killed(redis_url: str, tmp_path: Path) -> None:
    """Both serve; each is killed -9 under an open stream: no step is lost or done twice, no counter goes back."""
    with workers(*TWO, redis_url, folder=tmp_path) as group, ExitStack() as stack:
        group.serves()
        opened = connections(group, stack)
        client = stack.enter_context(Client(group.address))
        stream = stack.enter_context(client.sentiment.stream("workers-killed"))
        words = 0
        for round_, victim in enumerate(group.pids()):
            for _ in range(5):
                assert stream.send("fine ").header.step == words
                words += 1
            before = copied(group, STEPS, words)
            assert group.metric("statestream_workers_live") == 2
            os.kill(victim, signal.SIGKILL)
            assert group.hears("worker died")["signal"] == "SIGKILL"
            ended = sum(map(has_ended, opened))
            assert round_ or 0 < ended < len(opened), "connections go to both"
            assert stream.send("fine ").header.step == words
            words += 1
            group.hears("worker serves")
            assert copied(group, STEPS, before + 1) >= before + 1
            assert group.metric(RESTARTS, cause="signal") == round_ + 1
        last = stream.end()
        assert last.sentiment.word_count == words
        assert stream.stats.reconnects
        assert len(set(group.pids())) == 4
        assert group.metric("statestream_workers_wanted") == 2


def test_terminated_all_drain(redis_url: str, tmp_path: Path) -> None:
    """SIGTERM: each worker ends in good order, status 0, nothing is left; a child that is not ours has been reaped."""
    with workers(*TWO, redis_url, folder=tmp_path, before="sleep 1000 & echo $! > $TMPDIR/stray") as group:
        group.serves()
        stray = int((tmp_path / "stray").read_text())
        os.kill(stray, signal.SIGKILL)
        while Path(f"/proc/{stray}").exists():
            time.sleep(0.01)
        (folder,) = (found for found in tmp_path.iterdir() if found.is_dir())
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for pid in group.pids():
            told = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            assert redis_url.encode() not in told, "an address with a password is passed on in private"
        with Client(group.address) as client, client.sentiment.stream("workers-drained") as stream:
            assert stream.send("fine ").header.step == 0
            assert group.ends() == 0
        assert [line["event"] for line in group.said].count("stopped") == 3
        for pid in group.pids():
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        assert not folder.exists()


def test_a_reload_replaces_every_worker_and_drops_no_sequence(redis_url: str, tmp_path: Path) -> None:
    """SIGHUP, twice: new processes, a stream that takes a step at every moment goes on, counters go on."""
    with workers(*TWO, redis_url, folder=tmp_path) as group, Client(f"127.0.0.1:{serving(group)}") as client:
        with client.sentiment.stream("workers-rolled") as stream:
            step = 0
            for _ in range(2):
                group.child.send_signal(signal.SIGHUP)
                for _ in range(2):
                    group.hears("worker replaced")
                    assert stream.send("fine ").header.step == step
                    step += 1
                    group.hears("stopped")
                    assert stream.send("fine ").header.step == step
                    step += 1
            assert stream.end().sentiment.word_count == step
        old, new = set(group.pids()[:-2]), set(group.pids()[-2:])
        assert len(old) == 4
        for pid in old:
            gone(pid)
        for pid in new:
            os.kill(pid, 0)
        assert group.metric(RESTARTS, cause="reload") == 4
        assert copied(group, STEPS, step) >= step
        assert group.ends() == 0


def serving(group: Workers) -> int:
    """Waits until all serve; the port."""
    group.serves()
    return group.port


def test_workers_leave_when_their_supervisor_is_killed(redis_url: str, tmp_path: Path) -> None:
    """Nobody is left behind, and nobody is cut off: they drain."""
    with workers(*TWO, redis_url, folder=tmp_path) as group:
        group.serves()
        assert group.ends(signal.SIGKILL) == -signal.SIGKILL
        for pid in group.pids():
            gone(pid)
        assert [line["event"] for line in group.said].count("stopped") == 2


def test_workers_leave_when_the_terminal_is_closed(redis_url: str, tmp_path: Path) -> None:
    """The signal that else reloads, from a terminal that is gone: nothing goes on serving unseen."""
    ours, theirs = os.openpty()
    # A session of its own, with the terminal as the one that controls it.
    taken = "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(9, termios.TIOCSCTTY, 0)"
    shell = f"exec 9<>{os.ttyname(theirs)}"
    take = [sys.executable, "-c", f"{taken}; os.close(9); os.execv(sys.argv[1], sys.argv[1:])"]
    with workers(*TWO, redis_url, folder=tmp_path, before=shell, through=take) as group:
        os.close(theirs)
        group.serves()
        os.close(ours)
        group.child.wait(30)
        assert group.child.returncode == 0
        for pid in group.pids():
            gone(pid)


def test_a_start_that_fails_says_why_once(redis_url: str, tmp_path: Path) -> None:
    """No model: the message of one worker and the exit status, no loop of restarts."""
    empty = tmp_path / "none"
    empty.mkdir()
    with workers(*TWO, redis_url, folder=tmp_path, env={"STATESTREAM_ARTEFACTS": str(empty)}) as group:
        assert group.hears("cannot serve")["worker"] == 0
        assert group.child.wait(30) == 1
        rest = group.child.stderr.read() if group.child.stderr else ""
        assert "did not come up" in rest
        assert 'cannot serve"' not in rest


def test_workers_without_a_shared_store_are_refused() -> None:
    """Both settings are named."""
    done = statestream("serve", "--workers", "2", "--store", "memory", "--listen", "127.0.0.1:0", expect=1)
    assert "workers" in done.stderr
    assert "store memory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("which", ["--listen", "--metrics-listen"])
def test_a_port_that_is_taken_is_refused(redis_url: str, which: str) -> None:
    """Also by somebody who would share it, whose clients would then be served by two different servers."""
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        ours = {"--listen": "127.0.0.1:0", "--metrics-listen": "127.0.0.1:0"}
        ours[which] = f"127.0.0.1:{stranger.getsockname()[1]}"
        options = [part for pair in ours.items() for part in pair]
        done = statestream("serve", *TWO, redis_url, *options, expect=1)
        assert "cannot serve" in done.stderr
        assert "in use" in done.stderr
        assert "Traceback" not in done.stderr
