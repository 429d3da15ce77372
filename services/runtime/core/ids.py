"""Names of sequences and models."""

from __future__ import annotations

import secrets
from typing import NamedTuple

from services.runtime.core.errors import InvalidInput

NAME_CHARS_MAX = 128

DEFAULT_TENANT = "default"
"""Tenant of callers who are not told apart."""


class SequenceName(NamedTuple):
    """Who owns a sequence, which model it runs on, and its name there."""

    tenant: str
    model: str
    sequence_id: str


class ModelId(NamedTuple):
    """One exported network: `weights_digest` is the SHA-256 of its ONNX file in hexadecimal."""

    name: str
    version: str
    weights_digest: str


def checked_name(value: str, field: str) -> str:
    """`value`, if it can be a sequence id or a key.

    Raises:
        InvalidInput: empty, longer than 128 characters, or holding a control character.
    """
    if not 1 <= len(value) <= NAME_CHARS_MAX:
        raise InvalidInput(field, f"must have 1 to {NAME_CHARS_MAX} characters, has {len(value)}")
    if not value.isprintable():
        raise InvalidInput(field, "must not hold control characters")
    return value


def new_sequence_id() -> str:
    """A name that no other sequence has: 128 random bits."""
    return secrets.token_hex(16)
