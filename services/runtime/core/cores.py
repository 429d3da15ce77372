"""How many processors this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Final

_QUOTA: Final = Path("/sys/fs/cgroup/cpu.max")
"""Of control groups v2: microseconds of processor time in each period, and the period. A container sees its own."""


def usable_cores(quota: Path = _QUOTA) -> int:
    """Processors that this process may run on, within what its control group allows; at least 1."""
    allowed = len(os.sched_getaffinity(0))
    try:
        share, period = quota.read_text().split()
        allowed = min(allowed, math.ceil(int(share) / int(period)))
    except (OSError, ValueError):  # no such control groups, or "max": no quota
        pass
    return max(1, allowed)
