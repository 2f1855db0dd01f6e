"""The churn service over HTTP: every fault of the connection or of an answer is a ScoreError. No files here."""

import csv
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn
from urllib.parse import urlsplit

import requests
from requests import codes

from celery_task_app.cli.score import ScoreError

PAUSE_S = 0.2  # between two requests for the progress
_LONGEST_PAUSE_S = 10  # that Retry-After may ask for
_TIMEOUT_S = (5, 120)  # to connect, to read
_LISTED_ROWS = 100  # invalid rows that one answer of the API names
_RESULTS_HEADER = ["row", "probability", "error"]


class BearerKey(requests.auth.AuthBase):
    """Sends an API key. A header of the session would lose against an entry in .netrc."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the key to a request."""
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request


@dataclass(frozen=True)
class Accepted:
    """A batch as the service accepted it.

    Attributes:
        batch_id: its id; None if no row is a valid customer.
        total: valid rows.
        refused: invalid rows.
        reasons: by number, the reasons of the first invalid rows.
    """

    batch_id: str | None
    total: int
    refused: int
    reasons: dict[int, str] = field(default_factory=dict)


class Progress(NamedTuple):
    """The progress of a batch.

    Attributes:
        done: rows that have ended.
        total: rows.
        versions: by version of the model, the rows that it computed.
    """

    done: int
    total: int
    versions: Counter[str]


class TooLarge(ScoreError):
    """The service accepts smaller batches only."""


