"""A network whose answers anybody can check by hand: the state is a running sum, so any mix-up of rows shows."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from models.common.manifest import InputSpec, Manifest, OutputSpec, SequenceDefaults, StateSpec, Training
from services.runtime.core.ids import ModelId
from services.runtime.engine.batcher import Batcher
from services.runtime.engine.scheduler import BatchLimits
from services.runtime.engine.served import ServedModel
from tests.kit.executors import InlineExecutor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from concurrent.futures import Executor

    from services.runtime.core.clock import Clock
    from services.runtime.engine.collate import Array

DIGEST = "0" * 64
TOY_ID = ModelId("toy", "1", DIGEST)


@lru_cache
def toy_manifest(version: str = "1", idle_timeout_s: float = 3600.0) -> Manifest:
    """One feature x (T, N), one state (1, N, 2), the sum so far per timestep and at the end of the chunk."""
    return Manifest(
        name="toy",
        version=version,
        task="toy",
        inputs=(
            InputSpec(name="x", dtype="float32", dims=("time", "batch"), role="features"),
            InputSpec(name="lengths", dtype="int32", dims=("batch",), role="lengths"),
        ),
        outputs=(
            OutputSpec(name="sums", dtype="float32", dims=("time", "batch")),
            OutputSpec(name="sum", dtype="float32", dims=("batch", 1)),
        ),
        states=(StateSpec(name="s", input="s", output="s_out", dtype="float32", dims=(1, "batch", 2)),),
        chunk_timesteps_max=8,
        sequence=SequenceDefaults(idle_timeout_s=idle_timeout_s),
        files={"model.onnx": DIGEST},
        weights_digest=DIGEST,
        state_bytes=8,
        training=Training(command="none", seed=0, epochs=0, libraries={}),
        created=datetime(2026, 1, 1, tzinfo=UTC),
    )


class ToyModel:
    """Adds up, each number as often as its version says. Refuses 666 (the whole run fails) and makes NaN of 999."""

    def __init__(self, version: str = "1", idle_timeout_s: float = 3600.0) -> None:
        self.manifest = toy_manifest(version, idle_timeout_s)
        self._weight = np.float32(version)
        self.batch_sizes: list[int] = []

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array], *, lone: bool = False) -> list[Array]:
        """See `Model`."""
        x: Any = feeds["x"].astype(np.float32)
        lengths: Any = feeds["lengths"]
        self.batch_sizes.append(len(lengths))
        if (x == 666).any():
            raise RuntimeError("a run that fails")
        x[x == 999] = np.nan
        x *= self._weight
        for n, length in enumerate(lengths):
            x[length:, n] = 0
        before: Any = feeds["s"][0, :, 0]
        # In the order of the timesteps, so that chunked = whole in bits.
        sums = np.cumsum(np.concatenate([before[None], x]), axis=0, dtype=np.float32)[1:]
        after = feeds["s"].copy()
        after[0, :, 0] = sums[-1]
        after[0, :, 1] += lengths
        results = {"sums": sums, "sum": sums[-1][:, None], "s_out": after}
        return [results[name] for name in outputs]


class _Events:
    """Takes every event of every room and keeps their names."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        """Any event."""

        def event(*args: object, **kwargs: object) -> None:
            self.seen.append(name)

        return event


def NoEvents() -> Any:  # noqa: N802 - stands for a class
    """Fits every protocol of events."""
    return _Events()


def toy_served(
    clock: Clock, *, executor: Executor | None = None, limits: BatchLimits | None = None, model: ToyModel | None = None
) -> ServedModel:
    """The toy behind a batcher that runs it in the event loop's own thread."""
    model = model or ToyModel()
    batcher = Batcher(model, limits or BatchLimits(), clock, NoEvents(), executor or InlineExecutor())
    initial = tuple(state.initial_array() for state in model.manifest.states)
    model_id = TOY_ID._replace(version=model.manifest.version)
    return ServedModel(model_id, model.manifest, batcher, initial, None)
