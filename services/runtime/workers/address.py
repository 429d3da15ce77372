"""An address that several processes listen on together."""

from __future__ import annotations

import socket

PORT_MAX = 65_535


def reserve(address: str) -> tuple[socket.socket, str]:
    """A socket that holds the port for us, and the address with its number.

    The socket does not listen, so the system gives it no connections. Processes of the same user can listen on the
    port beside it with SO_REUSEPORT; it keeps the number ours while none of them does. That option would also let us
    share a port with a server that we do not know: whether somebody has it is asked without the option first.

    Args:
        address: host:port; port 0 takes a free one.

    Raises:
        OSError: the port is taken, or the host is not one of this machine.
    """
    host, _, port = address.rpartition(":")
    if int(port) > PORT_MAX:  # which the resolver takes for another one
        raise OSError(f"listen: cannot bind {address}: there is no such port")
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host.strip("[]") or "0.0.0.0",  # noqa: S104 - what an empty host means
            int(port),
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )[0]
        if int(port):
            with socket.socket(family, kind, protocol) as probe:
                # Connections of an earlier server that linger are no reason against the port.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
        held = socket.socket(family, kind, protocol)
        try:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            held.bind(where)
            # Who does not share the port is not to listen on it either while no worker does.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        except OSError:
            held.close()
            raise
    except OSError as error:
        raise OSError(f"listen: cannot bind {address}: {error.strerror}") from error
    return held, f"{host}:{held.getsockname()[1]}"
