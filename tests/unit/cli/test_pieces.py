from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from services.cli.call.sentiment import READ_BYTES_MAX, pieces_of


class Pipe(io.RawIOBase):
    """Gives the parts one read at a time, as a pipe does whose writer pauses."""

    def __init__(self, parts: list[bytes]) -> None:
        self._parts = [part for part in parts if part]
        self.reads = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def read1(self, _: int) -> bytes:
        """The next part; nothing at the end."""
        self.reads += 1
        return self._parts.pop(0) if self._parts else b""


def cut(parts: list[bytes], by: str = "word") -> list[bytes]:
    """All pieces."""
    return list(pieces_of(Pipe(parts), by))  # pyright: ignore[reportArgumentType]


def test_words_are_cut_after_their_white_space() -> None:
    """A piece is a word with what closes it; what is left at the end goes last."""
    assert cut([b"I lov", b"ed it,  very\n", b"much"]) == [b"I ", b"loved ", b"it,  ", b"very\n", b"much"]


def test_lines_are_cut_after_their_end() -> None:
    """By line, a piece is a line."""
    assert cut([b"one two\nth", b"ree\nfour"], "line") == [b"one two\n", b"three\n", b"four"]


def test_a_word_goes_as_soon_as_it_is_complete() -> None:
    """Nothing waits for more input than closes it."""
    pipe = Pipe([b"one two ", b"three "])
    pieces = pieces_of(pipe, "word")  # pyright: ignore[reportArgumentType]
    assert [next(pieces), next(pieces)] == [b"one ", b"two "]
    assert pipe.reads == 1


def test_what_has_no_white_space_is_cut_all_the_same() -> None:
    """A run without end is neither kept nor sent as a whole: the server bounds a piece."""
    pieces = cut([b"x" * READ_BYTES_MAX] * 3 + [b"y" * 10])
    assert [len(piece) for piece in pieces] == [READ_BYTES_MAX] * 3 + [10]


@given(st.lists(st.binary(max_size=40)), st.sampled_from(["word", "line"]))
def test_nothing_is_lost_or_empty(parts: list[bytes], by: str) -> None:
    """The pieces put together are the input, and none is empty, however the input comes."""
    pieces = cut(parts, by)
    assert b"".join(pieces) == b"".join(parts)
    assert all(pieces)
