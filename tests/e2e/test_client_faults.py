"""Kind of fault: a mistake of the user, or another service, ends a client with a traceback or a riddle."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.processes import ROOT, free_port
from tests.harness.stub import Stub, running_stub

SCORE = [sys.executable, "-m", "celery_task_app.cli.score", "requirements.txt"]
TEST_CLIENT = [sys.executable, "test_client.py"]
clients = pytest.mark.parametrize("client", [SCORE, TEST_CLIENT], ids=["score", "test_client"])


@pytest.fixture
def stub() -> Iterator[Stub]:
    with running_stub() as server:
        server.status, server.body = 200, "<html>"
        yield server


def run(client: list[str], *options: object, **env: str) -> subprocess.CompletedProcess[str]:
    words = [*client, *map(str, options)]
    done = subprocess.run(
        words, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=False, timeout=60
    )
    assert "Traceback" not in done.stderr
    assert done.returncode != 0
    assert done.stdout == ""
    return done


def sentence(client: list[str], *options: object) -> str:
    """Return the one line that the client writes before it ends with exit code 1."""
    done = run(client, *options)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    return line


@clients
def test_a_wrong_port_and_an_unknown_host_are_named_with_the_reason(client: list[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert f"No answer from {url}: Connection refused" in sentence(client, "--url", url)
    assert "No answer from http://host.invalid: " in sentence(client, "--url", "http://host.invalid")


@clients
@pytest.mark.parametrize("url", ["localhost:8000", "8000", "", "http://", "http://127.0.0.1:99999", "ftp://127.0.0.1"])
def test_an_address_that_is_no_http_url_is_refused_with_an_example(client: list[str], url: str) -> None:
    message = run(client, "--url", url).stderr.splitlines()[-1]
    assert message.endswith("is no address such as http://127.0.0.1:8000")


@clients
@pytest.mark.parametrize("content", [None, b"", b" \n", b"two words", b"\xff\xfe\x00"])
def test_a_key_file_without_a_key_is_named(client: list[str], tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "client.key"
    if content is not None:
        path.write_bytes(content)
    assert "key file" in sentence(client, "--key-file", path)


@clients
@pytest.mark.parametrize("body", ["<html>", "[]", "{}", '"yes"', "null", '{"components": {"schemas": []}}'])
def test_another_service_is_named_as_such(client: list[str], stub: Stub, body: str) -> None:
    stub.body = body
    message = sentence(client, "--url", stub.url)
    assert stub.url in message
    assert "is not the churn service" in message or "no JSON" in message


@clients
@pytest.mark.parametrize("status", [302, 404, 500, 502])
def test_an_answer_without_a_reason_is_shown_with_its_status(client: list[str], stub: Stub, status: int) -> None:
    stub.status = status
    assert str(status) in sentence(client, "--url", stub.url)


def test_a_redirect_is_not_followed_with_customers(stub: Stub) -> None:
    stub.status, stub.location = 308, "https://churn.example/"
    message = sentence(SCORE, "--url", stub.url)
    assert message.endswith("redirects to https://churn.example/: use that address in --url.")


@clients
def test_a_refused_key_is_shown_as_the_service_says_it(client: list[str], stub: Stub) -> None:
    stub.status, stub.body = 401, json.dumps({"title": "No valid API key", "detail": "Send a key."})
    assert sentence(client, "--url", stub.url).endswith("No valid API key: Send a key.")


@clients
def test_the_key_of_the_key_file_is_sent_although_netrc_has_a_password(
    client: list[str], stub: Stub, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("default login somebody password something\n")
    (tmp_path / "client.key").write_text("the-key\n")
    run(client, "--url", stub.url, "--key-file", tmp_path / "client.key", NETRC=str(tmp_path / "netrc"))
    assert stub.authorization == "Bearer the-key"


@pytest.mark.parametrize(
    "option", ["--threshold=2", "--threshold=nan", "--threshold=x", "--resume=x", "--retry-for=-1"]
)
def test_a_wrong_option_is_exit_code_2_with_its_name(option: str) -> None:
    done = run(SCORE, option)
    assert done.returncode == 2
    assert option.partition("=")[0] in done.stderr.splitlines()[-1]


def test_an_output_that_cannot_be_written_is_named(stub: Stub, tmp_path: Path) -> None:
    schema = {"properties": {"Age": {}}, "required": ["Age"]}
    stub.body = json.dumps({"components": {"schemas": {"Customer": schema}}})
    (tmp_path / "customers.csv").write_text("Age\n45\n")
    command = [*SCORE[:-1], str(tmp_path / "customers.csv"), "--url", stub.url]
    assert str(tmp_path / "missing") in sentence(command, "--out", tmp_path / "missing" / "scored.csv")
    assert stub.requests == 1  # no customer was sent
