"""Makes the link to Redis that an address names: to one server, behind sentinels, or to a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypedDict

from redis.asyncio import ConnectionPool
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff

from services.runtime.core.redis_address import Host, RedisAddress, Topology, parse_redis_address
from services.runtime.state.redis.cluster import ClusterLink
from services.runtime.state.redis.link import RedisLink, StoreLink

if TYPE_CHECKING:
    from pathlib import Path

    from services.runtime.state.redis.breaker import StoreEvents

_SENTINEL_SHARE: Final = 1 / 3
"""Share of a call's time-out that one sentinel may take to answer, so that others can still be asked."""

_LOOPBACK: Final = ("localhost", "::1")


class TlsFiles(NamedTuple):
    """PEM files: who is trusted instead of the system's authorities, and a certificate of our own with its key."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class LinkOptions(TypedDict, total=False):
    """How a link behaves; see `RedisLink`. `connections` are those to each server."""

    timeout_s: float
    connections: int
    replicas_acked: int
    tls: TlsFiles
    events: StoreEvents


def connect(url: str, library: bytes, options: LinkOptions) -> StoreLink:
    """The link to Redis at `url`, one of `redis_address.FORMS`. Nothing is sent before the first call.

    Raises:
        ValueError: `url` cannot be read; its text is not repeated, for it may hold a password.
    """
    address = parse_redis_address(url)
    maker = _Maker(address, library, options)
    if address.topology is Topology.CLUSTER:
        return ClusterLink(address.hosts, maker.node, timeout_s=maker.timeout_s)
    return maker.behind_sentinels() if address.topology is Topology.SENTINEL else maker.alone()


class _SentinelPool(SentinelConnectionPool):
    """Closes its connections to the sentinels, too."""

    async def aclose(self) -> None:
        """Gives back everything."""
        await super().aclose()
        await self.sentinel_manager.aclose()


class _Maker:
    """Makes links and their connections."""

    def __init__(self, address: RedisAddress, library: bytes, options: LinkOptions) -> None:
        self._address = address
        self._library = library
        self._options = options
        self.timeout_s = options.get("timeout_s", 2.0)

    def alone(self) -> RedisLink:
        """To one server."""
        address = self._address
        if address.path:
            pool = ConnectionPool(connection_class=UnixDomainSocketConnection, path=address.path, **self._common())
            return self._link(pool, address.path, exposed=False)
        return self.node(address.hosts[0])

    def node(self, host: Host) -> RedisLink:
        """To the server at `host`."""
        kind = SSLConnection if self._address.tls else Connection
        pool = ConnectionPool(connection_class=kind, host=host.name, port=host.port, **self._common(), **self._tls())
        return self._link(pool, str(host), exposed=self._is_exposed(host))

    def behind_sentinels(self) -> RedisLink:
        """To whichever server the sentinels say is the primary."""
        address = self._address
        login = address.sentinel_login
        within_s = self.timeout_s * _SENTINEL_SHARE
        sentinels = Sentinel(
            address.hosts,
            sentinel_kwargs={
                "username": login.user,
                "password": login.password,
                "ssl": address.tls,
                "protocol": 2,
                "socket_timeout": within_s,
                "socket_connect_timeout": within_s,
                "retry": Retry(NoBackoff(), 0),
                **self._tls(),
            },
        )
        pool = _SentinelPool(address.service, sentinels, ssl=address.tls, **self._common(), **self._tls())
        exposed = any(map(self._is_exposed, address.hosts))
        return self._link(pool, f"{address.service} by {address.hosts[0]}", exposed=exposed)

    def _link(self, pool: ConnectionPool, node: str, *, exposed: bool) -> RedisLink:
        options = self._options
        return RedisLink(
            pool,
            library=self._library,
            connections=options.get("connections", 2),
            timeout_s=self.timeout_s,
            replicas_acked=options.get("replicas_acked", 0),
            node=node,
            exposed=exposed,
            events=options.get("events"),
        )

    def _common(self) -> dict[str, Any]:
        return {
            "username": self._address.login.user,
            "password": self._address.login.password,
            "db": self._address.database,
            "protocol": 2,
            "client_name": "statestream",
            # The link bounds every call as a whole, and knows what may be sent twice.
            "socket_timeout": None,
            "socket_connect_timeout": self.timeout_s,
            "retry": Retry(NoBackoff(), 0),
        }

    def _tls(self) -> dict[str, Any]:
        files = self._options.get("tls", TlsFiles())
        if not self._address.tls:
            return {}
        return {
            "ssl_ca_certs": str(files.ca) if files.ca else None,
            "ssl_certfile": str(files.certificate) if files.certificate else None,
            "ssl_keyfile": str(files.key) if files.key else None,
        }

    def _is_exposed(self, host: Host) -> bool:
        return not (self._address.tls or host.name in _LOOPBACK or host.name.startswith("127."))
