"""Lists of the names that are in Redis, page by page, over all servers that hold some."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple

from services.runtime.core.errors import InvalidInput, StoreUnavailable
from services.runtime.state.redis.keys import name_behind, owner_keys
from services.runtime.state.store import Page

if TYPE_CHECKING:
    from services.runtime.core.ids import SequenceName
    from services.runtime.state.redis.library import Library
    from services.runtime.state.redis.link import StoreLink

_LOOKS_PER_PAGE_MAX: Final = 16
"""Calls for one page, whatever it finds: other keys may be millions."""

_KEYS_PER_LOOK_MAX: Final = 1000
"""Keys that the server looks at in one go: it does nothing else meanwhile, for about a fifth of a millisecond."""

_CURSOR: Final = re.compile(r"([0-9]{1,5})-([0-9]{1,5})-([0-9a-f]{0,16})-([0-9]{1,20})")
_RUN_DIGITS: Final = 16


class _Cursor(NamedTuple):
    """How far a list has come: `scan` is the server's own cursor, on the server number `node` of `nodes`.

    `run` says which run of that server it was: its cursor means nothing to a server that took its place, nor to
    itself after a restart. Empty: the server has not been asked yet.
    """

    node: int
    nodes: int
    run: str
    scan: int

    def __str__(self) -> str:
        return f"{self.node}-{self.nodes}-{self.run}-{self.scan}"


class Listing:
    """The sequences of one tenant and model. `SCAN` promises what `StateStore.names` does."""

    def __init__(self, link: StoreLink, library: Library, prefix: str, tenant: str, model: str) -> None:
        self._link = link
        self._library = library
        self._owner = prefix, tenant, model

    async def page(self, cursor: str | None, count: int) -> Page:
        """The page at `cursor`, with about `count` names.

        Raises:
            InvalidInput: `cursor` is none of ours, or the servers have changed since.
            StoreUnavailable: a server does not answer.
        """
        at = None if cursor is None else _read(cursor)
        links = await self._link.masters()
        if at is None:
            at = _Cursor(0, len(links), "", 0)
        elif at.nodes != len(links) or at.node >= len(links):
            raise _changed()
        names: dict[SequenceName, None] = {}
        keys = min(count, _KEYS_PER_LOOK_MAX)
        for _ in range(_LOOKS_PER_PAGE_MAX):
            found, at = await self._look(links[at.node], at, keys)
            names |= found
            if at.node == at.nodes:
                return Page(tuple(names), None)
            if len(names) >= count:
                break
            if not found:
                # Most keys are somebody else's.
                keys = min(2 * keys, _KEYS_PER_LOOK_MAX)
        return Page(tuple(names), str(at))

    async def _look(self, link: StoreLink, at: _Cursor, keys: int) -> tuple[dict[SequenceName, None], _Cursor]:
        """Some names, and where to look next."""
        arguments = b"%d" % at.scan, f"{owner_keys(*self._owner)}*".encode(), b"%d" % keys
        call = link.call(self._library.names, *[b"$%d\r\n%b\r\n" % (len(each), each) for each in arguments])
        match await call.reply:
            case [bytes(run_id), bytes(scan), [*found]]:
                run, following = run_id[:_RUN_DIGITS].decode(), int(scan)
            case _:
                raise StoreUnavailable("the state store gave an impossible answer")
        if at.run and at.run != run:
            raise _changed()
        names = [name_behind(*self._owner, key) for key in found]
        at = at._replace(run=run, scan=following) if following else _Cursor(at.node + 1, at.nodes, "", 0)
        return dict.fromkeys([name for name in names if name is not None]), at


def _read(cursor: str) -> _Cursor:
    parts = _CURSOR.fullmatch(cursor)
    if parts is None or int(parts[4]) >= 2**64:
        raise InvalidInput("page_token", "is not one that this server gave")
    return _Cursor(int(parts[1]), int(parts[2]), parts[3], int(parts[4]))


def _changed() -> InvalidInput:
    return InvalidInput("page_token", "is older than the state store's servers; begin with the first page again")
