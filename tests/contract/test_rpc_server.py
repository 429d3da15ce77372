"""The server of `services.runtime.rpc` over real sockets, as unmodified clients of grpcio meet it."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from services.runtime.rpc.limits import Limits
from services.runtime.rpc.server import RpcServer
from tests.kit.certificates import Certificates
from tests.kit.rpc_peer import PATH, Echo, pairs

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def listening(
    echo: Echo | None = None, *, tls: ssl.SSLContext | None = None, grace_s: float = 5.0, **limits: Any
) -> AsyncGenerator[tuple[RpcServer, str]]:
    """A server of the handlers of `Echo`, and its address."""
    server = RpcServer(Limits(**limits))
    server.add_registered_method_handlers("test.Echo", (echo or Echo()).handlers())
    port = server.listen("127.0.0.1:0", ssl=tls)
    await server.start()
    try:
        yield server, f"127.0.0.1:{port}"
    finally:
        await server.stop(grace_s)


@pytest.fixture
async def channel() -> AsyncGenerator[grpc.aio.Channel]:
    """A client's channel to a server."""
    async with listening() as (_, address), grpc.aio.insecure_channel(address) as channel:
        yield channel


async def sent(*messages: bytes) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


async def replied(call: Any) -> list[bytes]:
    return [reply async for reply in call]


async def test_all_four_kinds_with_the_client_of_asyncio(channel: grpc.aio.Channel) -> None:
    """Each is answered in full, empty messages too."""
    assert await channel.unary_unary(PATH + "Unary")(b"abc") == b"abc"
    assert await channel.unary_unary(PATH + "Unary")(b"") == b""
    assert await replied(channel.unary_stream(PATH + "Many")(b"abc")) == [b"a", b"b", b"c"]
    assert await channel.stream_unary(PATH + "Joined")(sent(b"a", b"", b"b")) == b"ab"
    assert await replied(channel.stream_stream(PATH + "Each")(sent(b"a", b"", b"b"))) == [b"a", b"", b"b"]


async def test_all_four_kinds_with_the_blocking_client() -> None:
    """The same from a thread."""

    def client(address: str) -> tuple[Any, ...]:
        with grpc.insecure_channel(address) as channel:
            return (
                channel.unary_unary(PATH + "Unary")(b"abc"),
                list(channel.unary_stream(PATH + "Many")(b"abc")),
                channel.stream_unary(PATH + "Joined")(iter([b"a", b"b"])),
                list(channel.stream_stream(PATH + "Each")(iter([b"a", b"b"]))),
            )

    async with listening() as (_, address):
        answers = await asyncio.to_thread(client, address)
    assert answers == (b"abc", [b"a", b"b", b"c"], b"ab", [b"a", b"b"])


async def test_metadata_and_statuses_travel(channel: grpc.aio.Channel) -> None:
    """Headers, trailers, codes and texts are what the handler set, bytes and special characters included."""
    call = channel.unary_stream(PATH + "Written")(b"x", metadata=(("key", "value"), ("key-bin", b"\x00\xff")))
    assert pairs(await call.initial_metadata())[:2] == [("first", "one"), ("first-bin", b"\x00\xff")]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await replied(call)
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    assert caught.value.details() == "50% é\n"
    assert ("last", "two") in pairs(caught.value.trailing_metadata())


