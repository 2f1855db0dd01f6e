"""Reading metrics: the text of an exporter, and the table of docs/metrics.md."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import requests
from prometheus_client.parser import text_string_to_metric_families

from tests.harness.pages import Page
from tests.harness.processes import ROOT

PAGE = ROOT / "docs" / "metrics.md"


@dataclass(frozen=True)
class Family:
    """A metric: its type, its labels, and its HELP text."""

    kind: str
    labels: frozenset[str]
    text: str


class Scrape:
    """The metrics of one process at one moment."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._families = list(text_string_to_metric_families(text))

    def value(self, name: str, /, **labels: str) -> float:
        """Return the value of a sample; 0 if there is none."""
        return sum(
            sample.value
            for family in self._families
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        )

    @property
    def series(self) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        """The name and the labels of each sample."""
        return {
            (sample.name, frozenset(sample.labels.items())) for family in self._families for sample in family.samples
        }

    @property
    def families(self) -> dict[str, Family]:
        """Each metric by its name, as a dashboard writes it; a metric without samples has no labels."""
        return {
            family.name + ("_total" if family.type == "counter" else ""): Family(
                family.type,
                frozenset(label for sample in family.samples for label in sample.labels) - {"le"},
                family.documentation,
            )
            for family in self._families
        }


def scrape(port: int) -> Scrape:
    """Return the metrics that a process of this machine serves."""
    response = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30)
    assert response.status_code == 200, response.text
    return Scrape(response.text)


def documented(process: str) -> dict[str, Family]:
    """Return the metrics of docs/metrics.md that a process exports: `API` or `worker`."""
    return {
        name: Family(kind, frozenset(labels(cell)), text)
        for name, kind, cell, processes, text in Page(PAGE).rows("metric")
        if process in processes
    }


def labels(cell: str) -> Iterable[str]:
    return filter(None, cell.replace("`", "").replace(",", " ").split())


def differences(found: Mapping[str, Family], page: Mapping[str, Family]) -> list[str]:
    """Return the metrics that differ."""
    names = sorted(found.keys() | page.keys())
    return [
        f"{name}: {found.get(name)}, documented {page.get(name)}" for name in names if found.get(name) != page.get(name)
    ]
