"""Computes one step: the fold's reply, and the record of the sequence after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.runtime.sequences.contract import StepContext
from services.runtime.sequences.decide import keep_replies
from services.runtime.sequences.history import extended
from services.runtime.state.types import Carry, Position, Record, StoredReply

if TYPE_CHECKING:
    from services.runtime.core.ids import SequenceName
    from services.runtime.engine.served import Catalogue
    from services.runtime.sequences.contract import Fold, SequencePolicy
    from services.runtime.sequences.decide import Run, StepRequest


class Compute:
    """Runs folds on the model version that a sequence is pinned to; changes nothing by itself."""

    def __init__(self, catalogue: Catalogue, policy: SequencePolicy) -> None:
        self._catalogue = catalogue
        self._policy = policy

    async def step(
        self, name: SequenceName, request: StepRequest, run: Run, fold: Fold, committed_step: int | None
    ) -> tuple[Record, bytes]:
        """The record after the step, and the reply."""
        base, position = run.base, run.position
        model = self._catalogue.pinned(base.model if base else request.model)
        durability = base.durability if base else request.durability
        history = extended(base, request.digest, model.model_id)
        context = StepContext(
            name.sequence_id, position, model, durability, request.end, run.replaces_live, committed_step, history
        )
        before = base.carry if base and base.carry else Carry(model.initial_state, b"")
        reply, after = await fold(context, before)
        large = len(reply) > self._policy.reply_bytes_max
        stored = StoredReply(position.step, request.digest, b"" if large else reply)
        record = Record(
            Position(position.epoch, position.step + 1),
            model.model_id,
            durability,
            None if request.end else after,
            keep_replies(base, stored, self._policy.replies_kept),
            history,
            before if large else None,
        )
        return record, reply

    async def again(
        self, name: SequenceName, request: StepRequest, record: Record, fold: Fold, committed_step: int | None
    ) -> bytes:
        """The reply to the latest step of `record`, which was too large to keep."""
        context = StepContext(
            sequence_id=name.sequence_id,
            position=Position(
                record.position.epoch if request.epoch is None else request.epoch, record.position.step - 1
            ),
            model=self._catalogue.pinned(record.model),
            durability=record.durability,
            end=request.end,
            replaces_live=False,
            committed_step=committed_step,
            history=record.history,
        )
        if record.previous is None:
            raise AssertionError("only what has a previous carry is computed again")
        reply, _ = await fold(context, record.previous)
        return reply
