"""Whether Python and the installed packages are those that the distribution asks for."""

from __future__ import annotations

import re
from enum import Enum
from importlib import metadata
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PYTHON_MIN = (3, 11)
DISTRIBUTION = "statestream"
EXTRA = "serve"
INSTALL = f"in the checkout: pip install '.[{EXTRA}]'"


class Level(Enum):
    """How bad a finding is."""

    GOOD = 0
    WARNING = 1
    """A server works; somebody may want it otherwise."""
    BAD = 2
    """A server does not start, or loses sequences."""


class Finding(NamedTuple):
    """One thing found; `remedy` says how to mend it, empty where nothing is to be done."""

    level: Level
    what: str
    remedy: str = ""


class Requirement(NamedTuple):
    """One line of a distribution's requirements, as far as we write them."""

    name: str
    bounds: tuple[tuple[str, str], ...]
    extra: str


def python_version(version: tuple[int, int, int, str, int] | tuple[int, ...]) -> Finding:
    """Whether this Python is new enough."""
    here = ".".join(str(part) for part in version[:3])
    if tuple(version[:2]) < PYTHON_MIN:
        least = ".".join(map(str, PYTHON_MIN))
        return Finding(Level.BAD, f"Python {here} is too old", f"install Python {least} or later, and again into it")
    return Finding(Level.GOOD, f"Python {here}")


def installed(
    requires: Iterable[str] | None = None, version_of: Callable[[str], str] = metadata.version
) -> list[Finding]:
    """What is missing, or of the wrong version, of what a server needs; one good finding where nothing is.

    Args:
        requires: the distribution's requirements; None reads them.
        version_of: a package's version; raises PackageNotFoundError.
    """
    if requires is None:
        try:
            requires = metadata.requires(DISTRIBUTION) or []
        except metadata.PackageNotFoundError:
            return [Finding(Level.BAD, f"{DISTRIBUTION} is not installed", INSTALL)]
    needed = [found for found in map(parse, requires) if found.extra in ("", EXTRA)]
    missing: list[str] = []
    bad: list[Finding] = []
    for requirement in needed:
        wanted = ",".join(operator + bound for operator, bound in requirement.bounds)
        try:
            version = version_of(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        if not all(_holds(version, operator, bound) for operator, bound in requirement.bounds):
            what = f"the package {requirement.name} is {version}, needed is {wanted}"
            bad.append(Finding(Level.BAD, what, f"pip install '{requirement.name}{wanted}'"))
    if missing:
        bad.append(Finding(Level.BAD, f"not installed: {', '.join(missing)}", INSTALL))
    return bad or [Finding(Level.GOOD, f"{len(needed)} packages, all of the right versions")]


def parse(line: str) -> Requirement:
    """Reads one requirement, such as `grpcio<2,>=1.85; extra == "serve"`."""
    what, _, marker = line.partition(";")
    name = re.match(r"[A-Za-z0-9._-]+", what.strip())
    extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
    bounds = re.findall(r"(>=|<=|==|!=|>|<)\s*([0-9][0-9A-Za-z.]*)", what)
    return Requirement(name.group() if name else "", tuple(bounds), extra.group(1) if extra else "")


def _holds(version: str, operator: str, bound: str) -> bool:
    found, limit = _numbers(version), _numbers(bound)
    width = max(len(found), len(limit))
    found, limit = (numbers + (0,) * (width - len(numbers)) for numbers in (found, limit))
    match operator:
        case ">=":
            return found >= limit
        case "<=":
            return found <= limit
        case "==":
            return found == limit
        case "!=":
            return found != limit
        case ">":
            return found > limit
        case _:
            return found < limit


def _numbers(version: str) -> tuple[int, ...]:
    """The release part of a version; what comes after it (rc1, +cpu) does not matter here."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in release.group().split(".")) if release else ()
