"""The training loop of every task: resumable, seeded, the same on CPU and GPU.

A run is a pure function of the network, its batches and the seed: which batches an epoch has depends only
on the epoch, and a checkpoint holds the random states beside weights and optimiser. So a run that was
interrupted and resumed ends with the weights of one that was not (tests/unit/models/test_training.py).
"""

from __future__ import annotations

import json
import math
import platform
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from models.common.schedule import Schedule

B = TypeVar("B", bound="Batch")
Weights = dict[str, Tensor]

LIBRARIES = ("torch", "numpy", "onnx", "onnxruntime")


class Batch(Protocol):
    """What a loss takes."""

    def to(self, device: torch.device) -> Self:
        """The same batch with its tensors on ``device``."""
        ...


@dataclass(frozen=True, slots=True)
class Stage(Generic[B]):
    """What to train: ``batches(epoch)`` must give the same list for the same epoch, and as many for each.

    ``validate`` returns figures by name; the one named by ``monitor`` decides which epoch is kept (lower is
    better). ``settings`` are all hyper-parameters: they are kept in the checkpoint, suffice to build the network
    again, and a checkpoint with others is refused.
    """

    name: str
    net: nn.Module
    batches: Callable[[int], Sequence[B]]
    loss: Callable[[B], Tensor]
    validate: Callable[[], dict[str, float]]
    monitor: str
    settings: dict[str, Any]


@dataclass(slots=True)
class Run:
    """Where a training stands: kept in the checkpoint, returned at the end."""

    epoch: int = 0
    update: int = 0
    loss_sum: float = 0.0
    first_loss: float = float("nan")
    best: float = float("inf")
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list[dict[str, float]])


def fit(
    stage: Stage[B],
    schedule: Schedule,
    *,
    seed: int,
    device: torch.device,
    checkpoint: Path | None = None,
    checkpoint_updates: int = 200,
) -> Run:
    """Train ``stage.net`` in place and leave it with the weights of its best epoch.

    With a ``checkpoint`` path the run goes on from there if the file exists, and saves itself every
    ``checkpoint_updates`` updates and after each epoch.

    Raises:
        ValueError: the checkpoint belongs to another stage, schedule or seed, or has other settings.
        FloatingPointError: the loss became infinite or not a number.
    """
    stage.net.to(device)
    torch.manual_seed(seed)
    optimiser = torch.optim.Adam(stage.net.parameters(), lr=schedule.learning_rate, betas=schedule.betas)
    identity = {"stage": stage.name, "seed": seed, "schedule": asdict(schedule), "settings": stage.settings}
    saved = _Checkpoint(checkpoint, json.dumps(identity, sort_keys=True), stage.net, optimiser)
    run, kept = saved.load(device)
    if schedule.average_updates is not None and kept.average is None:
        kept.average = _copy(stage.net)
    while run.epoch < schedule.epochs and not _out_of_patience(run, schedule):
        _train_epoch(stage, schedule, run, kept, optimiser, device, saved, checkpoint_updates)
        trained = _copy(stage.net)
        stage.net.load_state_dict(kept.average or trained)
        stage.net.eval()
        with torch.no_grad():
            figures = stage.validate()
        run.history.append({"loss": run.loss_sum / run.update, **figures})
        if figures[stage.monitor] < run.best:
            run.best, run.best_epoch = figures[stage.monitor], run.epoch
            kept.best = _copy(stage.net)
        stage.net.load_state_dict(trained)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in run.history[-1].items())
        tqdm.write(f"{stage.name} epoch {run.epoch + 1}/{schedule.epochs}  {shown}")
        run.epoch, run.update, run.loss_sum = run.epoch + 1, 0, 0.0
        saved.save(run, kept)
    if kept.best is not None:
        stage.net.load_state_dict(kept.best)
    stage.net.eval()
    return run


def _train_epoch(
    stage: Stage[B],
    schedule: Schedule,
    run: Run,
    kept: _Kept,
    optimiser: torch.optim.Optimizer,
    device: torch.device,
    saved: _Checkpoint,
    save_every: int,
) -> None:
    batches = stage.batches(run.epoch)
    stage.net.train()
    bar = tqdm(total=len(batches), initial=run.update, desc=f"{stage.name} {run.epoch + 1}", disable=None)
    with bar:
        while run.update < len(batches):
            progress = (run.epoch + run.update / len(batches)) / schedule.epochs
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(progress)
            loss = stage.loss(batches[run.update].to(device))
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(stage.net.parameters(), schedule.clip_norm)
            optimiser.step()
            if kept.average is not None and schedule.average_updates is not None:
                for name, weight in stage.net.state_dict().items():
                    kept.average[name].lerp_(weight, 1 / schedule.average_updates)
            value = loss.item()
            if not math.isfinite(value):
                raise FloatingPointError(f"{stage.name}: loss {value} in epoch {run.epoch}, update {run.update}")
            if run.epoch == 0 and run.update == 0:
                run.first_loss = value
            run.update += 1
            run.loss_sum += value
            bar.update()
            bar.set_postfix(loss=f"{run.loss_sum / run.update:.4f}", refresh=False)
            if run.update % save_every == 0:
                saved.save(run, kept)


def _out_of_patience(run: Run, schedule: Schedule) -> bool:
    return schedule.patience is not None and run.epoch - run.best_epoch > schedule.patience


def _copy(net: nn.Module) -> Weights:
    return {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}


@dataclass(slots=True)
class _Kept:
    """Weights beside those in training."""

    best: Weights | None = None
    average: Weights | None = None


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """One file with all that a run depends on; replaced as a whole, so a crash leaves the one before."""

    path: Path | None
    identity: str
    net: nn.Module
    optimiser: torch.optim.Optimizer

    def save(self, run: Run, kept: _Kept) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "identity": self.identity,
            "run": asdict(run),
            "net": self.net.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "best_weights": kept.best,
            "average_weights": kept.average,
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state_all(),
        }
        unfinished = self.path.with_suffix(".unfinished")
        torch.save(content, unfinished)
        unfinished.replace(self.path)

    def load(self, device: torch.device) -> tuple[Run, _Kept]:
        if self.path is None or not self.path.exists():
            return Run(), _Kept()
        # weights_only: a checkpoint is data, and loading it must not be able to run code.
        content: dict[str, Any] = torch.load(self.path, map_location=device, weights_only=True)
        if content["identity"] != self.identity:
            raise ValueError(f"{self.path}: is of another training ({content['identity']}, not {self.identity})")
        self.net.load_state_dict(content["net"])
        self.optimiser.load_state_dict(content["optimiser"])
        torch.set_rng_state(content["random"].cpu())
        if content["random_cuda"]:
            torch.cuda.set_rng_state_all([state.cpu() for state in content["random_cuda"]])
        return Run(**content["run"]), _Kept(content["best_weights"], content["average_weights"])


def pick_device(name: str) -> torch.device:
    """``"auto"`` is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that the result depends on."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
