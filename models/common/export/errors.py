"""What stands in the way of an export (no torch)."""

from __future__ import annotations


class ExportError(Exception):
    """The network or file cannot be served as a stream, or an argument is wrong; the message says why, and where."""
