"""One stack of containers for all tests of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from statestream import Client

from tests.e2e.compose.stack import Stack, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def running() -> Iterator[Stack]:
    """Everything, built and healthy; gone afterwards, with all its data."""
    stack = Stack()
    try:
        stack.up("--build")
        yield stack
    finally:
        stack.down()


@pytest.fixture
def stack(running: Stack) -> Stack:
    """Everything, with all replicas up and known to the gateway, whatever the test before has done to them."""
    services = ("sentiment", "inference")
    if any(len(running.containers(service)) < 2 for service in services):
        running.up("--no-build")
    for service in services:
        wait_until(
            lambda name=service: running.healthy(name) == 2, f"the gateway has two healthy replicas of {service}"
        )
    return running


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    """A client of the gateway."""
    with Client(stack.gateway, timeout_s=30.0) as client:
        yield client
