"""Which layer it was: that raised, or that brought timesteps together."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from models.common.export.errors import ExportError
from models.common.export.recurrent import label, modules_of
from models.common.export.tree import Tree, leaves

if TYPE_CHECKING:
    from collections.abc import Callable, Generator


_MIXING = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.MultiheadAttention),
    *(nn.AvgPool1d, nn.MaxPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d),
)
"""What may bring timesteps together, if its axis is that of time."""


@contextmanager
def blame(net: nn.Module, doing: str) -> Generator[None]:
    """Turn what the network raises into an error that names the innermost layer at work."""
    inside: list[tuple[str, nn.Module]] = []
    handles: list[Any] = []
    paths = {layer: path for path, layer in modules_of(net)}

    def enter(layer: nn.Module, _: Tree) -> None:
        inside.append((paths[layer], layer))

    def leave(_layer: nn.Module, _came: Tree, _went: Tree) -> None:
        inside.pop()

    for layer in paths:
        handles += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    try:
        yield
    except ExportError:
        raise
    except Exception as error:
        where = label(*inside[-1]) if inside else "the network"
        said = (str(error).splitlines() or [""])[0]
        raise ExportError(f"{where}: fails on {doing}: {type(error).__name__}: {said}") from error
    finally:
        for handle in handles:
            handle.remove()


class _Seen(NamedTuple):
    path: str
    layer: nn.Module
    came: list[Tensor]
    went: list[Tensor]


def mixer(net: nn.Module, run: Callable[[int], object], timesteps: int, cut: slice) -> str:
    """The first, innermost layer whose output differs in ``cut`` of time between two runs, its input not.

    ``run(0)`` and ``run(1)`` are runs of ``timesteps``, a number that no other axis has, with inputs that are the same
    in ``cut``. Where there is none it is an operation between the layers.
    """
    first, second = (_seen(net, run, which) for which in (0, 1))
    for a, b in zip(first, second, strict=False):
        if a.path != b.path or any(isinstance(part, nn.RNNBase | nn.RNNCellBase) for part in a.layer.modules()):
            continue
        if not any(timesteps in tensor.shape for tensor in a.came):
            continue
        if not all(_agree(x, y, timesteps, cut) for x, y in zip(a.came, b.came, strict=False)):
            continue
        if not all(_agree(x, y, timesteps, cut) for x, y in zip(a.went, b.went, strict=False)):
            return label(a.path, a.layer)
    mixing = [label(path, layer) for path, layer in modules_of(net) if isinstance(layer, _MIXING)]
    near = f", or with {', '.join(mixing)}," if mixing else ""
    return f"an operation in the forward of {type(net).__name__}, outside its layers{near}"


def _seen(net: nn.Module, run: Callable[[int], object], which: int) -> list[_Seen]:
    seen: list[_Seen] = []
    paths = {layer: path for path, layer in modules_of(net) if path}

    def note(layer: nn.Module, came: Tree, went: Tree) -> None:
        seen.append(_Seen(paths[layer], layer, _tensors(came), _tensors(went)))

    handles: list[Any] = [layer.register_forward_hook(note) for layer in paths]
    try:
        run(which)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _tensors(tree: Tree) -> list[Tensor]:
    try:
        return [tensor.clone() for _, tensor in leaves(tree)]
    except ExportError:
        return []


def _agree(a: Tensor, b: Tensor, timesteps: int, cut: slice) -> bool:
    """Equal in ``cut`` of its time; a tensor without time has to be equal altogether."""
    if a.shape != b.shape:
        return False
    if timesteps in a.shape:
        axis = list(a.shape).index(timesteps)
        a, b = a.movedim(axis, 0)[cut], b.movedim(axis, 0)[cut]
    if a.is_floating_point():
        return torch.allclose(a, b, atol=1e-5, equal_nan=True)
    return torch.equal(a, b)
