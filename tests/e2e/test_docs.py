"""The documentation: every shell block without a mark is run, page by page, on a service of its own."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest

from tests.conftest import DATA, skip
from tests.harness.launcher import Tree
from tests.harness.pages import Command, Page, all_pages, matches
from tests.harness.processes import ROOT, until
from tests.harness.servers import Servers
from tests.harness.service import Service, running_service

UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PAGES = all_pages()


class Shell:
    """One bash for the commands of a page, so that a variable of one command can be used in the next."""

    def __init__(self, folder: Path, **environment: str) -> None:
        """Start bash in a folder."""
        self._bash = subprocess.Popen(
            ["bash"],
            cwd=folder,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, command: str) -> tuple[int, str]:
        """Run a command; return its exit code, and both of its outputs."""
        assert self._bash.stdin
        assert self._bash.stdout
        end = uuid4().hex
        self._bash.stdin.write(f"{command}\necho {end} $?\n")
        self._bash.stdin.flush()
        output = ""
        for line in self._bash.stdout:
            before, found, code = line.partition(end)
            output += before
            if found:
                return int(code), output
        raise AssertionError(f"bash ended: {output}")

    def close(self) -> None:
        """End bash."""
        self._bash.communicate()


@pytest.fixture(scope="module")
def service(started: Callable[[str], Servers], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """An API and a worker on the embedded Valkey, as `make run` starts them."""
    servers = started("valkey")
    servers.clear()
    with running_service(servers, tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def shell(service: Service, tmp_path: Path) -> Iterator[Shell]:
    """A shell in a copy of the repository, in which port 8000 is that of the service."""
    folder = tmp_path / "copy"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests", "*.csv"))
    for path in folder.rglob("*.py"):
        path.write_text(path.read_text().replace("127.0.0.1:8000", f"127.0.0.1:{service.port}"))
    (folder / ".venv").symlink_to(sys.prefix)
    if DATA.exists():
        (folder / "BankChurners.csv").symlink_to(DATA.resolve())
    shell = Shell(folder, **service.servers.env, TMPDIR=str(service.folder))
    yield shell
    shell.close()


PAGES_WITH_COMMANDS = [page for page in PAGES if any(block.is_run for block in page.blocks())]


@pytest.mark.parametrize("page", PAGES_WITH_COMMANDS, ids=[page.name for page in PAGES_WITH_COMMANDS])
def test_the_commands_of_a_page_print_the_shown_output(page: Page, shell: Shell, service: Service) -> None:
    blocks = [block for block in page.blocks() if block.is_run]
    if not DATA.exists() and any("BankChurners.csv" in block.text for block in blocks):
        skip(f"no data set at {DATA}: set DATA")
    reader = Reader(shell, service.port)
    for block in blocks:
        for command in block.commands():
            until(partial(reader.succeeds, command), every_s=0.2)


class Reader:
    """Types the commands of a page; an id that the page shows stands for the id that the service returned."""

    def __init__(self, shell: Shell, port: int) -> None:
        """Type into a shell, and use this port instead of 8000."""
        self._shell = shell
        self._port = port
        self._ids: dict[str, str] = {}

    def succeeds(self, command: Command) -> bool:
        """Run a command; return whether it printed the shown output.

        Raises:
            AssertionError: it failed, or its output is another one and it must not be repeated.
        """
        text = self._with_ids(re.sub(r"(localhost|127\.0\.0\.1):8000", f"127.0.0.1:{self._port}", command.text))
        code, output = self._shell.run(text)
        assert code == 0, f"{text}\nexit code {code}: {output}"
        if command.output is None:
            return True
        shown, returned = UUID.findall(command.output), UUID.findall(output)
        if len(shown) == len(returned):
            self._ids.update(zip(shown, returned, strict=True))
        is_shown = matches(output, self._with_ids(command.output))
        # A request without a body only reads: it is repeated until the result is there.
        assert is_shown or (text.startswith("curl") and not re.search("-X|-d |--data", text)), (
            f"{text}\nprinted {output}"
        )
        return is_shown

    def _with_ids(self, text: str) -> str:
        return UUID.sub(lambda match: self._ids.get(match[0], match[0]), text)


def test_the_commands_for_an_api_key_create_a_key_and_its_digest(tmp_path: Path) -> None:
    commands = [command.text for page in PAGES for block in page.blocks() for command in block.commands()]
    create = next(text for text in commands if "> client.key" in text)
    export = next(text for text in commands if text.startswith("export API_KEYS="))
    shell = Shell(tmp_path)
    assert shell.run(create)[0] == 0
    assert shell.run(export) == (0, "")
    _, digest = shell.run("echo $API_KEYS")
    shell.close()
    key = (tmp_path / "client.key").read_text().strip()
    assert len(key) == 64
    assert digest.strip() == hashlib.sha256(key.encode()).hexdigest()


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    """A copy of the repository."""
    tree = Tree(tmp_path / "own")
    yield tree
    tree.close()
