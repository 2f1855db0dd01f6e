"""Kind of fault: another service, or none, ends a client with a traceback or a riddle."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.clients import CLIENTS, Client, run, run_score, sentence
from tests.harness.processes import ROOT, free_port
from tests.harness.stub import Stub, running_stub

SCORE = [sys.executable, "-m", "celery_task_app.cli.score"]
TEST_CLIENT = [sys.executable, "test_client.py"]
clients = pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running_stub() as server:
        server.status, server.body = 200, "<html>"
        yield server


def sentence_of_process(*words: object) -> str:
    """Run a client as a user does; return the one line that it writes before it ends with exit code 1."""
    done = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("command", [[*SCORE, "requirements.txt"], TEST_CLIENT], ids=["score", "test_client"])
def test_a_wrong_port_is_named_with_the_reason(command: list[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert f"No answer from {url}: Connection refused" in sentence_of_process(*command, "--url", url)


@clients
def test_an_unknown_host_is_named(client: Client) -> None:
    assert "No answer from http://host.invalid: " in sentence(client, "--url", "http://host.invalid")


@clients
@pytest.mark.parametrize("body", ["<html>", "[]", "{}", '"yes"', "null", '{"components": {"schemas": []}}'])
def test_another_service_is_named_as_such(client: Client, stub: Stub, body: str) -> None:
    stub.body = body
    message = sentence(client, "--url", stub.url)
    assert stub.url in message
    assert "is not the churn service" in message or "no JSON" in message


@clients
@pytest.mark.parametrize("status", [302, 404, 500, 502])
def test_an_answer_without_a_reason_is_shown_with_its_status(client: Client, stub: Stub, status: int) -> None:
    stub.status = status
    assert str(status) in sentence(client, "--url", stub.url)


def test_a_redirect_is_not_followed_with_customers(stub: Stub) -> None:
    stub.status, stub.location = 308, "https://churn.example/"
    message = sentence(run_score, "--url", stub.url)
    assert message.endswith("redirects to https://churn.example/: use that address in --url.")


@clients
def test_a_refused_key_is_shown_as_the_service_says_it(client: Client, stub: Stub) -> None:
    stub.status, stub.body = 401, json.dumps({"title": "No valid API key", "detail": "Send a key."})
    assert sentence(client, "--url", stub.url).endswith("No valid API key: Send a key.")


@clients
def test_the_key_of_the_key_file_is_sent_although_netrc_has_a_password(
    client: Client, stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login somebody password something\n")
    (tmp_path / "client.key").write_text("the-key\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert run(client, "--url", stub.url, "--key-file", tmp_path / "client.key").code == 1
    assert stub.authorization == "Bearer the-key"


def test_an_output_that_cannot_be_written_is_named(stub: Stub, tmp_path: Path) -> None:
    schema = {"properties": {"Age": {}}, "required": ["Age"]}
    stub.body = json.dumps({"components": {"schemas": {"Customer": schema}}})
    (tmp_path / "customers.csv").write_text("Age\n45\n")
    missing = tmp_path / "missing" / "scored.csv"
    message = sentence_of_process(*SCORE, tmp_path / "customers.csv", "--url", stub.url, "--out", missing)
    assert str(missing.parent) in message
    assert stub.requests == 1  # no customer was sent
