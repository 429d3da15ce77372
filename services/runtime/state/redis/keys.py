"""Names of sequences as keys of Redis, and back."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote, unquote

from services.runtime.core.ids import SequenceName


def sequence_key(prefix: str, name: SequenceName) -> bytes:
    """The key of the hash that holds the sequence `name`."""
    tenant, model, sequence_id = name
    # Quoted, nothing holds ":" or "{": names stay apart, and Redis Cluster spreads them over all of its slots.
    if not (sequence_id.isascii() and sequence_id.isalnum()):
        sequence_id = quote(sequence_id, safe="")
    return f"{owner_keys(prefix, tenant, model)}{sequence_id}".encode()


@lru_cache(1024)
def owner_keys(prefix: str, tenant: str, model: str) -> str:
    """How the keys of all sequences of `tenant` and `model` begin; holds nothing that is special in a pattern."""
    return "".join(f"{quote(part, safe='')}:" for part in (prefix, tenant, model))


def name_behind(prefix: str, tenant: str, model: str, key: bytes) -> SequenceName | None:
    """The sequence of `tenant` and `model` whose key is `key`; None if that is no key of ours."""
    head = owner_keys(prefix, tenant, model).encode()
    if not key.startswith(head):
        return None
    name = SequenceName(tenant, model, unquote(key.removeprefix(head)))
    return name if sequence_key(prefix, name) == key else None
