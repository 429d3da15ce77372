"""A page whose code blocks are a program: its blocks in their order, as a script, and what each of them shows.

- `python` blocks are pasted one after the other into one session; one that begins with a comment that is the name of a
  file is that file. A `text` block right after a block shows what it prints.
- `console` blocks are for a shell: a line with `$` is a command, the lines up to the next one show what it prints.
- Other blocks (`sh`, what the reader's machine needs) are not run.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# ([\w.]+\.py)\n")
_NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[-+]\d+)?(?![\w.]*\w)")
_MARK = "\x1e"
"""Printed before each block by the script, and by nothing else."""
SMALL = 1e-5
"""A difference of float32 numbers that is rounding."""


@dataclass(frozen=True, slots=True)
class Block:
    """Something to run.

    Attributes:
        line: where it begins on the page, from 1.
        code: what to run.
        shown: what the page says that it prints; None: it does not say.
        file: the name of the file that `code` is; empty: it is run.
        command: `code` is one, for a shell.
    """

    line: int
    code: str
    shown: str | None = None
    file: str = field(default="", kw_only=True)
    command: bool = field(default=False, kw_only=True)


def read(page: str) -> list[Block]:
    """All blocks of a page, in their order."""
    found = [(match, match[1], match[2]) for match in _FENCE.finditer(page)]
    blocks: list[Block] = []
    for (match, kind, code), (after, after_kind, after_code) in pairwise([*found, (None, "", "")]):
        assert match is not None
        line = page.count("\n", 0, match.start()) + 2
        if kind == "console":
            blocks += _commands(code, line)
        elif kind == "python" and (name := _FILE.match(code)):
            blocks.append(Block(line, code, file=name[1]))
        elif kind == "python":
            adjacent = after is not None and not page[match.end() : after.start()].strip()
            shown = after_code if adjacent and after_kind == "text" else None
            blocks.append(Block(line, code, shown))
    return blocks


def _commands(code: str, line: int) -> Iterator[Block]:
    lines = code.splitlines()
    starts = [number for number, text in enumerate(lines) if text.startswith("$ ")]
    for start, end in pairwise([*starts, len(lines)]):
        shown = "".join(f"{text}\n" for text in lines[start + 1 : end])
        yield Block(line + start, lines[start][2:], shown, command=True)


def write(blocks: list[Block], folder: Path) -> Path:
    """Writes the files of a page and the script of all that is run, which prints a mark before each block."""
    parts: list[str] = ["import subprocess as _subprocess"]
    for block in blocks:
        if block.file:
            (folder / block.file).write_text(block.code)
            continue
        parts.append(f"print({_MARK!r}, end='', flush=True)  # line {block.line} of the page")
        parts.append(f"_subprocess.run({block.code!r}, shell=True, check=True)" if block.command else block.code)
    script = folder / "walk.py"
    script.write_text("\n".join(parts))
    return script


def printed(output: str) -> list[str]:
    """What each block that was run has printed."""
    return output.split(_MARK)[1:]


def agrees(got: str, shown: str) -> bool:
    """True if both say the same.

    Words and whole numbers have to be equal; a number with decimals may be off by a quarter, because training ends
    elsewhere on another machine, and where the page shows one that is rounding it has to be rounding, too.
    """
    if _NUMBER.sub("#", got) != _NUMBER.sub("#", shown):
        return False
    return all(_near(a, b) for a, b in zip(_NUMBER.findall(got), _NUMBER.findall(shown), strict=True))


def _near(got: str, shown: str) -> bool:
    if got == shown or not re.search(r"[.e]", got + shown):
        return got == shown
    a, b = float(got), float(shown)
    return a < SMALL if b < SMALL else abs(a - b) <= b / 4