class ChurnService:
    """The routes of batches."""

    def __init__(self, session: requests.Session, url: str, retry_for_s: float) -> None:
        """Call the service at a URL.

        Args:
            session: has the key.
            url: without a slash at its end.
            retry_for_s: longest time for which one request is repeated.
        """
        self._session = session
        self._url = url
        self._retry_for_s = retry_for_s
        self._has_answered = False

    def features(self) -> tuple[list[str], list[str]]:
        """Return the features of a customer, and those that are required, from the API's own description."""
        answer = self._request("GET", "/openapi.json")
        try:
            customer = answer.json()["components"]["schemas"]["Customer"]
            features, required = list(customer["properties"]), list(customer.get("required", []))
        except (ValueError, LookupError, TypeError, AttributeError):
            self._refuse(answer)
        self._has_answered = True
        return features, required

    def post(self, header: bytes, rows: Sequence[bytes], on_error: str = "skip") -> Accepted:
        """Send rows of CSV as a batch.

        Raises:
            TooLarge: the batch is beyond the limits of the service, or begins with too many invalid rows.
        """
        answer = self._request(
            "POST",
            "/churn/batches",
            passed=(codes.request_entity_too_large, codes.unprocessable_entity),
            data=b"".join([header, *rows]),
            headers={"Content-Type": "text/csv"},
            params={"on_error": on_error},
        )
        if answer.status_code == codes.request_entity_too_large:
            raise TooLarge(self._problem(answer))
        try:
            body = answer.json()
            reasons = {int(row["row"]): _reason(row) for row in body["rows"]}
            if answer.status_code == codes.unprocessable_entity:
                if on_error == "skip" and int(body["refused"]) < len(rows):  # the service did not read the rest
                    raise TooLarge(self._problem(answer))
                return Accepted(None, 0, int(body["refused"]), reasons)
            accepted = Accepted(str(body["batch_id"]), int(body["total"]), int(body["refused"]), reasons)
        except (ValueError, LookupError, TypeError, AttributeError):
            self._refuse(answer)
        if accepted.total + accepted.refused != len(rows):
            raise ScoreError(f"The service counted {accepted.total + accepted.refused} rows of {len(rows)}.")
        return accepted

    def progress(self, batch_id: str) -> Progress:
        """Return the progress of a batch."""
        answer = self._request("GET", f"/churn/batches/{batch_id}")
        try:
            body = answer.json()
            versions = body.get("model_versions", {})  # a service of version 0.1.0 does not count them
            return Progress(int(body["done"]), int(body["total"]), Counter(versions))
        except (ValueError, LookupError, TypeError, AttributeError):
            self._refuse(answer)

    def wait(self, batch_id: str) -> Iterator[Progress]:
        """Yield the progress, until all rows are done."""
        while True:
            progress = self.progress(batch_id)
            yield progress
            if progress.done >= progress.total:
                return
            time.sleep(PAUSE_S)

    def results(self, batch_id: str, total: int) -> dict[int, tuple[str, str]]:
        """Return by row its probability and its error, one of them empty."""
        answer = self._request("GET", f"/churn/batches/{batch_id}/results", headers={"Accept": "text/csv"})
        try:
            header, *lines = csv.reader(answer.content.decode().splitlines())
            results = {int(row): (probability, error) for row, probability, error in lines}
        except (ValueError, csv.Error):
            self._refuse(answer)
        if header != _RESULTS_HEADER:
            self._refuse(answer)
        if len(results) != total:
            raise ScoreError(f"The service has {len(results)} results of {total}.")
        return results

    def reasons(self, header: bytes, rows: Sequence[bytes], numbers: list[int]) -> Iterator[tuple[int, str]]:
        """Yield the reason of each of these rows, which the service refused. No row is scored again.

        An answer names a hundred rows at most. So the rows are sent again, a hundred at a time, with
        `on_error=reject`.

        Raises:
            ScoreError: the service accepts such a row now, so it is not the row that was refused.
        """
        while numbers:
            asked, numbers = numbers[:_LISTED_ROWS], numbers[_LISTED_ROWS:]
            answer = self.post(header, [rows[number] for number in asked], on_error="reject")
            if answer.batch_id is not None:
                self.delete(answer.batch_id)
            if not answer.reasons:
                raise ScoreError(f"Row {asked[0] + 1} has no result: the batch was made from another file.")
            yield from ((asked[place], reason) for place, reason in answer.reasons.items())
            numbers = [number for place, number in enumerate(asked) if place not in answer.reasons] + numbers

    def delete(self, batch_id: str) -> None:
        """Cancel a batch."""
        self._request("DELETE", f"/churn/batches/{batch_id}")

    def batch_url(self, batch_id: str) -> str:
        """Return the URL of a batch."""
        return f"{self._url}/churn/batches/{batch_id}"

    def _request(self, method: str, path: str, passed: Sequence[int] = (), **options: Any) -> requests.Response:
        """Return a successful answer, or one with a passed status; repeat the request after a passing fault.

        A passing fault is an answer with Retry-After. Once the service has answered, a lost connection is one too.
        """
        deadline = time.monotonic() + self._retry_for_s
        while True:
            pause_s = 1.0
            try:
                answer = self._session.request(
                    method, self._url + path, timeout=_TIMEOUT_S, allow_redirects=False, **options
                )
            except requests.RequestException as error:
                fault = f"No answer from {self._url}: {_connection_fault(error)}."
                may_pass = self._has_answered
            else:
                if answer.status_code in (codes.ok, codes.accepted, codes.no_content, *passed):
                    return answer
                fault = self._problem(answer)
                may_pass = "Retry-After" in answer.headers or (
                    self._has_answered and answer.status_code in (codes.bad_gateway, codes.gateway_timeout)
                )
                if (asked := answer.headers.get("Retry-After", "")).isdecimal():
                    pause_s = min(float(asked), _LONGEST_PAUSE_S)
            if not may_pass or time.monotonic() + pause_s > deadline:
                raise ScoreError(fault)
            time.sleep(pause_s)

    def _problem(self, answer: requests.Response) -> str:
        """Return the reason of a refusal as a sentence."""
        if answer.is_redirect:
            return f"{self._url} redirects to {answer.headers['Location']}: use that address in --url."
        try:
            problem = answer.json()
            return f"{problem['title']}: {problem['detail']}"
        except (ValueError, LookupError, TypeError):
            return f"{self._url} answered {answer.status_code} {answer.reason} without a reason: check --url."

    def _refuse(self, answer: requests.Response) -> NoReturn:
        raise ScoreError(
            f"{self._url} is not the churn service: {urlsplit(answer.url).path} has an unknown answer. Check --url."
        )


def _reason(row: dict[str, Any]) -> str:
    """Return the errors of an invalid row, each with the name of its feature."""
    return "; ".join(f"{error['pointer'].rpartition('/')[2]}: {error['message']}" for error in row["errors"])


def _connection_fault(error: requests.RequestException) -> str:
    """Return why there is no answer: the operating system's reason, if the chain of errors has one."""
    if isinstance(error, requests.Timeout):
        return "it took too long"
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    reasons = [cause.strerror for cause in causes if isinstance(cause, OSError) and cause.strerror]
    return reasons[-1] if reasons else "the connection was lost"
