"""The service under test: the API and the worker, started by the README's commands, and typed calls of every route."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from tests.harness.processes import Process, free_port, until
from tests.harness.servers import Servers

TIMEOUT_S = 30
Body = bytes | str | Iterator[bytes]


class Client:
    """Typed calls of every route of a service."""

    def __init__(self, url: str) -> None:
        self.url = url

    # Operations

    def request(
        self, method: str, path: str, session: requests.Session | None = None, **options: Any
    ) -> requests.Response:
        """Send a request to a path, on a connection of its own without a session.

        The options are those of `requests.request`.
        """
        send = session.request if session else requests.request
        return send(method, self.url + path, **{"timeout": TIMEOUT_S, **options})

    def get(self, path: str, **headers: str) -> requests.Response:
        """Send GET; `Idempotency_Key="1"` becomes a header `Idempotency-Key`."""
        return self.request("GET", path, headers=as_headers(headers))

    def answers(self, path: str = "/readyz") -> bool:
        """Tell whether a path answers 2xx; `/readyz` is readiness and `/livez` is liveness."""
        with contextlib.suppress(requests.RequestException):
            return self.request("GET", path, timeout=5).ok
        return False

    def readiness(self) -> dict[str, Any]:
        """Return the body of /readyz, with status 200 or 503."""
        body: dict[str, Any] = self.get("/readyz").json()
        return body

    # Predictions

    def post(
        self, customer: Mapping[str, Any], query: Mapping[str, str] | None = None, /, **headers: str
    ) -> requests.Response:
        """Send a customer to /churn/predict; `Prefer="wait=1"` becomes a header."""
        return self.request("POST", "/churn/predict", json=customer, params=query, headers=as_headers(headers))

    def post_body(self, body: Body, content_type: str | None = "application/json") -> requests.Response:
        """Send bytes, or an iterator of chunks, to /churn/predict."""
        return self.request("POST", "/churn/predict", data=body, headers={"content-type": content_type})

    def predict(self, customer: Mapping[str, Any], **headers: str) -> str:
        """Send a customer, require 202, and return the task id."""
        response = self.post(customer, **headers)
        assert response.status_code == 202, response.text
        return str(response.json()["task_id"])

    def result(self, task_id: str, **headers: str) -> requests.Response:
        return self.get(f"/churn/result/{task_id}", **headers)

    def delete(self, task_id: str) -> requests.Response:
        return self.request("DELETE", f"/churn/result/{task_id}")

    def ended(self, task_id: str, within_s: float = 30) -> requests.Response:
        """Return the first response for a task id that is neither 202 nor 503."""

        def ended() -> list[requests.Response]:
            response = self.result(task_id)
            return [] if response.status_code in (202, 503) else [response]

        return until(ended, within_s)[0]

    # Batches, by the URL of the batch

    def post_batch(self, body: Body, media_type: str = "text/csv", **query: str) -> requests.Response:
        """Send a file to /churn/batches."""
        body = body.encode() if isinstance(body, str) else body
        headers = {"content-type": media_type}
        return self.request("POST", "/churn/batches", data=body, headers=headers, params=query, timeout=60)

    def batch_accepted(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """Send rows as a JSON array, require 202, and return the batch's URL."""
        return self.batch_url(self.post_batch(json.dumps(rows), "application/json"))

    def batch_url(self, response: requests.Response) -> str:
        """Require 202, and return the URL of the accepted batch."""
        assert response.status_code == 202, response.text
        return self.url + response.headers["location"]

    def batch(self, url: str) -> requests.Response:
        return self.get(urlsplit(url).path)

    def batch_ended(self, url: str, within_s: float = 30) -> dict[str, Any]:
        """Wait until every row of a batch has ended; return the batch's state."""

        def ended() -> list[requests.Response]:
            response = self.batch(url)
            return [] if response.status_code == 202 else [response]

        (response,) = until(ended, within_s)
        body: dict[str, Any] = response.json()
        assert (response.status_code, body["status"]) == (200, "Success"), body
        assert body["done"] == body["total"]
        return body

    def batch_results(self, url: str, accept: str = "application/x-ndjson") -> requests.Response:
        return self.get(f"{urlsplit(url).path}/results", Accept=accept)

    def batch_rows(self, url: str) -> list[dict[str, Any]]:
        """Return the results of a batch in their order."""
        return [json.loads(line) for line in self.batch_results(url).text.splitlines()]

    def delete_batch(self, url: str) -> requests.Response:
        return self.request("DELETE", urlsplit(url).path)


@dataclass
class Service(Client):
    """An API and a worker, which are not running yet.

    Attributes:
        servers: their broker and result store.
        folder: their logs are written here.
        settings: environment variables of both.
        celery_app: the worker's app: the shipped one, or one of `tests.harness.workers`.
        port: the API's.
    """

    servers: Servers
    folder: Path
    settings: Mapping[str, str]
    celery_app: str = "celery_task_app.worker"
    port: int = field(default_factory=free_port)

    def __post_init__(self) -> None:
        Client.__init__(self, f"http://127.0.0.1:{self.port}")
        env = {**self.servers.env, **self.settings}
        api = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(self.port)]
        worker = [sys.executable, "-m", "celery", "-A", self.celery_app, "worker", "-l", "info"]
        self.api = Process(api, self.folder / "api.log", env)
        # The health check reads the status files in TMPDIR; other tests run workers at the same time.
        self.worker = Process(worker, self.folder / "worker.log", {**env, "TMPDIR": str(self.folder)})

    def start(self) -> None:
        """Start both processes; return when the service is ready."""
        self.api.start()
        self.worker.start()
        self.await_answer("/readyz", self.api, self.worker)

    def await_answer(self, path: str, *processes: Process) -> None:
        """Wait until a path answers 2xx; fail at once if one of the processes has ended."""

        def has_answered() -> bool:
            for process in processes:
                assert process.is_running, f"{process.command} has ended: {process.text()[-3000:]}"
            return self.answers(path)

        until(has_answered, within_s=60, every_s=0.1)

    def stop(self) -> None:
        for process in (self.api, self.worker):
            if process.is_running:
                process.stop()


def as_headers(arguments: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in arguments.items()}


@contextlib.contextmanager
def running_service(
    servers: Servers, folder: Path, celery_app: str = "celery_task_app.worker", **settings: str
) -> Iterator[Service]:
    """Start an API and a worker; write the ends of their logs to standard error if a test fails."""
    service = Service(servers, folder, settings, celery_app)
    try:
        service.start()
        yield service
    except BaseException:
        for process in (service.api, service.worker):
            sys.stderr.write(f"--- {process.log.name}\n{process.text()[-3000:] if process.log.exists() else ''}\n")
        raise
    finally:
        service.stop()


@contextlib.contextmanager
def running_api(servers: Servers, folder: Path, **settings: str) -> Iterator[Service]:
    """Start an API without a worker."""
    service = Service(servers, folder, settings)
    service.api.start()
    try:
        service.await_answer("/livez", service.api)
        yield service
    finally:
        service.stop()
