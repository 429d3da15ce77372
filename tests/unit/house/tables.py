"""The tables of docs/operations.md that are read off the code: `python -m tests.unit.house.tables` writes them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase
from pydantic import SecretStr

from services.runtime.config import Settings
from services.runtime.observability.fast import FastCounter, FastHistogram
from services.runtime.observability.metrics import Metrics
from services.runtime.observability.worker_metrics import WorkerMetrics

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "operations.md"


def _default(field: FieldInfo) -> str:
    value = field.get_default()
    if value is None:
        return "unset"
    if isinstance(value, SecretStr):
        return f"`{value.get_secret_value()}`"
    if isinstance(value, tuple):
        folders = [each.relative_to(ROOT).as_posix() for each in value if isinstance(each, Path)]
        return f"`{folders[0]}` of the package" if folders else "empty"
    return f"`{value}`"


def settings() -> str:
    """One row for each field of Settings."""
    rows = [
        f"| `STATESTREAM_{name.upper()}` | {_default(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(["| variable | default | meaning |", "| --- | --- | --- |", *rows])


def collectors() -> list[MetricWrapperBase | FastHistogram | FastCounter]:
    """Every metric of a server, and of a supervisor."""
    return [
        value
        for holder in (Metrics(CollectorRegistry()), WorkerMetrics(CollectorRegistry()))
        for value in vars(holder).values()
        if isinstance(value, MetricWrapperBase | FastHistogram | FastCounter)
    ]


def label_names(collector: MetricWrapperBase | FastHistogram | FastCounter) -> tuple[str, ...]:
    """Names of the labels of a metric."""
    return vars(collector)["_labelnames"]


def metrics() -> str:
    """One row for each metric."""
    rows: list[str] = []
    for collector in collectors():
        [metric] = collector.describe()
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        labels = ", ".join(f"`{label}`" for label in label_names(collector))
        rows.append(f"| `{name}` | {metric.type} | {labels} | {metric.documentation} |")
    return "\n".join(["| metric | type | labels | meaning |", "| --- | --- | --- | --- |", *sorted(rows)])


def filled(page: str) -> str:
    """The page with its tables as the code has them now."""
    for name, table in {"settings": settings(), "metrics": metrics()}.items():
        part = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end of {name} -->)"
        page, found = re.subn(part, lambda match, t=table: f"{match[1]}\n{t}\n\n{match[2]}", page, flags=re.DOTALL)
        assert found == 1, f"docs/operations.md has no place for {name}"
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
