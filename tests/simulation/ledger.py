"""The oracle: what every reply, every resumption and every error has to agree with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from services.runtime.core.errors import StatestreamError
from services.runtime.core.ids import DEFAULT_TENANT, SequenceName
from services.runtime.state.types import Absence, Durability, Stored
from tests.kit.simulated_task import MODEL, PADDING_BYTES, Link, Piece, Reply, is_long

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.runtime.state.types import Record
    from tests.kit.simulated_link import StoreServer


LOSSES = frozenset({"SEQUENCE_NOT_FOUND", "SEQUENCE_LOST"})
"""What a client is told that no longer has what the store has lost."""


class Violation(AssertionError):
    """Something happened that must never happen."""


def name_of(sequence_id: str) -> SequenceName:
    """The sequence as the store knows it."""
    return SequenceName(DEFAULT_TENANT, MODEL, sequence_id)


@dataclass(slots=True)
class Story:
    """What is known of one sequence.

    Attributes:
        durability: asked for.
        own: pieces of its only writer, by step; None where several write.
        replies: chain of the reply to each step, by epoch.
        committed: what the reply to each step told as committed, by epoch.
        lost_from, lost_to: steps that the store has held and lost; None: it has lost none.
        excuses: reasons of errors that may end it before its client wants.
        forked_from: names of sequences whose steps are its first ones.
        digests: chain of each digest of a history.
        rewound: somebody has put it back, or may have.
    """

    durability: Durability
    own: dict[int, Piece] | None
    replies: dict[int, dict[int, bytes]] = field(default_factory=dict)
    committed: dict[int, dict[int, int]] = field(default_factory=dict)
    lost_from: int | None = None
    lost_to: int = -1
    excuses: set[str] = field(default_factory=set)
    forked_from: set[str] = field(default_factory=set)
    digests: dict[bytes, bytes] = field(default_factory=dict)
    rewound: bool = False


class Ledger:
    """Hears of everything and raises `Violation` as soon as something does not fit."""

    def __init__(self, store: StoreServer, uncommitted_max: int, *, histories: bool) -> None:
        self._store = store
        self._histories = histories
        self._uncommitted_max = uncommitted_max
        self._links: dict[bytes, Link] = {}
        self._totals: dict[bytes, np.float32] = {b"": np.float32(0)}
        self.stories: dict[str, Story] = {}
        self._nameless: dict[str, Story] = {}
        self.excuses: set[str] = set()
        self.replies = 0

    def adopt(self, sequence_id: str, story: Story) -> None:
        """A client has learnt the name of its sequence, to which things may have happened already."""
        early = self._nameless.pop(sequence_id, None)
        if early is not None:
            story.lost_from, story.lost_to = early.lost_from, early.lost_to
            story.excuses |= early.excuses
        self.stories[sequence_id] = story

    def _story(self, name: SequenceName) -> Story:
        found = self.stories.get(name.sequence_id)
        return found or self._nameless.setdefault(name.sequence_id, Story(Durability.STEP, own=None))

    # ---- what the engine computes

    def derived(self, link: Link) -> None:
        """A step was computed; whether it counts is another matter."""
        self._links[link.chain()] = link

    # ---- what the store goes through

    def forgot(self, before: dict[SequenceName, Stored | Absence]) -> None:
        """The store has just gone back to what it was earlier; `before` is what it held until then."""
        for name, was in before.items():
            now = self._store.peek(name)
            if not isinstance(was, Stored) or (isinstance(now, Stored) and now.record.position == was.record.position):
                continue
            story = self._story(name)
            left = now.record.position.step if isinstance(now, Stored) else 0
            story.lost_from = left if story.lost_from is None else min(story.lost_from, left)
            story.lost_to = max(story.lost_to, was.record.position.step)
            story.excuses |= LOSSES

    # ---- what clients are told

    def told(self, sequence_id: str, sent: dict[int, Piece], reply: Any) -> None:
        """A reply to a step has arrived at a client that has sent `sent` so far, by step."""
        self.replies += 1
        story = self.stories[sequence_id]
        header, step, chain = reply.header, reply.header.step, reply.chain
        self._hold(header.sequence_id == sequence_id, f"a reply of {header.sequence_id} was given to {sequence_id}")
        link = self._links.get(chain)
        if link is None:
            raise Violation(f"{sequence_id} step {step}: the chain {chain.hex()} was never computed")
        self._hold(link.step == step, f"{sequence_id}: the reply to step {step} holds that to {link.step}")
        self._hold(
            link.piece == sent.get(step),
            f"{sequence_id} step {step}: the reply is to {link.piece}, sent was {sent.get(step)}",
        )
        self._check_history(sequence_id, story, chain)
        self._check_value(sequence_id, link, reply)
        kept = story.replies.setdefault(header.epoch, {})
        self._hold(
            kept.setdefault(step, chain) == chain, f"{sequence_id} epoch {header.epoch}: step {step} has two winners"
        )
        if header.history_digest:
            self._check_digest(sequence_id, story, chain, header.history_digest)
        self._check_committed(sequence_id, story, header, chain)

    def committed(self, name: SequenceName, before: Stored | Absence, after: Record) -> None:
        """Something was put into the store: what stood there is its beginning, unless the store has lost something."""
        story = self._story(name)
        if not isinstance(before, Stored) or story.lost_from is not None or story.rewound:
            return
        was, now = before.record.position, after.position
        self._hold(now.step >= was.step and now.epoch >= was.epoch, f"{name.sequence_id}: {now} was put over {was}")
        old, new = chain_of(before.record), chain_of(after)
        if old is not None and new is not None:
            self._hold(
                self.ancestor(new, was.step - 1) == old,
                f"{name.sequence_id}: what was put at {now} does not go on from what stood at {was}",
            )

    def spoilt(self, name: SequenceName, reason: str) -> None:
        """The store has lost one sequence whole."""
        story, found = self._story(name), self._store.peek(name)
        if isinstance(found, Stored):
            story.lost_from, story.lost_to = 0, max(story.lost_to, found.record.position.step)
        story.excuses |= {reason, *LOSSES}

    def followed(self, sequence_id: str, before: bytes, chain: bytes) -> None:
        """The user of a stream has had two replies one after the other: the second goes on from the first."""
        link, story = self._links[chain], self.stories[sequence_id]
        if story.own is None and not self._histories:
            return  # who lost the steps before to a rival is told by the history alone
        self._hold(link.before == before, f"{sequence_id} step {link.step}: not computed from the reply before it")

    def taken_up(self, sequence_id: str, told: Any, header: Any) -> None:
        """A stream that resumes was told where the sequence stands; `told` is the configuration it sent."""
        story = self.stories[sequence_id]
        self._hold(header.sequence_id == sequence_id, f"{sequence_id} was told of {header.sequence_id}")
        had = told.committed_step if told.HasField("committed_step") else None
        if had is not None and told.epoch <= header.epoch and not story.rewound:
            less = header.next_step <= had
            self._hold(
                header.lost or not less,
                f"{sequence_id}: committed were {had}, next is {header.next_step}, and nothing is said of a loss",
            )
        if header.lost:
            lost = story.lost_from is not None or story.rewound
            self._hold(lost, f"{sequence_id}: told of a loss, and the store lost nothing")
        if had is not None and header.next_step <= had and not story.rewound:
            self._hold(
                story.lost_from is not None and story.lost_from <= header.next_step,
                f"{sequence_id}: committed were {had}, next is {header.next_step}, and the store lost nothing",
            )

    def sent_away(self, sequence_id: str, facts: Mapping[str, str]) -> None:
        """A replica that stops has told where the sequence stands; what it says is committed has to be."""
        story = self.stories[sequence_id]
        if "committed_step" not in facts or story.rewound:
            return
        step = int(facts["committed_step"])
        self._hold(
            step >= int(facts["next_step"]) - 1,
            f"{sequence_id}: a replica stops and has committed {step}, next is {facts['next_step']}",
        )
        found = self._store.peek(name_of(sequence_id))
        stands = found.record.position.step if isinstance(found, Stored) else 0
        self._hold(
            stands > step or step < story.lost_to or story.excuses - LOSSES,
            f"{sequence_id}: a replica stops and says that {step} is committed, the store is at {stands}",
        )

    def failed(self, sequence_id: str, error: Exception) -> None:
        """A client was told an error after which it does not go on."""
        story = self.stories[sequence_id]
        reason = getattr(error, "reason", type(error).__name__)
        self._hold(reason in story.excuses | self.excuses, f"{sequence_id}: {reason} ({error}) has no cause")

    def finished(self, sequence_id: str, steps: int, *, ended: bool) -> None:
        """A client has all its replies; the store must hold them."""
        story = self.stories[sequence_id]
        if story.durability is Durability.NONE or story.lost_from is not None or story.excuses:
            return
        found = self._store.peek(name_of(sequence_id))
        if not isinstance(found, Stored):
            raise Violation(f"{sequence_id} has all its replies and is not in the store")
        self._hold(
            found.record.position.step == steps and found.record.ended == ended,
            f"{sequence_id} took {steps} steps, the store holds {found.record.position}, ended {found.record.ended}",
        )

    # ---- how it is judged

    def _hold(self, good: object, otherwise: str) -> None:
        if not good:
            raise Violation(otherwise)

    def ancestor(self, chain: bytes, step: int) -> bytes | None:
        """The chain after `step` in the history of `chain`; None: it is shorter."""
        while chain:
            link = self._links.get(chain)
            if link is None or link.step < step:
                return None
            if link.step == step:
                return chain
            chain = link.before
        return None

    def _check_history(self, sequence_id: str, story: Story, chain: bytes) -> None:
        """Every step once, in order, of this sequence, and, where one client writes, what that client sent."""
        if chain in self._totals:
            return
        link = self._links.get(chain)
        if link is None:
            raise Violation(f"{sequence_id}: its history holds what was never computed")
        before = self._links.get(link.before)
        self._hold(link.step == (before.step + 1 if before else 0), f"{sequence_id}: step {link.step} follows {before}")
        self._hold(
            link.sequence_id == sequence_id or link.sequence_id in story.forked_from,
            f"{sequence_id} holds a step of {link.sequence_id}",
        )
        self._hold(before is None or before.version == link.version, f"{sequence_id}: the version changed")
        if story.own is not None:
            self._hold(
                link.piece == story.own.get(link.step),
                f"{sequence_id} step {link.step} read {link.piece}, its client sent {story.own.get(link.step)}",
            )
        if before is not None:
            self._check_history(sequence_id, story, link.before)
        total = self._totals[link.before]
        for value in np.frombuffer(link.piece.values, np.float32):
            total = np.float32(total + value * np.float32(link.version))
        self._totals[chain] = total

    def _check_value(self, sequence_id: str, link: Link, reply: Any) -> None:
        expected = self._totals[reply.chain]
        self._hold(
            np.float32(reply.sum).tobytes() == expected.tobytes()
            and len(reply.padding) == (PADDING_BYTES if is_long(link.piece) else 0)
            and reply.header.ended == link.piece.end
            and reply.header.model.version == link.version,
            f"{sequence_id} step {link.step}: answered {reply}, expected is a sum of {expected}",
        )

    def _check_digest(self, sequence_id: str, story: Story, chain: bytes, digest: bytes) -> None:
        version = self._links[chain].version.encode()
        known = story.digests.setdefault(version + digest, chain)
        self._hold(known == chain, f"{sequence_id}: two histories, one digest")

    def _check_committed(self, sequence_id: str, story: Story, header: Any, chain: bytes) -> None:
        """What is told as committed stands in the store now, unless the store has lost it since."""
        if not header.HasField("committed_step"):
            self._hold(
                story.durability is Durability.NONE or story.lost_from is not None,
                f"{sequence_id} step {header.step}: nothing told as committed",
            )
            return
        step = header.committed_step
        told = story.committed.setdefault(header.epoch, {})
        told[header.step] = step
        before = told.get(header.step - 1, -1)
        self._hold(
            step >= before or story.lost_from is not None,
            f"{sequence_id} epoch {header.epoch} step {header.step}: committed went back from {before} to {step}",
        )
        self._hold(story.durability is not Durability.NONE, f"{sequence_id}: durability NONE told as committed")
        self._hold(
            header.step - step <= self._uncommitted_max,
            f"{sequence_id} step {header.step}: committed is {step}, more than {self._uncommitted_max} behind",
        )
        if story.own is None and story.lost_from is not None:
            return  # the fence between two rivals may be lost, too: then both run ahead until one of them commits
        if step < story.lost_to or story.rewound or story.excuses - LOSSES:
            return
        found = self._store.peek(name_of(sequence_id))
        if not isinstance(found, Stored):
            raise Violation(f"{sequence_id}: told step {step} as committed, the store has nothing")
        self._hold(
            found.record.position.step > step,
            f"{sequence_id}: told step {step} as committed, the store holds {found.record.position}",
        )
        stands = chain_of(found.record)
        mine = self.ancestor(chain, step) if step <= header.step else None
        if stands is not None and mine is not None:
            self._hold(
                self.ancestor(stands, step) == mine,
                f"{sequence_id}: the store holds another step {step} than was told as committed",
            )


def chain_of(record: Record) -> bytes | None:
    """The chain of a stored sequence; None where an ended one no longer shows it."""
    if record.carry is not None:
        return record.carry.task
    last = record.replies[-1].reply if record.replies else b""
    return Reply.FromString(last).chain if last else None


def is_told(error: BaseException) -> bool:
    """True for what a replica may tell a client."""
    return isinstance(error, StatestreamError)
