"""A scripted server and a client of it, on fake time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from statestream import AsyncClient

from tests.kit.client_time import FakeTime
from tests.kit.fake_sentiment import FakeSentiment, serving

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from statestream import AsyncSentimentStream


@pytest.fixture
def fake() -> FakeSentiment:
    """The server's side; tests put faults into it."""
    return FakeSentiment()


@pytest.fixture
def time() -> FakeTime:
    """The client's time."""
    return FakeTime()


@pytest.fixture
async def address(fake: FakeSentiment) -> AsyncGenerator[str]:
    """Where `fake` serves."""
    async with serving(fake) as found:
        yield found


@pytest.fixture
async def client(address: str, time: FakeTime) -> AsyncGenerator[AsyncClient]:
    """A client of `fake`."""
    async with AsyncClient(address, timing=time.timing) as made:
        yield made


@pytest.fixture
async def stream(client: AsyncClient) -> AsyncGenerator[AsyncSentimentStream]:
    """A stream on the sequence "s" that has taken its steps 0 to 3."""
    async with client.sentiment.stream("s") as made:
        for number in range(4):
            await made.send(f"w{number} ")
        yield made
