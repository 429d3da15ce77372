"""One connection of the event loop: its transport, its timers, and how it comes to its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

import grpc

from services.runtime.rpc import frames, reader
from services.runtime.rpc.frames import ConnectionFault, ErrorCode
from services.runtime.rpc.reader import Reader

if TYPE_CHECKING:
    from services.runtime.rpc.limits import Limits


class Owner(reader.Service, Protocol):
    """The server that a connection belongs to."""

    def connected(self, connection: Connection) -> bool:
        """A connection has been made; False: it may not stay."""
        ...

    def lost(self, connection: Connection) -> None:
        """A connection is no more."""
        ...


class Connection(asyncio.Protocol):
    """See the module."""

    def __init__(self, owner: Owner, limits: Limits, loop: asyncio.AbstractEventLoop) -> None:
        self.reader = Reader(owner, limits, loop)
        self._owner = owner
        self._limits = limits
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._heard = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - of either event loop, encrypted or not
        """See `asyncio.Protocol`."""
        self._transport = transport
        tls = transport.get_extra_info("ssl_object")
        if not self._owner.connected(self) or (tls is not None and tls.selected_alpn_protocol() != "h2"):
            transport.abort()
            return
        self.reader.peer = _written(transport.get_extra_info("peername"))
        if tls is not None:
            self.reader.certificate = tls.getpeercert
        self.reader.on_idle = self._linger
        self.reader.outbox.attach(transport)
        self.reader.greet()
        self._later(self._limits.handshake_s, self._greeting_due)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why makes no difference
        """See `asyncio.Protocol`."""
        self.reader.outbox.detach()
        self.reader.on_idle = lambda: None
        self._forget()
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        self._owner.lost(self)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self.reader.outbox.pause()

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self.reader.outbox.resume()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._heard = True
        if self._transport is None or self._transport.is_closing():
            return
        try:
            self.reader.feed(data)
        except ConnectionFault as fault:
            self._close(fault.code, fault.reason)

    def leave(self) -> None:
        """Takes no further call, lets those in progress finish, and then closes."""
        self.reader.leave()
        if not self.reader.calls:
            self._close(ErrorCode.NO_ERROR, "")

    def stop(self) -> None:
        """Ends all calls, with a status, and closes."""
        for call in tuple(self.reader.calls.values()):
            call.fail(grpc.StatusCode.UNAVAILABLE, "the server is stopping")
        self._close(ErrorCode.NO_ERROR, "")

    def abort(self) -> None:
        """Cuts the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _close(self, code: ErrorCode, reason: str) -> None:
        """Says why and closes; a peer that does not read is cut off a little later."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        outbox = self.reader.outbox
        if code or not self.reader.leaving:
            outbox.put(frames.goaway(self.reader.latest, code, reason.encode()))
        outbox.flush()
        self.reader.on_idle = lambda: None
        self._forget()
        transport.close()
        self._later(self._limits.close_s, self.abort)

    def _forget(self) -> None:
        for call in tuple(self.reader.calls.values()):
            call.gone()

    def _linger(self) -> None:
        """Leaves the peer, which was told to go, some time to do so: closing first could cost it the last replies."""
        self._later(self._limits.linger_s, self._close, ErrorCode.NO_ERROR, "")

    def _later(self, delay_s: float, do: Any, *arguments: object) -> None:  # noqa: ANN401 - any function
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay_s, do, *arguments)

    def _greeting_due(self) -> None:
        if self.reader.settled:
            self._listen()
        else:
            self._close(ErrorCode.SETTINGS_TIMEOUT, "no settings")

    def _listen(self) -> None:
        """Looks, after some time, whether the peer has said anything."""
        self._heard = False
        self._later(self._limits.keepalive_s, self._silence)

    def _silence(self) -> None:
        if self._heard:
            self._listen()
        else:
            self.reader.outbox.put(frames.ping(b"anybody?"))
            self._later(self._limits.keepalive_timeout_s, self._given_up)

    def _given_up(self) -> None:
        if self._heard:
            self._listen()
        else:
            self.abort()


def _written(address: tuple[Any, ...]) -> str:
    """An address of IP as gRPC writes them."""
    host, port, *_ = address
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
