"""Serves this task alone: `python -m services.sentiment`, settings from the environment."""

import sys

from services.runtime.app import run
from services.runtime.config import Settings
from services.sentiment.servicer import TASK

if __name__ == "__main__":
    sys.exit(run(Settings(), (TASK,)))
