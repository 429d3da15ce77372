"""Where Redis is: the addresses that an operator may write."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple
from urllib.parse import parse_qs, unquote

FORMS = (
    "redis://user:password@host:port/database",
    "unix://user:password@/path?db=database",
    "redis+sentinel://user:password@host:port,host:port/service/database",
    "redis+cluster://user:password@host:port,host:port",
)
"""With `rediss` for `redis` the connections are encrypted (TLS)."""

PORT = 6379
SENTINEL_PORT = 26379


class Topology(Enum):
    """How many servers keep the sequences, and who says which."""

    STANDALONE = "standalone"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


class Host(NamedTuple):
    """Where a server listens."""

    name: str
    port: int

    def __str__(self) -> str:
        return f"[{self.name}]:{self.port}" if ":" in self.name else f"{self.name}:{self.port}"


@dataclass(frozen=True, slots=True)
class Login:
    """A user of Redis; without a name the one that is called `default`."""

    user: str | None
    password: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """An address that was read.

    `hosts` are the server, the sentinels, or some nodes of the cluster; none where `path` names a unix socket.
    `service` is what the sentinels call the primary, `sentinel_login` what they themselves ask for.
    """

    topology: Topology
    hosts: tuple[Host, ...]
    login: Login
    tls: bool = False
    path: str = ""
    database: int = 0
    service: str = ""
    sentinel_login: Login = Login(None, None)


def parse_redis_address(text: str) -> RedisAddress:
    """Reads one of `FORMS`.

    Raises:
        ValueError: it is none of them; the text is not repeated, for it may hold a password.
    """
    try:
        return _parsed(text)
    except ValueError:
        # Whatever part it is about may be a part of the password.
        raise ValueError(f"the address of Redis cannot be read: it is one of {', '.join(FORMS)}") from None


def _parsed(text: str) -> RedisAddress:
    # Not by urllib: what it takes for a host with brackets differs between releases of Python.
    whole_scheme, separator, rest = text.partition("://")
    _demand(bool(separator) and text.isprintable() and "#" not in text)
    place, _, query = rest.partition("?")
    netloc, _, tail = place.partition("/")
    credentials, _, hosts = netloc.rpartition("@")
    user, _, password = credentials.partition(":")
    login = Login(unquote(user) or None, unquote(password) or None)
    options = parse_qs(query, strict_parsing=True) if query else {}
    option = {name: values[0] for name, values in options.items() if len(values) == 1}
    scheme, _, kind = whole_scheme.lower().partition("+")
    _demand(len(option) == len(options))
    if (scheme, kind) == ("unix", ""):
        _demand(not hosts and bool(tail) and option.keys() <= {"db"})
        database = _number(option.get("db", "0"))
        return RedisAddress(Topology.STANDALONE, (), login, path=unquote(f"/{tail}"), database=database)
    _demand(scheme in ("redis", "rediss"))
    tls = scheme == "rediss"
    path = [unquote(part) for part in tail.strip("/").split("/")] if tail.strip("/") else []
    if kind == "sentinel":
        _demand(len(path) in (1, 2) and option.keys() <= {"sentinel_user", "sentinel_password"})
        return RedisAddress(
            Topology.SENTINEL,
            _hosts(hosts, SENTINEL_PORT),
            login,
            tls=tls,
            database=_number(path[1]) if len(path) > 1 else 0,
            service=path[0],
            sentinel_login=Login(option.get("sentinel_user"), option.get("sentinel_password")),
        )
    _demand(not option)
    if kind == "cluster":
        # A cluster has one database only.
        _demand(not path)
        return RedisAddress(Topology.CLUSTER, _hosts(hosts, PORT), login, tls=tls)
    found = _hosts(hosts, PORT)
    _demand(not kind and len(found) == 1 and len(path) <= 1)
    return RedisAddress(Topology.STANDALONE, found, login, tls=tls, database=_number(path[0]) if path else 0)


def _hosts(text: str, default_port: int) -> tuple[Host, ...]:
    return tuple(_host(each, default_port) for each in text.split(","))


def _host(text: str, default_port: int) -> Host:
    if text.startswith("["):
        name, closed, rest = text[1:].partition("]")
        _demand(bool(closed) and (not rest or rest.startswith(":")))
        port = rest[1:]
    else:
        name, colon, port = text.partition(":")
        rest = colon
    _demand(bool(name) and (bool(port) or not rest))
    number = _number(port) if port else default_port
    _demand(0 < number < 1 << 16)
    return Host(name, number)


def _number(text: str) -> int:
    _demand(text.isascii() and text.isdigit())
    return int(text)


def _demand(fulfilled: bool) -> None:  # noqa: FBT001
    if not fulfilled:
        raise ValueError
