"""`make run` in a copy of the repository, and the processes that it starts."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.harness.processes import ROOT, free_port, until

MAKE_RUN = [sys.executable, "-m", "celery_task_app.cli.launch"]
# As `make run`, but each Valkey has any free port: two tests that start at the same time could both choose 6390.
LAUNCH = [sys.executable, "-c", "from celery_task_app.cli.launch import main; main(valkey_port=0)"]
PARTS = {
    "Valkey": "valkey-server",
    "worker": "celery_task_app.worker",
    "API": "uvicorn",
}  # each name with a word of its command
# Runs a command in the foreground of a new terminal, and types its standard input there.
TERMINAL = [
    sys.executable,
    "-c",
    "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))",
]


class Tree:
    """A copy of the repository, and the launchers that a test starts in it.

    Attributes:
        path: the folder of the copy.
        url: of the API.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"http://127.0.0.1:{free_port()}"
        self._launchers: list[subprocess.Popen[bytes]] = []
        left_out = shutil.ignore_patterns(".*", "__pycache__", "tests", "notebooks", "benchmarks", "*.csv")
        shutil.copytree(ROOT, path, ignore=left_out)

    def launch(self, *, command: Sequence[str] = LAUNCH, **environment: str) -> subprocess.Popen[bytes]:
        """Start a launcher; BROKER_URI and BACKEND_URI are not set unless a test sets them."""
        inherited = {name: value for name, value in os.environ.items() if name not in ("BROKER_URI", "BACKEND_URI")}
        with (self.path / "out").open("wb") as out, (self.path / "err").open("wb") as err:
            launcher = subprocess.Popen(
                command,
                cwd=self.path,
                env=inherited | {"PORT": self.url.rpartition(":")[2]} | environment,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                bufsize=0,
                start_new_session=True,
            )
        self._launchers.append(launcher)
        return launcher

    def serve(self, *, command: Sequence[str] = LAUNCH, **environment: str) -> subprocess.Popen[bytes]:
        """Start a launcher, and wait until it serves."""
        launcher = self.launch(command=command, **environment)
        until(lambda: "Serving on" in self.output() or launcher.poll() is not None, within_s=120)
        assert launcher.poll() is None, self.output() + self.errors()
        return launcher

    def output(self) -> str:
        """Return the standard output of the last launcher."""
        return (self.path / "out").read_text()

    def errors(self) -> str:
        """Return the standard error of the last launcher."""
        return (self.path / "err").read_text()

    def log(self, name: str) -> str:
        """Return the log of a part."""
        return (self.path / ".data" / f"{name.lower()}.log").read_text(errors="replace")

    def env(self) -> dict[str, str]:
        """Return the variables that `. .data/env` sets in a shell without any."""
        command = ["env", "-i", "sh", "-c", ". .data/env && env"]
        printed = subprocess.run(command, cwd=self.path, capture_output=True, text=True, check=True).stdout
        variables = dict(line.split("=", 1) for line in printed.splitlines())
        return {name: value for name, value in variables.items() if name not in ("PWD", "OLDPWD", "SHLVL", "_")}

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy, as in a second terminal; standard error is part of the output."""
        # `make test` tells a nested make that it is one, in variables such as MAKEFLAGS and MAKELEVEL.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        env = inherited | {"PORT": self.url.rpartition(":")[2]} | environment
        return subprocess.run(
            command, cwd=self.path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )

    def processes(self) -> list[psutil.Process]:
        """Return the running processes whose working directory is in the copy."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):  # it has ended, or belongs to another user
                if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(self.path):
                    found.append(process)
        return found

    def part(self, name: str) -> psutil.Process:
        """Return the main process of a part: the leader of its session."""
        (leader,) = [
            process
            for process in self.processes()
            if PARTS[name] in " ".join(process.cmdline()) and os.getsid(process.pid) == process.pid
        ]
        return leader

    def is_quiet(self) -> bool:
        """Return whether no process is left."""
        return not self.processes()

    def kill(self) -> None:
        """Kill every process at once, as a power failure does."""
        for number in (signal.SIGSTOP, signal.SIGKILL):  # a stopped launcher cannot react to the end of a part
            for process in self.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        until(self.is_quiet)

    def close(self) -> None:
        """Kill the processes that a failed test has left."""
        self.kill()
        for launcher in self._launchers:
            assert launcher.stdin
            launcher.stdin.close()
            launcher.wait(10)
