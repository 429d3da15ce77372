"""The texts of the load: as many as wanted, all from one seed, so that who checks them can make them again."""

from __future__ import annotations

import random

_ENGLISH = (
    "the a film plot scene of and it but was is wonderful awful dull moving brilliant tedious acting music ending "
    "very quite never don't it's isn't I'd at-times so-so joy 10/10 ... ! , ; ?"
)
WORDS = [*_ENGLISH.split(" "), "café", "naïve", "überraschend", "“masterpiece”", "映画", "😀"]
STEPS_MIN, STEPS_MAX = 4, 256
CUT_SHARE = 0.4
"""How many of the pieces end inside a word, often inside a character."""
LEAVE_SHARE = 0.02
"""After how many of the steps the load leaves its stream and resumes the sequence on another."""


class Text:
    """The text of one sequence, piece by piece."""

    def __init__(self, seed: int, stream: int, number: int) -> None:
        self._random = random.Random(f"{seed}/{stream}/{number}")
        # Most are short and some are long.
        self.steps = int(STEPS_MIN * (STEPS_MAX / STEPS_MIN) ** self._random.random())
        """How many steps it takes, the last one included, if nothing cuts it short."""
        self._pieces: list[bytes] = []
        self._left = [False]
        self._rests = [b""]

    def piece(self, step: int) -> bytes:
        """What a step that is not the last one reads, 1 byte at least."""
        while len(self._pieces) <= step:
            words = self._random.choices(WORDS, k=self._random.randint(1, 6))
            data = self._rests[-1] + "".join(f"{word} " for word in words).encode()
            held = self._random.randint(1, 6) if self._random.random() < CUT_SHARE else 0
            cut = max(1, len(data) - held)
            self._pieces.append(data[:cut])
            self._rests.append(data[cut:])
            self._left.append(self._random.random() < LEAVE_SHARE)
        return self._pieces[step]

    def last(self, step: int) -> bytes:
        """What `step` reads if it is the last one; may be empty."""
        return self._rests[step]

    def leaves_before(self, step: int) -> bool:
        """True where the load changes to another stream before this step."""
        return self._left[step]

    @property
    def known(self) -> int:
        """How many pieces have been made so far."""
        return len(self._pieces)
