"""Header blocks of gRPC: what a request asks for, what a response says. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

Pairs = list[tuple[bytes, bytes]]
MetadataPair = tuple[str, str | bytes]

ENCODINGS = ("identity", "deflate", "gzip")
"""How request messages may be compressed."""

_SEVEN_BITS = 0x7F
_TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
_PSEUDO = {b":method", b":scheme", b":path", b":authority"}
_OF_A_CONNECTION = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
_RESERVED = {b"te", b"content-type", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"}
_CONTENT = re.compile(rb"application/grpc(?:$|[+;])")
_UPPER = re.compile(rb"[A-Z]")


class Malformed(Exception):
    """No request of HTTP/2: the stream is reset."""


class Refused(Exception):
    """A request of HTTP/2 that is not one of gRPC: it gets this HTTP status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


@dataclass(frozen=True, slots=True)
class RequestHead:
    """What a call asks for.

    Attributes:
        path: `/package.Service/Method`.
        timeout_s: seconds that the call may take, from its arrival; None: it has no deadline; negative: not readable.
        encoding: how its messages may be compressed.
        metadata: what the client added, in order; values of names in `-bin` are bytes.
    """

    path: str
    timeout_s: float | None
    encoding: str
    metadata: tuple[MetadataPair, ...]


def read_request(pairs: Iterable[tuple[bytes, bytes]]) -> RequestHead:
    """Reads the headers of a call.

    Raises:
        Malformed, Refused: it is none.
    """
    pseudo: dict[bytes, bytes] = {}
    known: dict[bytes, bytes] = {}
    metadata: list[MetadataPair] = []
    for name, value in pairs:
        if name in _RESERVED:
            known[name] = value
        elif name.startswith(b":"):
            if name not in _PSEUDO or name in pseudo or known or metadata:
                raise Malformed
            pseudo[name] = value
        elif name in _OF_A_CONNECTION or not name or _UPPER.search(name):
            raise Malformed
        else:
            metadata.append(_metadatum(name, value))
    if not pseudo.get(b":path") or b":method" not in pseudo or b":scheme" not in pseudo:
        raise Malformed
    if not _CONTENT.match(known.get(b"content-type", b"")):
        raise Refused(415)
    if pseudo[b":method"] != b"POST":
        raise Refused(405)
    if known.get(b"te") != b"trailers":
        raise Refused(400)
    timeout = known.get(b"grpc-timeout")
    return RequestHead(
        pseudo[b":path"].decode("latin-1"),
        None if timeout is None else read_timeout(timeout),
        known.get(b"grpc-encoding", b"identity").decode("latin-1"),
        tuple(metadata),
    )


def read_timeout(text: bytes) -> float:
    """Seconds that a `grpc-timeout` stands for; -1.0 where it is not one."""
    found = _TIMEOUT.fullmatch(text)
    return int(found[1]) * _SECONDS[found[2]] if found else -1.0


def _metadatum(name: bytes, value: bytes) -> MetadataPair:
    text = name.decode("latin-1")
    if not name.endswith(b"-bin"):
        return text, value.decode("latin-1")
    try:
        return text, b"".join(
            base64.b64decode(one + b"=" * (-len(one) % 4), validate=True) for one in value.split(b",")
        )
    except binascii.Error:
        raise Malformed from None


def encode(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A header block that neither needs nor changes the state of a connection: no field of it is indexed."""
    parts: list[bytes] = []
    for name, value in pairs:
        parts += (b"\x00", _length(len(name)), name, _length(len(value)), value)
    return b"".join(parts)


def _length(number: int) -> bytes:
    if number < _SEVEN_BITS:
        return bytes((number,))
    octets = bytearray((_SEVEN_BITS,))
    number -= _SEVEN_BITS
    while number > _SEVEN_BITS:
        octets.append(number & _SEVEN_BITS | 0x80)
        number >>= 7
    octets.append(number)
    return bytes(octets)


_OK_STATUS = b"\x88"  # `:status: 200` in the static table
RESPONSE = _OK_STATUS + encode([(b"content-type", b"application/grpc")])
"""Block of the headers before the first reply, without metadata."""
TRAILERS_OK = encode([(b"grpc-status", b"0")])
_ACCEPTED = encode([(b"grpc-accept-encoding", ",".join(ENCODINGS).encode())])


def http_status(status: int) -> bytes:
    """Block of a response that is not of gRPC and has no content."""
    return b"\x08" + _length(3) + b"%d" % status


def response(metadata: Sequence[MetadataPair]) -> bytes:
    """Block of the headers before the first reply."""
    return RESPONSE + encode(map(wire_pair, metadata)) if metadata else RESPONSE


def trailers(code: int, details: str, metadata: Sequence[MetadataPair]) -> bytes:
    """Block of the trailers that end a call."""
    if not code and not details and not metadata:
        return TRAILERS_OK
    pairs = [(b"grpc-status", b"%d" % code)]
    if details:
        pairs.append((b"grpc-message", quote(details, safe=_PRINTABLE, errors="replace").encode()))
    return encode((*pairs, *map(wire_pair, metadata)))


def trailers_only(code: int, details: str, metadata: Sequence[MetadataPair], *, accepted: bool = False) -> bytes:
    """Block of a response that is all there is of a call; `accepted` tells how requests may be compressed."""
    return RESPONSE + (_ACCEPTED if accepted else b"") + trailers(code, details, metadata)


def wire_pair(pair: MetadataPair) -> tuple[bytes, bytes]:
    """A pair of metadata as it is sent.

    Raises:
        ValueError: it cannot be sent: text outside ASCII, or with a line break, in a name that does not end in `-bin`.
    """
    name, value = pair
    key = name.lower().encode("ascii")
    if key.endswith(b"-bin"):
        return key, base64.b64encode(value.encode() if isinstance(value, str) else value).rstrip(b"=")
    text = value.encode("ascii") if isinstance(value, str) else value
    if any(octet < 0x20 or octet > 0x7E for octet in text):  # noqa: PLR2004 - the printable characters of ASCII
        raise ValueError(f"metadata {name}: text that is not printable ASCII")
    return key, text


def request(path: str, authority: str, metadata: Sequence[MetadataPair] = ()) -> bytes:
    """Block of a request for a call, as a client sends it."""
    return encode(
        [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path.encode()),
            (b":authority", authority.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            *map(wire_pair, metadata),
        ]
    )
