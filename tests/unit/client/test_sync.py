from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from grpc import StatusCode
from statestream import Client, ReplayBounds, StreamStats, errors
from statestream._portal import Portal

from tests.kit.client_time import FakeTime
from tests.kit.fake_sentiment import Fail, FakeSentiment, serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def sync_client() -> Iterator[tuple[Client, FakeSentiment]]:
    """A blocking client of a scripted server that runs in a loop of its own."""
    fake, portal = FakeSentiment(), Portal()
    running = serving(fake)
    address = portal.run(running.__aenter__())
    with Client(address, timing=FakeTime().timing) as client:
        yield client, fake
    portal.run(running.__aexit__(None, None, None))
    portal.close()


def test_calls_block_until_they_are_answered(sync_client: tuple[Client, FakeSentiment]) -> None:
    """Every call of the asyncio client is there, and returns its result."""
    client, fake = sync_client
    client.wait_ready()
    assert client.ready()
    assert [result.word_count for result in client.sentiment.classify(["one two", "three"])] == [2, 1]
    with client.sentiment.stream("s") as stream:
        assert stream.send("one ").header.step == 0
        assert (stream.sequence_id, stream.next_step, stream.ended) == ("s", 1, False)
        assert stream.end().final
        assert stream.last is not None
    assert client.sequences.get("sentiment", "s").next_step == 2
    assert client.sequences.end("sentiment", "s").next_step == 2
    assert fake.store["s"].ended


def test_what_is_not_committed_is_sent_again_here_too(sync_client: tuple[Client, FakeSentiment]) -> None:
    """Resume and replay are those of the asyncio client, and so are bounds and statistics."""
    client, fake = sync_client
    fake.commit_every = 0
    fake.faults.extend([None, None, None, Fail(StatusCode.UNAVAILABLE, dies=True)])
    with client.sentiment.stream("s", replay=ReplayBounds(steps_max=50)) as stream:
        for word in ("one ", "two ", "three ", "four "):
            update = stream.send(word)
        assert stream.stats == StreamStats(reconnects=1, replayed_steps=2)
    assert (update.header.step, update.sentiment.word_count) == (3, 4)
    with client.sentiment.stream("s", resume=True) as stream:
        assert stream.next_step == 4
    assert fake.store["s"].text == b"one two three four "


def test_the_life_of_sequences_is_managed_here_too(sync_client: tuple[Client, FakeSentiment]) -> None:
    """List, fork, rewind, export and import block until they are answered; a list may be left in its middle."""
    client, fake = sync_client
    for name in "abcde":
        with client.sentiment.stream(name) as stream:
            stream.send("one ")
            stream.send("two ")
    fake.store["a"].checkpoints = [1]
    assert [found.sequence_id for found in client.sequences.list("sentiment")] == list("abcde")
    for found in client.sequences.list("sentiment", page_size=1, live_only=True):
        assert found.sequence_id == "a"
        break
    assert [made.next_step for made in client.sequences.fork("sentiment", "a", "f", "g", next_step=1)] == [1, 1]
    assert client.sequences.rewind("sentiment", "a", 1).next_step == 1
    snapshot = client.sequences.export("sentiment", "b")
    assert client.sequences.import_(snapshot, "h").next_step == 2


def test_pieces_are_read_in_the_thread_of_the_caller(sync_client: tuple[Client, FakeSentiment]) -> None:
    """A generator of pieces may use what belongs to its thread; replies come between its pieces."""
    client, _ = sync_client
    threads: list[threading.Thread] = []

    def pieces() -> Iterator[str]:
        for word in ("one ", "two"):
            threads.append(threading.current_thread())
            yield word

    updates = list(client.sentiment.classify_stream(pieces()))
    assert [update.sentiment.word_count for update in updates] == [1, 2, 2]
    assert set(threads) == {threading.current_thread()}


def test_breaks_are_mended_here_too(sync_client: tuple[Client, FakeSentiment]) -> None:
    """Retries and reconnects are those of the asyncio client."""
    client, fake = sync_client
    fake.faults.extend([None, Fail(StatusCode.UNAVAILABLE, applied=True), None])
    with client.sentiment.stream("s") as stream:
        for word in ("one ", "two ", "three "):
            stream.send(word)
    assert fake.store["s"].text == b"one two three "


def test_errors_are_raised_to_the_caller(sync_client: tuple[Client, FakeSentiment]) -> None:
    """An error of the tree passes from the private thread."""
    client, fake = sync_client
    fake.faults.append(Fail(StatusCode.INVALID_ARGUMENT, "INVALID_INPUT", bad_field="texts[0]"))
    with pytest.raises(errors.InvalidInput):
        client.sentiment.classify([""])


def test_many_threads_share_one_client(sync_client: tuple[Client, FakeSentiment]) -> None:
    """Calls from several threads at once each get their own answer."""
    client, _ = sync_client
    texts = [" ".join(["w"] * count) for count in range(1, 33)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(client.sentiment.classify, ([text] for text in texts)))
    assert [result.word_count for [result] in found] == list(range(1, 33))


def test_a_closed_client_refuses(sync_client: tuple[Client, FakeSentiment]) -> None:
    """After `close` a call is a mistake of the program; closing again does nothing."""
    client, _ = sync_client
    client.close()
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.ready()


def test_one_text_is_not_taken_for_its_pieces(sync_client: tuple[Client, FakeSentiment]) -> None:
    """As for the asyncio client."""
    client, _ = sync_client
    with pytest.raises(TypeError, match="list of one"):
        next(client.sentiment.classify_stream("a text"))


def test_closing_frees_who_still_waits() -> None:
    """A thread that waits for a call when the client is closed is told so, and does not wait for ever."""
    portal, waiting = Portal(), threading.Event()

    async def wait_for_ever() -> None:
        waiting.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: portal.run(wait_for_ever()))
        waiting.wait()
        portal.close()
        with pytest.raises(errors.CallCancelled, match="closed"):
            future.result()


def test_a_client_that_was_never_closed_lets_the_program_end() -> None:
    """Forgetting `close` must not hang a script, nor print anything."""
    code = "from statestream import Client; print(Client('127.0.0.1:1').ready())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")
