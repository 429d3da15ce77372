from __future__ import annotations

from importlib import metadata

import pytest

from services.cli.packages import Finding, Level, Requirement, installed, parse, python_version


def installed_with(**known: str) -> list[Finding]:
    """What is found where these packages are installed, names with _ for -."""

    def version_of(name: str) -> str:
        try:
            return known[name.replace("-", "_")]
        except KeyError:
            raise metadata.PackageNotFoundError(name) from None

    requires = ["grpcio<2,>=1.85", "uvloop<1,>=0.21; extra == 'serve'", "torch==2.13.0; extra == 'train'"]
    return installed(requires, version_of)


def test_requirements_are_read() -> None:
    """Name, bounds and extra of a requirement, as build tools write it."""
    assert parse("grpcio<2,>=1.85") == Requirement("grpcio", (("<", "2"), (">=", "1.85")), "")
    assert parse("torch==2.13.0; extra == 'train'") == Requirement("torch", (("==", "2.13.0"),), "train")
    assert parse('a-b.c>=1 ; platform_system == "Linux" and extra == "dev"').extra == "dev"


def test_all_there_is_one_good_finding() -> None:
    """Where nothing is missing one line says so; what only training needs is not asked for."""
    assert [level for level, *_ in installed_with(grpcio="1.85.1", uvloop="0.23.0")] == [Level.GOOD]


def test_a_missing_package_is_named_with_the_way_to_get_it() -> None:
    """All missing packages are one finding, beside those of the wrong version; the remedy names the extra."""
    [finding] = installed_with()
    assert finding == (Level.BAD, "not installed: grpcio, uvloop", "in the checkout: pip install '.[serve]'")
    [old, missing] = installed_with(grpcio="1.0")
    assert (old.what, missing.what) == ("the package grpcio is 1.0, needed is <2,>=1.85", "not installed: uvloop")


@pytest.mark.parametrize(("version", "good"), [("1.84.9", False), ("1.85", True), ("1.85.0rc1", True), ("2.0", False)])
def test_a_version_is_compared_by_its_numbers(version: str, good: bool) -> None:  # noqa: FBT001 - a column of the table
    """Bounds are compared number by number; what follows the release does not count."""
    found = installed_with(grpcio=version, uvloop="0.21+local")
    assert (found[0][0] is Level.GOOD) is good


def test_an_old_python_is_told() -> None:
    """Below the least version the remedy says which one to install."""
    assert python_version((3, 10, 4)).level is Level.BAD
    assert "3.11" in python_version((3, 10, 4)).remedy
    assert python_version((3, 14, 0)).level is Level.GOOD


def test_what_is_installed_here_will_do() -> None:
    """The real requirements are read and hold where these tests run."""
    assert [finding.level for finding in installed()] == [Level.GOOD]
