"""The functions inside Redis: their text, their name, and the beginnings of their calls."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from services.runtime.state.redis.link import packed

_VERSION: Final = b"statestream_v1"


class Library:
    """The functions of `text`, a version of `sequences.lua`.

    The name of the library in Redis changes with the text. So replicas of different versions share one server, and
    nothing is ever replaced under a replica that still runs.
    """

    def __init__(self, text: bytes) -> None:
        self.text = text
        self._name = _VERSION + b"_" + hashlib.sha256(text).hexdigest()[:8].encode()
        self.source = text.replace(_VERSION, self._name)
        """What FUNCTION LOAD takes."""
        # Beginnings of packed calls, up to the key.
        self.load = self._head(b"FCALL_RO", b"_load", keys=1, arguments=0)
        self.checkpoint = self._head(b"FCALL_RO", b"_checkpoint", keys=1, arguments=1)
        self.commit = self._head(b"FCALL", b"_commit", keys=1, arguments=9)
        self.end = self._head(b"FCALL", b"_end", keys=1, arguments=9)
        self.names = self._head(b"FCALL_RO", b"_names", keys=0, arguments=3)

    def _head(self, command: bytes, function: bytes, *, keys: int, arguments: int) -> bytes:
        called = packed(command, self._name + function, b"%d" % keys)
        return b"*%d\r\n" % (3 + keys + arguments) + called.partition(b"\r\n")[2]


LIBRARY: Final = Library(Path(__file__).with_name("sequences.lua").read_bytes())
"""That of this version."""
