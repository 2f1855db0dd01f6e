"""The clients, called in this process: starting Python and importing requests takes a second for each run."""

import contextlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import celery_task_app.cli.score.__main__ as score
import test_client
from tests.harness.processes import ROOT

Client = Callable[[Sequence[str]], Any]


def run_score(words: Sequence[str]) -> int:
    """Run `score` with a file that every checkout has."""
    return score.main([str(ROOT / "requirements.txt"), *words])


CLIENTS: dict[str, Client] = {"score": run_score, "test_client": test_client.main}


@dataclass(frozen=True)
class Ended:
    """The end of a run: its exit code and its output."""

    code: int
    stdout: str
    stderr: str


def run(client: Client, *words: object) -> Ended:
    """Run a client; an exception other than SystemExit is a defect of it."""
    stdout, stderr = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            code = client(list(map(str, words))) or 0
        except SystemExit as end:
            code = end.code
    if isinstance(code, str):  # the interpreter writes it to standard error, and ends with 1
        stderr.write(f"{code}\n")
        code = 1
    stdout.seek(0)
    return Ended(code or 0, stdout.read(), stderr.getvalue())


def sentence(client: Client, *words: object) -> str:
    """Return the one line that a client writes before it ends with exit code 1."""
    ended = run(client, *words)
    assert (ended.code, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    return line
