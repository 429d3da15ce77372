"""Makes the faults of a plan happen, each at its time, and undoes them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.plan import Fault
    from tests.simulation.replicas import Replica
    from tests.simulation.world import World


class Faults:
    """All faults of one run. They are over when the world is calm."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._undo: dict[int, Callable[[], None]] = {}
        for number, fault in enumerate(world.plan.faults):
            world.loop.at(fault.at_s, self._begin, number, fault)

    def end(self) -> None:
        """Undoes what has not been undone yet."""
        for number in tuple(self._undo):
            self._end(number)

    def _begin(self, number: int, fault: Fault) -> None:
        world = self._world
        world.trace("fault", fault.kind, fault.replica, round(fault.lasting_s, 3))
        undo = getattr(self, "_" + fault.kind.replace(" ", "_"))(fault, world.replicas[fault.replica])
        if undo is not None:
            self._undo[number] = undo
            world.loop.at(min(fault.at_s + fault.lasting_s, world.plan.calm_at_s), self._end, number)

    def _end(self, number: int) -> None:
        undo = self._undo.pop(number, None)
        if undo is not None:
            fault = self._world.plan.faults[number]
            self._world.trace("fault", "over:", fault.kind, fault.replica)
            undo()

    # ---- of replicas

    def _crash(self, fault: Fault, replica: Replica) -> Callable[[], None]:
        if fault.size < 0.5:
            # In the middle of whatever it does next.
            replica.node.turns_left = int(fault.size * 80)
        else:
            replica.node.crash()
        return lambda: self._world.start_again(fault.replica, replica)

    def _pause(self, fault: Fault, replica: Replica) -> Callable[[], None]:
        replica.node.pause()
        if fault.size < 0.5:
            self._world.unlist(replica)
        return replica.node.resume

    def _drain(self, fault: Fault, replica: Replica) -> Callable[[], None]:
        self._world.stop(replica, unlist=fault.size < 0.7)
        return lambda: self._world.start_again(fault.replica, replica)

    def _upgrade(self, fault: Fault, replica: Replica) -> Callable[[], None]:
        world = self._world
        versions = ("2",) if fault.size < 0.2 else ("1", "2")
        # What began on the new version is not served by those that have only the old one, and the other way round.
        world.ledger.excuses |= {"MODEL_VERSION_GONE", "MODEL_NOT_FOUND"}
        world.stop(replica, unlist=True)
        return lambda: world.start_again(fault.replica, replica, versions)

    def _clock(self, fault: Fault, replica: Replica) -> None:
        replica.node.skew_s += (fault.size - 0.5) * 10 ** (8 * fault.lasting_s % 5)

    def _part(self, fault: Fault, replica: Replica) -> Callable[[], None]:
        replica.link.part()
        return replica.link.join

    def _reset(self, fault: Fault, replica: Replica) -> None:
        replica.link.reset()

    def _slow(self, fault: Fault, replica: Replica) -> Callable[[], None]:
        before, replica.run_s_max = replica.run_s_max, 0.5 * fault.size
        return lambda: setattr(replica, "run_s_max", before)

    def _failing(self, fault: Fault, replica: Replica) -> Callable[[], None]:
        def set_to(probability: float) -> None:
            for model in replica.models:
                model.failing = probability

        set_to(fault.size)
        return lambda: set_to(0.0)

    # ---- of the store

    def _restart(self, fault: Fault, replica: Replica) -> Callable[[], None]:
        store = self._world.store
        store.up = False
        for each in self._world.replicas:
            each.link.reset()
        return lambda: setattr(store, "up", True)

    def _fail_over(self, fault: Fault, replica: Replica) -> Callable[[], None]:
        world = self._world
        world.store.save()

        def go_back() -> None:
            before = {name: world.store.peek(name) for name in world.store.names}
            world.store.fail_over()
            world.check(world.ledger.forgot, before)
            for each in world.replicas:
                each.link.reset()

        return go_back

    def _full(self, fault: Fault, replica: Replica) -> Callable[[], None]:
        store = self._world.store
        store.full = True
        return lambda: setattr(store, "full", False)

    def _evict(self, fault: Fault, replica: Replica) -> None:
        self._spoil(fault, "SEQUENCE_EVICTED", self._world.store.forget)

    def _damage(self, fault: Fault, replica: Replica) -> None:
        self._spoil(fault, "STATE_CORRUPT", self._world.store.damage)

    def _spoil(self, fault: Fault, reason: str, spoil: Callable[..., None]) -> None:
        names = self._world.store.names
        if names:
            name = names[int(fault.size * len(names))]
            self._world.check(self._world.ledger.spoilt, name, reason)
            spoil(name)
