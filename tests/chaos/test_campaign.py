"""A short campaign, in its own process as anybody would start it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from tests.chaos.plan import Kind

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

LEFT_OUT = (Kind.STORE_STOP, Kind.STORE_RESTART, Kind.FAIL_OVER, Kind.PRIMARY_HANG)
"""Redis needs some seconds to recover from each of its faults: two of them have to do."""


@contextlib.asynccontextmanager
async def campaign(*arguments: str) -> AsyncGenerator[asyncio.subprocess.Process]:
    """A campaign whose processes are a group of their own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.chaos", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def test_nobody_can_tell_that_servers_and_redis_were_killed(tmp_path: Path) -> None:
    """Every server is killed, cut off, stopped and drained, and Redis killed twice: each answer is as undisturbed."""
    told = tmp_path / "summary.json"
    arguments = ["--seconds", "10", "--kills", "6", "--seed", "3", "--json", str(told), "--without", *LEFT_OUT]
    async with campaign(*arguments) as process:
        printed, _ = await process.communicate()
    assert process.returncode == 0, printed.decode()
    summary = json.loads(told.read_text())
    assert summary["good"]
    assert (summary["losses"], summary["duplicates"], summary["mismatches"]) == (0, 0, 0)
    assert summary["kills"] >= 6
    assert set(summary["faults"]) == {kind.value for kind in Kind} - set(LEFT_OUT)
    assert summary["sequences"] >= summary["streams"] == 64
    assert summary["steps"] > 500
    assert summary["reconnects"] > 0


async def test_an_interrupted_campaign_leaves_nothing_behind() -> None:
    """Ctrl-C ends every process that the campaign has started, before it ends itself."""
    async with campaign("--servers", "2", "--streams", "4") as process:
        assert process.stdout is not None
        assert b"2 servers serve 4 streams" in await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert await process.wait() != 0
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)
