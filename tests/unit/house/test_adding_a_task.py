"""The checklist of CONTRIBUTING.md, followed for every task."""

from __future__ import annotations

import re

import pytest

from services.cli.tasks import discover
from services.cli.tasks import task_names as discovered
from tests.unit.house.tree import ROOT, task_names

CHECKLIST = (ROOT / "CONTRIBUTING.md").read_text().partition("## Adding a task\n")[2].partition("\n## ")[0]
ITEMS = [
    " ".join(item.split()) for item in re.findall(r"^\d+\. .*?(?=^\d+\. |\Z)", CHECKLIST, re.DOTALL | re.MULTILINE)
]
CODE = re.compile(r"`([^`]+)`")


def claims(item: str) -> tuple[list[str], list[tuple[str, str]]]:
    """What an item asks for: paths that must exist, and (file, text) where the file must contain the text.

    In an item a path is code with a slash; what stands between "names" and the next path is what the file that came
    before must contain.
    """
    paths: list[str] = []
    contents: list[tuple[str, str]] = []
    naming, file = False, ""
    at = 0
    for match in CODE.finditer(item):
        code, between = match[1], item[at : match.start()]
        at = match.end()
        if " names" in between:
            naming = True
        elif between.strip() != "and":
            naming = False
        if naming:
            contents.append((file, code))
        elif "." in code and " " not in code and ("/" in code or (ROOT / code).exists()):
            file = code
            paths.append(code)
    return paths, contents


def test_the_checklist_is_understood() -> None:
    """Every item of the list asks for something that can be checked, and the list asks for a good deal."""
    assert len(ITEMS) >= 8
    for item in ITEMS:
        assert any(claims(item)), item
    found = [claims(item) for item in ITEMS]
    assert sum(len(paths) for paths, _ in found) >= 20
    assert {file for _, contents in found for file, _ in contents} >= {
        "pyproject.toml",
        "docker-compose.yml",
        "deploy/envoy/envoy.yaml",
        "deploy/prometheus/prometheus.yml",
    }


def test_every_task_is_found_by_the_server() -> None:
    """What the list calls a task is what `statestream serve` serves."""
    assert tuple(task_names()) == discovered()


OF_A_NETWORK = (2, 3, 4)
"""Items that a task without a network of its own skips."""


@pytest.mark.parametrize("task", task_names())
@pytest.mark.parametrize("number", range(1, len(ITEMS) + 1))
def test_every_task_follows_the_checklist(task: str, number: int) -> None:
    """Each file that the item names is there for the task, and each registration is made."""
    (found,) = discover([task])
    if found.serves_all and number in OF_A_NETWORK:
        return
    paths, contents = claims(ITEMS[number - 1].replace("<task>", task))
    assert not [path for path in paths if not any(True for _ in ROOT.glob(path))]
    assert not [f"{file}: {text}" for file, text in contents if text not in (ROOT / file).read_text()]
