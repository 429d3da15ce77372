"""`statestream export`: what a factory may give, and how mistakes are told. Needs torch, but for the last ones."""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from models.common.manifest import Manifest, load_manifest
from services.cli.main import command as main

pytestmark = pytest.mark.train

FACTORIES = """
    import torch
    from torch import nn

    class Steps(nn.Module):
        def forward(self, x, total=None, count=None):
            total = torch.zeros(x.shape[1], 3) if total is None else total
            count = torch.zeros(x.shape[1], 1) if count is None else count
            y = total + x.cumsum(0)
            return y, y[-1], count + 0.5 * len(x)

    def module():
        return nn.GRU(3, 5)

    def batch_major():
        return nn.GRU(3, 5, batch_first=True)

    def pair():
        return nn.GRU(3, 5), torch.randn(4, 2, 3)

    def triple():
        return nn.GRU(3, 5), torch.randn(4, 2, 3), torch.full((1, 2, 5), 0.5)

    def arguments():
        return {"module": nn.GRU(3, 5), "example": torch.randn(4, 2, 3), "name": "named", "version": "7"}

    def steps():
        return Steps(), torch.randn(4, 2, 3)

    def backwards():
        return nn.GRU(3, 5, bidirectional=True), torch.randn(4, 2, 3)

    def surprise():
        return {"module": nn.GRU(3, 5), "example": torch.randn(4, 2, 3), "surprise": 1}

    def five():
        return 1, 2, 3, 4, 5

    nothing = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module beside which the command is run."""
    pytest.importorskip("torch")
    (tmp_path / "factories.py").write_text(textwrap.dedent(FACTORIES))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield
    sys.modules.pop("factories", None)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["export", *arguments])


def exported(*arguments: str, at: str = "net/1") -> Manifest:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return load_manifest(Path("artefacts") / at)


@pytest.mark.parametrize(
    "arguments",
    [
        ["factories:module", "--input", "input=float32:3"],
        ["factories:batch_major", "--input", "input=float32:3", "--batch-first"],
        ["factories:pair"],
        ["factories:triple"],
        ["factories:steps", "--state", "total", "--state", "count"],
    ],
)
def test_factories(arguments: list[str]) -> None:
    """A module, with its example or with sizes; its state; names of arguments that are state."""
    result = run(*arguments, "--name", "net")
    assert result.exit_code == 0, result.output
    assert "chunked = whole   the same bits" in result.output
    manifest = load_manifest(Path("artefacts/net/1"))
    assert manifest.features()[0].dims == ("time", "batch", 3)
    initial = [spec.initial for spec in manifest.states]
    assert initial == {"factories:triple": [0.5], "factories:steps": [0.0, 0.0]}.get(arguments[0], [0.0])


def test_options_win_over_the_factory() -> None:
    """A dict gives arguments of export, and what is said on the command line counts more."""
    assert exported("factories:arguments", at="named/7").version == "7"
    manifest = exported(
        "factories:arguments", "--name", "net", "--version", "2", "--metric", "error=0.25", "--durability", "step",
        "--chunk-timesteps-max", "9", "--output", "level", "--idle-timeout-s", "60", at="net/2",
    )  # fmt: skip
    assert manifest.metrics == {"error": 0.25}
    assert (manifest.sequence.durability, manifest.sequence.idle_timeout_s) == ("step", 60.0)
    assert (manifest.chunk_timesteps_max, manifest.outputs[0].name) == (9, "level")


def test_an_onnx_file_is_adopted() -> None:
    """The same command takes a file; its states are declared as pairs."""
    exported("factories:pair", "--name", "made", at="made/1")
    taken = exported("artefacts/made/1/model.onnx", "--name", "net", "--state", "h=h_next", "--into", "artefacts")
    assert [(spec.input, spec.output) for spec in taken.states] == [("h", "h_next")]


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["factories:pair"], 2, "--name is needed"),
        (["factories:module", "--name", "net"], 2, "gives no example input"),
        (["factories:module", "--name", "net", "--input", "x=float99:3"], 2, "such as x=float32:80"),
        (["factories", "--name", "net"], 2, "neither MODULE:FACTORY nor a file"),
        (["factories:absent", "--name", "net"], 1, "factories has no absent"),
        (["factories:nothing", "--name", "net"], 1, "is no function"),
        (["absent.module:make", "--name", "net"], 1, "there is no module absent"),
        (["factories:five", "--name", "net"], 1, "returned 5 values"),
        (["factories:surprise", "--name", "net"], 1, "surprise: there is no such argument"),
        (["factories:backwards", "--name", "net"], 1, "bidirectional"),
        (["factories:pair", "--name", "no good"], 1, "name: 'no good'"),
        (["factories:pair", "--name", "net", "--metric", "error"], 2, "NAME=NUMBER is needed"),
        (["absent.onnx", "--name", "net"], 1, "absent.onnx: No such file"),
        (["absent.onnx", "--name", "net", "--cell"], 2, "--cell is for torch networks"),
        (["absent.onnx", "--name", "net", "--state", "h"], 2, "INPUT=OUTPUT is needed"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments: list[str], status: int, says: str) -> None:
    """No traceback, and the status tells usage from refusal."""
    result = run(*arguments)
    assert result.exit_code == status, result.output
    assert says in result.output
    assert not list(Path().rglob("manifest.json"))


def test_without_torch_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that only serves has no torch; the command says what to install."""
    Path("light.py").write_text("def make():\n    return object(), object()\n")
    for name in [name for name in sys.modules if name.startswith("models.common.export")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    result = run("light:make", "--name", "net")
    assert result.exit_code == 1
    assert "export needs torch, which is not installed: pip install" in result.output
