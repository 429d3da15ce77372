"""Fixtures that more than one folder of tests uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.kit.redis_server import RedisServer

if TYPE_CHECKING:
    from collections.abc import Iterator

# Tests share their machine, so a slow example is no fault.
settings.register_profile("statestream", deadline=None, print_blob=True)
settings.load_profile("statestream")


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """Address of a real Redis that all tests of this run share: use names of your own in it."""
    with RedisServer() as server:
        yield server.url
