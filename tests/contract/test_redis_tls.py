"""The Redis store over TLS: who is trusted, who is not, and what clients have to show."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from services.runtime.core.errors import StoreUnavailable
from services.runtime.state.redis.connect import TlsFiles
from services.runtime.state.redis.store import RedisStore
from tests.contract.store_fixtures import found
from tests.kit.certificates import Certificates
from tests.kit.processes import free_port
from tests.kit.records import TERMS, a_name, a_record, is_same
from tests.kit.redis_cluster import RedisCluster
from tests.kit.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates that the tests of this file share; skips where the redis-server was built without TLS."""
    files = Certificates(tmp_path_factory.mktemp("certificates"))
    try:
        with _server(files):
            return files
    except RuntimeError as error:
        # One word for it before Redis 7, another since.
        if "TLS support" not in str(error) and "Bad directive" not in str(error):
            raise
        pytest.skip("this redis-server was built without TLS")


def _arguments(files: Certificates, *, clients: str = "no") -> list[str]:
    named = {"tls-cert-file": files.server, "tls-key-file": files.server_key, "tls-ca-cert-file": files.ca}
    settings = [each for name, file in named.items() for each in (f"--{name}", str(file))]
    return [*settings, "--tls-auth-clients", clients]


@contextmanager
def _server(files: Certificates, *, clients: str = "no", password: str | None = None) -> Generator[str]:
    """A server that speaks TLS only; its address."""
    port = free_port()
    with RedisServer(*_arguments(files, clients=clients), "--tls-port", str(port), password=password):
        yield f"rediss://{':' + password + '@' if password else ''}localhost:{port}/0"


async def _works(store: RedisStore) -> None:
    name = a_name()
    assert await store.commit(name, None, a_record(), TERMS) is None
    assert is_same((await found(store, name)).record, a_record())
    await store.close()


async def _refused(store: RedisStore, why: str) -> None:
    with pytest.raises(StoreUnavailable, match=why):
        await store.ping()
    await store.close()


async def test_a_server_whose_certificate_is_trusted_is_used(files: Certificates) -> None:
    """With the authority that signed it, and a password, commits and loads go over TLS."""
    with _server(files, password="word") as url:  # noqa: S106
        await _works(RedisStore.from_url(url, tls=TlsFiles(ca=files.ca)))


async def test_a_server_whom_nobody_vouches_for_is_refused(files: Certificates) -> None:
    """Neither an unknown authority nor another name passes, and the error says that it is the certificate."""
    with _server(files) as url:
        await _refused(RedisStore.from_url(url), "not trusted")
        other_name = url.replace("localhost", "127.0.0.2")
        await _refused(RedisStore.from_url(other_name, tls=TlsFiles(ca=files.ca)), "not trusted|failed")


async def test_a_server_that_speaks_no_tls_is_refused() -> None:
    """Nothing is sent in the clear where TLS was asked for; such a server does not even answer."""
    with RedisServer(port=free_port()) as server:
        await _refused(RedisStore.from_url(f"rediss://127.0.0.1:{server.port}", timeout_s=0.5), "in time|failed")


async def test_clients_show_their_certificate(files: Certificates) -> None:
    """A server that asks for one is satisfied with ours, and refuses us without."""
    with _server(files, clients="yes") as url:
        ours = TlsFiles(files.ca, files.client, files.client_key)
        await _works(RedisStore.from_url(url, tls=ours))
        await _refused(RedisStore.from_url(url, tls=TlsFiles(ca=files.ca)), "certificate|failed")


async def test_behind_sentinel_all_of_it_is_encrypted(files: Certificates) -> None:
    """Sentinel and primary alike are reached over TLS, with the same files."""
    with ExitStack() as stack:
        primary_port, sentinel_port = free_port(), free_port()
        secure = [*_arguments(files, clients="yes"), "--tls-replication", "yes"]
        stack.enter_context(RedisServer(*secure, "--tls-port", str(primary_port)))
        sentinel = RedisServer(*secure, "--tls-port", str(sentinel_port))
        sentinel.become_sentinel(f"main 127.0.0.1 {primary_port} 1")
        stack.enter_context(sentinel)
        tls = TlsFiles(files.ca, files.client, files.client_key)
        await _works(RedisStore.from_url(f"rediss+sentinel://127.0.0.1:{sentinel_port}/main", tls=tls))


async def test_a_cluster_is_followed_over_tls(files: Certificates, tmp_path: Path) -> None:
    """Its nodes name the ports that speak TLS, and every one of them is reached."""
    with RedisCluster(*_arguments(files), tls=True) as cluster:
        store = RedisStore.from_url(cluster.url, tls=TlsFiles(ca=files.ca))
        for _ in range(12):
            assert await store.commit(a_name(), None, a_record(), TERMS) is None
        assert len(await store._link.masters()) == 3
        await store.close()
