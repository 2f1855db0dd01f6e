"""The pictures of docs/monitoring.md: `python -m tests.harness.screenshots FOLDER`; it takes two minutes.

Debian's Prometheus draws the queries of the dashboard, while the service has load. Its worker is frozen for 10 s.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlencode

from playwright.sync_api import Browser

from tests.harness import marked_model
from tests.harness.browser import running_browser
from tests.harness.customers import CUSTOMER
from tests.harness.monitoring import RATE_INTERVAL, Prometheus, monitored_servers, panels, running_prometheus
from tests.harness.processes import ROOT, free_port
from tests.harness.service import Service, running_service

PICTURES = {
    "monitoring-load.png": (
        "Waiting time",
        "Waiting customers and rows",
        "Accepted and predicted",
        "Busy pool processes",
    ),
    "monitoring-faults.png": (
        "Refusals by problem",
        "Faulty features",
        "Failures",
        "Memory of the result store",
    ),
}
ROUNDS, ROUND_S, FROZEN_S = 4, 20, 10
WINDOW = "[15s]"  # of the rates, because the load takes a minute and a half
# Only the graphs and their legends, two in a row.
STYLE = """
#graph_container { display: grid; gap: 0 24px; width: 1280px; padding: 8px }
#graph_container { grid-template-columns: repeat(2, minmax(0, 1fr)) }
.navbar, #graph_container > .clearfix, form > .form-row:not(:last-of-type), .form-inline, .nav-tabs,
  .graph_container > .clearfix, #graph_container ~ * { display: none !important }
.legend ul { columns: 2 }
.tab-content, .graph_container { border: 0 !important; padding-bottom: 0 !important }
h4 { margin: 8px 0 0 60px }
body { padding: 0 !important }
"""
ADD_TITLES = """titles => document.querySelectorAll('.graph_wrapper').forEach((graph, i) =>
  graph.prepend(Object.assign(document.createElement('h4'), {textContent: titles[i]})))"""


def make_load(service: Service) -> None:
    """Send predictions of 32 clients; in each round also a batch, and requests that are refused or fail."""
    command = [sys.executable, "-m", "benchmarks.load", "--url", service.url, "--wait", "--clients", "32"]
    for number in range(ROUNDS):
        batch = service.batch_accepted([dict(CUSTOMER)] * 10_000)
        load = subprocess.Popen([*command, "--seconds", str(ROUND_S)], cwd=ROOT, stdout=subprocess.DEVNULL)
        for _ in range(ROUND_S):
            service.post({**CUSTOMER, "Gender": "X"})
            service.post({**CUSTOMER, "Credit_Limit": -1, "Card_Category": "Green"})
            service.post_body("{")
            service.predict({**CUSTOMER, "Customer_Age": marked_model.RAISES})
            time.sleep(0.5)
        if number == ROUNDS // 2:
            with service.worker.paused():
                time.sleep(FROZEN_S)
        load.wait()
        service.batch_ended(batch)


def named(query: str, legend: str) -> str:
    """Return a query whose series have their legend as their only label."""
    query = query.replace(f"[{RATE_INTERVAL}]", WINDOW)
    text, labels = re.sub(r"\{\{\w+\}\}", "$1", legend), re.findall(r"\{\{(\w+)\}\}", legend)
    if len(labels) > 1:
        joined = ", ".join(f'"{label}"' for label in labels)
        return f'max by (line) (label_join({query}, "line", ": ", {joined}))'
    return f'max by (line) (label_replace({query}, "line", "{text}", "{"".join(labels)}", "(.*)"))'


def draw(browser: Browser, prometheus: Prometheus, titles: tuple[str, ...], path: Path) -> None:
    """Write a picture of panels, on the graph page of Prometheus."""
    chosen = {panel.title: panel for panel in panels()}
    address = {}
    for number, title in enumerate(titles):
        queries = chosen[title].queries.items()
        address[f"g{number}.expr"] = " or ".join(named(query, legend) for query, legend in queries)
        address |= {f"g{number}.tab": "0", f"g{number}.range_input": "2m", f"g{number}.step_input": "1"}
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    style = f"Object.assign(document.createElement('style'), {{textContent: {json.dumps(STYLE)}}})"
    page.add_init_script(f"addEventListener('DOMContentLoaded', () => document.head.append({style}))")
    page.goto(f"{prometheus.url}/graph?{urlencode(address)}", wait_until="networkidle")
    page.evaluate(ADD_TITLES, list(titles))
    page.locator("#graph_container").screenshot(path=path)
    page.close()


def main(folder: Path) -> None:
    """Write the pictures."""
    port = free_port()
    with tempfile.TemporaryDirectory() as name:
        files, model = Path(name), marked_model.SlowModel(per_customer_s=0.0002)
        settings = {"METRICS_PORT": str(port), "MODEL_PATH": str(marked_model.save(files, model))}
        with (
            monitored_servers(files) as (servers, plugin_port),
            running_service(servers, files, **settings) as service,
            running_prometheus(files, {"api": [port], "worker": [port + 1], "rabbitmq": [plugin_port]}) as prometheus,
            running_browser() as browser,
        ):
            make_load(service)
            for picture, titles in PICTURES.items():
                draw(browser, prometheus, titles, folder / picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
