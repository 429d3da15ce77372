"""A port that several processes of one server listen on, and nobody else."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from services.runtime.workers.address import reserve


def listening(port: int, *, shared: bool) -> socket.socket:
    """What a server opens."""
    opened = socket.socket()
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shared))
        opened.bind(("127.0.0.1", port))
        opened.listen()
    except OSError:
        opened.close()
        raise
    return opened


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_a_free_port_is_held_while_nobody_listens(host: str) -> None:
    """Port 0 becomes a number, on which two can listen together; a server that shares with nobody cannot."""
    held, address = reserve(f"{host}:0")
    with held:
        name, _, port = address.rpartition(":")
        assert name == host
        assert int(port)
        with pytest.raises(OSError, match="in use"), listening(int(port), shared=False):
            pass
        with listening(int(port), shared=True), listening(int(port), shared=True):
            socket.create_connection(("127.0.0.1", int(port))).close()


def test_connections_go_to_those_who_listen() -> None:
    """None is lost to the socket that holds the port, nor to a worker that has stopped to listen."""
    held, address = reserve("127.0.0.1:0")
    port = int(address.rpartition(":")[2])
    with held, listening(port, shared=True) as stays:
        listening(port, shared=True).close()
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port)), stays.accept()[0]:
                pass


@pytest.mark.parametrize("shared", [True, False])
def test_a_port_that_somebody_has_is_refused(*, shared: bool) -> None:
    """Also where that one would share it: its clients are not ours."""
    with listening(0, shared=shared) as stranger:
        port = stranger.getsockname()[1]
        with pytest.raises(OSError, match=rf"cannot bind 127\.0\.0\.1:{port}: Address already in use"):
            reserve(f"127.0.0.1:{port}")


def test_connections_of_an_earlier_server_are_no_reason_against_a_port() -> None:
    """A server that closed its connections first leaves them lingering; its successor starts all the same."""
    with listening(0, shared=False) as earlier:
        port = earlier.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            earlier.accept()[0].close()
            assert client.recv(1) == b""
    with closing(reserve(f"127.0.0.1:{port}")[0]):
        pass


@pytest.mark.parametrize("address", ["203.0.113.1:0", "127.0.0.1:70000", "nobody.invalid:0"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    """A host that is not this machine, a port that there is not, a name that nobody has."""
    with pytest.raises(OSError, match=f"listen: cannot bind {address}"):
        reserve(address)
