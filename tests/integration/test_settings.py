"""A process with invalid settings does not start. tests/unit/test_settings.py has the settings themselves."""

import os
import subprocess
import sys

from tests.harness.processes import ROOT


def test_a_process_that_is_refused_prints_one_sentence_for_each_setting() -> None:
    env = {"PATH": os.environ["PATH"], "BACKEND_URI": "127.0.0.1:6379", "GROUP_MAX": "0"}
    program = [sys.executable, "-c", "import app"]
    done = subprocess.run(program, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    assert [line.split()[2] for line in done.stderr.splitlines()] == ["BACKEND_URI", "GROUP_MAX"]
