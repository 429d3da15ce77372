"""Structured logs on standard error. Nothing that a client sent is ever logged."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict


def configure_logs(level: str, form: str, **always: object) -> None:
    """Sets up structlog once per process; `form` is "json" or "console", and `always` stands in every line."""

    def say_always(_: object, __: str, event: EventDict) -> EventDict:
        return {**event, **always}

    renderer = structlog.processors.JSONRenderer() if form == "json" else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            say_always,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        # Each line in one piece: several processes may write to the same place.
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
