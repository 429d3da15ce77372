"""`statestream call inference` against a server of its own."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np
import pytest
from click.testing import CliRunner

from services.cli.call.inference import command
from tests.kit import lstm
from tests.kit.triton import folder_of, serving

if TYPE_CHECKING:
    from pathlib import Path


async def call(address: str, *arguments: str) -> tuple[int, str]:
    """Exit status and output of the command."""
    done = await asyncio.to_thread(CliRunner().invoke, command, ["lstm", *arguments, "--address", address])
    return done.exit_code, done.output


async def test_arrays_from_files_whole_and_in_chunks(tmp_path: Path) -> None:
    """The outputs are shown and written; a named sequence stays open and goes on; what is wrong is said."""
    x = lstm.inputs(10)
    np.save(tmp_path / "x.npy", x)
    given = ("--input", f"x={tmp_path / 'x.npy'}")
    async with serving(folder_of(tmp_path)) as server:
        address = f"127.0.0.1:{server.port}"
        code, output = await call(address, *given, "--save", str(tmp_path / "y.npz"))
        assert (code, output) == (0, _shown(tmp_path / "y.npz"))
        np.testing.assert_allclose(np.load(tmp_path / "y.npz")["y"], lstm.expected(x), atol=1e-6)
        named = ("--chunk", "6", "--sequence-id", "a", "--save", str(tmp_path / "c.npz"))
        code, output = await call(address, *given, "--output", "y", *named)
        assert (code, "--resume" in output) == (0, True)
        chunks = np.load(tmp_path / "c.npz")
        np.testing.assert_allclose(np.concatenate([chunks["y.0"], chunks["y.1"]]), lstm.expected(x), atol=1e-6)
        code, output = await call(address, *given, "--chunk", "6", "--sequence-id", "a", "--resume", "--end")
        assert (code, "y.3" in output) == (0, True)
        code, output = await call(address, "--input", f"z={tmp_path / 'x.npy'}")
        assert (code, "inputs[0].name" in output) == (1, True)


def _shown(file: Path) -> str:
    """What is printed of the arrays in a file."""
    arrays = np.load(file)
    return "".join(
        f"{name} float32 {list(array.shape)}: {', '.join(f'{value:.4g}' for value in array.reshape(-1)[:4])}"
        f"{', ...' if array.size > 4 else ''}\n"
        for name, array in arrays.items()
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ("--input", "x=nothing.npy"),
        ("--input", "x"),
        (),
        ("--input", "x=y.npy", "--resume"),
        ("--input", "x=y", "--end"),
    ],
)
async def test_what_cannot_be_called(arguments: tuple[str, ...]) -> None:
    """Said before any server is asked."""
    assert (await call("127.0.0.1:1", *arguments))[0] == 2
