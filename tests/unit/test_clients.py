"""Kind of fault: a mistake in the options of a client ends it with a traceback or a riddle."""

from pathlib import Path

import pytest

from tests.harness.clients import CLIENTS, Client, run, run_score, sentence

clients = pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)


@clients
@pytest.mark.parametrize("url", ["localhost:8000", "8000", "", "http://", "http://127.0.0.1:99999", "ftp://127.0.0.1"])
def test_an_address_that_is_no_http_url_is_refused_with_an_example(client: Client, url: str) -> None:
    ended = run(client, "--url", url)
    assert ended.code != 0
    assert ended.stderr.splitlines()[-1].endswith("is no address such as http://127.0.0.1:8000")


@clients
@pytest.mark.parametrize("content", [None, b"", b" \n", b"two words", b"\xff\xfe\x00"])
def test_a_key_file_without_a_key_is_named(client: Client, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "client.key"
    if content is not None:
        path.write_bytes(content)
    assert "key file" in sentence(client, "--key-file", path)


@pytest.mark.parametrize(
    "option", ["--threshold=2", "--threshold=nan", "--threshold=x", "--resume=x", "--retry-for=-1"]
)
def test_a_wrong_option_is_exit_code_2_with_its_name(option: str) -> None:
    ended = run(run_score, option)
    assert (ended.code, ended.stdout) == (2, "")
    assert option.partition("=")[0] in ended.stderr.splitlines()[-1]
