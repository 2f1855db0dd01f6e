"""What a prediction costs in the model alone, beside a bare `booster.predict`: `python -m benchmarks.model`."""

import itertools
import json
import time
from collections.abc import Callable

from benchmarks.load import customers
from celery_task_app.ml.model import ChurnModel
from celery_task_app.settings import settings

ROUNDS = 50


def alternating(*calls: Callable[[], object]) -> list[float]:
    """Return the least CPU milliseconds of each call, over rounds that take them in turns."""
    best = [float("inf")] * len(calls)
    for _ in range(ROUNDS):
        for number, call in enumerate(calls):
            started = time.process_time()
            call()
            best[number] = min(best[number], 1000 * (time.process_time() - started))
    return best


def main() -> None:
    """Measure one row and many, and print a table."""
    model = ChurnModel(settings.model_path)
    encoder, classifier = model._pipeline  # noqa: SLF001 - to see what it costs without all that ChurnModel adds
    print("| rows | `churn_probabilities` | of the bare `booster.predict` | `reasons` |\n|---|---|---|---|")
    for rows in (1, 64, 1_000):
        some = [json.loads(customer) for customer in itertools.islice(customers(0), rows)]
        matrix = encoder.transform(model._columns(some))  # noqa: SLF001
        whole, bare, reasons = alternating(
            lambda some=some: model.churn_probabilities(some),  # type: ignore[misc]
            lambda matrix=matrix: classifier.booster_.predict(matrix, num_threads=1),  # type: ignore[misc]
            lambda some=some: model.reasons(some),  # type: ignore[misc]
        )
        print(f"| {rows:,} | {whole:.2f} ms | {whole / bare:.1f} times | {reasons:.2f} ms |")


if __name__ == "__main__":
    main()
