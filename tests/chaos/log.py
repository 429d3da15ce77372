"""What the load writes down: one line a reply, read again by who checks it and who measures it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


class Answer(NamedTuple):
    """What a step says of the text so far; the probability in hexadecimal, for every bit of it counts."""

    label: str
    probability: str
    word_count: int


class Reply(NamedTuple):
    """One reply, as the user of the client library got it.

    `session` counts the streams on which the user took up the sequence; `step` is the number that the header tells. The
    times are those of the monotonic clock, in seconds. `reconnects`: how often the library had to open its call again.
    """

    stream: int
    number: int
    session: int
    step: int
    sent_at: float
    replied_at: float
    committed_step: int | None
    epoch: int
    last: bool
    answer: Answer
    reconnects: int


class Begun(NamedTuple):
    """The user took up a sequence: anew in its session 0, else resumed where the library says that it goes on."""

    stream: int
    number: int
    session: int
    step: int
    at: float


class ToldLost(NamedTuple):
    """The library said that the store had lost steps which it does not hold, for its user had left a stream since.

    The user has them, and takes the sequence up again.
    """

    stream: int
    number: int
    session: int
    step: int
    at: float


class Haunted(NamedTuple):
    """A stream that was left open has sent something, while the sequence went on to `step` on another."""

    stream: int
    number: int
    step: int
    at: float


class Broken(NamedTuple):
    """The library gave up on a sequence, or the user on the library."""

    stream: int
    number: int
    step: int
    at: float
    error: str


class Totals(NamedTuple):
    """What the library counted on one of its streams."""

    reconnects: int
    replayed_steps: int
    losses: int
    go_aways: int


Line = Reply | Begun | ToldLost | Haunted | Broken | Totals
_KINDS = {kind.__name__: kind for kind in (Reply, Begun, ToldLost, Haunted, Broken, Totals)}


def write(lines: Iterable[Line]) -> str:
    """The lines as text."""
    return "".join(f"{json.dumps([type(line).__name__, *line])}\n" for line in lines)


def read(paths: Iterable[Path]) -> Iterator[Line]:
    """The lines of some files."""
    for path in paths:
        with path.open(encoding="utf-8") as file:
            for text in file:
                kind, *values = json.loads(text)
                line = _KINDS[kind](*values)
                yield line._replace(answer=Answer(*line.answer)) if isinstance(line, Reply) else line
