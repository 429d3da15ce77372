"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.kit.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Address of a real Redis that all tests of this run share: use names of your own in it."""
    with RedisServer() as server:
        yield server.url
