"""deploy/monitoring: its alerts and its dashboard, and a real Prometheus and a real Flower with its configuration."""

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import yaml

from tests.harness.processes import ROOT, Process, free_port, until
from tests.harness.servers import Servers, epmd_has_ended, start_rabbitmq, start_redis

FOLDER = ROOT / "deploy" / "monitoring"
RULES = FOLDER / "rules.yml"
RATE_INTERVAL = "1m"
"""Grafana's `$__rate_interval` is four times the scrape interval, and at least a minute here."""


@dataclass(frozen=True)
class Panel:
    """A panel of the dashboard: its title, and its queries with their legends, in the order of the page."""

    title: str
    queries: Mapping[str, str]


def dashboard() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads((FOLDER / "grafana" / "churn.json").read_text())
    return parsed


def panels() -> list[Panel]:
    return [
        Panel(
            panel["title"],
            {
                target["expr"].replace("$__rate_interval", RATE_INTERVAL): target["legendFormat"]
                for target in panel["targets"]
            },
        )
        for panel in dashboard()["panels"]
    ]


def alerts() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def metric_names(expression: str) -> set[str]:
    """Return the metrics of an expression: its names without functions, labels and the texts in quotes."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\b(by|without|on) ?\([^)]*\)|\[\w+\]', " ", expression)
    words = re.findall(r"\b([a-zA-Z_]\w*)\b(?!\s*\()", bare)
    return set(words) - {"or", "and", "unless", "by", "without", "on"}


class Prometheus:
    """A running Prometheus, and the questions that Grafana asks."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def get(self, path: str, **query: str) -> Any:
        response = requests.get(f"{self.url}/api/v1/{path}", params=query, timeout=30)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        series: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return series

    def alert_states(self) -> dict[str, str]:
        """Return by alert: inactive, pending or firing."""
        (group,) = self.get("rules")["groups"]
        return {rule["name"]: rule["state"] for rule in group["rules"]}

    def is_ready(self) -> bool:
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(f"{self.url}/-/ready", timeout=5).ok
        return False

    def health(self) -> dict[str, str]:
        """Return by job: up, down or unknown."""
        return {target["labels"]["job"]: target["health"] for target in self.get("targets")["activeTargets"]}


@contextlib.contextmanager
def running_prometheus(folder: Path, targets: Mapping[str, Sequence[int]]) -> Iterator[Prometheus]:
    """Start Prometheus with the configuration of docker-compose, which scrapes ports of this machine each second.

    Args:
        folder: of its files.
        targets: by job, its ports.
    """
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(RULES)]
    assert {job["job_name"] for job in config["scrape_configs"]} == targets.keys()
    config["scrape_configs"] = [
        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
        for job, ports in targets.items()
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/prometheus",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    process, prometheus = Process(command, folder / "prometheus.log", cwd=folder), Prometheus(port)
    process.start()
    try:
        until(prometheus.is_ready)
        yield prometheus
    finally:
        process.kill()


@contextlib.contextmanager
def monitored_servers(folder: Path) -> Iterator[tuple[Servers, int]]:
    """Start Redis, and RabbitMQ with its Prometheus plugin; yield them and the port of the plugin."""
    plugins, settings, port = folder / "enabled_plugins", folder / "rabbitmq.conf", free_port()
    plugins.write_text("[rabbitmq_prometheus].")
    settings.write_text(f"prometheus.tcp.ip = 127.0.0.1\nprometheus.tcp.port = {port}\n")
    store, store_port = start_redis(folder / "redis", "redis-server", more=["--maxmemory", "512mb"])
    try:
        broker, uri, epmd_port = start_rabbitmq(
            folder / "rabbitmq", RABBITMQ_ENABLED_PLUGINS_FILE=str(plugins), RABBITMQ_CONFIG_FILE=str(settings)
        )
        try:
            yield Servers("rabbitmq", broker, store, uri, f"redis://127.0.0.1:{store_port}/0"), port
        finally:
            broker.kill()
            until(lambda: epmd_has_ended(epmd_port))
    finally:
        store.kill()


@contextlib.contextmanager
def running_flower(servers: Servers, folder: Path) -> Iterator[requests.Session]:
    """Start Flower with the environment of docker-compose; yield a session with its password, for paths such as `/`."""
    port = free_port()
    environment = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["flower"]["environment"]
    env = {name: str(value) for name, value in environment.items()} | {
        "CELERY_BROKER_URL": servers.broker_uri,
        "PYTHONPATH": str(FOLDER),
        "FLOWER_BASIC_AUTH": "guest:secret",
        "FLOWER_PORT": str(port),
        "FLOWER_ADDRESS": "127.0.0.1",
    }
    flower = Process([sys.executable, "-m", "celery", "flower"], folder / "flower.log", env, cwd=folder)
    session = FlowerSession(port)

    def answers() -> bool:
        assert flower.is_running, flower.text()
        with contextlib.suppress(requests.ConnectionError):
            return session.get("/healthcheck").ok
        return False

    flower.start()
    try:
        until(answers)
        yield session
    finally:
        flower.kill()


class FlowerSession(requests.Session):
    """Requests to a Flower, with its password."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.url = f"http://127.0.0.1:{port}"
        self.auth = ("guest", "secret")

    def request(self, method: str | bytes, url: str | bytes, *arguments: Any, **options: Any) -> requests.Response:
        """Send a request to a path."""
        return super().request(method, f"{self.url}{url!s}", *arguments, **{"timeout": 30, **options})
