"""`statestream export`. What exports is looked up by name, in `statestream`: what serves must not import torch."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any, cast

import click
import statestream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_POSITIONAL = ("module", "example", "state")


@click.command(name="export", short_help="Make a servable model of a torch network or an ONNX file.")
@click.argument("source", metavar="MODULE:FACTORY|FILE.onnx")
@click.option("--name", help="Name of the model.")
@click.option("--version", help="Version of the model. Default: 1.")
@click.option("--into", type=click.Path(file_okay=False), help="Folder of all models. Default: artefacts.")
@click.option(
    "--state",
    "states",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="An argument of forward that is state, and the number that it starts from (default: 0); for an ONNX file a "
    "state input and its output, INPUT=OUTPUT. Repeatable. Default: found.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=DTYPE[:SIZE,...]",
    help="An argument of forward, with its sizes beside time and batch: x=float32:80. Repeatable. For factories that "
    "give no example.",
)
@click.option("--output", "outputs", multiple=True, metavar="NAME", help="Names of the outputs, in order. Repeatable.")
@click.option("--batch-first", is_flag=True, default=None, help="The network takes (batch, time, ...).")
@click.option("--cell", is_flag=True, default=None, help="The network takes a single timestep, (batch, ...).")
@click.option("--chunk-timesteps-max", type=int, help="Longest chunk that a server takes. Default: 256.")
@click.option("--idle-timeout-s", type=float, help="A sequence that rests for longer is dropped. Default: 3600.")
@click.option("--lifetime-s", type=float, help="A sequence that is older is dropped. Default: 86400.")
@click.option("--durability", type=click.Choice(["none", "step", "checkpoint"]), help="Default: checkpoint.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME=NUMBER", help="A measured figure. Repeatable.")
@click.option("--tolerance", type=float, help="Largest difference that passes as rounding. Default: 0.0001.")
@click.option(
    "--allow-inexact", is_flag=True, default=None, help="Answers may depend in their last bits on batch and chunks."
)
@click.option("--overwrite", is_flag=True, default=None, help="Replace the version if it is there.")
@click.option("--seed", type=int, help="Of the random inputs of the comparison. Default: 0.")
def command(
    source: str,
    states: Sequence[str],
    inputs: Sequence[str],
    metrics: Sequence[str],
    outputs: Sequence[str],
    **given: object,
) -> None:
    """Make a servable model of a torch network or an ONNX file, in <into>/<name>/<version>/, and report on it.

    MODULE:FACTORY names a function without arguments, looked for from the current folder too. It returns a
    torch.nn.Module, or a tuple of the module, its example input and its initial state, or a dict of arguments of
    statestream.export; options win over it. docs/export.md says what can be exported.
    """
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if metrics:
        options["metrics"] = dict(_number(metric, "--metric") for metric in metrics)
    try:
        if source.endswith(".onnx"):
            _adopt(source, states, [*inputs, *outputs], options)
        else:
            _export(source, states, inputs, outputs, options)
    except statestream.ExportError as error:
        raise click.ClickException(str(error)) from error
    except ImportError as error:
        raise click.ClickException(str(error)) from error


def _adopt(source: str, states: Sequence[str], foreign: Sequence[str], options: dict[str, Any]) -> None:
    for option in ("batch_first", "cell"):
        if option in options:
            raise click.UsageError(f"--{option.replace('_', '-')} is for torch networks, not for an ONNX file")
    if foreign:
        raise click.UsageError("--input and --output are for torch networks; an ONNX file has its own")
    pairs = [state.partition("=") for state in states]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise click.UsageError(f"--state {wrong[0]}: of an ONNX file INPUT=OUTPUT is needed")
    if pairs:
        options["state"] = {name: output for name, _, output in pairs}
    _called(statestream.adopt, (source,), options)


def _export(
    source: str, states: Sequence[str], inputs: Sequence[str], outputs: Sequence[str], options: dict[str, Any]
) -> None:
    made = _made(_factory(source))
    if inputs:
        made["example"] = dict(_example(one, options, made) for one in inputs)
    if "example" not in made:
        if getattr(made["module"], "example_input_array", None) is None:
            raise click.UsageError(f"{source} gives no example input; return (module, example), or say --input")
        made["example"] = made["module"].example_input_array  # as Lightning has it
    if outputs:
        made["outputs"] = list(outputs)
    if states:
        valued = any("=" in state for state in states)
        made["state"] = (
            dict(_number(f"{s}=0" if "=" not in s else s, "--state") for s in states) if valued else [*states]
        )
    arguments = made | options
    _called(statestream.export, (arguments.pop("module"), arguments.pop("example")), arguments)


def _called(function: Callable[..., object], placed: tuple[object, ...], named: dict[str, Any]) -> None:
    if "name" not in named:
        raise click.UsageError("--name is needed")
    try:
        function(*placed, **named, echo=click.echo)
    except TypeError as error:
        if "keyword argument" in str(error) and function.__name__ in str(error):  # out of the factory's dict
            raise click.ClickException(str(error)) from error
        raise


def _factory(source: str) -> Callable[[], Any]:
    """The named function, or a ClickException that says what is not there."""
    where, sign, what = source.partition(":")
    if not sign or not where or not what:
        raise click.UsageError(f"{source!r} is neither MODULE:FACTORY nor a file that ends in .onnx")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and (where == error.name or where.startswith(f"{error.name}.")):
            raise click.ClickException(f"{source}: there is no module {error.name} here") from error
        raise click.ClickException(f"{source}: needs {error.name}, which is not installed") from error
    for part in what.split("."):
        if not hasattr(found, part):
            raise click.ClickException(f"{source}: {where} has no {part}")
        found = getattr(found, part)
    if not callable(found):
        raise click.ClickException(f"{source}: is no function")
    return found


def _made(factory: Callable[[], Any]) -> dict[str, Any]:
    """Arguments of export out of what a factory returns."""
    result = factory()
    if isinstance(result, dict):
        arguments = dict(cast("dict[str, Any]", result))
        if "module" not in arguments:
            raise click.ClickException("the dict of the factory has no module")
        return arguments
    parts = cast("tuple[Any, ...]", result if isinstance(result, tuple) else (result,))
    if not 1 <= len(parts) <= len(_POSITIONAL):
        raise click.ClickException(f"the factory returned {len(parts)} values; needed are module, example and state")
    return dict(zip(_POSITIONAL, parts, strict=False))


def _number(text: str, option: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError as error:
        raise click.UsageError(f"{option} {text}: NAME=NUMBER is needed") from error


def _example(text: str, options: dict[str, Any], made: dict[str, Any]) -> tuple[str, Any]:
    """Name and zeros of one input; the exporter makes random ones of them."""
    name, _, kind = text.partition("=")
    dtype, _, sizes = kind.partition(":")
    torch: Any = importlib.import_module("torch")
    lead = (2,) if options.get("cell") or made.get("cell") else (4, 4)
    try:
        rest = [int(size) for size in sizes.split(",") if size]
        return name, torch.zeros(*lead, *rest, dtype=getattr(torch, dtype))
    except (ValueError, TypeError, AttributeError) as error:
        raise click.UsageError(f"--input {text}: NAME=DTYPE[:SIZE,...] is needed, such as x=float32:80") from error
