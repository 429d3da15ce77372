"""The files of the checkout, for tests of house rules."""

from __future__ import annotations

import ast
import subprocess
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
CODE = ("services", "models", "tests", "docs")


def is_generated(path: Path) -> bool:
    """True for stubs that protoc wrote."""
    return "_pb2" in path.name


@cache
def files() -> tuple[Path, ...]:
    """All files of the project, relative to its root: what git holds, and what it would take."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return tuple(sorted(Path(name) for name in set(told.split("\0")) if name and (ROOT / name).is_file()))


def python_files(*folders: str) -> list[Path]:
    """The written (not generated) Python files under these folders of the root."""
    wanted = [path for path in files() if path.suffix == ".py" and not is_generated(path)]
    return [path for path in wanted if path.parts[0] in (folders or CODE)]


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse((ROOT / path).read_text(), str(path))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a file."""
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def dotted(node: ast.expr) -> str:
    """The name that an expression spells, such as "time.sleep"; empty where it is not one."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


def task_names() -> list[str]:
    """Every sub-package of `services` that has a servicer."""
    return sorted(path.parent.name for path in (ROOT / "services").glob("*/servicer.py"))
