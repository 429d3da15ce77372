"""The command `statestream`: one file for each command."""
