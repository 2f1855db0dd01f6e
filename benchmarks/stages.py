"""Where the time of a prediction goes: `python -m benchmarks.stages` looks into the API and the worker under load.

API: py-spy looks 500 times a second at who holds the interpreter, and a sample belongs to the deepest of its frames
that a stage knows; a stage's cost is its share of the process's CPU time. Worker: LightGBM predicts without holding it,
so the three calls are timed, for messages as large as they were under the load; the rest is Celery's, to consume.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from benchmarks import stand
from celery_task_app.ml.model import ChurnModel
from celery_task_app.results import Outcome, ResultStore
from celery_task_app.settings import settings
from celery_task_app.tasks import outcomes_of
from test_client import CUSTOMER

# The stages, each with what its frames are told by: a part of `function (file:line)`.
STAGES = (
    ("mark as queued", ("mark_queued (", "register_script")),
    ("publish", ("submission.py", "backlog.py", "celery/app", "kombu", "amqp")),
    ("hear of ends, read", ("waiting.py", "results.py", "redis/asyncio")),
    ("parse and validate", ("bodies.py", "models.py", "pydantic", "json/decoder", "headers.py")),
    ("HTTP", ("uvicorn", "uvloop", "asyncio/runners")),
    ("routing", ("fastapi", "starlette")),
    ("the route", ("app.py", "access.py")),
)


def sample(pid: int, seconds: float, folder: Path) -> Counter[tuple[str, ...]]:
    """Return how often each stack was seen, its outermost frame first."""
    out = folder / f"{pid}.raw"
    options = ["--gil", "--format", "raw", "--rate", "500", "--duration", str(round(seconds)), "--output", str(out)]
    program = str(Path(sys.executable).with_name("py-spy"))
    subprocess.run([program, "record", "--pid", str(pid), *options], check=True, capture_output=True)
    stacks: Counter[tuple[str, ...]] = Counter()
    for line in out.read_text().splitlines():
        frames, _, count = line.rpartition(" ")
        stacks[tuple(frames.split(";"))] += int(count)
    return stacks


def shares(stacks: Counter[tuple[str, ...]]) -> dict[str, float]:
    """Return each stage's share of the samples; `the rest` is what no stage knows."""
    found: Counter[str] = Counter()
    for frames, count in stacks.items():
        names = (name for frame in reversed(frames) for name, marks in STAGES if any(mark in frame for mark in marks))
        found[next(names, "the rest")] += count
    return {name: found[name] / found.total() for name in (*(name for name, _ in STAGES), "the rest")}


def timed(customers: int) -> dict[str, float]:
    """Return the microseconds for each customer of what a process does with a message of so many; best of 50."""
    store, model = ResultStore(), ChurnModel(settings.model_path)
    best: dict[str, float] = {}
    for _ in range(50):
        message: dict[str, Mapping[str, object]] = {str(uuid4()): CUSTOMER for _ in range(customers)}
        store.mark_queued(dict.fromkeys(message, time.time() + 60))
        outcomes: dict[str, Outcome] = {}
        for stage, call in (
            ("look up", lambda message=message: store.look_up(list(message))),
            ("predict", lambda message=message, outcomes=outcomes: outcomes.update(outcomes_of(model, message))),
            ("store", lambda outcomes=outcomes: store.store(outcomes, model.version)),
        ):
            started = time.perf_counter()
            call()
            took_us = 1e6 * (time.perf_counter() - started) / customers
            best[stage] = min(took_us, best.get(stage, took_us))
    return best


def main() -> None:
    """Load the service, and print a row for each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", choices=stand.SERVERS, help="default: RabbitMQ + Redis if they are installed")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=6, help="of each of two loads")
    parser.add_argument("--timed", type=int, help=argparse.SUPPRESS)  # in a process that has the settings for it
    options = parser.parse_args()
    if options.timed:
        print(json.dumps(timed(options.timed)))
        return
    servers = stand.choose_servers(options.servers)
    with tempfile.TemporaryDirectory() as name, stand.service(servers, Path(name) / "own") as running:
        subject = stand.subjects_of(running)[0]
        consumed = running.worker.text().count(" succeeded in ")
        figures = stand.load(subject, options.clients, "--seconds", str(options.seconds))
        consumed = running.worker.text().count(" succeeded in ") - consumed
        size = max(1, round(figures.predictions_per_s * (options.seconds + 1) / consumed))
        loading = stand.command(subject, options.clients, "--seconds", str(options.seconds + 2))
        with subprocess.Popen(loading, stdout=subprocess.DEVNULL):
            stacks = sample(running.api.pid, options.seconds, Path(name))
        again = [sys.executable, "-m", "benchmarks.stages", "--timed", str(size)]
        found = subprocess.run(again, env=os.environ | running.servers.env, capture_output=True, check=True)
    worker: dict[str, float] = json.loads(found.stdout)
    worker["consume"] = max(0.0, 1000 * figures.cpu_ms["worker"] - sum(worker.values()))
    print(f"{options.clients} clients that wait, {size} customers a message; {stand.SERVERS[servers]}")
    print("| process | stage | CPU µs a prediction |\n|---|---|---|")
    for stage, share in shares(stacks).items():
        print(f"| API | {stage} | {1000 * share * figures.cpu_ms['API']:.0f} |")
    for stage, cost_us in worker.items():
        print(f"| worker | {stage} | {cost_us:.0f} |")
    for part in figures.cpu_ms.keys() - {"API", "worker"}:
        print(f"| {part} | everything | {1000 * figures.cpu_ms[part]:.0f} |")


if __name__ == "__main__":
    main()
