"""`statestream doctor`. Itself it needs only what a client needs, so that it can say what else is missing."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

import click

from services.cli.packages import Finding, Level, installed, python_version

if TYPE_CHECKING:
    from collections.abc import Iterable

_MARKS = {Level.GOOD: "good", Level.WARNING: "note", Level.BAD: "BAD"}


@click.command(name="doctor", short_help="Say what is missing here, and how to mend it.")
def command() -> None:
    """Say what is missing here, and how to mend it.

    Looks at Python, the packages, the settings of the environment, the exported models, the state store and the ports.
    Exit status 1 if something would keep a server from working.
    """
    findings = [python_version(sys.version_info), *installed()]
    _tell(findings)
    if any(finding.level is Level.BAD for finding in findings):
        click.echo("The rest can only be looked at when that is mended.")
        sys.exit(1)
    rest: list[Finding] = []
    # Needs the packages that were looked for above.
    for found in import_module("services.cli.checks").all_checks():
        _tell([found])
        rest.append(found)
    bad = sum(finding.level is Level.BAD for finding in rest)
    click.echo("All is well." if not bad else f"{bad} to mend.")
    sys.exit(bad > 0)


def _tell(findings: Iterable[Finding]) -> None:
    for finding in findings:
        click.echo(f"{_MARKS[finding.level]:<5} {finding.what}")
        if finding.remedy:
            click.echo(f"      mend it: {finding.remedy}")
