"""How many processors a process may use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from services.runtime.core.cores import usable_cores

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("quota", "cores"), [("150000 100000", 2), ("10000 100000", 1), ("max 100000", 64)])
def test_the_quota_of_a_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    """A container that may use one and a half processors of 64 has two, not 64."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores(tmp_path / "cpu.max") == cores


def test_without_control_groups_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no quota to read, the processors that the process is bound to count."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3, 5})
    assert usable_cores(tmp_path / "cpu.max") == 3
