"""Needs torch; everything here trains something very small."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch import device as Device  # noqa: E402, N812

from models.common.schedule import Schedule  # noqa: E402
from models.common.training import Run, Stage, fit, library_versions, pick_device  # noqa: E402

pytestmark = pytest.mark.train

CPU = torch.device("cpu")
SCHEDULE = Schedule(epochs=3, learning_rate=0.05)
AVERAGED = Schedule(epochs=3, learning_rate=0.05, average_updates=5)


@dataclass(frozen=True, slots=True)
class Points:
    """x (N, 2), y (N, 1)."""

    x: Tensor
    y: Tensor

    def to(self, device: Device) -> "Points":
        """The same points there."""
        return Points(self.x.to(device), self.y.to(device))


def batches(epoch: int) -> Sequence[Points]:
    generator = torch.Generator().manual_seed(epoch)
    xs = [torch.randn(8, 2, generator=generator) for _ in range(7)]
    return [Points(x, x.sum(1, keepdim=True)) for x in xs]


class Crash(Exception):
    pass


def stage(
    *, crash_after: int | None = None, figures: Sequence[float] = (3.0, 2.0, 1.0), width: int = 4
) -> Stage[Points]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(2, width), nn.Dropout(0.5), nn.Linear(width, 1))
    done = 0
    shown = iter(figures)

    def loss(batch: Points) -> Tensor:
        nonlocal done
        if done == crash_after:
            raise Crash
        done += 1
        return ((net(batch.x) - batch.y) ** 2).mean()

    def validate() -> dict[str, float]:
        assert not net.training
        return {"error": float(next(shown))}

    return Stage("toy", net, batches, loss, validate, monitor="error", settings={"width": width})


def weights(of: Stage[Points]) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in of.net.state_dict().values()]


def run(what: Stage[Points], checkpoint: Path | None = None, schedule: Schedule = SCHEDULE) -> Run:
    return fit(what, schedule, seed=5, device=CPU, checkpoint=checkpoint, checkpoint_updates=2)


@pytest.mark.parametrize("schedule", [SCHEDULE, AVERAGED], ids=["plain", "averaged"])
@pytest.mark.parametrize("crash_after", [1, 4, 7, 12, 20])
def test_resumed_is_uninterrupted(tmp_path: Path, crash_after: int, schedule: Schedule) -> None:
    """Killed anywhere and started again, dropout included, the weights are the same to the last bit."""
    whole = stage()
    course = run(whole, schedule=schedule)
    path = tmp_path / "toy.pt"
    broken = stage(crash_after=crash_after)
    with pytest.raises(Crash):
        run(broken, path, schedule)
    # Epochs that were over were validated before; the resumed run is asked for the rest.
    resumed = stage(figures=(3.0, 2.0, 1.0)[crash_after // 7 :])
    assert run(resumed, path, schedule).history == course.history
    assert weights(resumed) == weights(whole)


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    """The same command again takes the result from the checkpoint."""
    first = stage()
    course = run(first, tmp_path / "toy.pt")
    again = stage(crash_after=0)
    assert run(again, tmp_path / "toy.pt") == course
    assert weights(again) == weights(first)


def test_another_trainings_checkpoint_is_refused(tmp_path: Path) -> None:
    """Going on with another schedule would be neither the one training nor the other."""
    run(stage(), tmp_path / "toy.pt")
    with pytest.raises(ValueError, match="another training"):
        run(stage(), tmp_path / "toy.pt", Schedule(epochs=3, learning_rate=0.06))
    with pytest.raises(ValueError, match="another training"):
        run(stage(width=5), tmp_path / "toy.pt")


def test_the_best_epoch_is_kept_and_patience_ends() -> None:
    """After the figure got worse once too often training stops, with the weights from before."""
    one = stage(figures=[1.0])
    run(one, schedule=Schedule(epochs=1, learning_rate=0.05, warmup_share=0.1))
    patient = stage(figures=[2.0, 1.0, 1.5, 1.2, 0.1])
    course = run(patient, schedule=Schedule(epochs=5, learning_rate=0.05, patience=2))
    assert [figures["error"] for figures in course.history] == [2.0, 1.0, 1.5, 1.2]
    assert course.best_epoch == 1


def test_averaged_weights_are_kept_not_trained_on() -> None:
    """The average follows the training without taking part in it: same losses, other weights at the end."""
    plain, averaged = stage(), stage()
    courses = run(plain), run(averaged, schedule=AVERAGED)
    assert courses[0].history == courses[1].history
    assert weights(plain) != weights(averaged)


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    """Better a named error than a network of NaN after an hour."""
    bad = stage()
    broken = Stage("toy", bad.net, batches, lambda batch: bad.loss(batch) * math.nan, bad.validate, "error", {})
    with pytest.raises(FloatingPointError, match="toy: loss nan in epoch 0, update 0"):
        run(broken)


def test_the_loss_goes_down() -> None:
    """The loop does train: a linear target is learnt."""
    easy = stage(figures=[0.0] * 20)
    course = run(easy, schedule=Schedule(epochs=20, learning_rate=0.05))
    assert course.history[-1]["loss"] < 0.5 * course.first_loss


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.01), (0.05, 0.5), (0.1, 1.0), (0.55, 0.5), (1.0, 0.0)])
def test_learning_rate(progress: float, share: float) -> None:
    """Linear warm-up over the first tenth, linear decay to zero over the rest."""
    assert Schedule(epochs=1, learning_rate=4.0).rate(progress) == pytest.approx(4.0 * share)


def test_versions_are_recorded() -> None:
    """What the result depends on is named."""
    assert {"python", "torch", "numpy", "onnx", "onnxruntime"} <= library_versions().keys()
    assert pick_device("cpu") == CPU


def test_no_patience_at_all_is_refused() -> None:
    """It would train nothing and say nothing."""
    with pytest.raises(ValueError, match="patience"):
        Schedule(epochs=1, learning_rate=0.1, patience=0)
