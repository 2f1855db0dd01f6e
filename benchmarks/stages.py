"""CPU time of a prediction by stage, in the API and the worker, under load: `python -m benchmarks.stages`.

API: py-spy samples the thread that holds the interpreter, 500 times a second. A sample belongs to the stage of its
deepest frame that a stage names. The cost of a stage is its share of the process's CPU time.

Worker: LightGBM releases the interpreter, so the three steps of the delivery policy are timed, for messages of the size
under load. The rest of the worker's CPU time is Celery's, which consumes the messages.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from benchmarks import stand
from celery_task_app.consumer.delivery import predict_each
from celery_task_app.messaging.messages import PredictionMessage, PredictionRequest, Stores
from celery_task_app.ml.model import ChurnModel
from celery_task_app.settings import Settings
from celery_task_app.store.batches import BatchStore
from celery_task_app.store.connection import connect
from celery_task_app.store.predictions import Outcome, PredictionStore
from tests.harness.customers import CUSTOMER

STAGES = (
    ("mark as queued", ("mark_queued (",)),
    ("publish", ("group_commit.py", "backpressure.py", "messaging/", "celery/app", "kombu", "amqp")),
    ("receive completions, read", ("completion.py", "store/predictions.py", "redis/asyncio")),
    (
        "parse and validate",
        ("strict_json.py", "json_route.py", "parameters.py", "models.py", "pydantic", "json/decoder"),
    ),
    ("HTTP", ("uvicorn", "uvloop", "asyncio/runners")),
    ("routing", ("fastapi", "starlette")),
    ("the route", ("api/predictions.py", "api/http/", "api/services.py", "app.py")),
)
"""Each stage with parts of its frames, which py-spy writes as `function (file:line)`; the first match wins."""

OTHER = "other"
STEPS = ("look up", "predict", "store")
ROUNDS = 50
_FINISHED = " message outcome=predicted "  # in the log line of a finished message


def sample_stacks(pid: int, seconds: float, folder: Path) -> Counter[tuple[str, ...]]:
    """Return the number of samples of each stack; the outermost frame is first."""
    out = folder / f"{pid}.raw"
    options = ["--gil", "--format", "raw", "--rate", "500", "--duration", str(round(seconds)), "--output", str(out)]
    program = str(Path(sys.executable).with_name("py-spy"))
    subprocess.run([program, "record", "--pid", str(pid), *options], check=True, capture_output=True)
    stacks: Counter[tuple[str, ...]] = Counter()
    for line in out.read_text().splitlines():
        frames, _, count = line.rpartition(" ")
        stacks[tuple(frames.split(";"))] += int(count)
    return stacks


def stage_of(frames: tuple[str, ...]) -> str:
    """Return the stage of a stack: that of its deepest frame that a stage names."""
    for frame in reversed(frames):
        for name, parts in STAGES:
            if any(part in frame for part in parts):
                return name
    return OTHER


def shares(stacks: Counter[tuple[str, ...]]) -> dict[str, float]:
    """Return each stage's share of the samples."""
    counts: Counter[str] = Counter()
    for frames, count in stacks.items():
        counts[stage_of(frames)] += count
    return {name: counts[name] / counts.total() for name in (*(name for name, _ in STAGES), OTHER)}


def time_steps(message: PredictionMessage, model: ChurnModel, stores: Stores) -> dict[str, float]:
    """Process a message as the delivery policy does; return the seconds of each step."""
    times = [time.perf_counter()]
    pending = message.look_up(stores).pending
    times.append(time.perf_counter())
    outcomes: dict[str, Outcome] = {**predict_each(lambda ids: message.predict(model, ids), pending)}
    times.append(time.perf_counter())
    message.save(stores, outcomes, model.version)
    times.append(time.perf_counter())
    return {step: end - begin for step, (begin, end) in zip(STEPS, itertools.pairwise(times), strict=True)}


def time_delivery(customers: int) -> dict[str, float]:
    """Return the least microseconds of each step for each customer of a message, on the result store of the settings.

    Args:
        customers: number of customers in the message.
    """
    settings = Settings()
    model = ChurnModel(settings.model_path)
    with (
        closing(PredictionStore(connect(settings.backend_uri), settings.result_ttl_s)) as predictions,
        closing(BatchStore(connect(settings.backend_uri), settings.result_ttl_s)) as batches,
    ):
        rounds = []
        for _ in range(ROUNDS):
            message = PredictionMessage({str(uuid4()): PredictionRequest(CUSTOMER) for _ in range(customers)})
            predictions.mark_queued(dict.fromkeys(message.ids, time.time() + settings.deadline_s))
            rounds.append(time_steps(message, model, Stores(predictions, batches)))
    return {step: 1e6 * min(times[step] for times in rounds) / customers for step in STEPS}


def main() -> None:
    """Load the service, and print a row for each stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--servers", choices=stand.SERVERS, help="default: RabbitMQ + Redis if they are installed")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=6, help="of each of two loads")
    # The child process that gets the addresses of the servers from its environment.
    parser.add_argument("--time-delivery", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.time_delivery:
        print(json.dumps(time_delivery(options.time_delivery)))
        return
    servers = stand.choose_servers(options.servers)
    with tempfile.TemporaryDirectory() as name, stand.service_on(servers, Path(name) / "service") as running:
        subject, _ = stand.service_subjects(running)
        messages = running.worker.text().count(_FINISHED)
        figures = stand.measure(subject, options.clients, "--seconds", str(options.seconds))
        messages = running.worker.text().count(_FINISHED) - messages
        size = max(1, round(figures.predictions_per_s * (options.seconds + 1) / messages))
        load = stand.load_command(subject, options.clients, "--seconds", str(options.seconds + 2))
        with subprocess.Popen(load, stdout=subprocess.DEVNULL):
            stacks = sample_stacks(running.api.pid, options.seconds, Path(name))
        child = [sys.executable, "-m", "benchmarks.stages", "--time-delivery", str(size)]
        timed = subprocess.run(child, env=os.environ | running.servers.env, capture_output=True, check=True)
    worker: dict[str, float] = json.loads(timed.stdout)
    worker["consume"] = max(0.0, 1000 * figures.cpu_ms["worker"] - sum(worker.values()))
    print(f"{options.clients} waiting clients, {size} customers in a message; {stand.SERVERS[servers]}")
    print("| process | stage | CPU µs per prediction |\n|---|---|---|")
    for stage, share in shares(stacks).items():
        print(f"| API | {stage} | {1000 * share * figures.cpu_ms['API']:.0f} |")
    for stage, cost_us in worker.items():
        print(f"| worker | {stage} | {cost_us:.0f} |")
    for part in figures.cpu_ms.keys() - {"API", "worker"}:
        print(f"| {part} | everything | {1000 * figures.cpu_ms[part]:.0f} |")


if __name__ == "__main__":
    main()
