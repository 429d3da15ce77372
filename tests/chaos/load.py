"""The load: a process with many live streams, each one sequence after the other, with every reply written down.

It begins to end its sequences when it gets SIGTERM, and exits once all have ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import uvloop
from statestream import AsyncClient, Durability, RetryPolicy, errors

from tests.chaos.ghost import Ghost
from tests.chaos.log import Answer, Begun, Broken, Haunted, Line, Reply, ToldLost, Totals, write
from tests.chaos.texts import Text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TextIO

    from statestream import AsyncSentimentStream, SentimentUpdate

STEP_S_MAX = 3.0
"""After so long without a reply the user takes the replica for lost and sends the step again."""

PATIENCE_S = 60.0
"""After so long a step, or the taking up of a sequence, has failed."""

GHOST_SHARE = 0.5
"""How many of the streams that are left stay open, and send once more when the sequence has gone on elsewhere."""

AGAIN = (errors.Unavailable, errors.DeadlineExceeded, errors.CallCancelled, errors.CapacityExceeded)
"""What a user may answer with the same call again."""


class Task(NamedTuple):
    """What one process of the load does; `steps_per_s` is that of one stream."""

    target: str
    streams: list[int]
    seed: int
    steps_per_s: float
    durability: str
    log: str


class Load:
    """The streams of one process."""

    def __init__(self, task: Task, client: AsyncClient, log: TextIO) -> None:
        self._task = task
        self._client = client
        self._log = log
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """From now on each sequence takes one more step, its last."""
        self._stopping.set()

    async def run(self) -> None:
        """Returns once every sequence has ended after `stop`."""
        await asyncio.gather(*(self._live(stream) for stream in self._task.streams))

    async def _live(self, stream: int) -> None:
        number = 0
        while not self._stopping.is_set():
            user = _User(self._task, self._client, stream, number, self._tell, self._stopping)
            await user.read_text()
            number += 1

    def _tell(self, line: Line) -> None:
        self._log.write(write([line]))


class _User:
    """Who has one text judged."""

    def __init__(
        self,
        task: Task,
        client: AsyncClient,
        stream: int,
        number: int,
        tell: Callable[[Line], None],
        stopping: asyncio.Event,
    ) -> None:
        self._task = task
        self._client = client
        self._id = (stream, number)
        self._tell = tell
        self._stopping = stopping
        self._text = Text(task.seed, stream, number)
        self._gaps = random.Random(f"gaps {task.seed}/{stream}/{number}")
        self._step = 0
        self._ghost: Ghost | None = None

    async def read_text(self) -> None:
        """All steps of the sequence, on as many streams as its user changes to."""
        name = f"chaos-{self._task.seed}-{self._id[0]}-{self._id[1]}"
        session = 0
        resume = ended = False
        try:
            while not ended:
                stream = self._client.sentiment.stream(
                    name, resume=resume, durability=Durability[self._task.durability.upper()]
                )
                resume = True
                try:
                    ended = await self._take_up(stream, session)
                except (errors.SequenceLost, errors.SequenceNotFound) as error:
                    if session == 0:
                        raise  # nobody but the library has held this sequence
                    resume = isinstance(error, errors.SequenceLost)
                    self._tell(ToldLost(*self._id, session, self._step, time.monotonic()))
                session += 1
        except errors.StatestreamError as error:
            self._tell(Broken(*self._id, self._step, time.monotonic(), f"{type(error).__name__} {error}"))
        finally:
            if self._ghost is not None:
                await self._ghost.close()

    async def _take_up(self, stream: AsyncSentimentStream, session: int) -> bool:
        """One stream from its opening to its end; True if the sequence has ended."""
        await _patiently(stream.__aenter__)
        try:
            ended = await self._take_steps(stream, session)
        except BaseException as error:
            await stream.__aexit__(type(error), error, None)
            raise
        else:
            if not ended and self._gaps.random() < GHOST_SHARE:
                self._ghost = Ghost(stream)
                return False
            # Leaving, the library has every step committed. Where that cannot be, the user still has the text.
            with contextlib.suppress(*AGAIN):
                await stream.__aexit__(None, None, None)
            return ended
        finally:
            self._tell(_totals(stream))

    async def _take_steps(self, stream: AsyncSentimentStream, session: int) -> bool:
        """Takes steps until the sequence has ended (True), or its user changes to another stream (False)."""
        self._tell(Begun(*self._id, session, stream.next_step, time.monotonic()))
        self._step = began = stream.next_step
        while True:
            step = self._step
            # What a stream that was left had not committed is sent again, as it was; only then may the text end.
            last = step >= self._text.known and (self._stopping.is_set() or step >= self._text.steps - 1)
            piece = self._text.last(step) if last else self._text.piece(step)
            opened_before = _reconnects(stream)
            sent_at = time.monotonic()
            update = await _patiently(lambda: self._send(stream, piece, last=last))  # noqa: B023 - awaited here
            self._tell(self._reply(session, update, sent_at, _reconnects(stream) - opened_before))
            self._step = step + 1
            if last:
                return True
            if self._ghost is not None:
                await self._be_haunted(self._ghost, first=self._step == began + 1)
            if self._step > began + 1 and self._text.leaves_before(self._step):
                return False
            await self._pause()

    async def _send(self, stream: AsyncSentimentStream, piece: bytes, *, last: bool) -> SentimentUpdate:
        if piece or not last:
            return await stream.send(piece, end=last, timeout_s=STEP_S_MAX)
        return await stream.end(timeout_s=STEP_S_MAX)

    async def _be_haunted(self, ghost: Ghost, *, first: bool) -> None:
        """Once the sequence goes on elsewhere the ghost sends something, and a step later it is gone."""
        if not first:
            await ghost.close()
            self._ghost = None
        elif await ghost.send(self._gaps.choice([ghost.next_step, self._step])):
            self._tell(Haunted(*self._id, self._step, time.monotonic()))

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._gaps.uniform(0, 2 / self._task.steps_per_s)):
                await self._stopping.wait()
        except TimeoutError:
            pass

    def _reply(self, session: int, update: SentimentUpdate, sent_at: float, reconnects: int) -> Reply:
        header, result = update.header, update.sentiment
        return Reply(
            *self._id,
            session,
            header.step,
            sent_at,
            time.monotonic(),
            header.committed_step,
            header.epoch,
            update.final and header.ended,
            Answer(result.label, result.positive_probability.hex(), result.word_count),
            reconnects,
        )


async def _patiently(call: Callable[[], Awaitable[Any]]) -> Any:
    """The result of a call, which is made again while that may help."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await call()
        except AGAIN:
            if time.monotonic() > until:
                raise


def _reconnects(stream: AsyncSentimentStream) -> int:
    return stream.stats.reconnects


def _totals(stream: AsyncSentimentStream) -> Totals:
    stats = stream.stats
    return Totals(stats.reconnects, stats.replayed_steps, stats.losses, stats.go_aways)


async def main(task: Task) -> None:
    """Runs the load."""
    policy = RetryPolicy(attempts_max=1000, delay_s_max=0.5)
    with open(task.log, "w", encoding="utf-8", buffering=1 << 16) as log:  # noqa: ASYNC230, PTH123 - local, buffered
        async with AsyncClient(task.target, timeout_s=STEP_S_MAX, retry=policy) as client:
            load = Load(task, client, log)
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, load.stop)
            print("the signal may come from now on", flush=True)
            await load.run()


if __name__ == "__main__":
    uvloop.run(main(Task(*json.loads(sys.argv[1]))))
