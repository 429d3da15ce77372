"""Commands to a Redis Cluster: each goes to the master that owns the slot of its key, all for one master together."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, MovedError

from services.runtime.core.errors import StatestreamError, StoreUnavailable
from services.runtime.core.redis_address import Host
from services.runtime.state.redis.errors import RefusedError, late
from services.runtime.state.redis.line import Call, packed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from redis.exceptions import ResponseError

    from services.runtime.state.redis.link import RedisLink

_REDIRECTS_MAX: Final = 5
"""So often a call is sent on at once; after that it waits until the cluster has been asked again."""

_PAUSE_S: Final = 0.1
"""The cluster is asked for its slots once in this time at most, and calls that have to wait are sent again."""

_PARKED_MAX: Final = 16_384
"""Calls that may wait for a server to own their slot; more are refused at once."""

_ASK_SHARE: Final = 1 / 3
"""Share of the time-out that one server may take to name the slots, so that others can still be asked."""

_SLOTS: Final = packed(b"CLUSTER", b"SLOTS")


class _RoutedCall(Call):
    """A call that follows its slot from server to server until its time is over."""

    __slots__ = ("asking", "cluster", "deadline", "redirects", "slot", "timer")

    def __init__(self, cluster: ClusterLink, slot: int, pieces: tuple[bytes, ...], *, acked: bool) -> None:
        super().__init__(pieces, asyncio.get_running_loop().create_future(), acked=acked)
        self.cluster = cluster
        self.slot = slot
        self.asking = False
        self.deadline = 0.0
        self.redirects = 0
        self.timer: asyncio.TimerHandle | None = None

    def fail(self, error: StatestreamError) -> None:
        """See `Call`. A server that cannot be reached may have lost its slots to another one."""
        if isinstance(error, StoreUnavailable) and not isinstance(error, RefusedError):
            self.cluster.look_again()
        super().fail(error)

    def redirect(self, error: ResponseError) -> None:
        """See `Call`."""
        if not self.reply.done():
            self.cluster.redirect(self, error)


class ClusterLink:
    """A link for each master, made by `make_node`, and the map of slots that says which call goes where.

    `seeds` are nodes that are asked for the map as long as none is known that answers. The map is asked for again when
    a server sends a call elsewhere, or fails.
    """

    def __init__(self, seeds: Sequence[Host], make_node: Callable[[Host], RedisLink], *, timeout_s: float) -> None:
        self._seeds = tuple(seeds)
        self._make_node = make_node
        self._timeout_s = timeout_s
        self._nodes: dict[Host, RedisLink] = {}
        self._owners: list[RedisLink | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._parked: list[_RoutedCall] = []
        self._asking: asyncio.Task[StatestreamError | None] | None = None
        self._next_asking: asyncio.TimerHandle | None = None
        self._asked_at = float("-inf")
        self._first_asked = 0
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def call(self, *pieces: bytes, key: bytes | None = None, acked: bool = False) -> Call:
        """See `StoreLink`. Without a key it goes to whoever owns the first slot."""
        if self._closed:
            raise _closed()
        slot = 0 if key is None else key_slot(key)
        call = _RoutedCall(self, slot, pieces, acked=acked)
        owner = self._owners[slot]
        if owner is None:
            call.deadline = asyncio.get_running_loop().time() + self._timeout_s
            self._park(call)
            return call
        try:
            call.deadline = owner.submit(call)
        except StoreUnavailable:
            self.look_again()
            raise
        return call

    async def masters(self) -> list[RedisLink]:
        """See `StoreLink`: in the order of their slots."""
        if self._closed:
            raise _closed()
        asking = self._ask_now()
        await asyncio.wait([asking])
        error = _closed() if asking.cancelled() else asking.result()
        owners = list(dict.fromkeys(owner for owner in self._owners if owner is not None))
        if error is not None and not owners:
            raise error
        return owners

    async def close(self) -> None:
        """See `StoreLink`."""
        self._closed = True
        if self._next_asking is not None:
            self._next_asking.cancel()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.wait([self._asking])
        for call in self._unparked():
            call.fail(_closed())
        for node in self._nodes.values():
            self._dismiss(node)
        while self._closing:
            await asyncio.wait(self._closing)

    def look_again(self) -> None:
        """Has the map of slots asked for, at once or a little after the last time."""
        if self._closed or self._asking is not None or self._next_asking is not None:
            return
        loop = asyncio.get_running_loop()
        self._next_asking = loop.call_at(max(loop.time(), self._asked_at + _PAUSE_S), self._ask_now)

    def redirect(self, call: _RoutedCall, error: ResponseError) -> None:
        """Sends `call` where a server says that it belongs; made for `_RoutedCall`."""
        call.asking = False
        call.redirects += 1
        if not isinstance(error, AskError) or not error.host or call.redirects > _REDIRECTS_MAX:
            # TRYAGAIN or CLUSTERDOWN, a server without a name, or servers that do not agree: later, by a new map.
            call.redirects = 0
            self._park(call)
            return
        owner = self._node(Host(error.host, error.port))
        if isinstance(error, MovedError):
            self._owners[call.slot] = owner
            self.look_again()
        else:
            call.asking = True
        self._send_to(owner, call)

    def _send_to(self, owner: RedisLink, call: _RoutedCall) -> None:
        try:
            owner.submit_again(call, call.deadline)
        except StoreUnavailable as error:
            call.fail(error)

    def _park(self, call: _RoutedCall) -> None:
        """Keeps `call` until the map has been asked for, or its time is over."""
        if self._closed or len(self._parked) >= _PARKED_MAX:
            call.fail(_closed() if self._closed else StoreUnavailable("the state store is overloaded"))
            return
        call.timer = asyncio.get_running_loop().call_at(call.deadline, call.fail, late())
        self._parked.append(call)
        self.look_again()

    def _unparked(self) -> Iterator[_RoutedCall]:
        parked, self._parked = self._parked, []
        for call in parked:
            if call.timer is not None:
                call.timer.cancel()
                call.timer = None
            if not call.reply.done():
                yield call

    def _ask_now(self) -> asyncio.Task[StatestreamError | None]:
        if self._next_asking is not None:
            self._next_asking.cancel()
            self._next_asking = None
        if self._asking is None:
            loop = asyncio.get_running_loop()
            self._asked_at = loop.time()
            self._asking = loop.create_task(self._ask())
            self._asking.add_done_callback(self._asked)
        return self._asking

    def _asked(self, asking: asyncio.Task[StatestreamError | None]) -> None:
        self._asking = None
        error = _closed() if asking.cancelled() else asking.result()
        for call in self._unparked():
            owner = self._owners[call.slot]
            if error is not None and owner is None:
                call.fail(error)
            elif owner is None:
                self._park(call)
            else:
                self._send_to(owner, call)

    async def _ask(self) -> StatestreamError | None:
        """Asks one server after another for the map; returns why none could be had."""
        failure: StatestreamError | None = None
        with suppress(TimeoutError):
            async with asyncio.timeout(self._timeout_s):
                for host in self._candidates():
                    try:
                        self._learn(_ranges(await self._slots_by(host), host))
                    except TimeoutError:
                        failure = late()
                    except RefusedError:
                        failure = StoreUnavailable("the state store is no cluster, or its user may not ask for slots")
                    except StatestreamError as error:
                        failure = error
                    else:
                        return None
        return failure or late()

    def _candidates(self) -> list[Host]:
        """Whom to ask: the masters, beginning with another one each time, then the seeds."""
        known = list(self._nodes)
        if known:
            self._first_asked = (self._first_asked + 1) % len(known)
            known = known[self._first_asked :] + known[: self._first_asked]
        return list(dict.fromkeys([*known, *self._seeds]))

    async def _slots_by(self, host: Host) -> object:
        node = self._nodes.get(host)
        asked = node or self._make_node(host)
        try:
            async with asyncio.timeout(self._timeout_s * _ASK_SHARE):
                return await asked.call(_SLOTS).reply
        finally:
            if node is None:
                self._dismiss(asked)

    def _learn(self, ranges: list[tuple[int, int, Host]]) -> None:
        owners: list[RedisLink | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, host in ranges:
            owners[first : last + 1] = [self._node(host)] * (last + 1 - first)
        self._owners = owners
        wanted = {host for _, _, host in ranges}
        for host in self._nodes.keys() - wanted:
            self._dismiss(self._nodes.pop(host))

    def _node(self, host: Host) -> RedisLink:
        node = self._nodes.get(host)
        if node is None:
            node = self._nodes[host] = self._make_node(host)
        return node

    def _dismiss(self, node: RedisLink) -> None:
        closing = asyncio.get_running_loop().create_task(node.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


def _ranges(reply: object, asked: Host) -> list[tuple[int, int, Host]]:
    """What CLUSTER SLOTS tells: first and last slot, and their master."""
    try:
        found = [
            # A server that does not know its own name is where it was asked.
            (int(first), int(last), Host(bytes(name or b"").decode() or asked.name, int(port)))
            for first, last, (name, port, *_), *_ in cast("list[Any]", reply)
        ]
    except (TypeError, ValueError):
        raise StoreUnavailable("the state store gave an impossible answer") from None
    if not found:
        raise StoreUnavailable("no server of the cluster owns a slot")
    return found


def _closed() -> StoreUnavailable:
    return StoreUnavailable("the state store is closed")
