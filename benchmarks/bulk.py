"""BankChurners.csv to the running service and back: `python -m benchmarks.bulk BankChurners.csv`. Starts no service."""

import argparse
import csv
import json
import statistics
import time
from pathlib import Path

import requests

CATEGORIES = {"Gender", "Education_Level", "Marital_Status", "Income_Category", "Card_Category", "Attrition_Flag"}


def as_json(path: Path) -> bytes:
    """Return a CSV file as a JSON array."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = [
            {name: value if name in CATEGORIES else json.loads(value) for name, value in row.items()}
            for row in csv.DictReader(file)
        ]
    return json.dumps(rows).encode()


def seconds(url: str, body: bytes, media_type: str, accept: str) -> tuple[float, float, int]:
    """Send a batch and read all its results; return the seconds to the 202, those in all, and the number of rows."""
    with requests.Session() as session:
        started = time.perf_counter()
        posted = session.post(f"{url}/churn/batches", data=body, headers={"Content-Type": media_type}, timeout=120)
        posted.raise_for_status()
        accepted = time.perf_counter() - started
        where = url + posted.headers["Location"]
        while session.get(where, timeout=10).status_code == requests.codes.accepted:
            time.sleep(0.01)
        results = session.get(f"{where}/results", headers={"Accept": accept}, timeout=120).content
        took = time.perf_counter() - started
        session.delete(where, timeout=10)
    rows = len(json.loads(results)) if accept.endswith("/json") else results.count(b"\n") - (accept == "text/csv")
    if rows != posted.json()["total"]:
        raise SystemExit(f"{rows} results of {posted.json()['total']}")
    return accepted, took, rows


def main() -> None:
    """Measure CSV and JSON, and print the median of some rounds of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--times", type=int, default=1, help="send the file's rows so many times in one batch")
    arguments = parser.parse_args()
    header, _, rows = arguments.file.read_bytes().partition(b"\n")
    table = header + b"\n" + (rows.rstrip(b"\n") + b"\n") * arguments.times
    array = b"[" + b",".join([as_json(arguments.file)[1:-1]] * arguments.times) + b"]"
    for body, media_type in ((table, "text/csv"), (array, "application/json")):
        rounds = [seconds(arguments.url, body, media_type, media_type) for _ in range(arguments.rounds)]
        accepted, took = (statistics.median(column) for column in list(zip(*rounds, strict=True))[:2])
        count = rounds[0][2]
        print(f"{media_type}: {count} rows, 202 after {accepted:.3f} s, all back after {took:.3f} s: "
              f"{count / took:,.0f} rows/s")  # fmt: skip


if __name__ == "__main__":
    main()
