"""The pages of the documentation: their tables, links, blocks and commands."""

import re
import subprocess
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from tests.harness.processes import ROOT

SHELL = ("console", "sh")
_BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"<!-- (not run|own-model): (.+) -->")


@dataclass
class Command:
    """A command of a shell block.

    Attributes:
        text: without the prompt; it may have several lines.
        output: the shown output; None if the page shows none.
    """

    text: str
    output: str | None = None


@dataclass
class Block:
    """A fenced block.

    Attributes:
        language: `console` has prompts and outputs; `sh` can be pasted.
        text: without indentation.
        mark: "not run" or "own-model", and its text, from the comment directly before the block.
        output: of an `sh` block: the text of a `text` or `json` block directly after it.
        line: its number in the page.
    """

    language: str
    text: str
    mark: tuple[str, str] | None
    output: str | None
    line: int

    @property
    def is_run(self) -> bool:
        """Whether the test of the documentation runs this block."""
        return self.language in SHELL and self.mark is None

    def commands(self) -> Iterator[Command]:
        """Yield the commands of a shell block, in order."""
        if self.language == "sh":
            yield Command(self.text, self.output)
        if self.language != "console":
            return
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            length = next(length for length in range(1, len(lines) + 1) if is_complete("\n".join(lines[:length])))
            yield Command("\n".join(lines[:length]), "\n".join(lines[length:]) or None)


def is_complete(command: str) -> bool:
    """Return whether bash needs no further line."""
    check = subprocess.run(["bash", "-n"], input=command, text=True, capture_output=True, check=False)
    return check.returncode == 0 and not check.stderr and not command.endswith("\\")


@dataclass
class Page:
    """A page in Markdown."""

    path: Path

    def __post_init__(self) -> None:
        self.text = self.path.read_text()
        self.prose = _BLOCK.sub("", self.text)

    @property
    def name(self) -> str:
        """The path in the repository."""
        return str(self.path.relative_to(ROOT))

    def blocks(self) -> list[Block]:
        """Return the fenced blocks, in order."""
        found = list(_BLOCK.finditer(self.text))
        blocks = []
        for match, following in zip_longest(found, found[1:]):
            before = self.text[: match.start()].splitlines()
            mark = _MARK.fullmatch(before[-1].strip()) if before else None
            output = None
            if (
                following
                and following[2] in {"text", "json"}
                and not self.text[match.end() : following.start()].strip()
            ):
                output = textwrap.dedent(following[3])
            text, line = textwrap.dedent(match[3]), len(before) + 1
            blocks.append(Block(match[2], text, (mark[1], mark[2]) if mark else None, output, line))
        return blocks

    def rows(self, header: str) -> list[list[str]]:
        """Return the rows of every table whose header begins with these words; cells without their backquotes."""
        rows = []
        for table in re.findall(rf"^\| {re.escape(header)} .*\n\|[-|]+\|\n((?:\|.*\n?)+)", self.text, re.MULTILINE):
            rows += [[cell.strip().strip("`") for cell in line[1:-1].split("|")] for line in table.splitlines()]
        return rows

    def links(self) -> list[str]:
        """Return the targets of the links and images that are not on other sites."""
        return re.findall(r"\]\((?!https?:)([^)\s]+)\)", self.prose)

    def anchors(self) -> set[str]:
        """Return the anchors of the headings, as GitHub makes them."""
        headings = re.findall(r"^#+ (.*)$", self.prose, re.MULTILINE)
        plain = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in headings)
        return {heading.replace(" ", "-") for heading in plain}


def all_pages() -> list[Page]:
    """Return README.md and the pages of docs/, without the decision records."""
    return [Page(ROOT / "README.md"), *map(Page, sorted((ROOT / "docs").glob("*.md")))]


def matches(output: str, shown: str) -> bool:
    """Return whether an output is the shown one, in which `…` is any text, and white space does not count."""
    parts = re.split(r"…|\.\.\.", "".join(shown.split()))
    return bool(re.fullmatch(".*".join(map(re.escape, parts)), "".join(output.split())))
