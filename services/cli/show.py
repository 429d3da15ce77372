"""How results look in a terminal, or in a file: plain characters only."""

from __future__ import annotations

BAR_CHARS = 21
TEXT_CHARS_MAX = 60


def bar(positive_probability: float) -> str:
    """A scale from negative to positive, with the probability marked on it: `[---------|--+-------]`."""
    middle = BAR_CHARS // 2
    mark = min(BAR_CHARS - 1, max(0, round(positive_probability * (BAR_CHARS - 1))))
    cells = ["-"] * BAR_CHARS
    for cell in range(min(mark, middle), max(mark, middle) + 1):
        cells[cell] = "="
    cells[middle] = "|"
    cells[mark] = "+"
    return f"[{''.join(cells)}]"


def one_line(text: str, chars_max: int = TEXT_CHARS_MAX) -> str:
    """The text on one line, without anything that a terminal would obey, its end cut off where it is long."""
    line = "".join(char if char.isprintable() else " " for char in " ".join(text.split()))
    return line if len(line) <= chars_max else f"{line[: chars_max - 3]}..."


def last_part(text: str, chars: int = TEXT_CHARS_MAX) -> str:
    """The end of a text, always `chars` wide, for a line that is painted over."""
    line, chars = " ".join(text.split()), max(chars, 4)
    return f"...{line[3 - chars :]}" if len(line) > chars else line.ljust(chars)
