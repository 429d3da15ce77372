"""The ways in which the fake service breaks a stream."""

from __future__ import annotations

from grpc import StatusCode

from tests.kit.fake_store import Fail

GONE = Fail(StatusCode.UNAVAILABLE)
"""The connection is lost, and the step did not arrive."""

REPLY_LOST = Fail(StatusCode.UNAVAILABLE, applied=True)
DIES = Fail(StatusCode.UNAVAILABLE, dies=True)
DIES_AFTER = Fail(StatusCode.UNAVAILABLE, applied=True, dies=True)
RESET = Fail(StatusCode.CANCELLED)
CONFLICT = Fail(StatusCode.ABORTED, "STEP_CONFLICT")
FULL = Fail(StatusCode.RESOURCE_EXHAUSTED, "CAPACITY", retry_delay_s=0.1)

GO_AWAY = Fail(StatusCode.UNAVAILABLE, "DRAINING", replied=True)
"""The server drains, and ends the stream after its reply."""
