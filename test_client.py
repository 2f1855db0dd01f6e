"""Ask the running service for one customer's probability of churn: `python test_client.py`. A program, not a test."""

import argparse
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import requests

CUSTOMER = {
    "Customer_Age": 45,
    "Gender": "M",
    "Dependent_count": 3,
    "Education_Level": "High School",
    "Marital_Status": "Married",
    "Income_Category": "$60K - $80K",
    "Card_Category": "Blue",
    "Months_on_book": 39,
    "Total_Relationship_Count": 5,
    "Months_Inactive_12_mon": 1,
    "Contacts_Count_12_mon": 3,
    "Credit_Limit": 12691,
    "Total_Revolving_Bal": 777,
    "Avg_Open_To_Buy": 11914,
    "Total_Amt_Chng_Q4_Q1": 1.335,
    "Total_Trans_Amt": 1144,
    "Total_Trans_Ct": 42,
    "Total_Ct_Chng_Q4_Q1": 1.625,
    "Avg_Utilization_Ratio": 0.061,
}
TIMEOUT_S = 10  # of each request
# As `auth=`, the key goes before an entry in .netrc; as a header, it does not.
Auth = Callable[[requests.PreparedRequest], requests.PreparedRequest]


def read_key(path: Path) -> Auth:
    """Return a function that adds the API key of a file to a request; exit with one sentence if there is none."""
    try:
        key = path.read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        sys.exit(f"The key file can't be read: {error}")
    if not re.fullmatch("[!-~]+", key):
        sys.exit(f"The key file {path} has no API key: one line of letters and digits is expected")

    def add_key(request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {key}"
        return request

    return add_key


def parse_response(response: requests.Response) -> dict[str, Any]:
    """Return the body of a response; exit with the text of the problem if it is an error."""
    try:
        answer: dict[str, Any] = response.json()
    except requests.JSONDecodeError:
        sys.exit(f"{response.url} answered {response.status_code} and no JSON: {response.text[:200]!r}")
    if not response.ok:
        faults = [f"\n  {fault['pointer']}: {fault['message']}" for fault in answer.get("errors", [])]
        reason = f"{answer['title']}: {answer['detail']}{''.join(faults)}"
        sys.exit(f"{response.url} answered {response.status_code}, {reason}")
    return answer


def predict(url: str, key: Auth | None, customer: dict[str, Any], interval_s: float, attempts: int) -> float:
    """Return the customer's probability of churn: submit the customer, then poll the result."""
    accepted = parse_response(requests.post(f"{url}/churn/predict", json=customer, auth=key, timeout=TIMEOUT_S))
    result_url = f"{url}/churn/result/{accepted['task_id']}"
    for attempt in range(attempts):
        time.sleep(interval_s if attempt else 0)
        result = parse_response(requests.get(result_url, auth=key, timeout=TIMEOUT_S))
        if result["status"] == "Success":
            return float(result["probability"])
    sys.exit(f"Not finished after {attempts} attempts; ask again at {result_url}")


def reason_of(error: BaseException) -> str:
    """Return why there is no answer, such as "Connection refused"."""
    if isinstance(error, requests.Timeout):
        return f"it took longer than {TIMEOUT_S} s"
    cause = error.__cause__ or error.__context__
    return reason_of(cause) if cause else getattr(error, "strerror", None) or "the connection was lost"


def main(words: Sequence[str] | None = None) -> None:
    """Print the probability; exit with one sentence if there is none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="address of the service")
    parser.add_argument("--interval", type=float, default=5, help="seconds from one attempt to the next")
    parser.add_argument("--attempts", type=int, default=5, help="times to ask for the result")
    parser.add_argument("--key-file", type=Path, help="a file with your API key, if the service needs one")
    arguments = parser.parse_args(words)
    url, key = arguments.url.rstrip("/"), read_key(arguments.key_file) if arguments.key_file else None
    try:
        print(predict(url, key, CUSTOMER, arguments.interval, arguments.attempts))
    except requests.RequestException as error:
        if isinstance(error, ValueError):
            sys.exit(f"{arguments.url} is no address such as http://127.0.0.1:8000")
        sys.exit(f"No answer from {arguments.url}: {reason_of(error)}")
    except (AttributeError, KeyError, TypeError, ValueError):
        sys.exit(f"{arguments.url} is not the churn service: its answer has another form")
    except KeyboardInterrupt:
        sys.exit("Stopped")


if __name__ == "__main__":
    main()
