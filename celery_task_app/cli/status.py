"""`make status`: show the API, the workers, the queues and both servers, as /readyz and /churn/queue report them."""

import contextlib
import http.client
import json
import sys
from typing import Any

from celery_task_app.cli.launch import HOST, port_of_last_start, read_env

WITHIN_S = 5.0  # /readyz takes at most 2.5 s


def read(port: str, path: str) -> dict[str, Any] | None:
    """Return the answer of /readyz or /churn/queue; None if no service answers, or if it needs a key."""
    try:
        with contextlib.closing(http.client.HTTPConnection(HOST, int(port), timeout=WITHIN_S)) as api:
            api.request("GET", path)
            answer = json.loads(api.getresponse().read())
    except (OSError, OverflowError, ValueError, http.client.HTTPException):  # another program may use the port
        return None
    return answer if isinstance(answer, dict) and "workers" in answer else None


def lines(
    readiness: dict[str, Any], queue_state: dict[str, Any] | None, url: str, addresses: dict[str, str]
) -> list[str]:
    """Return the lines for a person."""
    is_ready = readiness["status"] == "ready"
    rows = [("API", f"{url}, {'ready' if is_ready else 'NOT READY: ' + readiness['detail']}")]
    for name, status in readiness["workers"].items():
        rows.append(("worker", f"{name}, model {status['model']} ({status['detail']})"))
    if not readiness["workers"]:
        rows.append(("worker", "none"))
    for queue, messages in readiness.get("messages", {}).items():
        consumers = readiness.get("consumers", {}).get(queue)
        rows.append(
            ("queue", f"{queue}, messages: {messages}" + ("" if consumers is None else f", consumers: {consumers}"))
        )
    if queue_state:
        rows.append(("waiting", _waiting("predictions", queue_state["predictions"], queue_state["estimated_s"])))
        rows.append(("waiting", _waiting("batch rows", queue_state["batch_rows"])))
    for label, part, variable in (("broker", "broker", "BROKER_URI"), ("result store", "result_store", "BACKEND_URI")):
        rows.append((label, ", ".join(filter(None, (readiness[part], addresses.get(variable))))))
    rows += [("warning", warning) for warning in readiness["warnings"]]
    return [f"{label:13}{text}" for label, text in rows]


def _waiting(name: str, kind: dict[str, Any], estimated_s: float | None = None) -> str:
    parts = [f"{name}: {kind['waiting']}"]
    if kind["waiting"]:
        parts.append(f"oldest {kind['oldest_s']:.1f} s")
    if kind["drained_per_s"] is not None:
        parts.append(f"{kind['drained_per_s']:.0f} a second end")
    if estimated_s is not None:
        parts.append(f"a new one waits {estimated_s:.1f} s")
    return ", ".join(parts)


def main() -> int:
    """Print the lines, or one sentence if no service answers; return 0 if the service is ready, else 1."""
    port = port_of_last_start()
    url = f"http://{HOST}:{port}"
    readiness = read(port, "/readyz")
    if readiness is None:
        print(f"No service answers on {url}: start it with 'make run', or name its port with 'PORT=8001 make status'.")
        return 1
    print("\n".join(lines(readiness, read(port, "/churn/queue"), url, read_env())))
    return int(readiness["status"] != "ready")


if __name__ == "__main__":
    sys.exit(main())
