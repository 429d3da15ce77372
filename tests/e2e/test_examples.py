from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.kit.background import background_server

if TYPE_CHECKING:
    from collections.abc import Iterator

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"

EXPECTED = {
    "classify.py": ["positive (", "negative (", "refused, INVALID_INPUT in texts[1]"],
    "stream.py": ["step 0: ", "step 3: ", "step 4: positive after 11 words, final: True"],
    "resume.py": ["left after step 1", "taken up, next is step 2", "positive over 10 words, ended: True"],
    "fork.py": ["from step 2: and I would", "from step 2: and I want", "the beginning is ended"],
    "plain_grpc.py": ["step 0: ", "final: True", "sent again, the same replies: True"],
}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A real server."""
    with background_server() as found:
        yield found


def test_every_example_is_run() -> None:
    """An example that nothing runs would be wrong some day."""
    assert {path.name for path in EXAMPLES.glob("*")} - {"__pycache__"} == set(EXPECTED)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_an_example_does_what_it_shows(name: str, address: str) -> None:
    """Each example runs as it stands, and prints what it promises."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), address], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    for text in EXPECTED[name]:
        assert text in done.stdout
