"""Serves this task alone: `python -m services.inference`, settings from the environment."""

import sys

from services.runtime.start import start

if __name__ == "__main__":
    sys.exit(start(("services.inference.servicer",)))
