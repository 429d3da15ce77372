"""A real Redis Cluster for tests: three masters, and a replica of the first one where it is asked for."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from redis.crc import key_slot

from services.runtime.state.redis.keys import sequence_key
from tests.kit.processes import steady_port
from tests.kit.redis_server import RedisServer
from tests.kit.redis_time import SET_BACK

if TYPE_CHECKING:
    from collections.abc import Callable

    from services.runtime.core.ids import SequenceName

SLOTS = 16384
READY_S_MAX = 60.0


class ClusterNode(RedisServer):
    """One server of the cluster; over its unix socket it can be asked whatever state the others are in."""

    def __init__(self, *arguments: str, tls: bool = False) -> None:
        self._port_setting = "--tls-port" if tls else "--port"
        settings = ["--cluster-enabled", "yes", "--cluster-node-timeout", "5000"]
        settings += ["--cluster-require-full-coverage", "no", "--repl-diskless-sync-delay", "0"]
        super().__init__(*settings, *arguments)
        self.bus_port = 0
        self._plain_command = self._command

    def start(self) -> None:
        """See `RedisServer`; the first time it looks for ports that nobody has."""
        if self.port:
            super().start()
            return
        for tries_left in (2, 1, 0):
            self.port, self.bus_port = steady_port(), steady_port()
            ports = [self._port_setting, str(self.port), "--cluster-port", str(self.bus_port)]
            self._command = [*self._plain_command, *ports]
            try:
                super().start()
            except RuntimeError as error:
                # Somebody else took one in the meantime.
                if not tries_left or "in use" not in str(error):
                    raise
            else:
                return

    @property
    def id(self) -> str:
        """What the other nodes call it."""
        return self.ask("CLUSTER", "MYID").decode()

    def told(self, section: str) -> dict[str, str]:
        """What CLUSTER INFO (`section` empty) or INFO tells."""
        text = self.ask("INFO", section) if section else self.ask("CLUSTER", "INFO")
        return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)


class RedisCluster:
    """Three masters that share the slots; a context manager.

    With `replica` there is a server that follows the first one; with `tls` nothing is sent in the clear, and
    `arguments` have to name certificates.
    """

    def __init__(self, *arguments: str, replica: bool = False, tls: bool = False) -> None:
        self._scheme = "rediss" if tls else "redis"
        secure = ["--tls-cluster", "yes", "--tls-replication", "yes"] if tls else []
        self.masters = [ClusterNode(*arguments, *secure, tls=tls) for _ in range(3)]
        self.replica = ClusterNode(*arguments, *secure, tls=tls) if replica else None
        self._stack = ExitStack()

    @property
    def nodes(self) -> list[ClusterNode]:
        """All servers."""
        return [*self.masters, *([self.replica] if self.replica else [])]

    @property
    def url(self) -> str:
        """Address of the cluster, by one of its nodes."""
        return f"{self._scheme}+cluster://127.0.0.1:{self.masters[0].port}"

    def owner(self, slot: int) -> ClusterNode:
        """The server that says of itself that it owns `slot`."""
        for node in self.nodes:
            for line in node.ask("CLUSTER", "NODES").decode().splitlines():
                _, _, flags, _, _, _, _, _, *parts = line.split()
                if flags.startswith("myself,master") and any(_holds(part, slot) for part in parts):
                    return node
        raise LookupError(slot)

    def owner_of(self, name: SequenceName) -> ClusterNode:
        """The server that owns the slot of a sequence."""
        return self.owner(key_slot(sequence_key("ss", name)))

    def until(self, holds: Callable[[], bool]) -> None:
        """Returns once `holds` is true; asks again and again.

        Raises:
            TimeoutError: it was not so in time.
        """
        until = time.monotonic() + READY_S_MAX
        while not holds():
            if time.monotonic() > until:
                raise TimeoutError("the cluster is not as it should be")
            time.sleep(0.02)

    def _form(self) -> None:
        shares = [(SLOTS * part // 3, SLOTS * (part + 1) // 3 - 1) for part in range(3)]
        for epoch, (node, (first, last)) in enumerate(zip(self.masters, shares, strict=True), 1):
            node.ask("CLUSTER", "ADDSLOTSRANGE", first, last)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        for node in self.nodes:
            for other in self.nodes:
                node.ask("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus_port)
        self.until(lambda: all(node.told("")["cluster_state"] == "ok" for node in self.nodes))
        self.until(lambda: all(node.told("")["cluster_known_nodes"] == str(len(self.nodes)) for node in self.nodes))
        if self.replica is not None:
            self.replica.ask("CLUSTER", "REPLICATE", self.masters[0].id)
            self.until(self.is_replicated)

    def pair(self) -> tuple[ClusterNode, ClusterNode]:
        """A master and its replica: the first one and the one that was made for it, or the other way round."""
        assert self.replica is not None, "this cluster has no replica"
        first, second = self.masters[0], self.replica
        return (first, second) if second.told("replication")["role"] == "slave" else (second, first)

    def is_replicated(self) -> bool:
        """True if the replica is in step with its master, and all nodes know that it is one."""
        _, replica = self.pair()
        number = replica.id
        nodes = [node.ask("CLUSTER", "NODES").decode() for node in self.nodes]
        return replica.told("replication").get("master_link_status") == "up" and all(
            any(line.startswith(number) and "slave" in line.split()[2] for line in seen.splitlines()) for seen in nodes
        )

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            self._form()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class ClusterLapse:
    """Makes the sequences that it is told older, as `RedisLapse` does for one server."""

    def __init__(self, cluster: RedisCluster) -> None:
        self._cluster = cluster

    async def __call__(self, milliseconds: int, *names: SequenceName) -> None:
        """After this, `milliseconds` have passed for `names`."""
        for name in names:
            self._cluster.owner_of(name).ask("EVAL", SET_BACK, 1, sequence_key("ss", name), milliseconds)


def _holds(part: str, slot: int) -> bool:
    """True if a word of CLUSTER NODES, such as 12 or 0-99, names `slot`; one in brackets tells of a migration."""
    first, _, last = part.partition("-")
    return first.isdigit() and int(first) <= slot <= int(last or first)
