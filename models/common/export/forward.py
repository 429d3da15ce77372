"""How ``forward`` is called, and which part of what it returns is the new state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.common.export.errors import ExportError
from models.common.export.example import Example, parameters
from models.common.export.pairing import partner
from models.common.export.tree import Tree, children, has_fields, leaves, rebuild

if TYPE_CHECKING:
    import inspect
    from collections.abc import Iterator, Mapping, Sequence

_STATE_NAMES = ("state", "states", "hidden", "hx", "hc", "h", "h0", "h_0", "carry", "memory", "mem", "cache")


@dataclass(frozen=True, slots=True)
class Slot:
    """One argument of ``forward`` that is state: ``tree`` holds its value for the rows of the example."""

    key: int | str
    name: str
    tree: Tree


class Forward:
    """The network as a function of its inputs, by name and as it takes them, and of its state tensors, in order."""

    def __init__(self, net: nn.Module, example: Example, slots: Sequence[Slot]) -> None:
        self.net = net
        self.example = example
        self.slots = tuple(slots)
        self.states = [leaf for slot in slots for leaf in self._named(slot)]

    def _named(self, slot: Slot) -> list[tuple[str, Tensor]]:
        """The tensors of a slot by name; a pair in a network with an LSTM is its h and c."""
        found = leaves(slot.tree, slot.name)
        pair = isinstance(slot.tree, tuple | list) and not has_fields(slot.tree) and len(found) == len("hc")
        if pair and any(isinstance(layer, nn.LSTM | nn.LSTMCell) for layer in self.net.modules()):
            return [(f"{slot.name}.{part}", tensor) for part, (_, tensor) in zip("hc", found, strict=True)]
        return found

    def __call__(
        self, native: Mapping[str, Tensor], states: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Outputs by their place in the result ("" where it is one tensor, "0", "logits"), and the new states in order.

        Raises:
            ExportError: the result does not hold the new states, or something that is no tensor.
        """
        return self.split(self.result(native, states))

    def result(self, native: Mapping[str, Tensor], states: Sequence[Tensor]) -> Tree:
        """What ``forward`` returns."""
        placed, named = self.example.arguments(native)
        tensors = iter(states)
        for slot in self.slots:
            value = rebuild(slot.tree, tensors)
            if isinstance(slot.key, str):
                named[slot.key] = value
            else:
                placed.append(value)
        return self.net(*placed, **named)

    def split(self, result: Tree) -> tuple[dict[str, Tensor], list[Tensor]]:
        """As :meth:`__call__`, of a result."""
        flat = leaves(result)
        if not flat:
            raise ExportError("the network: returns nothing")
        if not self.slots:
            return dict(flat), []
        if _has_names(result) and (found := self._by_name(result)) is not None:
            outputs, new = found
        else:
            outputs, new = self._by_place(flat)
        return dict(outputs or flat[:1]), [tensor for _, tensor in new]

    def _by_name(self, result: Tree) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]] | None:
        parts = dict(children(result))
        new: list[tuple[str, Tensor]] = []
        for slot in self.slots:
            match = partner(slot.name, parts)
            if match is None:
                return None
            new += leaves(parts.pop(match), match)
        if len(new) != len(self.states):
            return None
        return leaves(parts), new

    def _by_place(self, flat: list[tuple[str, Tensor]]) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]]:
        """The states come last, or else first; they are known by their numbers of axes and their sizes."""
        count = len(self.states)
        wanted = [tensor.shape for _, tensor in self.states]
        for outputs, new in ((flat[:-count], flat[-count:]), (flat[count:], flat[:count])):
            if [len(tensor.shape) for _, tensor in new] == [len(shape) for shape in wanted]:
                return outputs, new
        states = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in self.states)
        found = ", ".join(str(tuple(tensor.shape)) for _, tensor in flat)
        raise ExportError(
            f"state: forward has to return its outputs and then the new states, shaped as they went in: {states}; it "
            f"returned tensors of {found}"
        )


def _has_names(tree: Tree) -> bool:
    return isinstance(tree, dict) or has_fields(tree)


