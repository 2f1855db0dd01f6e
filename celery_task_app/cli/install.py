"""Install requirements into `.venv`, with a line every few seconds, and one sentence if that fails.

The Makefile runs this file with any Python 3, because it refuses an old one. It therefore uses only the standard
library, and only the syntax of Python 3.6.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

VENV = Path(".venv")
PYTHON = VENV / "bin" / "python"
LOG = VENV / "pip.log"
LINE_EVERY_S = 5


def is_usable() -> bool:
    """Return whether `.venv` has pip, and a Python that is new enough."""
    check = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    return PYTHON.exists() and run(PYTHON, "-c", check).returncode == 0


def create() -> None:
    """Create `.venv`, unless it is usable. Packages that are there stay."""
    if is_usable():
        return
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    say(f"Creating {VENV} with Python {version} ...")
    created = run(sys.executable, "-m", "venv", VENV)
    if created.returncode or not is_usable():
        is_debian = "python3-venv" in created.stdout or "apt" in created.stdout
        remedy = f"install python{version}-venv" if is_debian else f"remove the folder {VENV}"
        fail(f"Python {version} could not create {VENV}: {remedy}, then run the command again.")


def install(*arguments: str) -> None:
    """Run `pip install`; print its last line every few seconds, and the time that it took."""
    name, started = arguments[-1], time.monotonic()
    say(f"Installing the packages of {name} into {VENV}; the first time takes a minute or more ...")
    options = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    options += ["--retries", "2"]  # without a network the default of 5 lasts a minute and a half
    with LOG.open("wb") as log:
        pip = subprocess.Popen(  # noqa: S603 - no shell
            [str(PYTHON), "-u", "-m", "pip", "install", *options, *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    while True:
        try:
            exit_code = pip.wait(LINE_EVERY_S)
            break
        except subprocess.TimeoutExpired:
            say(f"  {time.monotonic() - started:3.0f} s: {last_line()}")
    if exit_code:
        fail(f"pip could not install {name}: {reason()} All of its output is in {LOG}.")
    say(f"Installed {name} in {time.monotonic() - started:.0f} s.")


def last_line() -> str:
    """Return the last step of pip, without the folders of files and the origin of requirements."""
    lines = [line.strip() for line in LOG.read_text(errors="replace").splitlines()]
    steps = [line for line in lines if line and ("Retrying (" in line or not line.startswith("WARNING: "))]
    line = steps[-1] if steps else "pip starts"
    if "Retrying (" in line:
        return "a package index does not answer, and pip tries again"
    if line.startswith("Installing collected packages"):
        present = len(list(VENV.glob("lib/python*/site-packages/*.dist-info")))
        return f"Installing {line.count(',') + 1} packages; {VENV} has {present} now"
    return re.sub(r"\S+/(?=\S)| \(from .*", "", line)[:100]


def reason() -> str:
    """Return why pip failed, and the next step, as one sentence."""
    text = LOG.read_text(errors="replace")
    errors = re.findall(r"^ERROR: (.*)", text, re.MULTILINE)
    if "Retrying (" in text and errors and "No matching distribution" in errors[-1]:
        return "no package index answers; check the network, or set PIP_INDEX_URL to an index that you can reach."
    if errors and "No matching distribution" in errors[-1]:
        return f"{errors[-1]}; set PIP_INDEX_URL to an index that has it."
    return f"{errors[-1].rstrip('.') if errors else 'it ended'}; run the command again."


def run(*command: "str | Path") -> "subprocess.CompletedProcess[str]":
    """Run a command; return its exit code and its output."""
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)  # noqa: S603 - no shell


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


def fail(sentence: str) -> None:
    """Print the sentence and exit."""
    raise SystemExit(sentence)


def main(*arguments: str) -> None:
    """Install with the arguments of `pip install`; the last one is the requirements file."""
    if sys.version_info < (3, 11):  # noqa: UP036 - this file runs on an older Python too, to refuse it
        version = "{}.{}.{}".format(*sys.version_info)
        fail(f"Python {version} is too old: name Python 3.11 or newer, as in 'make run PYTHON=python3.12'.")
    try:
        create()
        install(*arguments)
    except KeyboardInterrupt:
        fail("\nStopped before everything was installed. The next run goes on.")


if __name__ == "__main__":
    main(*sys.argv[1:])
