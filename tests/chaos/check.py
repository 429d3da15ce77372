"""Holds what the load wrote down against the oracle: each step answered once, in order, with the same bits."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tests.chaos.log import Begun, Broken, Line, Reply

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.chaos.log import Answer


class Answers(Protocol):
    """Gives the answer to each of so many steps of a sequence, of which the last one ended it or did not."""

    def __call__(self, stream: int, number: int, steps: int, *, ended: bool) -> Iterable[Answer]:
        """See the class."""
        ...


@dataclass
class Verdict:
    """What came out; `problems` say for a person what was wrong, with the sequence, the step and the time."""

    sequences: int = 0
    steps: int = 0
    retaken: int = 0
    """Steps that their user took again because it had left the stream before they were committed."""
    losses: int = 0
    """Steps that were not answered, or whose sequence did not come to its end."""
    duplicates: int = 0
    """Steps that were answered twice on one stream."""
    mismatches: int = 0
    """Answers that are not those of the oracle."""
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """True if there is nothing to complain of."""
        return not (self.losses or self.duplicates or self.mismatches)

    def lost(self, what: str) -> None:
        """Counts a loss."""
        self.losses += 1
        self.problems.append(f"lost: {what}")


def check(lines: Iterable[Line], answers: Answers) -> Verdict:
    """The verdict on the whole log of a load that came to its end."""
    sequences: dict[tuple[int, int], list[Begun | Reply | Broken]] = defaultdict(list)
    for line in lines:
        if isinstance(line, Begun | Reply | Broken):
            sequences[line.stream, line.number].append(line)
    verdict = Verdict()
    for (stream, number), told in sorted(sequences.items()):
        name = f"stream {stream} sequence {number}"
        replies = list(_in_order(name, told, verdict))
        ended = bool(replies) and replies[-1].last
        if not ended:
            broken = next((line for line in told if isinstance(line, Broken)), None)
            why = f": {broken.error} at step {broken.step}, time {broken.at:.3f}" if broken else ""
            verdict.lost(f"{name} did not end{why}")
        verdict.sequences += ended
        steps = max((reply.step for reply in replies), default=-1) + 1
        verdict.steps += steps
        _compare(name, replies, list(answers(stream, number, steps, ended=ended)), verdict)
    return verdict


def _in_order(name: str, told: list[Begun | Reply | Broken], verdict: Verdict) -> Iterator[Reply]:
    """The replies, having looked at their numbers."""
    following = 0
    answered = 0
    for line in told:
        if isinstance(line, Begun):
            if line.step > answered:
                verdict.lost(f"{name} resumes at step {line.step}, {answered} is next, time {line.at:.3f}")
            verdict.retaken += max(0, answered - line.step)
            following = line.step
        elif isinstance(line, Reply):
            where = f"{name} step {line.step}, {following} is next, time {line.replied_at:.3f}"
            if line.step < following:
                verdict.duplicates += 1
                verdict.problems.append(f"twice: {where}")
            elif line.step > following:
                verdict.lost(where)
            following = line.step + 1
            answered = max(answered, following)
            yield line


def _compare(name: str, replies: list[Reply], wanted: list[Answer], verdict: Verdict) -> None:
    for reply in replies:
        if reply.answer != wanted[reply.step]:
            verdict.mismatches += 1
            verdict.problems.append(
                f"other: {name} step {reply.step} epoch {reply.epoch} is {tuple(reply.answer)}, should be "
                f"{tuple(wanted[reply.step])}, sent {reply.sent_at:.3f}, answered {reply.replied_at:.3f}"
            )