@pytest.mark.parametrize(
    ("method", "code"),
    [
        ("Refused", grpc.StatusCode.ABORTED),
        ("Broken", grpc.StatusCode.UNKNOWN),
        ("Missing", grpc.StatusCode.UNIMPLEMENTED),
    ],
)
async def test_errors_have_their_codes(channel: grpc.aio.Channel, method: str, code: grpc.StatusCode) -> None:
    """An aborted call, a handler that breaks, a method that there is not."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(PATH + method)(b"secret")
    assert caught.value.code() is code
    assert "secret" not in (caught.value.details() or "")


async def test_a_deadline_ends_the_call_on_both_sides() -> None:
    """The client is told DEADLINE_EXCEEDED, and the handler is cancelled."""
    echo = Echo()
    async with listening(echo) as (_, address), grpc.aio.insecure_channel(address) as channel:
        call = channel.stream_stream(PATH + "Held")(timeout=0.05)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        while not echo.cancelled:  # noqa: ASYNC110 - no event is set for a test
            await asyncio.sleep(0)


@pytest.mark.parametrize("how", ["cancel", "channel"])
async def test_a_client_that_leaves_cancels_its_handler(how: str) -> None:
    """By cancelling the call, or by closing its channel: a cancel, not an end of the messages."""
    echo = Echo()
    async with listening(echo) as (_, address), grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream(PATH + "Each")()
        await call.write(b"x")
        assert await call.read() == b"x"
        if how == "cancel":
            call.cancel()
        else:
            await channel.close()
        while not echo.cancelled:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        assert echo.calls[0].cancelled()


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_requests_are_read(channel: grpc.aio.Channel, compression: grpc.Compression) -> None:
    """As the client of grpcio compresses."""
    content = b"abc" * 10_000
    assert await channel.unary_unary(PATH + "Unary")(content, compression=compression) == content


async def test_large_messages_go_beyond_every_window(channel: grpc.aio.Channel) -> None:
    """Messages larger than the windows, several streams at once, both ways."""
    contents = [bytes((number,)) * 3_500_000 for number in range(4)]
    calls = [channel.stream_stream(PATH + "Each")(sent(content, content)) for content in contents]
    answers = await asyncio.gather(*map(replied, calls))
    assert answers == [[content, content] for content in contents]


async def test_a_message_over_the_limit_is_refused() -> None:
    """RESOURCE_EXHAUSTED, and the channel goes on."""
    async with listening(message_bytes_max=1000) as (_, address), grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(PATH + "Unary")(b"x" * 1001)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await channel.unary_unary(PATH + "Unary")(b"x" * 1000) == b"x" * 1000


async def test_many_streams_at_once(channel: grpc.aio.Channel) -> None:
    """Each gets its own messages in its own order."""

    async def talk(number: int) -> None:
        messages = [b"%d %d" % (number, step) for step in range(20)]
        assert await replied(channel.stream_stream(PATH + "Each")(sent(*messages))) == messages

    await asyncio.gather(*map(talk, range(300)))


async def test_calls_over_the_bound_wait_at_the_client() -> None:
    """A client knows how many streams it may open, and opens the others as there is room."""
    async with listening(streams_max=4) as (_, address), grpc.aio.insecure_channel(address) as channel:
        calls = [channel.unary_unary(PATH + "Unary")(b"%d" % number) for number in range(50)]
        assert await asyncio.gather(*calls) == [b"%d" % number for number in range(50)]


async def test_a_client_that_pings_often_is_left_alone() -> None:
    """Keep-alive of the client, at the shortest interval that grpcio has, with and without calls."""
    options = [
        ("grpc.keepalive_time_ms", 10),
        ("grpc.keepalive_timeout_ms", 5000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    async with listening() as (_, address), grpc.aio.insecure_channel(address, options=options) as channel:
        call: Any = channel.stream_stream(PATH + "Each")()
        for _ in range(50):
            await call.write(b"x")
            assert await call.read() == b"x"
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_a_server_that_stops_lets_calls_finish() -> None:
    """A call in progress goes on to its end; then the connection is closed, and stop returns."""
    echo = Echo()
    async with listening(echo, grace_s=30) as (server, address), grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream(PATH + "Each")()
        await call.write(b"x")
        assert await call.read() == b"x"
        stopping = asyncio.create_task(server.stop(30))
        await asyncio.sleep(0)
        await call.write(b"y")
        assert await call.read() == b"y"
        assert not stopping.done()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        await asyncio.wait_for(stopping, 10)


async def test_a_call_that_does_not_finish_is_ended_after_the_grace() -> None:
    """With UNAVAILABLE, which a client may try elsewhere; the handler is cancelled."""
    echo = Echo()
    async with listening(echo) as (server, address), grpc.aio.insecure_channel(address) as channel:
        call: Any = channel.stream_stream(PATH + "Held")()
        await call.write(b"x")
        while not echo.calls:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0)
        await server.stop(0.01)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert echo.cancelled == 1


async def test_two_listen_on_one_port_if_they_say_so() -> None:
    """`reuse_port` on both; without it the second is refused."""
    first, second, third = RpcServer(), RpcServer(), RpcServer()
    port = first.listen("127.0.0.1:0", reuse_port=True)
    assert second.listen(f"127.0.0.1:{port}", reuse_port=True) == port
    with pytest.raises(OSError, match="in use"):
        third.listen(f"127.0.0.1:{port}")
    for server in (first, second, third):
        await server.stop(0)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority, a server's certificate and a client's."""
    folder: Path = tmp_path_factory.mktemp("certificates")
    return Certificates(folder)


def server_tls(certificates: Certificates, *, mutual: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.server, certificates.server_key)
    if mutual:
        context.load_verify_locations(certificates.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@pytest.mark.parametrize("mutual", [False, True])
async def test_calls_over_tls(certificates: Certificates, *, mutual: bool) -> None:
    """Encrypted, large messages too; with mutual TLS the handler sees whose certificate it is."""
    echo = Echo()
    shown = (certificates.client_key.read_bytes(), certificates.client.read_bytes()) if mutual else (None, None)
    credentials = grpc.ssl_channel_credentials(certificates.ca.read_bytes(), *shown)
    async with (
        listening(echo, tls=server_tls(certificates, mutual=mutual)) as (_, address),
        grpc.aio.secure_channel(address, credentials) as channel,
    ):
        content = b"abc" * 500_000
        assert await channel.unary_unary(PATH + "Unary")(content) == content
    certificate = echo.calls[0].peer_certificate()
    if mutual:
        assert certificate is not None
        assert ("email", "client@example.org") in certificate["subjectAltName"]
    else:
        assert not certificate


async def test_mutual_tls_turns_strangers_away(certificates: Certificates) -> None:
    """A client that shows no certificate gets no answer, and no handler runs."""
    echo = Echo()
    credentials = grpc.ssl_channel_credentials(certificates.ca.read_bytes())
    async with (
        listening(echo, tls=server_tls(certificates, mutual=True)) as (_, address),
        grpc.aio.secure_channel(address, credentials) as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(PATH + "Unary")(b"x", timeout=5)
        assert caught.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
    assert not echo.calls
