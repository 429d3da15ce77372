"""A Redis primary, its replica and the sentinels that watch them, as real processes: for tests of fail-over."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING, Any, Self

import redis
from redis.exceptions import RedisError

from tests.kit.processes import steady_port
from tests.kit.redis_server import RedisServer, redis_server_path

if TYPE_CHECKING:
    from collections.abc import Callable

PRIMARY = "main"
"""The name under which the sentinels know the primary."""

HEALTHY_S_MAX = 60.0
STOP_S_MAX = 20.0


class Member(RedisServer):
    """A server with a configuration file, which it and its sentinels rewrite: it comes back as what it was."""

    def __init__(self, *settings: str, sentinel: bool = False) -> None:
        super().__init__()
        self.port = steady_port()
        configuration = self._folder / "redis.conf"
        lines = [f"port {self.port}", "bind 127.0.0.1", f"unixsocket {self.socket}", f"dir {self._folder}", *settings]
        configuration.write_text("\n".join(lines) + "\n")
        self._command = [redis_server_path(), str(configuration), *(["--sentinel"] if sentinel else [])]

    def terminate(self) -> None:
        """Asks it to shut down in good order, and waits until it has."""
        if self._process is not None:
            self.signal(signal.SIGTERM)
            self._process.wait(STOP_S_MAX)
        self.stop()

    def query(self, *command: str) -> Any:
        """Its answer to a command.

        Raises:
            RedisError: it refuses, or does not answer.
        """
        with redis.Redis(unix_socket_path=str(self.socket), socket_timeout=1.0, decode_responses=True) as client:
            return client.execute_command(*command)


class RedisGroup:
    """Two servers that append every write to their files, one the other's replica, and some sentinels.

    A context manager. The sentinels make the replica the primary once most of them have not heard from the primary for
    `down_after_s`. A primary that has fewer than `replicas_to_write` replicas refuses writes: so one that was replaced
    and does not know it yet takes none that would be lost.
    """

    def __init__(self, *, sentinels: int = 3, down_after_s: float = 1.0, replicas_to_write: int = 1) -> None:
        kept = ("appendonly yes", "appendfsync everysec", 'save ""', "repl-diskless-sync-delay 0")
        kept += (f"min-replicas-to-write {replicas_to_write}",)
        primary = Member(*kept)
        self.servers = [primary, Member(*kept, f"replicaof 127.0.0.1 {primary.port}")]
        watch = [
            f"sentinel monitor {PRIMARY} 127.0.0.1 {primary.port} {sentinels // 2 + 1}",
            f"sentinel down-after-milliseconds {PRIMARY} {int(down_after_s * 1000)}",
            f"sentinel failover-timeout {PRIMARY} 5000",
        ]
        self.sentinels = [Member(*watch, sentinel=True) for _ in range(sentinels)]

    def primary(self) -> Member:
        """The server that most sentinels hold to be the primary.

        Raises:
            RedisError: no sentinel answers.
        """
        votes: list[int] = []
        for sentinel in self.sentinels:
            try:
                votes.append(int(sentinel.query("SENTINEL", "get-master-addr-by-name", PRIMARY)[1]))
            except RedisError:
                continue
        if not votes:
            raise RedisError("no sentinel answers")
        port = max(votes, key=votes.count)
        return next(server for server in self.servers if server.port == port)

    def fail_over(self) -> None:
        """Has the sentinels make the replica the primary.

        Raises:
            RedisError: there is none that could be.
        """
        self.sentinels[0].query("SENTINEL", "FAILOVER", PRIMARY)

    def is_healthy(self) -> bool:
        """True if all sentinels agree on a primary that serves, and the other server is its replica, in step."""
        try:
            primary = self.primary()
            replication = primary.query("INFO", "replication")
            good = replication["role"] == "master" and replication.get("connected_slaves") == 1
            good = good and replication["slave0"]["state"] == "online"
            for sentinel in self.sentinels:
                seen = _pairs(sentinel.query("SENTINEL", "MASTER", PRIMARY))
                good = good and seen["flags"] == "master" and int(seen["port"]) == primary.port
                good = good and int(seen["num-other-sentinels"]) == len(self.sentinels) - 1
                [replica] = map(_pairs, sentinel.query("SENTINEL", "REPLICAS", PRIMARY))
                good = good and replica["flags"] == "slave" and replica["master-link-status"] == "ok"
        except (RedisError, KeyError, ValueError, OSError):
            return False
        return good

    def until(self, holds: Callable[[], bool], seconds: float = HEALTHY_S_MAX) -> None:
        """Returns once `holds` is true; asks again and again.

        Raises:
            TimeoutError: it was not so in time.
        """
        until = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > until:
                raise TimeoutError(f"the group of Redis servers is not as it should be after {seconds:g} s")
            time.sleep(0.1)

    def start(self) -> None:
        """Starts all of them; returns once the group is healthy."""
        for server in (*self.servers, *self.sentinels):
            server.start()
        for sentinel in self.sentinels:
            # They would look at their servers every ten seconds and greet each other every two.
            sentinel.query("SENTINEL", "DEBUG", "info-period", "1000", "publish-period", "500")
        self.until(self.is_healthy)

    def close(self) -> None:
        """Stops all of them and removes their files."""
        for server in (*self.sentinels, *self.servers):
            server.close()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pairs(told: Any) -> dict[str, str]:
    """What a sentinel tells of a server; redis-py has made a dict of it."""
    return {str(key): str(value) for key, value in told.items()}
