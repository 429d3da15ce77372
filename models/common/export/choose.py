"""The first of several graphs of one network that keeps all promises (no torch)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from models.common.export.errors import ExportError
from models.common.export.write import refuse
from models.common.parity import Draw, Features, Step, check_parity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from models.common.manifest import Manifest

_L = TypeVar("_L", bound=str)
_BATCH_SIZES, _TIMESTEPS_MAX = (1, 2, 5, 17), 24


def choose(
    candidates: Iterable[tuple[_L, Callable[[], bytes]]],
    manifest: Manifest,
    draw: Draw,
    reference: Callable[[Features], Step],
    tolerance: float,
) -> tuple[_L, bytes]:
    """The first candidate that gives the same bits in any batch and chunks, else the first within the tolerance.

    Raises:
        ExportError: there is none; with the reason of the last.
    """
    close: tuple[_L, bytes] | None = None
    reason = ExportError("the network: no graph of it could be made")
    for label, make in candidates:
        try:
            model = make()
            report = check_parity(
                model,
                manifest,
                draw,
                reference,
                batch_sizes=_BATCH_SIZES,
                timesteps_max=_TIMESTEPS_MAX,
                tolerance=tolerance,
            )
            if report.passed:
                return label, model
            refuse(report, allow_inexact=True)
        except ExportError as error:
            reason = error
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has no class for all that it raises
            said = (str(error).splitlines() or [""])[0]
            reason = ExportError(f"the exported graph: fails for some numbers of timesteps and rows: {said}")
        else:
            close = close or (label, model)
    if close is None:
        raise reason
    return close
