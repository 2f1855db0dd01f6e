"""Report idioms that a reader from another country must read twice, and sentences of more than 25 words in Markdown.

`make check` runs it on the files that git tracks or will track.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKED = {".py", ".md", ".lua", ".toml", ".yml", ".ipynb", ".html", ".css", ".js", ".txt", ".example", ""}
UNCHECKED = re.compile(r"LICENSE|requirements.*\.txt|\.ci/wording\.py")
NAME_THE_NOUN = "name the noun: 'the accepted rows', not 'what is accepted'"
IDIOMS = {
    r"whoever|whomever": "each client, a process: name the noun",
    r"whatever": "any, every: name the noun",
    r"nobody\b": "no client, no process",
    r"lets? (those|who|whom)\b": "release, allow: a plain verb with an object",
    r"those (who|whom|whose)\b": NAME_THE_NOUN,
    r"what (is|was|are|were|has|have|had|may|can|will|does|did|comes?|goes|stays?|waits?|needs?)\b": NAME_THE_NOUN,
    r"what (it|they|he|she|we|you|one|an?|the|this|that|these|those|each|every|no)\b": NAME_THE_NOUN,
    r"as ever\b": "as before",
    r", for (it|they|there|he|she|we|nothing|what|who)\b": "because",
    r"(?<!\.)bells?\b": "wake-up list, notification",  # a name in the broker ends in .bell
    r"breath": "pause: a number of seconds",
    r"leash|keepers?\b": "parent process",
    r"signs? of life": "heartbeat, worker status",
    r"waiting[- ]room": "the predictions that are not published yet, at most WAITING_ROOM",
    r"room\b": "capacity, space",
    r"(ride|rides|rode|riding)\b": "is sent with",
    r"(own|last) words?\b": "message, error text, last lines of the log",
    r"ow(e|es|ed)\b": "pending, without a result",
    r"goodbye|farewell": "close, disconnect",
}
PATTERNS = [(re.compile(rf"\b(?:{idiom})", re.IGNORECASE), plain) for idiom, plain in IDIOMS.items()]
LONGEST_LINE = 2_000  # characters; a longer line is an image in a notebook
LONGEST_SENTENCE = 25  # words
NO_PROSE = re.compile(r"^( *)```.*?^\1```$|<!--.*?-->|^[|#].*?$", re.MULTILINE | re.DOTALL)  # blocks, tables, headings
PARAGRAPH = re.compile(r"\n\s*\n|^ *(?:[-*]|\d+\.) ", re.MULTILINE)
CODE_OR_LINK = re.compile(r"`[^`]*`|\]\([^)]*\)")
SENTENCE = re.compile(r"[.!?:;]\W*\s+")


def checked_files() -> list[Path]:
    """Return the text files of the repository, without the unchecked ones."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()  # noqa: S603
    paths = [ROOT / name for name in names if not UNCHECKED.fullmatch(name)]
    return [path for path in paths if path.suffix in CHECKED and path.is_file()]


def findings(path: Path) -> list[str]:
    """Return `file:line: idiom -> alternative` for each idiom of a file."""
    return [
        f"{path.relative_to(ROOT)}:{number}: {match[0]!r} -> {plain}"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) <= LONGEST_LINE
        for pattern, plain in PATTERNS
        for match in pattern.finditer(line)
    ]


def long_sentences(path: Path) -> list[str]:
    """Return `file: sentence` for each long sentence of a page in Markdown; code and a link count as one word."""
    paragraphs = PARAGRAPH.split(NO_PROSE.sub("\n\n", path.read_text()))
    sentences = [text for one in paragraphs for text in SENTENCE.split(CODE_OR_LINK.sub("code ", one))]
    counted = [(len(re.findall(r"\w\S*", text)), " ".join(text.split())) for text in sentences]
    name = path.relative_to(ROOT)
    return [
        f"{name}: {count} words -> at most {LONGEST_SENTENCE}: {text}"
        for count, text in counted
        if count > LONGEST_SENTENCE
    ]


def main() -> int:
    """Print the findings of every checked file; return the exit code."""
    paths = checked_files()
    found = [finding for path in paths for finding in findings(path)]
    found += [finding for path in paths if path.suffix == ".md" for finding in long_sentences(path)]
    print("\n".join(found) or "No idiom and no long sentence found.")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
