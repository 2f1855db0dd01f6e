"""CPU time of the model alone, compared with a bare `booster.predict`: `python -m benchmarks.model`."""

import itertools
import json
import time
from collections.abc import Callable

from benchmarks.load import customers
from celery_task_app.ml.artifact import load_artifact
from celery_task_app.ml.model import ChurnModel
from celery_task_app.settings import Settings

ROUNDS = 50


def least_cpu_ms(*calls: Callable[[], object]) -> list[float]:
    """Return the least CPU milliseconds of each call; the calls alternate in each round."""
    least = [float("inf")] * len(calls)
    for _ in range(ROUNDS):
        for number, call in enumerate(calls):
            started = time.process_time()
            call()
            least[number] = min(least[number], 1000 * (time.process_time() - started))
    return least


def main() -> None:
    """Measure one row and many, and print a table."""
    path = Settings().model_path
    model = ChurnModel(path)
    artifact, (encoder, classifier) = load_artifact(path)
    print("| rows | `churn_probabilities` | ratio to the bare `booster.predict` | `reasons` |\n|---|---|---|---|")
    for rows in (1, 64, 1_000):
        sample = [json.loads(customer) for customer in itertools.islice(customers(0), rows)]
        matrix = encoder.transform({name: [customer[name] for customer in sample] for name in artifact.features})
        whole_ms, bare_ms, reasons_ms = least_cpu_ms(
            lambda sample=sample: model.churn_probabilities(sample),  # type: ignore[misc]
            lambda matrix=matrix: classifier.booster_.predict(matrix, num_threads=1),  # type: ignore[misc]
            lambda sample=sample: model.reasons(sample),  # type: ignore[misc]
        )
        print(f"| {rows:,} | {whole_ms:.2f} ms | {whole_ms / bare_ms:.1f} | {reasons_ms:.2f} ms |")


if __name__ == "__main__":
    main()
