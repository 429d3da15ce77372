"""The settings of the environment, or a message that says which variable is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from pydantic import ValidationError

from services.runtime.config import Settings

if TYPE_CHECKING:
    from collections.abc import Mapping


def wrong_settings(error: ValidationError) -> list[str]:
    """One line for each setting that cannot be used; never its value, which may be secret."""
    lines: list[str] = []
    for fault in error.errors(include_url=False, include_input=False, include_context=False):
        name = "_".join(str(part) for part in fault["loc"]).upper()
        lines.append(f"STATESTREAM_{name}: {fault['msg']}" if name else fault["msg"])
    return lines


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Settings from the environment, with `given` in front of it.

    Raises:
        click.ClickException: one cannot be used.
    """
    try:
        return Settings(**given)
    except ValidationError as error:
        raise click.ClickException("\n".join(wrong_settings(error))) from error
