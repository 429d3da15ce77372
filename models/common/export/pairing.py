"""Which output is the new value of a state input, by conventional names (no torch)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_SWAPS = (
    ("input", "output"),
    ("in", "out"),
    ("old", "new"),
    ("previous", "next"),
    ("prev", "next"),
    ("past", "present"),
    ("initial", "final"),
    ("init", "final"),
    ("0", "n"),
    ("t", "next"),
)
_AFFIXES = ("next", "new", "out", "output", "n", "final", "updated")


def partner(name: str, outputs: Collection[str]) -> str | None:
    """The one of ``outputs`` that by its name is the new value of state input ``name``; the likeliest first.

    ``h`` -> ``h_next``, ``new_h``, ``h_out``, ``hn``; ``state_in`` -> ``state_out``; ``h0`` -> ``hn``; ``prev_c`` ->
    ``next_c``, ``c``; also ``h`` -> ``h``. Case and the sign between words do not matter.
    """
    plain = {_plain(output): output for output in outputs}
    return next((plain[made] for made in _candidates(name) if made in plain), None)


def _candidates(name: str) -> Iterator[str]:
    words = [word for word in re.split(r"[^a-z0-9]+|(?<=[a-z])(?=\d)", name.lower()) if word]
    bare = "".join(words)
    for old, new in _SWAPS:
        if old in words and len(words) > 1:
            yield "".join(new if word == old else word for word in words)
    for affix in _AFFIXES:
        yield bare + affix
        yield affix + bare
    for old, _ in _SWAPS:
        if old in words and len(words) > 1:
            rest = [word for word in words if word != old]
            yield "".join(rest)
            for affix in _AFFIXES:
                yield "".join(rest) + affix
                yield affix + "".join(rest)
    yield bare


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
