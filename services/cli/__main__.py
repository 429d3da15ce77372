"""`python -m services.cli` is the command `statestream`."""

from services.cli.main import main

main()
