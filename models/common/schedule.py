"""How long and how fast to train: plain numbers, kept in checkpoints and manifests (no torch)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Schedule:
    """One stage of training with Adam: linear warm-up, then linear decay to zero.

    ``patience`` stops after so many epochs without a better validation figure; None never does. With
    ``average_updates`` what is validated and kept is not the last weights but their exponential moving average
    over about so many updates (Polyak & Juditsky 1992), which forgets where the last few batches pulled.
    """

    epochs: int
    learning_rate: float
    warmup_share: float = 0.1
    clip_norm: float = 1.0
    betas: tuple[float, float] = (0.9, 0.99)
    patience: int | None = None
    average_updates: int | None = None

    def __post_init__(self) -> None:
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience: {self.patience} would stop before the first epoch")

    def rate(self, progress: float) -> float:
        """Learning rate after ``progress`` of all updates, 0 <= progress <= 1."""
        if progress < self.warmup_share:
            return self.learning_rate * max(progress / self.warmup_share, 0.01)
        return self.learning_rate * (1.0 - progress) / (1.0 - self.warmup_share)
