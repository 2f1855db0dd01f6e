"""A batch of BankChurners.csv against a running service: `python -m benchmarks.bulk BankChurners.csv`.

It starts no service. It measures CSV and NDJSON, because a JSON array may have 8 MiB only. In each round it also
measures the baseline: pandas and the model alone in one process, which reads the same CSV and predicts it.
"""

import argparse
import io
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pandas as pd
import requests

from celery_task_app.ml.artifact import load_artifact
from celery_task_app.settings import Settings

POLL_S = 0.01
TIMEOUT_S = 120  # of an upload, and of a download


@dataclass(frozen=True)
class BatchTimes:
    """The times of one batch, in seconds from the begin of the upload.

    Attributes:
        rows: number of rows.
        accepted_s: until the 202.
        results_s: until the last result was read.
    """

    rows: int
    accepted_s: float
    results_s: float


def repeat_rows(table: bytes, times: int) -> bytes:
    """Return a CSV file with its rows repeated."""
    header, _, rows = table.partition(b"\n")
    return header + b"\n" + (rows.rstrip(b"\n") + b"\n") * times


def to_ndjson(table: bytes) -> bytes:
    """Return a CSV file as one JSON object a line."""
    return pd.read_csv(io.BytesIO(table), keep_default_na=False).to_json(orient="records", lines=True).encode()


def run_batch(url: str, body: bytes, media_type: str) -> BatchTimes:
    """Send a batch, and read its results in the same format.

    Raises:
        SystemExit: a row has no result.
    """
    with requests.Session() as session:
        started = time.perf_counter()
        headers = {"Content-Type": media_type}
        posted = session.post(f"{url}/churn/batches", data=body, headers=headers, timeout=TIMEOUT_S)
        posted.raise_for_status()
        accepted_s = time.perf_counter() - started
        batch_url = url + posted.headers["Location"]
        while session.get(batch_url, timeout=TIMEOUT_S).status_code == HTTPStatus.ACCEPTED:
            time.sleep(POLL_S)
        results = session.get(f"{batch_url}/results", headers={"Accept": media_type}, timeout=TIMEOUT_S).content
        results_s = time.perf_counter() - started
        session.delete(batch_url, timeout=TIMEOUT_S)
    rows = results.count(b"\n") - (media_type == "text/csv")
    if rows != posted.json()["total"]:
        raise SystemExit(f"{rows} results of {posted.json()['total']} rows")
    return BatchTimes(rows, accepted_s, results_s)


@cache
def _pipeline() -> Any:
    """Load the model once in the process of the baseline, as a worker does."""
    return load_artifact(Settings().model_path)[1]


def predict_with_pandas(table: bytes) -> float:
    """Read a CSV file with pandas, predict it, and return the seconds that both took."""
    pipeline = _pipeline()
    started = time.perf_counter()
    pipeline.predict_proba(pd.read_csv(io.BytesIO(table), keep_default_na=False))
    return time.perf_counter() - started


def main() -> None:
    """Measure each format and the baseline alternating; print the medians, and the median of the rounds' ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("file", type=Path, help="BankChurners.csv, or a file with its columns")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each format")
    parser.add_argument("--times", type=int, default=1, help="how often the batch repeats the rows of the file")
    options = parser.parse_args()
    table = repeat_rows(options.file.read_bytes(), options.times)
    bodies = {"text/csv": table, "application/x-ndjson": to_ndjson(table)}
    rounds: dict[str, list[BatchTimes]] = {media_type: [] for media_type in bodies}
    baseline_s: list[float] = []
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as one_process:
        one_process.submit(predict_with_pandas, table).result()  # loads the model
        for _ in range(options.rounds):
            for media_type, body in bodies.items():
                rounds[media_type].append(run_batch(options.url, body, media_type))
            baseline_s.append(one_process.submit(predict_with_pandas, table).result())
    for media_type, batches in rounds.items():
        count = batches[0].rows
        accepted_s = statistics.median(batch.accepted_s for batch in batches)
        results_s = statistics.median(batch.results_s for batch in batches)
        ratio = statistics.median(alone / batch.results_s for alone, batch in zip(baseline_s, batches, strict=True))
        print(
            f"{media_type}: {count} rows, 202 after {accepted_s:.3f} s, all results after {results_s:.3f} s: "
            f"{count / results_s:,.0f} rows/s, {ratio:.2f} of pandas and the model alone "
            f"({count / statistics.median(baseline_s):,.0f} rows/s)"
        )


if __name__ == "__main__":
    main()
