"""What one peer may have of a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on a server's connections. Those on memory and rates hold for each connection by itself.

    Attributes:
        message_bytes_max: largest request message, after decompression too.
        connections_max: connections open at once.
        streams_max: calls in progress at once; more are refused, and the peer knows that they were not looked at.
        header_bytes_max: largest list of request headers.
        stream_window, connection_window: bytes that a peer may send before anybody takes them.
        waiting_bytes_max: whole messages that no handler has taken; beyond it the peer's window is not renewed.
        partial_bytes_max: messages of which a part has come; beyond it the call that sent last is ended.
        send_bytes_high: bytes to be sent beyond which a handler that sends waits.
        send_bytes_max: bytes to be sent, answers to pings included, beyond which the connection is cut.
        keepalive_s: seconds without a word from the peer after which it is pinged.
        keepalive_timeout_s: seconds that it then has to say something.
        handshake_s: seconds from the connection to the first settings.
        stall_s: seconds that a reply waits for the peer to make room; then its call is ended.
        linger_s: seconds that a peer has to leave after its last call, once it was told that the server stops.
        close_s: seconds that a connection has to take what was still to be sent, and a handler to come to its end.
        control_frames_max: frames a second that carry no message, beside a few for each message.
        resets_max: calls a second that a peer may open and reset again within a second.
    """

    message_bytes_max: int = 4 * 2**20
    connections_max: int = 10_000
    streams_max: int = 8192
    header_bytes_max: int = 16_384
    stream_window: int = 2**20
    connection_window: int = 8 * 2**20
    waiting_bytes_max: int = 64 * 2**20
    partial_bytes_max: int = 64 * 2**20
    send_bytes_high: int = 256 * 1024
    send_bytes_max: int = 4 * 2**20
    keepalive_s: float = 60.0
    keepalive_timeout_s: float = 20.0
    handshake_s: float = 20.0
    stall_s: float = 300.0
    linger_s: float = 2.0
    close_s: float = 1.0
    control_frames_max: int = 2000
    resets_max: int = 500
