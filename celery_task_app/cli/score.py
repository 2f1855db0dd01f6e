"""Score a CSV file of customers: `python -m celery_task_app.cli.score customers.csv > scored.csv`. A client of the API.

The output has the columns of the input, `churn_probability`, and `churn_error`, the reason for a missing probability.
Progress goes to standard error. If the batch was not scored, the exit code is 1 and standard error has the reason.
"""

import argparse
import csv
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

PAUSE_S = 0.2  # between two requests for the progress
RETRY_FOR_S = 60  # while the API answers with Retry-After
TIMEOUT_S = (5, 120)  # to connect, to read


class ScoreError(Exception):
    """The batch was not scored. The message is for the person at the terminal."""


def main() -> int:
    """Score the file of the command line; return the exit code."""
    parser = argparse.ArgumentParser(description="Add each customer's probability of churn to a CSV file.")
    parser.add_argument("file", type=Path, help="CSV with a header row")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the service (%(default)s)")
    parser.add_argument("--key-file", type=Path, help="a file with your API key, if the service needs one")
    arguments = parser.parse_args()
    try:
        with requests.Session() as session:
            if arguments.key_file:
                session.headers["Authorization"] = f"Bearer {arguments.key_file.read_text().strip()}"
            score(session, arguments.file, arguments.url.rstrip("/"))
    except (ScoreError, OSError) as error:  # the errors of requests are OSErrors
        sys.stderr.write(f"\nNot scored: {error}\n")
        return 1
    return 0


def score(session: requests.Session, path: Path, url: str) -> None:
    """Post a file as a batch, wait for its end, and write the scored rows to standard output.

    Raises:
        ScoreError: the API refused the batch, or has fewer results than rows.
    """
    with path.open("rb") as file:
        headers = {"Content-Type": "text/csv"}
        accepted = request(session, "POST", f"{url}/churn/batches", data=file, headers=headers).json()
    batch = f"{url}/churn/batches/{accepted['batch_id']}"
    invalid = {row["row"]: errors_of(row) for row in accepted["rows"]}
    wait(session, batch)
    results = request(session, "GET", f"{batch}/results", headers={"Accept": "text/csv"}, stream=True)
    results.encoding = "utf-8"
    lines = (line for line in results.iter_lines(decode_unicode=True))
    with path.open(encoding="utf-8-sig", newline="") as customers:
        scored = write(csv.reader(customers), csv.DictReader(lines), invalid)
    if scored != accepted["total"]:
        raise ScoreError(f"{scored} of {accepted['total']} results arrived")
    sys.stderr.write(f"{scored} rows scored, {accepted['refused']} refused\n")


def wait(session: requests.Session, batch: str) -> None:
    """Show the progress of a batch until it is done."""
    while True:
        answer = request(session, "GET", batch)
        state = answer.json()
        bar = "#" * (40 * state["done"] // state["total"])
        sys.stderr.write(f"\r[{bar:<40}] {state['done']} of {state['total']}")
        sys.stderr.flush()
        if answer.status_code == requests.codes.ok:
            sys.stderr.write("\n")
            return
        time.sleep(PAUSE_S)


def write(rows: Iterator[list[str]], results: Iterator[dict[str, str]], invalid: dict[int, str]) -> int:
    """Write each row of the file with its result, in the order of the file.

    Args:
        rows: of the file; the first is its header.
        results: in the order of the rows; an invalid row has none.
        invalid: the reason, by the number of the row.

    Returns:
        the number of results.
    """
    out = csv.writer(sys.stdout)
    customers = (row for row in rows if row)  # the service does not count empty lines
    out.writerow([*next(customers), "churn_probability", "churn_error"])
    scored, result = 0, next(results, None)
    for number, row in enumerate(customers):
        if result is not None and int(result["row"]) == number:
            out.writerow([*row, result["probability"], result["error"]])
            scored, result = scored + 1, next(results, None)
        else:
            out.writerow([*row, "", invalid.get(number, "refused")])
    return scored


def request(session: requests.Session, method: str, url: str, **options: Any) -> requests.Response:
    """Return a successful answer; repeat the request while the API asks for it with Retry-After.

    Raises:
        ScoreError: the API answered with another problem, or with Retry-After for RETRY_FOR_S.
    """
    deadline = time.monotonic() + RETRY_FOR_S
    while True:
        if "data" in options:
            options["data"].seek(0)
        answer = session.request(method, url, timeout=TIMEOUT_S, **options)
        if answer.ok:
            return answer
        if "Retry-After" not in answer.headers or time.monotonic() > deadline:
            raise ScoreError(reason_of(answer))
        time.sleep(float(answer.headers["Retry-After"]))


def reason_of(answer: requests.Response) -> str:
    """Return the problem of an answer, with the first three invalid rows."""
    try:
        problem: dict[str, Any] = answer.json()
        rows = "".join(f" Line {row.get('line')}: {errors_of(row)}." for row in problem.get("rows", [])[:3])
        return f"{problem['title']}: {problem['detail']}{rows}"
    except (ValueError, LookupError):
        return f"{answer.status_code} {answer.reason}"


def errors_of(row: dict[str, Any]) -> str:
    """Return the errors of an invalid row, each with the name of its feature."""
    return "; ".join(f"{error['pointer'].rpartition('/')[2]}: {error['message']}" for error in row["errors"])


if __name__ == "__main__":
    sys.exit(main())
