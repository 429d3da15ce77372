"""Which faults come when: drawn from a seed before anything starts, so that a campaign can be told and repeated."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What can happen to the processes under test."""

    KILL = "kill"
    """A server is killed -9, and starts again after a moment."""
    KILL_ALL = "kill all"
    """All servers are killed -9 at once."""
    STOP = "stop"
    """A server gets SIGSTOP, and SIGCONT later."""
    DRAIN = "drain"
    """A server gets SIGTERM, drains, and starts again."""
    CLIENT_CUT = "cut from clients"
    """Nothing gets through between the clients and one server."""
    STORE_CUT = "cut from store"
    """Nothing gets through between one server and all of Redis."""
    STORE_SLOW = "slow store"
    """What one server and Redis send each other is held up."""
    STORE_STOP = "store stopped"
    """The primary of Redis gets SIGSTOP, and SIGCONT before its sentinels take it for dead."""
    STORE_RESTART = "store restart"
    """The primary of Redis shuts down in good order, and starts again on its files at once."""
    STORE_CRASH = "store crash"
    """The primary of Redis is killed -9, and starts again on its files at once."""
    FAIL_OVER = "fail-over"
    """The sentinels are asked to make the replica the primary."""
    PRIMARY_DEATH = "primary death"
    """The primary of Redis is killed -9 and stays away until the replica has taken its place."""
    PRIMARY_HANG = "primary hang"
    """The primary of Redis hangs (SIGSTOP) until the replica has taken its place: then there are two for a while."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How often a kind comes for each kill, and how long it lasts, in seconds."""

    share: float
    seconds: tuple[float, float] = (0.0, 0.0)


SHAPES = {
    Kind.KILL: Shape(1.0, (0.05, 1.0)),
    Kind.KILL_ALL: Shape(0.02, (0.05, 0.5)),
    Kind.STOP: Shape(0.15, (0.2, 3.0)),
    Kind.DRAIN: Shape(0.15, (0.05, 1.0)),
    Kind.CLIENT_CUT: Shape(0.08, (0.5, 6.0)),
    Kind.STORE_CUT: Shape(0.08, (0.5, 6.0)),
    Kind.STORE_SLOW: Shape(0.08, (0.5, 4.0)),
    Kind.STORE_STOP: Shape(0.03, (0.1, 0.6)),
    Kind.STORE_RESTART: Shape(0.03, (0.0, 0.2)),
    Kind.STORE_CRASH: Shape(0.03, (0.0, 0.2)),
    Kind.FAIL_OVER: Shape(0.03),
    Kind.PRIMARY_DEATH: Shape(0.03),
    Kind.PRIMARY_HANG: Shape(0.03),
}
STORE_KINDS = (
    Kind.STORE_STOP,
    Kind.STORE_RESTART,
    Kind.STORE_CRASH,
    Kind.FAIL_OVER,
    Kind.PRIMARY_DEATH,
    Kind.PRIMARY_HANG,
)
"""Those that befall Redis as a whole: one at a time, for Redis promises nothing if two of its servers fail at once."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that happens `at_s` seconds after the load has begun; `server` is the number of the one it befalls.

    `seconds`: how long it lasts, or the server stays away.
    """

    at_s: float
    kind: Kind
    server: int
    seconds: float


def draw(seed: int, *, seconds: float, kills: int, servers: int, without: frozenset[Kind] = frozenset()) -> list[Fault]:
    """The faults of a campaign in their order: at least `kills` killed servers, and each other kind once or more."""
    rng = random.Random(f"faults {seed}")
    faults: list[Fault] = []
    for kind, shape in SHAPES.items():
        count = _count(kind, kills, without)
        if kind is Kind.KILL:
            count = max(0, kills - servers * _count(Kind.KILL_ALL, kills, without))
        for i in range(count):
            # A whole number of them in each part of the time: spread, and yet at random.
            at_s = seconds * (i + rng.random()) / count
            faults.append(Fault(at_s, kind, rng.randrange(servers), rng.uniform(*shape.seconds)))
    return sorted(faults, key=lambda fault: fault.at_s)


def _count(kind: Kind, kills: int, without: frozenset[Kind]) -> int:
    return 0 if kind in without else max(1, round(kills * SHAPES[kind].share))
