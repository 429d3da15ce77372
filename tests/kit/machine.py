"""Where figures come from."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path


def machine() -> str:
    """Processor, number of cores, and the versions that matter to a figure."""
    info = Path("/proc/cpuinfo").read_text()
    names = (line.partition(":")[2].strip() for line in info.splitlines() if "model name" in line)
    libraries = ", ".join(f"{name} {version(name)}" for name in ("onnxruntime", "grpcio"))
    cpu = next(names, platform.machine())
    return f"{os.cpu_count()} cores of {cpu}, Python {platform.python_version()}, {libraries}"
