"""The papers say what the code does."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from google.rpc import code_pb2

from services.runtime.transport.status import CODES
from tests.unit.house.tables import PAGE, filled
from tests.unit.house.tree import ROOT, files

if TYPE_CHECKING:
    from pathlib import Path

PAPERS = [path for path in files() if path.suffix == ".md"]


def rows(text: str, heading: str) -> dict[str, list[str]]:
    """The table that begins with this heading: first cell, without its ticks, to the other cells."""
    _, found, rest = text.partition(f"| {heading} |")
    assert found, f"no table that begins with {heading}"
    table: dict[str, list[str]] = {}
    for line in rest.splitlines()[2:]:
        if not line.startswith("|"):
            break
        first, *others = [cell.strip() for cell in line.strip("|").split("|")]
        assert first not in table, f"{first} stands twice"
        table[first.strip("`")] = others
    return table


def test_tables_of_settings_and_metrics_are_those_of_the_code() -> None:
    """`make docs` would change nothing."""
    assert PAGE.read_text() == filled(PAGE.read_text()), "run `make docs`"


def test_every_error_is_explained() -> None:
    """docs/errors.md has each reason once, with its code, and no other."""
    told = {reason: cells[0] for reason, cells in rows((ROOT / "docs" / "errors.md").read_text(), "reason").items()}
    assert told == {kind.reason: code_pb2.Code.Name(code) for kind, code in CODES.items()}


def test_every_alert_is_explained() -> None:
    """docs/operations.md has each alert with its severity, and no other."""
    rules = (ROOT / "deploy" / "prometheus" / "rules" / "alerts.yml").read_text()
    alerts = dict(re.findall(r"- alert: (\w+)\n.*?severity: (\w+)", rules, flags=re.DOTALL))
    assert {name: cells[0] for name, cells in rows(PAGE.read_text(), "alert").items()} == alerts


def test_every_alert_is_tested() -> None:
    """The unit tests of the rules make each alert fire."""
    folder = ROOT / "deploy" / "prometheus"
    alerts = re.findall(r"- alert: (\w+)", (folder / "rules" / "alerts.yml").read_text())
    tested = (folder / "tests" / "rules_test.yml").read_text()
    assert not [name for name in alerts if not re.search(rf"alertname: {name}\n.*\n +exp_alerts:\n", tested)]


def test_every_variable_of_compose_is_explained() -> None:
    """docs/operations.md has each variable of docker-compose.yml with its default, and no other."""
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", (ROOT / "docker-compose.yml").read_text()))
    assert {name: cells[0].strip("`") for name, cells in rows(PAGE.read_text(), "variable").items()} == used


@pytest.mark.parametrize("paper", PAPERS, ids=str)
def test_links_lead_somewhere(paper: Path) -> None:
    """No link within the repository is broken."""
    text = (ROOT / paper).read_text()
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    local = [target for target in targets if "://" not in target and not target.startswith("mailto:")]
    assert not [target for target in local if not (ROOT / paper.parent / target).exists()]


def test_the_commands_of_the_readme_exist() -> None:
    """Each `make` target that a paper names is one."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for paper in ("README.md", "CONTRIBUTING.md", "docs/operations.md"):
        named = set(re.findall(r"(?:`|^    )make ([a-z-]+)", (ROOT / paper).read_text(), flags=re.MULTILINE))
        assert named <= targets, paper


@pytest.mark.parametrize("snippet", re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
def test_the_snippets_of_the_readme_name_what_exists(snippet: str) -> None:
    """Each Python snippet compiles, and what it imports is there."""
    compile(snippet, "README.md", "exec")
    imports = "\n".join(line for line in snippet.splitlines() if line.startswith(("import ", "from ")))
    exec(imports, {})  # noqa: S102 - our own paper


def test_tests_that_papers_name_are_there() -> None:
    """A promise that names its test keeps naming one that exists."""
    named = {name for paper in PAPERS for name in re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)`", paper.read_text())}
    missing = [
        name
        for file, _, test in (entry.partition("::") for entry in named)
        for name in [f"{file}::{test}"]
        if not (ROOT / file).is_file() or (test and f"def {test}(" not in (ROOT / file).read_text())
    ]
    assert not missing
