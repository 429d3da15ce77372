"""What a campaign came to: figures for a program, and the same as a page for a person."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from tests.chaos.log import Haunted, Line, Reply, ToldLost, Totals
from tests.chaos.plan import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.chaos.check import Verdict
    from tests.chaos.faults import Event

KILLS = (Kind.KILL, Kind.KILL_ALL)
GRACE_S = 1.0
"""How long after its end a fault may still be felt."""


class Spread(NamedTuple):
    """Some durations, in milliseconds."""

    count: int
    median_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class Stalls:
    """How long the streams of a killed server waited.

    Every stream counts whose call broke, with its first reply afterwards. `waited` is from the kill, or from the moment
    when the user had a next step if that was later, to the reply; `under_way` is that of the steps that were with the
    server when it was killed. `crowded` is `waited` where another fault was at work at the same time, `nobody_left`
    where all servers were killed at once.
    """

    waited: Spread
    under_way: Spread
    crowded: Spread
    nobody_left: Spread


@dataclass(frozen=True, slots=True)
class Summary:
    """What is told at the end."""

    good: bool
    seed: int
    seconds: float
    streams: int
    durability: str
    servers: int
    partitions_by: str
    machine: str
    sequences: int
    steps: int
    kills: int
    faults: dict[str, int]
    reconnects: int
    replayed_steps: int
    go_aways: int
    store_losses_detected: int
    told_lost: int
    haunted: int
    retaken: int
    losses: int
    duplicates: int
    mismatches: int
    stalls: Stalls
    problems: list[str] = field(default_factory=list)


def spread(durations_s: Iterable[float]) -> Spread:
    """Their quantiles: the smallest value that so many are not above."""
    ordered = sorted(durations_s)
    if not ordered:
        return Spread(0, math.nan, math.nan, math.nan, math.nan)
    of = [ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1000 for share in (0.5, 0.9, 0.99, 1.0)]
    return Spread(len(ordered), *(round(value, 1) for value in of))


def stalls(replies: Iterable[Reply], events: Sequence[Event]) -> Stalls:
    """The stalls of the streams whose call broke at a kill."""
    kills = sorted(event.began_at for event in events if event.kind in KILLS)
    massacres = {event.began_at for event in events if event.kind is Kind.KILL_ALL}
    others = [event for event in events if event.kind is not Kind.KILL]
    alone: list[float] = []
    under_way: list[float] = []
    crowded: list[float] = []
    nobody_left: list[float] = []
    previous_at: dict[int, float] = {}
    for reply in replies:
        since = previous_at.get(reply.stream, reply.sent_at)
        previous_at[reply.stream] = reply.replied_at
        at = bisect_left(kills, since)
        if not reply.reconnects or at == len(kills) or kills[at] >= reply.replied_at:
            continue
        waited = reply.replied_at - max(kills[at], reply.sent_at)
        more = at + 1 < len(kills) and kills[at + 1] < reply.replied_at
        if kills[at] in massacres:
            nobody_left.append(waited)
        elif more or any(
            event.began_at < reply.replied_at and event.ended_at + GRACE_S > kills[at] for event in others
        ):
            crowded.append(waited)
        else:
            alone.append(waited)
            if reply.sent_at < kills[at]:
                under_way.append(waited)
    return Stalls(spread(alone), spread(under_way), spread(crowded), spread(nobody_left))


def summary(verdict: Verdict, lines: Iterable[Line], events: Sequence[Event], **facts: object) -> Summary:
    """All figures together; `facts` are those of the campaign itself."""
    replies: list[Reply] = []
    totals = Totals(0, 0, 0, 0)
    told_lost = haunted = 0
    for line in lines:
        if isinstance(line, Reply):
            replies.append(line)
        told_lost += isinstance(line, ToldLost)
        haunted += isinstance(line, Haunted)
        if isinstance(line, Totals):
            totals = Totals(*map(sum, zip(totals, line, strict=True)))
    return Summary(
        good=verdict.good,
        sequences=verdict.sequences,
        steps=verdict.steps,
        kills=sum(len(event.servers) for event in events if event.kind in KILLS),
        faults=dict(Counter(event.kind.value for event in events)),
        reconnects=totals.reconnects,
        replayed_steps=totals.replayed_steps,
        go_aways=totals.go_aways,
        store_losses_detected=totals.losses,
        told_lost=told_lost,
        haunted=haunted,
        retaken=verdict.retaken,
        losses=verdict.losses,
        duplicates=verdict.duplicates,
        mismatches=verdict.mismatches,
        stalls=stalls(replies, events),
        problems=verdict.problems,
        **facts,  # pyright: ignore[reportArgumentType]
    )


PROBLEMS_TOLD_MAX = 50


def page(told: Summary) -> str:
    """The summary as a table in Markdown, with the problems after it."""
    faults = ", ".join(f"{count} x {kind}" for kind, count in sorted(told.faults.items()))
    rows = {
        "machine": told.machine,
        "seed": told.seed,
        "seconds": told.seconds,
        "streams live at any time": told.streams,
        "servers": told.servers,
        "durability": told.durability,
        "partitions by": told.partitions_by,
        "sequences that ended": told.sequences,
        "steps": told.steps,
        "servers killed": told.kills,
        "faults": faults,
        "reconnects of streams": told.reconnects,
        "steps replayed by the client library": told.replayed_steps,
        "streams sent on by a draining server": told.go_aways,
        "losses of the store, detected and made good": told.store_losses_detected,
        "of them told to a user who had left the stream": told.told_lost,
        "steps that a user took again after leaving": told.retaken,
        "steps of other content, sent by streams left open": told.haunted,
        "losses": told.losses,
        "duplicates": told.duplicates,
        "answers that differ from the offline run": told.mismatches,
    }
    lines = ["| | |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in rows.items()), ""]
    lines += ["| stall of a stream at a kill | streams | median ms | p90 | p99 | max |", "| --- |" + " ---: |" * 5]
    names = {
        "waited": "one server killed, others serve",
        "under_way": "of them with a step under way",
        "crowded": "while another fault was at work",
        "nobody_left": "all servers killed at once",
    }
    for name, text in names.items():
        lines.append(f"| {text} | {' | '.join(str(value) for value in getattr(told.stalls, name))} |")
    problems = told.problems[:PROBLEMS_TOLD_MAX]
    if len(told.problems) > len(problems):
        problems.append(f"and {len(told.problems) - len(problems)} more")
    return "\n".join([*lines, "", *problems])
