"""The whole engine, several replicas on one store, under seeded faults, against a sequential oracle.

Clients retry, give up, and come back at another replica; replicas are slow, lose requests and answers, and work from
stale memory. Whatever happens, a sequence equals the oracle: each step applied once, in order, the same bytes.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pytest

from services.runtime.core.errors import StatestreamError, Unavailable
from services.runtime.core.ids import SequenceName
from services.runtime.engine.served import Catalogue
from services.runtime.sequences.contract import SequencePolicy, StepContext
from services.runtime.sequences.decide import StepRequest, content_digest
from services.runtime.sequences.sequences import Sequences
from services.runtime.state.cache import RecordCache
from services.runtime.state.memory import MemoryStore
from services.runtime.state.types import Carry, Durability
from tests.kit.simulated_store import Faults, SimulatedStore
from tests.kit.toy import TOY_ID, NoEvents, toy_served
from tests.kit.virtual_time import VirtualTimeLoop, run_virtual

if TYPE_CHECKING:
    from services.runtime.sequences.contract import Fold

STEPS = 12
SEQUENCES = 6
REPLICAS = 3
ATTEMPTS_MAX = 400


def toy_fold(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> Fold:
    """Adds the values; the reply is the number of the step and the running sum."""

    async def fold(context: StepContext, carry: Carry) -> tuple[bytes, Carry]:
        result = await context.model.batcher.step((values,), carry.tensors)
        return b"%d:" % context.position.step + result.outputs[1].tobytes(), Carry(result.state, b"")

    return fold


def replica(loop: VirtualTimeLoop, shared: MemoryStore, faults: Faults, rng: random.Random) -> Sequences:
    catalogue = Catalogue()
    catalogue.add(toy_served(loop))
    local = MemoryStore(loop, bytes_max=10**6, sequences_max=100)
    policy = SequencePolicy(replies_kept=3, waiters_max=8, retention_ms=60_000)
    cache = RecordCache(sequences_max=4, bytes_max=10**6)
    store = SimulatedStore(shared, faults, rng)
    return Sequences(catalogue, store, local, cache, policy, loop, NoEvents())


@dataclass
class Client:
    """Takes the steps of one sequence, each until it is answered, at replicas picked anew for every attempt."""

    replicas: list[Sequences]
    rng: random.Random
    number: int
    impatience: float
    given_up: list[asyncio.Future[bytes]] = field(default_factory=list)
    inputs: list[np.ndarray[tuple[int], np.dtype[np.float32]]] = field(init=False)

    def __post_init__(self) -> None:
        self.inputs = [
            np.array([self.rng.random() for _ in range(self.rng.randint(1, 5))], dtype=np.float32) for _ in range(STEPS)
        ]

    def oracle(self) -> list[bytes]:
        """What an undisturbed run answers."""
        total, replies = np.float32(0), list[bytes]()
        for step, values in enumerate(self.inputs):
            for value in values:
                total = np.float32(total + value)
            replies.append(b"%d:" % step + np.array([total], dtype=np.float32).tobytes())
        return replies

    async def run(self) -> list[bytes]:
        replies = [await self._take(step) for step in range(STEPS)]
        # What was given up on may still arrive, long after the sequence has gone on.
        for late in await asyncio.gather(*self.given_up, return_exceptions=True):
            if not isinstance(late, bytes | StatestreamError | asyncio.CancelledError):
                raise late
        self.impatience = 0.0
        assert await self._take(STEPS - 1) == replies[-1], "something that came late has moved the sequence"
        return replies

    async def _take(self, step: int) -> bytes:
        for _ in range(ATTEMPTS_MAX):
            attempt = asyncio.ensure_future(self._attempt(step))
            twin = asyncio.ensure_future(self._attempt(step)) if self.rng.random() < 0.2 else None
            patience = 0.01 if self.rng.random() < self.impatience else 30.0
            done, _ = await asyncio.wait({attempt}, timeout=patience)
            reply = None
            if not done:
                self.given_up.append(attempt)
                if self.rng.random() < 0.5:
                    attempt.cancel()
            elif not isinstance(attempt.exception(), Unavailable):
                reply = attempt.result()
            if twin is not None:
                other = (await asyncio.gather(twin, return_exceptions=True))[0]
                if reply is not None and isinstance(other, bytes):
                    assert other == reply, "a repeated step was answered with other bytes"
                if not isinstance(other, bytes | StatestreamError):
                    raise other
            if reply is not None:
                return reply
        raise AssertionError("a step was never answered")

    async def _attempt(self, step: int) -> bytes:
        name = SequenceName("t", "toy", f"sequence-{self.number}")
        values = self.inputs[step]
        key = "key" if step == 0 else ""
        digest = content_digest(values.tobytes(), end=False, start_key=key)
        request = StepRequest(step == 0, key, step, end=False, digest=digest, durability=Durability.STEP, model=TOY_ID)
        taken = await self.rng.choice(self.replicas).step(name, request, toy_fold(values))
        return taken.reply


FAULTS = {
    "calm": Faults(),
    "slow": Faults(delay_s_max=0.05),
    "losing requests": Faults(delay_s_max=0.02, lost_request=0.2),
    "losing answers": Faults(delay_s_max=0.02, lost_answer=0.2),
    "getting stuck": Faults(delay_s_max=0.01, stuck=0.1),
    "everything": Faults(delay_s_max=0.02, stuck=0.05, lost_request=0.15, lost_answer=0.15),
}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS.keys())
def test_every_sequence_equals_the_oracle(faults: Faults, seed: int) -> None:
    """Exactly once, in order, the same bytes, under faults, impatience, repetition and moves between replicas."""
    loop = VirtualTimeLoop()

    async def scenario() -> None:
        rng = random.Random(seed)
        shared = MemoryStore(loop, bytes_max=10**7, sequences_max=1000)
        replicas = [replica(loop, shared, faults, rng) for _ in range(REPLICAS)]
        clients = [Client(replicas, rng, number, impatience=0.4) for number in range(SEQUENCES)]
        answers = await asyncio.gather(*(client.run() for client in clients))
        assert answers == [client.oracle() for client in clients]

    run_virtual(scenario(), loop)


def test_two_clients_that_race_take_each_step_once() -> None:
    """Two writers of different content on one sequence: each step is won by one, the other is told so."""
    loop = VirtualTimeLoop()

    async def scenario() -> None:
        rng = random.Random(5)
        shared = MemoryStore(loop, bytes_max=10**7, sequences_max=10)
        a, b = (replica(loop, shared, Faults(delay_s_max=0.02), rng) for _ in range(2))
        name = SequenceName("t", "toy", "raced")

        def ask(at: Sequences, step: int, value: float, *, start: bool = False) -> asyncio.Future[bytes]:
            values = np.array([value], dtype=np.float32)
            digest = content_digest(values.tobytes(), end=False)
            request = StepRequest(start, "", step, end=False, digest=digest, durability=Durability.STEP, model=TOY_ID)

            async def reply() -> bytes:
                return (await at.step(name, request, toy_fold(values))).reply

            return asyncio.ensure_future(reply())

        await ask(a, 0, 0.0, start=True)
        total = 0.0
        for step in range(1, 10):
            results = await asyncio.gather(ask(a, step, 1.0), ask(b, step, 2.0), return_exceptions=True)
            won = [i for i, result in enumerate(results) if isinstance(result, bytes)]
            assert len(won) == 1, results
            lost = results[1 - won[0]]
            assert isinstance(lost, StatestreamError)
            assert lost.reason in {"STEP_CONFLICT", "STEP_CONTENT_MISMATCH"}
            total += 1.0 + won[0]
            assert results[won[0]] == b"%d:" % step + np.array([total], dtype=np.float32).tobytes()

    run_virtual(scenario(), loop)


def test_sequences_expire_after_their_idle_time() -> None:
    """An hour without a step, in no time: the next one is told that the sequence expired."""
    loop = VirtualTimeLoop()

    async def scenario() -> None:
        shared = MemoryStore(loop, bytes_max=10**7, sequences_max=10)
        one = replica(loop, shared, Faults(), random.Random(0))
        name = SequenceName("t", "toy", "idle")
        values = np.array([1], dtype=np.float32)
        fold = toy_fold(values)
        for step, wait_s, reason in ((0, 0, ""), (1, 3000, ""), (2, 3640, "SEQUENCE_EXPIRED")):
            await asyncio.sleep(wait_s)
            digest = content_digest(b"%d" % step, end=False)
            request = StepRequest(
                step == 0, "", step, end=False, digest=digest, durability=Durability.STEP, model=TOY_ID
            )
            if not reason:
                await one.step(name, request, fold)
                continue
            with pytest.raises(StatestreamError) as caught:
                await one.step(name, request, fold)
            assert caught.value.reason == reason

    run_virtual(scenario(), loop)
