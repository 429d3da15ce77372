"""What the doctor looks at once the packages are there: settings, exported models, the store, the ports."""

from __future__ import annotations

import asyncio
import http.client
import socket
from typing import TYPE_CHECKING

from pydantic import ValidationError

from services.cli.health import ask
from services.cli.models.verify import damage
from services.cli.packages import Finding, Level
from services.cli.settings import wrong_settings
from services.cli.tasks import discover
from services.runtime.app import make_store
from services.runtime.config import Settings
from services.runtime.core.clock import SystemClock
from services.runtime.model.registry import scan
from services.runtime.state.redis.breaker import Unheard
from services.runtime.state.redis.check import Severity
from services.runtime.state.redis.store import RedisStore

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEVELS = {Severity.GOOD: Level.GOOD, Severity.WARNING: Level.WARNING, Severity.ERROR: Level.BAD}


def all_checks() -> Iterator[Finding]:
    """Every finding, as soon as it is known."""
    try:
        settings = Settings()
    except ValidationError as error:
        for line in wrong_settings(error):
            yield Finding(Level.BAD, line, "set or unset that variable; docs/operations.md says what it takes")
        return
    yield Finding(Level.GOOD, "the settings are valid")
    yield from exported_models(settings)
    yield from store(settings)
    yield from ports(settings)


def exported_models(settings: Settings) -> Iterator[Finding]:
    """Whether every task has a model, and every model is undamaged and runs."""
    seen = scan(settings.artefacts)
    for task in discover():
        if not task.serves_all and task.name not in seen.versions:
            places = " and ".join(str(root / task.name) for root in settings.artefacts)
            text = f"{places}: holds no exported model (<version>/manifest.json)"
            remedy = (
                f"set STATESTREAM_ARTEFACTS to the folder of exported models, or make one: make train TASK={task.name}"
            )
            yield Finding(Level.BAD, text, remedy)
    for files in [each for versions in seen.versions.values() for each in versions.values()]:
        wrong = damage(files.folder)
        if wrong:
            yield Finding(Level.BAD, wrong, f"restore {files.folder}, for example from the repository")
        else:
            yield Finding(Level.GOOD, f"model {files.name} {files.version} is undamaged and runs")


def store(settings: Settings) -> list[Finding]:
    """Whether the state store can be used."""
    if settings.store == "memory":
        remedy = "for sequences that survive a replica set STATESTREAM_STORE=redis and STATESTREAM_REDIS_URL"
        return [Finding(Level.WARNING, "sequences are kept in memory: a restart loses them", remedy)]
    return asyncio.run(_redis(settings))


async def _redis(settings: Settings) -> list[Finding]:
    made = make_store(settings, SystemClock(), Unheard())
    if not isinstance(made, RedisStore):
        raise TypeError(type(made))
    try:
        return [Finding(_LEVELS[found.severity], found.text, found.remedy) for found in await made.check()]
    finally:
        await made.close()


def ports(settings: Settings) -> Iterator[Finding]:
    """Whether the addresses are free, or a server of ours already answers there."""
    for name, address in (("listen", settings.listen), ("metrics_listen", settings.metrics_listen)):
        if not address:
            continue
        trouble = bind_error(address)
        if not trouble:
            yield Finding(Level.GOOD, f"{name} {address} is free")
        elif name == "listen" and (answer := ask(_reachable(address))) in ("SERVING", "NOT_SERVING"):
            yield Finding(Level.GOOD, f"a server answers on {address}: {answer}")
        elif name == "metrics_listen" and has_our_metrics(_reachable(address)):
            yield Finding(Level.GOOD, f"a server tells its metrics on {address}")
        else:
            variable = f"STATESTREAM_{name.upper()}"
            yield Finding(Level.BAD, f"{name} {address}: {trouble}", f"set {variable} to another host:port")


def bind_error(address: str) -> str:
    """Why an address cannot be listened on; empty if it can."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]") or "0.0.0.0"  # noqa: S104 - what an empty host means
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        return error.strerror or "cannot be used"
    except OverflowError:
        return "there is no such port"
    return ""


def has_our_metrics(address: str) -> bool:
    """True if what answers there over HTTP tells metrics of ours."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host.strip("[]"), int(port), timeout=2.0)
    try:
        connection.request("GET", "/metrics")
        return b"\nstatestream_" in connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _reachable(address: str) -> str:
    """An address to call for one to listen on: all interfaces are reached through the loopback one."""
    host, _, port = address.rpartition(":")
    return f"{'127.0.0.1' if host in ('', '0.0.0.0') else '[::1]' if host == '[::]' else host}:{port}"  # noqa: S104
