"""docs/bring-your-own.md, run as it stands: trained, exported, served, killed, replaced."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from codeop import compile_command
from pathlib import Path

import pytest

from tests.kit.processes import free_port
from tests.kit.walk import Block, agrees, printed, read, write

pytest.importorskip("torch")
pytestmark = pytest.mark.train

PAGE = Path(__file__).parents[2] / "docs" / "bring-your-own.md"
BLOCKS = read(PAGE.read_text())
RUN = [block for block in BLOCKS if not block.file]
SECONDS_MAX = 150.0


@pytest.fixture(scope="module")
def outputs(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[Block, str]:
    """What each block printed, in an empty folder, on a free port; whatever it started is gone afterwards."""
    folder = tmp_path_factory.mktemp("walk")
    address = f"127.0.0.1:{free_port()}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STATESTREAM_")}
    env = {
        **clean,
        "OMP_NUM_THREADS": "1",  # threads of torch wait long for one another where the machine is busy
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "STATESTREAM_ADDRESS": address,
        "STATESTREAM_LISTEN": address,
        "STATESTREAM_METRICS_LISTEN": "",
        "STATESTREAM_REDIS_URL": redis_url,
    }
    command = [sys.executable, "-u", str(write(BLOCKS, folder))]
    out, err = folder / "printed", folder / "complained"  # no pipes: a server that is left behind would hold them open
    with (
        out.open("w") as to_out,
        err.open("w") as to_err,
        subprocess.Popen(
            command, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=to_out, stderr=to_err, start_new_session=True
        ) as child,
    ):
        try:
            child.wait(SECONDS_MAX)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    told = "\n".join(path.read_text() for path in (out, err, folder / "server.log") if path.exists())
    assert child.returncode == 0, told
    return dict(zip(RUN, printed(out.read_text()), strict=True))


@pytest.mark.parametrize("block", RUN, ids=lambda block: f"line-{block.line}")
def test_a_block_prints_what_the_page_shows(block: Block, outputs: dict[Block, str]) -> None:
    """And prints nothing where the page shows nothing."""
    assert agrees(outputs[block], block.shown or ""), outputs[block]


def test_the_network_is_worth_serving(outputs: dict[Block, str]) -> None:
    """It is off by less than half of what the last reading is off by; what it remembers helps; version 2 is better."""
    told = [line for text in outputs.values() for line in text.splitlines() if line.startswith("error of the")]
    last, first, second = ([float(number) for number in re.findall(r"\d\.\d+", line)] for line in told)
    assert first[0] < last[0] / 2
    assert first[2] < first[1] / 1.5, "after fifty guesses it is hardly better than in the first five"
    assert second[0] < first[0]


@pytest.mark.parametrize("block", [block for block in RUN if not block.command], ids=lambda block: f"line-{block.line}")
def test_a_block_can_be_pasted(block: Block) -> None:
    """Into a plain Python session as well, where a blank line ends a statement, and only that."""
    waiting: list[str] = []
    for line in [*block.code.splitlines(), ""]:
        waiting.append(line)
        if compile_command("\n".join(waiting)) is not None:
            waiting.clear()
    assert not any(waiting)


def test_the_prose_has_no_figures_of_its_own() -> None:
    """A number with decimals that a sentence tells stands in a block, too, where it is run or compared."""
    prose = re.sub(r"```.*?```", "", PAGE.read_text(), flags=re.DOTALL)
    blocks = "".join(block.code + (block.shown or "") for block in BLOCKS)
    assert set(re.findall(r"\d+\.\d+", prose)) <= set(re.findall(r"\d+\.\d+", blocks))


@pytest.mark.parametrize(
    ("got", "same"),
    [
        ("version 1, off by 3e-06, error 0.12", True),
        ("version 1, off by 0, error 0.14", True),
        ("version 2, off by 3e-07, error 0.12", False),
        ("version 1, off by 3e-05, error 0.12", False),
        ("version 1, off by 3e-07, error 0.16", False),
        ("version 1, off by 3e-07, error: 0.12", False),
    ],
)
def test_what_counts_as_the_same(got: str, same: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Words and whole numbers exactly, trained figures nearly, rounding as rounding."""
    assert agrees(got, "version 1, off by 1.2e-07, error 0.12") is same
