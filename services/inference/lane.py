"""One sequence on one stream: where the stream stands on it, and its steps."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

from services.inference.codec import owns
from services.inference.steps import fold_step, standing_reply, step_request, told_by
from services.runtime.core.errors import StatestreamError
from services.runtime.core.ids import DEFAULT_TENANT, SequenceName
from services.runtime.state.types import Durability, Position

if TYPE_CHECKING:
    from services.inference.codec import Ask
    from services.runtime.core.ids import ModelId
    from services.runtime.transport.task import Runtime


class Lane:
    """A sequence of a stream. What it is asked is done one by one, by whoever calls `answer`.

    Attributes:
        name: of the sequence.
        waiting: requests for it, with their deadlines, that are read and not begun.
        running: True while one is in progress.
        ended: True after its last step.
    """

    __slots__ = (
        "_ahead",
        "_durability",
        "_epoch",
        "_model",
        "_next_step",
        "_runtime",
        "ended",
        "name",
        "running",
        "waiting",
    )

    def __init__(self, runtime: Runtime, ask: Ask) -> None:
        """Raises UnknownModel where there is no such model: nothing is counted under a name that a client made up."""
        parameters = ask.parameters
        served = runtime.catalogue.find(ask.model_name, ask.model_version, start=parameters.start)
        self._runtime = runtime
        self.name = SequenceName(DEFAULT_TENANT, ask.model_name, parameters.sequence_id)
        self.waiting: deque[tuple[Ask, float | None]] = deque()  # bounded by IN_PROGRESS_MAX of the stream
        self.running = False
        self.ended = False
        self._model: ModelId = served.model_id
        self._durability = Durability[served.sequence.durability.upper()]
        self._epoch: int | None = None
        self._next_step = 0
        self._ahead = False

    @property
    def at(self) -> Position | None:
        """Where the stream stands, if it has run ahead of the store."""
        return Position(self._epoch, self._next_step) if self._ahead and self._epoch is not None else None

    async def answer(self, ask: Ask, deadline: float | None) -> bytes:
        """The `ModelInferResponse` to a request for this sequence, without what repeats the request.

        Raises:
            StatestreamError: the sequence stands where it stood.
        """
        self._runtime.events.message_received(self.name.model)
        parameters = ask.parameters
        if parameters.resume:
            return await self._resume(ask)
        if parameters.start:
            return await self._start(ask, deadline)
        request = step_request(ask, self._durability, self._model, epoch=self._epoch, at_least=self._next_step)
        taken = await self._runtime.sequences.step(self.name, request, fold_step(ask, deadline))
        self._epoch, self._next_step, self._ahead = taken.epoch, taken.next_step, taken.ahead
        self.ended = parameters.end
        return taken.reply

    async def _start(self, ask: Ask, deadline: float | None) -> bytes:
        served = self._runtime.catalogue.find(ask.model_name, ask.model_version)
        wanted = ask.parameters.durability
        durability = Durability[served.sequence.durability.upper()] if wanted is None else wanted
        request = step_request(ask, durability, served.model_id)
        taken = await self._runtime.sequences.step(self.name, request, fold_step(ask, deadline))
        self._model, self._durability = served.model_id, durability
        self._epoch, self._next_step, self._ahead = taken.epoch, taken.next_step, taken.ahead
        self.ended = ask.parameters.end
        return taken.reply

    async def _resume(self, ask: Ask) -> bytes:
        standing = await self._runtime.sequences.take_up(self.name, told_by(ask), owns=owns)
        self._epoch, self._next_step = standing.record.position
        self._ahead = False
        self.ended = standing.record.ended
        return standing_reply(standing)

    async def settle(self) -> None:
        """Returns when the store holds all that was answered on this stream.

        Raises:
            StatestreamError: it does not.
        """
        await self._runtime.sequences.settle(self.name, self.at)

    async def go_away(self) -> dict[str, str]:
        """Where to go on elsewhere, for the details of a status; commits what can be committed."""
        told = {"next_step": str(self._next_step)}
        with suppress(StatestreamError):  # the client still has what could not be committed, and sends it again
            committed_step = await self._runtime.sequences.settle(self.name, self.at)
            if self._durability is not Durability.NONE:
                told["committed_step"] = str(self._next_step - 1 if committed_step is None else committed_step)
        return told
