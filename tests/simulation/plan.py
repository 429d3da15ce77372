"""What happens in one run, drawn from its seed: replicas, clients, bounds, weather and faults."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import NamedTuple

from services.runtime.sequences.contract import SequencePolicy
from services.runtime.state.format import FORMAT_VERSION

REPLICA_FAULTS = ("crash", "pause", "drain", "clock", "part", "slow", "failing", "upgrade", "reset")
STORE_FAULTS = ("restart", "fail over", "full", "evict", "damage")
REPLY_BYTES = 1000
"""No reply of the toy is longer."""

CLIENTS = {
    "checkpoint": 8,
    "step": 3,
    "impatient": 4,
    "vanishing": 4,
    "unnamed": 2,
    "fighting": 4,
    "none": 1,
    "meddled": 2,
    "sleeping": 1,
    "plain": 2,
    "careless": 1,
}


class Fault(NamedTuple):
    """One thing that goes wrong: when, at which replica (or none), for how long; `size` is its strength, 0 to 1."""

    at_s: float
    kind: str
    replica: int
    lasting_s: float
    size: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run.

    Attributes:
        clients: kinds, one a client.
        steps: how many each client takes.
        begins_s: when each of them does.
        pause_s_max: longest wait of a client between two steps.
        breaking: probability for each message that its connection breaks.
        lost, stuck, doubled: probabilities for each message to or from the store.
        faults: in the order of their times; they are over at `calm_at_s`.
        formats: of the records that each replica writes; that of the release before has no history.
    """

    seed: int
    formats: tuple[int, ...]
    clients: tuple[str, ...]
    steps: tuple[int, ...]
    begins_s: tuple[float, ...]
    pause_s_max: float
    breaking: float
    delay_s_max: float
    lost: float
    stuck: float
    doubled: float
    faults: tuple[Fault, ...]
    calm_at_s: float
    policy: SequencePolicy
    cache_sequences: int
    replay_steps_max: int
    replay_slack: int


def draw(seed: int, without: frozenset[str] = frozenset()) -> Plan:
    """The plan of a seed; `without` leaves kinds of faults and clients out and nothing else changed."""
    rng = random.Random(f"plan {seed}")
    calm_at_s = rng.uniform(0.5, 3.0)
    # Each run has some kinds only, so that each meets each other kind alone as well as among many.
    kinds = [kind for kind in (*REPLICA_FAULTS, *STORE_FAULTS) if rng.random() < 0.3]
    replicas = rng.randint(2, 3)
    faults = sorted(
        Fault(rng.random() * calm_at_s, kind, rng.randrange(replicas), 10 ** rng.uniform(-2.0, 0.5), rng.random())
        for kind in kinds
        for _ in range(rng.randint(1, 2))
    )
    clients = tuple(rng.choices(list(CLIENTS), list(CLIENTS.values()), k=rng.randint(2, 3)))
    weather = {
        key: rng.uniform(low, high) if rng.random() < chance else 0.0
        for key, chance, low, high in (
            ("breaking", 0.5, 0.01, 0.08),
            ("lost", 0.35, 0.02, 0.2),
            ("stuck", 0.3, 0.02, 0.2),
            ("doubled", 0.3, 0.05, 0.5),
        )
    }
    commit_steps = rng.choice((1, 2, 3, 5, 50))
    policy = SequencePolicy(
        replies_kept=rng.choice((1, 2, 4)),
        reply_bytes_max=rng.choice((350, 65_536)),
        waiters_max=rng.choice((1, 16)),
        retention_ms=60_000,
        commit_steps=commit_steps,
        commit_interval_ms=rng.choice((5.0, 50.0, 500.0)),
        uncommitted_max=rng.choice((commit_steps, commit_steps + 2, 60)),
        heads_max=rng.choice((2, 100)),
        checkpoints_kept=rng.choice((0, 2)),
        checkpoint_steps=rng.choice((1, 3)),
    )
    # What the release before wrote has no place for what large replies are computed again from.
    mixed = rng.random() < 0.15 and policy.reply_bytes_max > REPLY_BYTES
    formats = tuple(rng.choice((1, FORMAT_VERSION)) if mixed else FORMAT_VERSION for _ in range(replicas))
    plan = Plan(
        seed=seed,
        formats=formats,
        clients=clients,
        steps=tuple(rng.randint(4, 12) for _ in clients),
        begins_s=tuple(rng.choice((0.0, rng.random() * calm_at_s)) for _ in clients),
        pause_s_max=rng.choice((0.0, 0.02, 0.2)),
        delay_s_max=rng.choice((0.0005, 0.005)),
        faults=tuple(faults),
        calm_at_s=calm_at_s,
        policy=policy,
        cache_sequences=rng.choice((0, 1, 10)),
        replay_steps_max=rng.choice((4, 1024)),
        replay_slack=rng.choice((2, 64)),
        **weather,
    )
    return _without(plan, without) if without else plan


def _without(plan: Plan, left_out: frozenset[str]) -> Plan:
    kept = {key: 0.0 for key in ("breaking", "lost", "stuck", "doubled") if key in left_out}
    return replace(
        plan,
        faults=tuple(fault for fault in plan.faults if fault.kind not in left_out),
        clients=tuple("step" if kind in left_out else kind for kind in plan.clients),
        **kept,
    )
