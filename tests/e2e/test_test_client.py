"""test_client.py against a stub: its messages for failures that the real service does not show on demand."""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.harness.clients import CLIENTS, run
from tests.harness.processes import ROOT, free_port
from tests.harness.stub import Stub, running_stub

PROCESSING = json.dumps({"task_id": "some-id", "status": "Processing"})


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running_stub() as server:
        yield server


def complaint(url: str, *options: str) -> str:
    """Return the standard error of a client that ends with exit code 1."""
    ended = run(CLIENTS["test_client"], "--url", url, *options)
    assert (ended.code, ended.stdout) == (1, "")
    return ended.stderr


def test_a_closed_port_is_named_by_a_client_that_is_isolated_from_this_repository() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-I", str(ROOT / "test_client.py"), "--url", url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"No answer from {url}: Connection refused\n")


@pytest.mark.parametrize("status", [422, 503])
def test_a_problem_is_shown_with_its_title_and_detail(stub: Stub, status: int) -> None:
    stub.status, stub.body = status, json.dumps({"title": "Some title", "status": status, "detail": "Some detail."})
    assert complaint(stub.url) == f"{stub.url}/churn/predict answered {status}, Some title: Some detail.\n"


def test_each_fault_of_the_customer_is_shown(stub: Stub) -> None:
    faults = [{"pointer": "#/Gender", "message": "should be 'F' or 'M'"}, {"pointer": "#/Age", "message": "not known"}]
    stub.status, stub.body = 422, json.dumps({"title": "Invalid features", "detail": "See errors.", "errors": faults})
    _, *named = complaint(stub.url).splitlines()
    assert named == ["  #/Gender: should be 'F' or 'M'", "  #/Age: not known"]


def test_an_unfinished_prediction_is_shown_with_its_url(stub: Stub) -> None:
    stub.status, stub.body = 202, PROCESSING
    message = complaint(stub.url, "--interval", "0.01", "--attempts", "3")
    assert message == f"Not finished after 3 attempts; ask again at {stub.url}/churn/result/some-id\n"
    assert stub.requests == 1 + 3


@pytest.mark.parametrize("status", [200, 502])
def test_a_response_that_is_not_json_is_shown(stub: Stub, status: int) -> None:
    stub.status, stub.body = status, "<html>\nBad gateway"
    message = complaint(stub.url)
    assert message == f"{stub.url}/churn/predict answered {status} and no JSON: '<html>\\nBad gateway'\n"


@pytest.mark.parametrize("body", ["{}", "[]", '"yes"'])
def test_another_service_is_named_as_such(stub: Stub, body: str) -> None:
    stub.status, stub.body = 200, body
    assert complaint(stub.url) == f"{stub.url} is not the churn service: its answer has another form\n"