def declare(net: nn.Module, example: Example, state: Tree) -> list[Slot]:
    """The arguments that ``state`` stands for; see docs/export.md for the forms it may have.

    Raises:
        ExportError: ``forward`` does not take them, or needs one that was not given.
    """
    left = _left(net, example)
    required = [name for name, parameter in left.items() if parameter.default is parameter.empty]
    if state is None:
        if required:
            raise ExportError(
                f"state: forward needs {', '.join(required)}; give what a sequence starts with as state=..."
            )
        likely = [name for name in left if name in _STATE_NAMES]
        if isinstance(net, nn.RNNBase | nn.RNNCellBase) or not likely:
            return []
        return _by_names(net, example, likely, asked=False)
    names = [state] if isinstance(state, str) else state
    if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):  # pyright: ignore[reportUnknownVariableType]
        if left and (unknown := [name for name in names if name not in left]):  # pyright: ignore[reportUnknownVariableType]
            raise ExportError(f"state: forward takes no {unknown[0]!r} beside the example, only {', '.join(left)}")
        return _by_names(net, example, list(names), asked=True)  # pyright: ignore[reportUnknownArgumentType]
    slots = list(_slots(left, required, state, len(example.inputs)))
    missing = [name for name in required if name not in {slot.name for slot in slots}]
    if missing and all(isinstance(slot.key, str) for slot in slots):
        raise ExportError(f"state: forward needs {missing[0]} too")
    return [_filled(net, example, slot) for slot in slots]


def _left(net: nn.Module, example: Example) -> dict[str, inspect.Parameter]:
    """Parameters of ``forward`` that the example does not fill."""
    known = parameters(net)
    filled = {spec.key for spec in example.inputs}
    return {name: parameter for index, (name, parameter) in enumerate(known.items()) if not filled & {index, name}}


def _slots(left: Mapping[str, inspect.Parameter], required: list[str], state: Tree, place: int) -> Iterator[Slot]:
    if not left:  # forward(*args): by position, one argument
        yield Slot(place, "state", state)
        return
    whole = isinstance(state, Tensor | int | float) or has_fields(state)
    parts = [] if whole else children(state, "state")
    if isinstance(state, dict) and parts and all(name in left for name, _ in parts):
        yield from (Slot(name, name, part) for name, part in parts)
        return
    places = required if len(required) == len(parts) else list(left)
    if not isinstance(state, dict) and 1 < len(parts) <= len(places):
        yield from (Slot(name, name, part) for name, (_, part) in zip(places, parts, strict=False))
        return
    only = next(iter([*required, *(name for name in left if name in _STATE_NAMES), *left]))
    yield Slot(only, only, state)


def _filled(net: nn.Module, example: Example, slot: Slot) -> Slot:
    """A slot whose numbers, if it holds any, have become tensors of the shape that the network returns."""
    if isinstance(slot.tree, int | float):
        found = _by_names(net, example, [slot.name], asked=True)[0]
        value = float(slot.tree)
        return Slot(
            slot.key, slot.name, rebuild(found.tree, (torch.full_like(t, value) for _, t in leaves(found.tree)))
        )
    tree = rebuild(slot.tree, (tensor.detach().cpu() for _, tensor in leaves(slot.tree, f"state: {slot.name}")))
    return Slot(slot.key, slot.name, tree)


def _by_names(net: nn.Module, example: Example, names: list[str], *, asked: bool) -> list[Slot]:
    """States of which only the parameter is known: shaped as the network returns them when it is given none.

    ``asked`` tells whether the user named them; if not, what does not look like a state is none.
    """
    result = Forward(net, example, []).result(example.tensors, [])
    parts: list[Tree] = []
    if _has_names(result):
        named = dict(children(result))
        parts = [named[match] for match in (partner(name, named) for name in names) if match is not None]
    elif isinstance(result, tuple | list) and len(result) > len(names):  # pyright: ignore[reportUnknownArgumentType]
        parts = list(result[-len(names) :])  # pyright: ignore[reportUnknownArgumentType]
    if len(parts) != len(names):
        if asked:
            raise ExportError(
                f"state: forward does not return {', '.join(names)} after its outputs when called without; give tensors"
            )
        return []
    slots = [
        Slot(name, name, rebuild(tree, (torch.zeros_like(tensor) for _, tensor in leaves(tree))))
        for name, tree in zip(names, parts, strict=True)
    ]
    if not _starts_from_zeros(net, example, slots, result):
        if asked:
            raise ExportError(
                f"state: {', '.join(names)} left out is not the same as zeros; give what a sequence starts with"
            )
        return []
    return slots


def _starts_from_zeros(net: nn.Module, example: Example, slots: list[Slot], result: Tree) -> bool:
    forward = Forward(net, example, slots)
    try:
        again = forward.result(example.tensors, [tensor for _, tensor in forward.states])
    except Exception:  # noqa: BLE001 - whatever the network raises: then this is no state
        return False
    pairs = list(zip(leaves(result), leaves(again), strict=False))
    return all(a.shape == b.shape and torch.allclose(a, b, atol=1e-5, equal_nan=True) for (_, a), (_, b) in pairs)
