"""Score a CSV file of customers: `python -m celery_task_app.score customers.csv > scored.csv`. A client of the API.

The output is the input with the columns `churn_probability` and `churn_error`, which says what is wrong with a row that
has no probability. Progress goes to standard error. It exits with 1, and says why, if the batch was not scored.
"""

import argparse
import csv
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

_PAUSE_S = 0.2
_PATIENCE_S = 60  # of answers that say to try again
_TIMEOUT_S = (5, 120)


class ScoreError(Exception):
    """The file was not scored; the message is for the person in the terminal."""


def main() -> int:
    """Score the file that the command line names."""
    parser = argparse.ArgumentParser(description="Add each customer's probability of churn to a CSV file.")
    parser.add_argument("file", type=Path, help="CSV with a header row")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the service (%(default)s)")
    parser.add_argument("--key-file", type=Path, help="a file with your API key, if the service needs one")
    arguments = parser.parse_args()
    try:
        with requests.Session() as session:
            if arguments.key_file:
                session.headers["Authorization"] = f"Bearer {arguments.key_file.read_text().strip()}"
            _score(session, arguments.file, arguments.url.rstrip("/"))
    except (ScoreError, OSError) as error:  # requests' own errors are OSErrors
        sys.stderr.write(f"\nNot scored: {error}\n")
        return 1
    return 0


def _score(session: requests.Session, path: Path, url: str) -> None:
    with path.open("rb") as file:
        accepted = _asked(
            session, "POST", f"{url}/churn/batches", data=file, headers={"Content-Type": "text/csv"}
        ).json()
        where = f"{url}/churn/batches/{accepted['batch_id']}"
        refused = {row["row"]: _faults(row) for row in accepted["rows"]}
        _wait(session, where)
        results = _asked(session, "GET", f"{where}/results", headers={"Accept": "text/csv"}, stream=True)
        results.encoding = "utf-8"
        lines = (line for line in results.iter_lines(decode_unicode=True))
        with path.open(encoding="utf-8-sig", newline="") as customers:
            scored = _write(csv.reader(customers), csv.DictReader(lines), refused)
        if scored != accepted["total"]:
            raise ScoreError(f"{scored} of {accepted['total']} results arrived")
    sys.stderr.write(f"{scored} rows scored, {accepted['refused']} refused\n")


def _wait(session: requests.Session, where: str) -> None:
    while True:
        answer = _asked(session, "GET", where)
        batch = answer.json()
        bar = "#" * (40 * batch["done"] // batch["total"])
        sys.stderr.write(f"\r[{bar:<40}] {batch['done']} of {batch['total']}")
        sys.stderr.flush()
        if answer.status_code == requests.codes.ok:
            sys.stderr.write("\n")
            return
        time.sleep(_PAUSE_S)


def _write(rows: Iterator[list[str]], results: Iterator[dict[str, str]], refused: dict[int, str]) -> int:
    """Write each row of the file with its result; both are in the same order. Return how many had one."""
    out = csv.writer(sys.stdout)
    customers = (row for row in rows if row)  # blank lines are no rows to the service either
    out.writerow([*next(customers), "churn_probability", "churn_error"])
    scored, result = 0, next(results, None)
    for number, row in enumerate(customers):
        if result is not None and int(result["row"]) == number:
            out.writerow([*row, result["probability"], result["error"]])
            scored, result = scored + 1, next(results, None)
        else:
            out.writerow([*row, "", refused.get(number, "refused")])
    return scored


def _asked(session: requests.Session, method: str, url: str, **options: Any) -> requests.Response:
    """Return the answer that is not a problem; ask again where the service says so."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        if "data" in options:
            options["data"].seek(0)
        answer = session.request(method, url, timeout=_TIMEOUT_S, **options)
        if answer.ok:
            return answer
        if "Retry-After" not in answer.headers or time.monotonic() > deadline:
            raise ScoreError(_reason(answer))
        time.sleep(float(answer.headers["Retry-After"]))


def _reason(answer: requests.Response) -> str:
    try:
        problem: dict[str, Any] = answer.json()
        first = "".join(f" Line {row.get('line')}: {_faults(row)}." for row in problem.get("rows", [])[:3])
        return f"{problem['title']}: {problem['detail']}{first}"
    except (ValueError, LookupError):
        return f"{answer.status_code} {answer.reason}"


def _faults(row: dict[str, Any]) -> str:
    return "; ".join(f"{fault['pointer'].rpartition('/')[2]}: {fault['message']}" for fault in row["errors"])


if __name__ == "__main__":
    sys.exit(main())
