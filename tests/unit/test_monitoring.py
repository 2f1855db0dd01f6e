"""The alerts and the dashboard of deploy/monitoring; tests/e2e/test_monitoring.py runs them."""

import itertools
import re
from typing import Any

import pytest
import yaml

from tests.harness.monitoring import FOLDER, alerts, dashboard, metric_names, panels
from tests.harness.pages import Page
from tests.harness.processes import ROOT

CASES = yaml.safe_load((FOLDER / "rules.test.yml").read_text())["tests"]
PAGE = Page(ROOT / "docs" / "monitoring.md")
each_alert = pytest.mark.parametrize("alert", alerts(), ids=[alert["alert"] for alert in alerts()])


@each_alert
def test_each_alert_has_a_severity_a_summary_and_a_paragraph(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"]["summary"].endswith(".")
    name, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert anchor == alert["alert"].lower()
    assert anchor in Page(ROOT / name).anchors()


@each_alert
def test_each_alert_fires_in_one_case_and_not_in_another(alert: dict[str, Any]) -> None:
    expected = [
        bool(test.get("exp_alerts"))
        for case in CASES
        for test in case["alert_rule_test"]
        if test["alertname"] == alert["alert"]
    ]
    assert set(expected) == {True, False}


def test_the_page_has_every_alert_with_its_severity() -> None:
    documented = [(re.findall(r"\w+", cell)[0], severity) for cell, severity, _ in PAGE.rows("alert")]
    assert documented == [(alert["alert"], alert["labels"]["severity"]) for alert in alerts()]


def test_the_page_has_every_panel_in_order() -> None:
    documented = [title.strip() for cell, _ in PAGE.rows("panel") for title in cell.split(",")]
    assert documented == [panel.title for panel in panels()]


def test_the_panels_fill_a_screen_and_do_not_overlap() -> None:
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    cells = [
        cell
        for place in places
        for cell in itertools.product(
            range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        )
    ]
    assert len(cells) == len(set(cells)) == 24 * 25  # Grafana has 24 columns, and a screen about 25 rows
    assert max(cells) == (23, 24)


def test_each_panel_has_an_id_a_description_and_the_selected_data_source() -> None:
    found = dashboard()
    assert [variable["name"] for variable in found["templating"]["list"]] == ["datasource"]
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])
    for panel in found["panels"]:
        assert panel["description"].endswith(".")
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize(
    ("expression", "names"),
    [
        ('max(a_b{state="loaded"}) == 0', {"a_b"}),
        ('histogram_quantile(0.99, sum by (le) (rate(a_bucket{kind="c"}[5m]))) > 10', {"a_bucket"}),
        ("max(sum without (state) (a)) > (count(b) or vector(0))", {"a", "b"}),
        ('absent(a) and on () count(up{job="c"}) / on (instance) d', {"a", "up", "d"}),
    ],
)
def test_the_metrics_of_an_expression_are_found(expression: str, names: set[str]) -> None:
    assert metric_names(expression) == names
